"""What is cut off a module is folded into what is kept, by least squares on what it reads."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cut_cases import bank_of, cases, images, parent, reordered, twinned

from search_space import Around, Mixer
from search_space.components import ModuleSpec, components
from search_space.errors import DataError, UnknownNameError, UsageError
from supernet.inherit.bank import Entry, WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.moments import POSITIONS
from supernet.inherit.observing import chain, observe
from supernet.inherit.smaller import cut, difference
from supernet.network.axes import Centre, StaticModule
from supernet.network.backbone import Backbone
from supernet.network.modules import build_module
from supernet.training.recalibration import recalibrate

EXACT = 1e-10  # a ridge that changes nothing


def inputs(network: Backbone, batches: list, path: str) -> torch.Tensor:
    """What the network's module at a path gets, over all batches."""
    result = []
    for pixels, _ in batches:
        x = pixels
        for at, module in chain(network):
            if at == path:
                result.append(x)
            x = module(x)
    return torch.cat(result)


def errors(bank: WeightBank, filled: list[Entry], batches: list) -> dict[Entry, float]:
    """Mean square differences of alternatives to the parent's modules on the parent's inputs."""
    network, result = bank.extract(bank.parent), {}
    for path, spec in filled:
        x = inputs(network, batches, path)
        with torch.no_grad():
            gap = bank[path, spec](x) - bank.parent_module(path)(x)
        result[path, spec] = gap.square().mean().item()
    return result


@cases
def test_a_copy_of_the_full_size_is_the_module(case: str) -> None:
    network = parent(case)
    for item in components(network.architecture, 5):
        module = network.get_submodule(item.path)
        assert isinstance(module, StaticModule)
        other = build_module(item.spec)
        cut(module, other)
        assert all(
            torch.equal(value, other.state_dict()[name])
            for name, value in module.state_dict().items()
        )


@cases
def test_twins_of_kept_units_are_folded_without_a_loss(case: str) -> None:
    network = twinned(parent(case))
    bank, batches = bank_of(network), images()
    filled = cut_alternatives(bank, batches, importance="first", ridge=EXACT)
    plain = bank_of(network)
    cut_alternatives(plain, batches, importance="first", fold=False)
    assert filled
    assert bank.missing() == plain.missing() == []
    losses, without = errors(bank, filled, batches), errors(plain, filled, batches)
    for entry in filled:
        assert losses[entry] < 1e-8 < without[entry]


@cases
def test_folding_gains_on_the_images_it_is_fitted_to(case: str) -> None:
    network, batches = parent(case), images()
    bank, plain = bank_of(network), bank_of(network)
    filled = cut_alternatives(bank, batches, importance="activation")
    cut_alternatives(plain, batches, importance="activation", fold=False)
    losses, without = errors(bank, filled, batches), errors(plain, filled, batches)
    assert sum(losses.values()) < 0.9 * sum(without.values())
    assert all(losses[entry] < 1.001 * without[entry] for entry in filled)


@cases
def test_the_order_of_units_does_not_matter(case: str) -> None:
    network, batches = parent(case), images()
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, StaticModule):
            for names in module.permutable():
                size = module.sizes()[min(names)]
                if not names & {"dim", "out_dim"}:
                    order = np.random.default_rng(size).permutation(size).tolist()
                    module.load_state_dict(reordered(module, dict.fromkeys(names, order)))
    torch.testing.assert_close(other(batches[0][0]), network(batches[0][0]))
    first, second = bank_of(network), bank_of(other)
    for path, spec in cut_alternatives(first, batches):
        if (path, spec) in second.missing():
            cut_alternatives(second, batches)
        x = inputs(network, batches[:1], path)
        torch.testing.assert_close(
            first[path, spec](x), second[path, spec](x), atol=1e-4, rtol=1e-4
        )


def test_a_linear_layer_is_the_one_of_least_squares() -> None:
    network, batches = parent("pooling"), images()
    assert POSITIONS >= 8 * 8  # all are looked at
    bank = bank_of(network)
    filled = cut_alternatives(bank, batches, importance="first", ridge=EXACT)
    path, spec = filled[0]
    module, small = network.get_submodule(path), bank[path, spec]
    _, seen = observe(module, inputs(network, batches, path), ["mlp.fc2"])
    x, y = (part.detach().double().flatten(0, 2).numpy() for part in seen["mlp.fc2"])
    kept = np.c_[x[:, : spec.as_dict()["hidden"]], np.ones(len(x))]
    expected = np.linalg.lstsq(kept, y, rcond=None)[0]
    np.testing.assert_allclose(small.mlp.fc2.weight.detach().T, expected[:-1], atol=1e-4)
    np.testing.assert_allclose(small.mlp.fc2.bias.detach(), expected[-1], atol=1e-4)


def test_a_convolution_before_a_norm_is_the_one_of_least_squares() -> None:
    network, batches = parent("basic"), images(400)
    bank = bank_of(network)
    path, spec = cut_alternatives(bank, batches, importance="first", ridge=EXACT)[0]
    module, small = network.get_submodule(path), bank[path, spec]
    maps = inputs(network, batches, path)
    _, seen = observe(module, maps, ["second.conv"])
    before, after = (part.detach().double() for part in seen["second.conv"])
    kept = F.unfold(before[:, : spec.as_dict()["hidden"]], 3, padding=1).mT.flatten(0, 1).numpy()
    kept = np.c_[kept, np.ones(len(kept))]
    rows = after.flatten(2).mT.flatten(0, 1).numpy()
    fitted = kept @ np.linalg.lstsq(kept, rows, rcond=None)[0]
    expected = torch.from_numpy(fitted).float().reshape(len(maps), 8, 8, -1).permute(0, 3, 1, 2)
    expected = module.second.norm.of_maps(expected)
    _, ours = observe(small, maps, ["second"])
    torch.testing.assert_close(ours["second"][1], expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("case", ["inverted", "hard", "fused", "basic"])
def test_averages_are_already_those_of_the_images(case: str) -> None:
    network, batches = parent(case), images(400)
    recalibrate(network, batches)
    bank = bank_of(network)
    path, spec = cut_alternatives(bank, batches)[0]
    x = inputs(network, batches, path)
    small = bank[path, spec]
    before = small(x)
    recalibrate(small, [(x, torch.zeros(len(x)))])
    after = small(x)
    scale = before.std()
    torch.testing.assert_close(after / scale, before / scale, atol=0.05, rtol=0)


# Kernels --------------------------------------------------------------------------------------


NONE = Around(ratios=(), mixer_ratios=(), resolutions=(), skip=False, smallest_kernel=99)
SMALLER = replace(NONE, ratios=(0.5,), smallest_kernel=3)
LARGER = replace(NONE, largest_kernel=9)
CONVOLVING = [
    "wide", "gated", "fused", "additive_attention", "cascaded_group_attention", "depthwise_conv",
    "efficient_modulation", "focal_modulation", "gnconv", "inception_depthwise",
    "large_kernel_attention", "separable_conv",
]  # fmt: skip
kernels = pytest.mark.parametrize("case", CONVOLVING)


@kernels
def test_a_larger_kernel_computes_the_same(case: str) -> None:
    network, batches = parent(case), images()
    bank = bank_of(network, LARGER)
    filled = cut_alternatives(bank, batches)
    larger = [entry for entry in filled if not units(network, entry)]
    assert larger
    assert max(errors(bank, larger, batches).values()) < 1e-10


@kernels
def test_taps_that_are_zero_are_no_loss(case: str) -> None:
    network, batches = parent(case), images()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, StaticModule):
                for name, axes in module.axes().items():
                    if any(isinstance(axis, Centre) for axis in axes):
                        value = module.get_parameter(name)
                        inner = value.clone()
                        for dim, axis in enumerate(axes):
                            if isinstance(axis, Centre) and value.shape[dim] > 3:
                                rest = (value.shape[dim] - 3) // 2
                                inner.narrow(dim, 0, rest).zero_()
                                inner.narrow(dim, rest + 3, rest).zero_()
                        value.copy_(inner)
    bank = bank_of(network, SMALLER)
    filled = cut_alternatives(bank, batches, ridge=EXACT)
    whole = [entry for entry in filled if not units(network, entry)]
    assert whole
    assert max(errors(bank, whole, batches).values()) < 1e-8


@kernels
def test_folding_gains_with_smaller_kernels(case: str) -> None:
    network, batches = parent(case), images()
    bank, plain = bank_of(network, SMALLER), bank_of(network, SMALLER)
    filled = cut_alternatives(bank, batches, importance="activation")
    cut_alternatives(plain, batches, importance="activation", fold=False)
    losses, without = errors(bank, filled, batches), errors(plain, filled, batches)
    assert sum(losses.values()) < 0.95 * sum(without.values())


def units(network: Backbone, entry: Entry) -> tuple[frozenset[str], ...]:
    specs = {item.path: item.spec for item in components(network.architecture, 5)}
    change = difference(entry[1], specs[entry[0]])
    assert change is not None
    return change.units


def test_taps_of_each_channel_are_those_of_least_squares() -> None:
    network, batches = parent("depthwise_conv"), images(96)
    bank = bank_of(network, SMALLER)
    filled = cut_alternatives(bank, batches, ridge=EXACT)
    path, spec = next(
        (path, spec)
        for path, spec in filled
        if not units(network, (path, spec)) and dict(spec.as_dict()["params"])["kernel"] == 3
    )
    x = inputs(network, batches, path).detach().permute(0, 3, 1, 2)
    y = network.get_submodule(path).mixer.conv(x).detach()
    small = bank[path, spec].mixer.conv
    for channel in range(x.shape[1]):
        taps = F.unfold(x[:, channel : channel + 1], 3, padding=1).mT.flatten(0, 1).numpy()
        taps = np.c_[taps, np.ones(len(taps))]
        expected = np.linalg.lstsq(taps, y[:, channel].flatten().numpy(), rcond=None)[0]
        np.testing.assert_allclose(
            small.weight[channel].detach().flatten(), expected[:9], atol=1e-4
        )
        np.testing.assert_allclose(small.bias[channel].item(), expected[9], atol=1e-4)


# What is a smaller copy -----------------------------------------------------------------------


def of(**options: object) -> ModuleSpec:
    given = {"kernel": 3, "activation": "relu", "squeeze": 4, "gate": "sigmoid", "hidden": 16}
    style = {"norm": "batch_norm", "norm_eps": 1e-5, "padding": "half", "stride": 1, "out_dim": 8}
    given = {"style": "inverted_residual", "dim": 8, **given, **style}
    return ModuleSpec.of("block", **{**given, **options})


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"hidden": 8}, {"hidden"}),
        ({"squeeze": 2}, {"squeeze"}),
        ({"hidden": 8, "squeeze": 2}, {"hidden", "squeeze"}),
        ({"kernel": 5}, set()),
        ({"kernel": 1}, None),  # a kernel of 1 is declared as none
        ({"hidden": 24}, None),
        ({"hidden": 8, "squeeze": 8}, None),
        ({"squeeze": 0}, None),
        ({"activation": "silu"}, None),
        ({"gate": "hard_sigmoid"}, None),
        ({"hidden": 8, "activation": "silu"}, None),
        ({"stride": 2}, None),
        ({"out_dim": 4}, None),
        ({"norm": "layer_norm"}, None),
    ],
)
def test_what_a_smaller_copy_is(options: dict[str, object], names: set[str] | None) -> None:
    change = difference(of(**options), of())
    assert (None if change is None else set().union(*change.units)) == names
    if change is not None:
        assert change.same_units == of(**{k: v for k, v in options.items() if k == "kernel"})


def test_fewer_heads_are_a_smaller_copy() -> None:
    network = parent("window_attention")
    options = Around(ratios=(), mixer_ratios=(0.5,), resolutions=(), skip=False)
    bank, batches = bank_of(network, options), images()
    filled = cut_alternatives(bank, batches)
    assert [path for path, _ in filled] == ["stages.1.blocks.0"]  # has 2 heads, others have 1
    assert units(network, filled[0]) == (frozenset({"heads"}),)
    path, spec = filled[0]
    small, x = bank[path, spec].mixer, inputs(network, batches, path)
    large = network.get_submodule(path).mixer
    side = large.relative_position_bias_table.shape[0]
    kept = [
        head
        for head in range(2)
        if torch.equal(
            small.relative_position_bias_table[:, 0], large.relative_position_bias_table[:, head]
        )
    ]
    assert len(kept) == 1
    assert small.relative_position_bias_table.shape == (side, 1)
    heads = {}
    _, heads["large"] = observe(large, x, ["proj"])
    _, heads["small"] = observe(small, x, ["proj"])
    expected = heads["large"]["proj"][0][..., 8 * kept[0] : 8 * kept[0] + 8]
    torch.testing.assert_close(heads["small"]["proj"][0], expected)


def test_other_mixers_and_kernels_without_weights_stay_missing() -> None:
    network = parent("pooling")
    mixers = (Mixer.of("attention", head_dim=8),)
    options = Around(ratios=(), mixers=mixers, resolutions=(), largest_kernel=5, linear=False)
    bank = bank_of(network, options)
    missing = bank.missing()
    assert missing
    assert cut_alternatives(bank, images()) == []
    assert bank.missing() == missing


# What it is told ------------------------------------------------------------------------------


def test_wrong_calls_are_named() -> None:
    bank = bank_of(parent("pooling"))
    missing = bank.missing()
    with pytest.raises(UnknownNameError, match="magnitude"):
        cut_alternatives(bank, images(), importance="magnitud")
    with pytest.raises(UsageError, match="ridge"):
        cut_alternatives(bank, images(), ridge=0.0)
    with pytest.raises(UsageError, match="only once"):
        cut_alternatives(bank, iter(images()))
    with pytest.raises(DataError, match="no images"):
        cut_alternatives(bank, [])
    assert bank.missing() == missing


def test_moments_of_any_part_of_memory_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network, told = parent("bottleneck"), []
    first, second = bank_of(network), bank_of(network)
    filled = cut_alternatives(first, images(), progress=lambda *now: told.append(now))
    assert told == [(k + 1, len(filled)) for k in range(len(filled))]
    monkeypatch.setattr("supernet.inherit.cut._MEMORY", 1)
    assert cut_alternatives(second, images()) == filled
    for entry in filled:
        for name, value in first[entry].state_dict().items():
            torch.testing.assert_close(second[entry].state_dict()[name], value)
