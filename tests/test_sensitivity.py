"""Numbers that say which components suffer from int8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_quantised import images, small, trained

from search_space.components import components
from search_space.precision import in_precision
from supernet.network.quantised import fake_quantisers
from supernet.quantisation.calibration import quantised_network
from supernet.quantisation.sensitivity import relevances, rounding_scores


@pytest.mark.parametrize("name", ["mobilenetv2_050", "swin_t"])
def test_the_head_s_numbers_are_those_of_closed_forms(name: str) -> None:
    network, x = trained(small(name)), images(count=16)
    result = quantised_network(network, in_precision(network.architecture, "int8"), [x])
    scores = rounding_scores(network, result, x, seed=3)
    paths = [item.path for item in components(network.architecture, 10)]
    assert list(scores) == paths
    with torch.no_grad():
        features = network.stages(network.stem(x))
        logits = network(x)
        change = result.head(features) - logits
        drawn = torch.Generator().manual_seed(3)
        labels = torch.multinomial(logits.softmax(1), 1, generator=drawn)[:, 0]
        gradient = logits.softmax(1) - F.one_hot(labels, 10)
        expected = 0.5 * (gradient * change).square().sum(1).mean()
    # not closer, since kernels differ with gradients, and a tie may be rounded the other way
    assert scores["head"] == pytest.approx(float(expected), rel=0.05)
    shares = relevances(network, x)
    assert list(shares) == paths
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share >= 0 for share in shares.values())


def test_a_component_with_a_wrong_range_stands_out() -> None:
    network, x = trained(small("resnet18")).train(), images(count=16)
    result = quantised_network(network, in_precision(network.architecture, "int8"), [x])
    path = "stages.2.blocks.0"
    for place in fake_quantisers(result.get_submodule(path)).values():
        place.set_range(-0.05, 0.05)
    scores = rounding_scores(network, result, x)
    assert max(scores, key=scores.__getitem__) == path
    assert network.training
    assert all(parameter.grad is None for parameter in network.parameters())


def test_components_in_float_have_no_score() -> None:
    network, x = trained(small("resnet18")), images()
    own, other = network.architecture, in_precision(network.architecture, "int8")
    mixed = replace(other, stages=(own.stages[0], *other.stages[1:]))
    scores = rounding_scores(network, quantised_network(network, mixed, [x]), x)
    assert "stages.0.blocks.0" not in scores
    assert "stages.1.blocks.0" in scores
