"""Modules in int8: what they round, and that runtimes compute what they simulate."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from predictors.counts import count_entry
from predictors.measuring.runtimes.onnx_graph import to_onnx
from search_space import Architecture, SearchSpace, known, load_space
from search_space.around import around
from search_space.components import components
from search_space.errors import InvalidArchitectureError, UnknownNameError, UsageError
from search_space.precision import in_precision, quantised, with_precisions
from supernet import Backbone, build
from supernet.network.integer_graphs import is_quantised
from supernet.network.layers import Conv2d, Linear, fold_batch_norms
from supernet.network.quantised import (
    FakeQuantiser,
    QuantisedConv2d,
    QuantisedLinear,
    fake_quantisers,
)
from supernet.network.supernet import Supernet
from supernet.quantisation.calibration import calibrate, quantised_network
from supernet.quantisation.ranges import RANGES, Seen, mse, percentile
from supernet.training.evaluation import evaluate

NAMES = ("mobilenetv2_050", "resnet18", "efficientnet_b0", "swin_t", "convnext_t", "caformer_s18")


def small(name: str) -> Architecture:
    """A known design on small images, with at most a block in each stage."""
    own = known(name)
    stages = tuple(replace(stage, blocks=stage.blocks[:1]) for stage in own.stages)
    return replace(own, resolution=64, stages=stages)


def trained(architecture: Architecture) -> Backbone:
    """A network whose batch norms have averages of random images."""
    torch.manual_seed(0)
    network = build(architecture, num_classes=10)
    with torch.no_grad():
        for _ in range(20):
            network.train()(torch.randn(16, 3, 64, 64))
    return network.eval()


def images(seed: int = 0, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_a_quantiser_rounds_to_even_levels_of_which_zero_is_one() -> None:
    place = FakeQuantiser().eval()
    place.set_range(-1.0, 3.0)
    x = 6 * torch.rand(1001, generator=torch.Generator().manual_seed(0)) - 2
    scale, zero = 4 / 255, round(255 / 4)
    levels = np.clip(np.round(x.numpy() / np.float32(scale)) + zero, 0, 255)
    assert np.allclose(place(x).detach(), (levels - zero) * scale, atol=1e-6)
    assert place(torch.zeros(1)).item() == 0
    place.set_range(0.5, 2.0)  # widened to hold zero
    assert place(torch.zeros(1)).item() == 0
    assert place(torch.tensor([2.0])).item() == pytest.approx(2.0, rel=1e-6)


def test_training_rounds_as_evaluation_does_and_learns_scales() -> None:
    torch.manual_seed(0)
    layer = QuantisedLinear(Linear(8, 4))
    layer.input.set_range(-1.0, 1.0)  # type: ignore[operator]
    x = torch.randn(16, 8)
    trained = layer.train()(x)
    assert torch.allclose(trained, layer.eval()(x), atol=1e-5)
    trained.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("name", NAMES)
def test_integer_graphs_compute_what_is_simulated(name: str) -> None:
    architecture = small(name)
    network = trained(architecture)
    result = quantised_network(network, in_precision(architecture, "int8"), [images()])
    x = images(1, count=2)
    with torch.no_grad():
        error = float((result(x) - network(x)).norm() / network(x).norm())
        assert 0 < error < 0.2
        # module by module: a tie that is rounded the other way changes much further on
        for item in components(result.architecture, num_classes=10):
            module = result.get_submodule(item.path)
            graph = to_onnx(module, x)
            assert is_quantised(graph)
            session = onnxruntime.InferenceSession(
                graph.SerializeToString(), providers=["CPUExecutionProvider"]
            )
            run = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
            x = module(x)
            assert float((run - x).abs().mean()) < 3e-4 * float(x.std()), item.path


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_but_those_of_squeeze_excite_are_quantised(name: str) -> None:
    network = build(in_precision(small(name), "int8"), num_classes=10)
    left = [
        path
        for path, part in network.named_modules()
        if isinstance(part, (Linear, Conv2d)) and ".excite." not in path
    ]
    assert not left
    assert any(isinstance(p, (QuantisedConv2d, QuantisedLinear)) for p in network.modules())


def test_what_is_rounded_twice_has_one_range() -> None:
    architecture = in_precision(small("mobilenetv2_050"), "int8")
    result = quantised_network(trained(small("mobilenetv2_050")), architecture, [images()])
    places = fake_quantisers(result)
    out = places["stages.1.blocks.0.project.activation.1"]
    into = places["stages.2.blocks.0.expand.conv.input"]
    assert out.scale == into.scale
    assert out.zero == into.zero


def test_a_block_in_float_stays_as_it_was() -> None:
    own = small("mobilenetv2_050")
    network = trained(own)
    space = with_precisions(around(own), "mixed")
    mixed = replace(own, macro=space.macro)
    assert space.largest == mixed
    assert quantised(mixed)
    result = quantised_network(network, mixed, [images()])
    block = result.get_submodule("stages.1.blocks.0")
    assert not fake_quantisers(block)
    for key, value in network.get_submodule("stages.1.blocks.0").state_dict().items():
        assert torch.equal(value, block.state_dict()[key])


def test_digests_of_networks_in_float_stay_and_those_in_int8_are_others() -> None:
    own = known("resnet18")
    other = in_precision(own, "int8")
    assert own.digest == in_precision(other, "float").digest == in_precision(own, "float").digest
    assert other.digest != own.digest
    assert Architecture.from_dict(other.to_dict()) == other
    assert not quantised(own)
    assert all(item.spec.quantised for item in components(other))


def test_counts_are_those_of_the_float_twin() -> None:
    own = small("efficientnet_b0")
    for item in components(in_precision(own, "int8")):
        twin = count_entry(item.spec.in_float, item.in_size)
        assert count_entry(item.spec, item.in_size) == twin


@pytest.mark.parametrize("precision", ["int8", "mixed"])
def test_a_space_with_precisions_is_a_space(precision: str) -> None:
    space: SearchSpace = with_precisions(load_space("digits"), precision)
    genes = space.sample(np.random.default_rng(0), 20)
    for architecture in space.decode(genes):
        assert quantised(architecture)
        assert space.contains(Architecture.from_dict(architecture.to_dict()))
    assert len(with_precisions(space, "int8").stages[0].blocks) == len(
        load_space("digits").stages[0].blocks
    )


def test_a_supernet_computes_subnets_in_float() -> None:
    space = with_precisions(load_space("digits"), "mixed")
    torch.manual_seed(0)
    supernet = Supernet(space, num_classes=10).eval()
    one = space.decode(space.sample(np.random.default_rng(0), 1))[0]
    x = torch.randn(2, 3, one.resolution, one.resolution)
    network = supernet.extract(one)
    assert network.architecture == in_precision(one, "float")
    with torch.no_grad():
        assert torch.equal(supernet(x, one), network(x))


@pytest.mark.parametrize("how", RANGES.names())
def test_every_way_covers_nearly_all_values(how: str) -> None:
    own = small("resnet18")
    network = fold_batch_norms(trained(own))
    result = quantised_network(network, in_precision(own, "int8"), [images()], how)
    with torch.no_grad():
        error = (result(images(1)) - network(images(1))).norm() / network(images(1)).norm()
    assert error < 0.2


def outlying(count: int = 30_000) -> list[torch.Tensor]:
    """Tensors of which each next has values far out of the range of those before."""
    drawn = torch.Generator().manual_seed(0)
    parts = [torch.randn(count, generator=drawn) * size for size in (0.01, 1.0, 0.3)]
    parts[2][7], parts[2][11] = 37.0, -9.0
    return [parts[0].relu(), parts[1], parts[2]]


def test_what_is_seen_are_all_values() -> None:
    seen = Seen()
    for part in outlying():
        seen.add(part.reshape(100, -1))
    everything = torch.cat(outlying()).double()
    assert (seen.low, seen.high, seen.count) == (-9.0, 37.0, len(everything))
    values, counts = seen.values()
    assert int(counts.sum()) == len(everything)
    assert float(counts @ values) == pytest.approx(float(everything.sum()), rel=1e-9)
    assert float(counts[values == 37.0]) == 1
    width = 64 / 8192
    ordered = everything.sort().values
    assert torch.allclose(values.repeat_interleave(counts.long()), ordered, atol=width, rtol=0)


def test_ranges_are_those_of_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(percentile, "CUT_OFF", 1e-3)
    seen = Seen()
    for part in outlying():
        seen.add(part)
    everything = torch.cat(outlying()).double()
    assert RANGES["min_max"].call(seen) == [(-9.0, 37.0)]
    ((low, high),) = RANGES["percentile"].call(seen)
    expected = np.percentile(everything, [0.1, 99.9], method="inverted_cdf")
    assert np.allclose((low, high), expected, atol=64 / 8192)
    ((low, high),) = RANGES["mse"].call(seen)
    errors = {}
    for part in mse.PARTS:
        place = FakeQuantiser().eval()
        place.set_range(-9.0 * part, 37.0 * part)
        errors[part] = float((place(everything.float()) - everything).square().mean().detach())
    best = min(errors, key=errors.__getitem__)
    assert (low, high) == pytest.approx((-9.0 * best, 37.0 * best))


def test_the_range_that_the_output_needs_is_chosen() -> None:
    """The second layer looks at small values alone, so an outlier may be cut off."""
    torch.manual_seed(0)
    layer = QuantisedLinear(Linear(4, 3))
    layer.weight.data = torch.randn(3, 4) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    layer.reset_scales()
    x = torch.randn(64, 4)
    x[:, 3] *= 100
    for how, largest in (("min_max", 1.0), ("cross_entropy", 0.56)):
        calibrate(layer, [x], how)
        place = layer.input
        assert isinstance(place, FakeQuantiser)
        whole = float(x.max() - x.min())
        assert 255 * float(place.scale.detach()) <= 1.001 * largest * whole


def test_activations_that_are_no_numbers_are_refused() -> None:
    network = trained(small("resnet18"))
    broken = images()
    broken[0, 0, 0, 0] = float("nan")
    with pytest.raises(UsageError, match="an activation is nan"):
        quantised_network(network, in_precision(small("resnet18"), "int8"), [broken])


@pytest.mark.parametrize("name", ["mobilenetv2_050", "swin_t"])
@torch.no_grad()
def test_biases_take_away_what_rounding_adds_to_means(name: str) -> None:
    own = small(name)
    network = trained(own)
    architecture, seen = in_precision(own, "int8"), images(count=32)
    wanted = network(seen).mean(0)
    shifts = {}
    for correct in (False, True):
        result = quantised_network(network, architecture, [seen], correct=correct)
        shifts[correct] = float((result(seen).mean(0) - wanted).norm())
        assert not any(part._forward_hooks for part in result.modules())
    assert shifts[True] < 0.8 * shifts[False]


def test_a_network_stays_in_its_mode_and_as_it_was() -> None:
    network = trained(small("resnet18")).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = quantised_network(network, in_precision(network.architecture, "int8"), [images()])
    assert all(part.training for part in [*result.modules(), *network.modules()])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_errors_say_what_is_wrong() -> None:
    own = small("resnet18")
    network = trained(own)
    with pytest.raises(InvalidArchitectureError, match="another precision"):
        quantised_network(network, known("resnet18"), [images()])
    with pytest.raises(UsageError, match="no calibration images"):
        quantised_network(network, in_precision(own, "int8"), [])
    with pytest.raises(UnknownNameError, match="way to find ranges"):
        calibrate(network, [images()], "guess")
    with pytest.raises(UnknownNameError, match="precision"):
        in_precision(own, "int4")
    with pytest.raises(UnknownNameError):
        with_precisions(load_space("digits"), "half")
    result = quantised_network(network, in_precision(own, "int8"), [images()])
    with pytest.raises(InvalidArchitectureError, match="in int8 already"):
        quantised_network(result, own, [images()])


def test_networks_in_int8_are_judged_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def autocast(device: torch.device, amp: str) -> AbstractContextManager[None]:
        asked.append(amp)
        return nullcontext()

    monkeypatch.setattr("supernet.training.evaluation.autocast", autocast)
    own = small("resnet18")
    network = trained(own)
    rounded = quantised_network(network, in_precision(own, "int8"), [images()])
    batches = [(images(1), torch.zeros(8, dtype=torch.int64))]
    for each in (network, rounded):
        evaluate(each, batches, amp="auto")
    assert asked == ["auto", "off"]
