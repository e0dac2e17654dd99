"""Criteria of importance are what their formulas say, for every sort of block and unit."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cut_cases import cases, images, parent, reordered
from torch import Tensor

from supernet.inherit.importance import CRITERIA, Units
from supernet.inherit.observing import chain, observe
from supernet.inherit.smaller import inner_units
from supernet.network.axes import entries
from supernet.network.backbone import Backbone

OURS = ("activation", "magnitude", "taylor")
PATH = "stages.0.blocks.1"


def all_units(network: Backbone) -> list[Units]:
    return [
        Units(path, names)
        for path, module in chain(network)
        for names in inner_units(module)
        if module.sizes()[min(names)] > 1
    ]


def loss(network: Backbone, batch: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return F.cross_entropy(network(batch[0]), batch[1]).item()


@torch.no_grad()
def scaled(network: Backbone, units: Units, unit: int, factor: float) -> Backbone:
    """A copy in which all that belongs to a unit is multiplied, once for each dimension."""
    network = copy.deepcopy(network)
    module = units.module(network)
    for name, axes in module.axes().items():
        for dim, axis in enumerate(axes):
            for unit_name in units.names:
                of = torch.tensor(entries(axis, module.sizes(), unit_name))
                parameter = module.get_parameter(name)
                parameter.index_copy_(
                    dim,
                    (of == unit).nonzero()[:, 0],
                    parameter.index_select(dim, (of == unit).nonzero()[:, 0]) * factor,
                )
    return network


@pytest.mark.parametrize("name", OURS)
@cases
def test_every_unit_has_a_number_that_goes_with_it(name: str, case: str) -> None:
    network, batches = parent(case), images()
    units = all_units(network)
    assert any(one.path == PATH for one in units)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores = CRITERIA[name].measure(network, units, batches)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    other = copy.deepcopy(network)
    for one in units:
        module = one.module(other)
        size = module.sizes()[min(one.names)]
        assert scores[one].shape == (size,)
        assert scores[one].dtype == torch.float64
        assert (scores[one] >= 0).all()
        assert scores[one].max() > 0
        order = np.random.default_rng(size).permutation(size).tolist()
        module.load_state_dict(reordered(module, dict.fromkeys(one.names, order)))
        scores[one] = scores[one][torch.tensor(order)]
    for one, values in CRITERIA[name].measure(other, units, batches).items():
        torch.testing.assert_close(values, scores[one], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("case", ["inverted", "basic", "gated", "window_attention", "gnconv"])
def test_taylor_is_the_derivative_by_a_unit(case: str) -> None:
    network, batches = parent(case).double(), images()
    batches = [(pixels.double(), labels) for pixels, labels in batches]
    units = [one for one in all_units(network) if one.path == PATH]
    scores = CRITERIA["taylor"].measure(network, units, batches)
    step = 1e-5
    for one in units:
        for unit in range(0, len(scores[one]), 5):
            changes = [
                abs(
                    loss(scaled(network, one, unit, 1 + step), batch)
                    - loss(scaled(network, one, unit, 1 - step), batch)
                )
                for batch in batches
            ]
            expected = np.mean(changes) / (2 * step)
            assert scores[one][unit].item() == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_activation_is_the_mean_square_of_what_is_read() -> None:
    for case, layer, at in (
        ("pooling", "mlp.fc2", lambda x: x),
        ("gated", "project.conv", lambda x: x.permute(0, 2, 3, 1)),
        ("bottleneck", "expand.conv", lambda x: x.permute(0, 2, 3, 1)),
    ):
        network, batches = parent(case), images()
        names = frozenset({"inner" if case == "bottleneck" else "hidden"})
        one, pixels = Units(PATH, names), torch.cat([pixels for pixels, _ in batches])
        x = pixels
        for path, module in chain(network):
            if path == PATH:
                break
            x = module(x)
        _, seen = observe(one.module(network), x, [layer])
        read = at(seen[layer][0]).detach().flatten(0, 2).double()
        expected = [read[:, unit].square().mean() for unit in range(read.shape[1])]
        scores = CRITERIA["activation"].measure(network, [one], batches)[one]
        torch.testing.assert_close(scores, torch.stack(expected))


def test_heads_are_judged_by_all_their_channels() -> None:
    network, batches = parent("attention"), images()
    path = "stages.1.blocks.0"
    heads, each = Units(path, frozenset({"heads"})), Units(path, frozenset({"head_dim"}))
    scores = CRITERIA["activation"].measure(network, [heads, each], batches)
    assert len(scores[heads]) == 2
    assert len(scores[each]) == 8
    assert scores[heads].sum() == pytest.approx(scores[each].sum())


def test_magnitude_is_of_the_weights_with_norms_folded() -> None:
    network = parent("inverted")
    one = Units(PATH, frozenset({"hidden"}))
    scores = CRITERIA["magnitude"].measure(network, [one], [])[one]
    block = one.module(network)
    for unit in range(len(scores)):
        scale = block.project.norm.affine()[0].square().detach()
        total = (block.project.conv.weight[:, unit, 0, 0].double().square() * scale).sum().item()
        for part in (block.expand, block.depthwise):
            factor = part.norm.affine()[0][unit].item()
            total += factor**2 * part.conv.weight[unit].square().sum().item()
        assert scores[unit].item() == pytest.approx(math.sqrt(total), rel=1e-5)


def test_criteria_are_known_by_their_names() -> None:
    assert set(OURS) <= set(CRITERIA)
