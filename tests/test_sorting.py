"""Sorted channels: the largest subnets compute what they did, narrow ones keep the best."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from mixer_sizes import narrow
from small_backbone import STYLES
from space_kinds import NAMES, kind_of_space
from torch import Tensor

import search_space
from search_space import (
    Architecture,
    Block,
    Mixer,
    ModuleSpec,
    SearchSpace,
    Stage,
    StageSpace,
    load_space,
    metaformer,
)
from search_space.components import block_spec, head_spec, stem_spec, transition_spec
from supernet import Supernet
from supernet.network.axes import StaticModule, names, permute, shape
from supernet.network.channel_order import ChannelLayout, sort_channels
from supernet.network.heads import Head
from supernet.network.mixers import Pooling, build_mixer
from supernet.network.modules import build_module
from supernet.network.stems import ConvStem

pytestmark = pytest.mark.usefixtures("one_thread")

CHOSEN = (
    Mixer.of("pooling"),
    Mixer.of("depthwise_conv", kernel=3),
    Mixer.of("depthwise_conv", kernel=5),
    *(
        Mixer.of("focal_modulation", levels=levels, post_norm=post_norm)
        for levels in (1, 3)
        for post_norm in (False, True)
    ),
    *(Mixer.of("gnconv", order=order, kernel=3) for order in (1, 2, 3)),
    *(
        Mixer.of("window_attention", window=window, head_dim=head_dim)
        for window, head_dim in ((2, 4), (4, 4), (2, 8))
    ),
    Mixer.of("window_attention", window=2, head_dim=4, head_ratio=0.5),
    *(Mixer.of("attention", head_dim=head_dim) for head_dim in (4, 8)),
    *(Mixer.of("separable_conv", expansion=expansion, kernel=3) for expansion in (1, 2.5)),
)
MIXERS = (  # and whatever else is registered
    *CHOSEN,
    *(
        narrow(name)
        for name in search_space.MIXERS.names()
        if name not in {mixer.name for mixer in CHOSEN}
    ),
)


def moves(mixer: Mixer) -> bool:
    """Whether the channels of the stage may change places; elsewhere their order says which mix."""
    sets = build_mixer(mixer.name, 32, **dict(mixer.params)).permutable()
    return any("dim" in together for together in sets)


MOVING = tuple(mixer for mixer in MIXERS if moves(mixer))
STUCK = tuple(mixer for mixer in MIXERS if not moves(mixer))


def space_of(style: str, mixers: tuple[Mixer, ...] = MIXERS) -> SearchSpace:
    blocks = tuple(metaformer(mixer, ratio) for mixer in mixers for ratio in (1.0, 2.0))
    stages = tuple(StageSpace((8, 8 * (i + 3)), (1, 2), blocks) for i in range(4))
    return SearchSpace(style, STYLES[style], (32,), stages)


def with_blocks(stage: StageSpace, blocks: tuple[Block, ...]) -> StageSpace:
    return replace(stage, positions=(blocks,) * stage.max_depth)


def largest_with(space: SearchSpace, mixer: Mixer) -> Architecture:
    stages = []
    for stage in space.stages:
        blocks = [block for block in stage.blocks if block.mixer == mixer]
        best = max(blocks, key=lambda block: block["mlp_ratio"])
        stages.append(Stage(stage.widths[-1], (best,) * stage.depths[-1]))
    return Architecture(space.macro, space.resolutions[-1], tuple(stages))


@torch.no_grad()
def randomised(space: SearchSpace) -> Supernet:
    """Random biases and norms too, in float64; channels of very different importance."""
    generator = torch.Generator().manual_seed(0)
    supernet = Supernet(space, num_classes=5).double().eval()
    for parameter in supernet.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        fan_in = max(1, parameter[0].numel())
        parameter.copy_(noise / fan_in**0.5)
    return supernet


def images(side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("style", "mixers"), [*((style, MOVING) for style in STYLES), ("convnext", STUCK)]
)
@torch.no_grad()
def test_the_largest_subnet_of_every_mixer_keeps_its_function(
    style: str, mixers: tuple[Mixer, ...]
) -> None:
    space = space_of(style, mixers)
    supernet, x = randomised(space), images()
    kept = {mixer: largest_with(space, mixer) for mixer in mixers}
    before = {mixer: supernet(x, architecture) for mixer, architecture in kept.items()}
    small = supernet(x, space.smallest)
    sort_channels(supernet)
    for mixer, architecture in kept.items():
        assert_close(supernet(x, architecture), before[mixer])
    assert not torch.allclose(supernet(x, space.smallest), small)
    layout = ChannelLayout(supernet)
    for group in layout.groups:
        importance = layout.importance(group)
        assert (importance.diff() <= 1e-9 * importance[:-1]).all(), group


@torch.no_grad()
def test_a_preset_keeps_the_function_of_its_largest_subnets() -> None:
    space = load_space("digits")
    torch.manual_seed(0)
    supernet, x = Supernet(space, 5).eval(), images(24).float()
    mixed = replace(
        space.largest,
        stages=tuple(
            Stage(s.widths[-1], tuple(s.blocks[2 * j + 1] for j in range(s.depths[-1])))
            for s in space.stages
        ),
    )
    before = supernet(x, mixed), supernet(x, space.largest)
    sort_channels(supernet)
    torch.testing.assert_close(supernet(x, mixed), before[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(supernet(x, space.largest), before[1], rtol=1e-4, atol=1e-4)
    assert not torch.equal(supernet(x, mixed), before[0])


def widest(space: SearchSpace, rng: np.random.Generator) -> Architecture:
    """A random architecture of full widths whose blocks are as wide inside as any like them."""
    stages = []
    for stage in space.stages:
        blocks = []
        for choices in stage.positions[: stage.depths[-1]]:
            block = choices[rng.integers(len(choices))]
            alike = [b for b in choices if b.without_ratios == block.without_ratios]
            blocks.append(max(alike, key=lambda b: b.ratios))
        stages.append(Stage(stage.widths[-1], tuple(blocks), stage.stride))
    return Architecture(space.macro, space.resolutions[-1], tuple(stages))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_largest_subnets_of_every_sort_of_space_keep_their_function(name: str) -> None:
    space, rng = kind_of_space(name), np.random.default_rng(0)
    supernet, x = randomised(space), images(space.resolutions[-1])
    kept = [widest(space, rng) for _ in range(6)]
    before = [supernet(x, architecture) for architecture in kept]
    once = {key: p.detach().clone() for key, p in supernet.named_parameters()}
    sort_channels(supernet)
    for architecture, expected in zip(kept, before, strict=True):
        assert_close(supernet(x, architecture), expected)
    moved = {key for key, p in supernet.named_parameters() if not torch.equal(p, once[key])}
    assert "stem.conv.weight" in moved or "stem.conv.conv.weight" in moved
    for stage in range(len(space.stages)):
        assert any(key.startswith(f"stages.{stage}.") for key in moved)


def of_axis(supernet: Supernet, terms: dict[str, tuple[int, slice]]) -> Tensor:
    """Sum of L1 norms along one dimension of each parameter, restricted to a slice of it."""
    total = torch.zeros(())
    for name, (dim, part) in terms.items():
        weight = supernet.get_parameter(name).detach().abs()
        others = [d for d in range(weight.ndim) if d != dim]
        total = total + weight.sum(others)[part]
    return total


def test_importance_by_hand() -> None:
    """Against sums written out for one block each; gnconv of one order has parts of its own."""
    attention = Mixer.of("window_attention", window=2, head_dim=8)
    recursive = Mixer.of("gnconv", order=3, kernel=3)
    supernet = randomised(space_of("swin", (attention, recursive)))
    layout = ChannelLayout(supernet)
    path, width = "stages.1.blocks.0", 32
    everything = slice(None)

    def importance(scope: str, name: str) -> Tensor:
        (group,) = (group for group in layout.groups if (scope, name) in group.axes)
        return layout.importance(group)

    hidden = {f"{path}.mlp.fc1.weight": (0, everything), f"{path}.mlp.fc2.weight": (1, everything)}
    assert_close(importance(path, "hidden"), of_axis(supernet, hidden))

    mixer = f"{path}.mixer.window_attention"
    qkv = supernet.get_parameter(f"{mixer}.qkv.weight").detach().abs().view(3, 4, 8, width)
    proj = supernet.get_parameter(f"{mixer}.proj.weight").detach().abs().view(width, 4, 8)
    table = supernet.get_parameter(f"{mixer}.relative_position_bias_table").detach().abs()
    expected = qkv.sum((0, 2, 3)) + proj.sum((0, 2)) + table.sum(0)
    assert_close(importance(mixer, "heads"), expected)

    mixer = f"{path}.mixer.gnconv"  # proj_in: first (8), then parts of 8, 16 and 32 channels
    middle = {
        f"{mixer}.proj_in.weight": (0, slice(16, 32)),
        f"{mixer}.conv.weight": (0, slice(8, 24)),
        f"{mixer}.gates.0.weight": (1, everything),
        f"{mixer}.gates.1.weight": (0, everything),
    }
    assert_close(importance(mixer, "part1"), of_axis(supernet, middle))
    first = of_axis(
        supernet,
        {
            f"{mixer}.proj_in.weight": (0, slice(0, 8)),
            f"{mixer}.gates.1.weight": (1, everything),
        },
    )
    last = {f"{mixer}.proj_in.weight": (0, slice(8, 16)), f"{mixer}.conv.weight": (0, slice(0, 8))}
    assert_close(importance(mixer, "part2"), first + of_axis(supernet, last))


def test_the_residual_stream_is_one_axis_from_stem_to_downsampling() -> None:
    """All that writes or reads the first stage's channels, merged patches four times."""
    supernet = randomised(space_of("swin", (Mixer.of("window_attention", window=2, head_dim=8),)))
    layout = ChannelLayout(supernet)
    (group,) = (group for group in layout.groups if ("stem", "dim") in group.axes)
    everything = slice(None)
    terms = {"stem.conv.weight": (0, everything)}
    for j in range(2):
        path = f"stages.0.blocks.{j}"
        terms |= {
            f"{path}.mixer.window_attention.qkv.weight": (1, everything),
            f"{path}.mixer.window_attention.proj.weight": (0, everything),
            f"{path}.mlp.fc1.weight": (1, everything),
            f"{path}.mlp.fc2.weight": (0, everything),
        }
    reduction = supernet.get_parameter("stages.1.downsample.reduction.weight").detach().abs()
    merged = reduction.sum(0).view(4, 24).sum(0)
    assert_close(layout.importance(group), of_axis(supernet, terms) + merged)
    sort_channels(supernet)
    # the narrowest subnet now has the most important channels
    assert (layout.importance(group)[:8].min() >= layout.importance(group)[8:].max()).all()


def sets_that_move(module: StaticModule) -> set[frozenset[str]]:
    """Smallest sets of axes that can be turned without a change of the function, by trying."""
    axes, sizes = module.axes(), module.sizes()
    by_extent: dict[int, list[str]] = defaultdict(list)
    for name in sorted(set().union(*(names(axis) for row in axes.values() for axis in row))):
        last = name.rpartition(".")[2]
        if sizes[name] > 1 and not last.startswith(("kernel", "table")):  # positions
            by_extent[sizes[name]].append(name)
    result: set[frozenset[str]] = set()
    for candidates in by_extent.values():
        for size in range(1, len(candidates) + 1):
            for together in itertools.combinations(candidates, size):
                new = not any(known & set(together) for known in result)
                if new and keeps_function(module, together):
                    result.add(frozenset(together))
    return result


@torch.no_grad()
def keeps_function(module: StaticModule, together: tuple[str, ...]) -> bool:
    """Whether a module with random weights computes the same with these axes turned by one."""
    axes, sizes = module.axes(), module.sizes()
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    before = {}
    for key, row in axes.items():
        size = shape(row, sizes)
        before[key] = random(*size) / max(1, math.prod(size[1:])) ** 0.5
    after = before
    for name in together:
        after = permute(after, axes, sizes, name, [*range(1, sizes[name]), 0])

    def turned(x: Tensor, name: str, dim: int = -1) -> Tensor:
        return x.roll(-1 if name in together else 0, dim)

    stem, head = isinstance(module, ConvStem), isinstance(module, Head)
    x = random(2, 3, 8, 8) if stem else random(2, 5, 5, sizes["dim"])
    out = "out_dim" if "out_dim" in sizes else "dim"
    expected = torch.func.functional_call(module, before, (x,))
    actual = torch.func.functional_call(module, after, (x if stem else turned(x, "dim"),))
    if not head:
        expected = turned(expected, out)
    return bool((actual - expected).abs().max() <= 1e-9 * expected.abs().max())


MOATS = (
    Mixer.of("attention", head_dim=4),
    Mixer.of("inception_depthwise", share=4),
    Mixer.of("gnconv"),
)
MACRO_SPECS = [
    spec
    for macro in STYLES.values()
    for spec in (stem_spec(macro, 6), transition_spec(macro, 6, 10, 2), head_spec(macro, 6, 5))
]


@pytest.mark.parametrize(
    "spec",
    [
        *(
            block_spec(macro, 4 * mixer.width_multiple, metaformer(mixer, 0.75), position)
            for macro in (STYLES["swin"], STYLES["convnext"])
            for mixer in (*MIXERS, *(Mixer.of(name) for name in search_space.MIXERS.names()))
            for position in (0, 1)
        ),
        *(
            block_spec(STYLES["swin"], 12, block, 0, width_in, stride)
            for block in (
                Block.of("prenorm_inverted_residual", squeeze=0.25),
                *(Block.of("moat", mixer, conv_expansion=0.75) for mixer in MOATS),
            )
            for width_in, stride in ((12, 1), (12, 2), (7, 1), (7, 2))
        ),
        *(
            transition_spec(replace(STYLES["convnext"], downsample="residual_norm_conv"), *place)
            for place in ((6, 10, 2), (10, 6, 2), (6, 6, 2), (6, 10, 1))
        ),
        *MACRO_SPECS,
    ],
    ids=str,
)
def test_modules_declare_the_axes_that_move(spec: ModuleSpec) -> None:
    """The declaration is what trying all sets finds; axes of one entry cannot tell."""
    module = build_module(spec).double().eval()
    sizes = module.sizes()
    declared = {frozenset(n for n in together if sizes[n] > 1) for together in module.permutable()}
    assert declared - {frozenset()} == sets_that_move(module)


def test_orders_that_share_parts_move_them_in_pieces() -> None:
    """Order 2 enters at part 1, order 3 at part 2: with the first entries of what enters."""
    mixers = tuple(Mixer.of("gnconv", order=order, kernel=3) for order in (2, 3))
    layout = ChannelLayout(Supernet(space_of("convnext", mixers), 5))
    scope = "stages.1.blocks.0.mixer.gnconv"  # of 32 channels
    pieces = {
        (group.start, group.stop, tuple(name for _, name in group.axes))
        for group in layout.groups
        if group.axes[0][0] == scope
    }
    assert pieces == {(0, 8, ("first", "part1", "part2")), (8, 16, ("first", "part1"))}


@torch.no_grad()
def test_a_mixer_whose_channels_cannot_move_keeps_its_stage_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one that shuffles its channels would."""
    space = space_of("convnext", MIXERS[:2])
    stuck = with_blocks(space.stages[1], space.stages[1].blocks[:2])  # the first mixer only
    others = (*space.stages[:1], *space.stages[2:])
    fewer = [with_blocks(stage, stage.blocks[2:]) for stage in others]
    space = replace(space, stages=(fewer[0], stuck, *fewer[1:]))

    monkeypatch.setattr(Pooling, "permutable", lambda self: ())
    supernet = randomised(space)
    bias = "stages.1.downsample.conv.bias", "stages.2.downsample.conv.bias"
    before = {name: supernet.get_parameter(name).clone() for name in bias}
    sort_channels(supernet)
    changed = [not torch.equal(supernet.get_parameter(name), before[name]) for name in bias]
    assert changed == [False, True]
    groups = {axis for group in ChannelLayout(supernet).groups for axis in group.axes}
    assert ("stages.1.blocks.0", "hidden") in groups
    assert {place for place, name in groups if name == "dim"} == {"stem", "stages.2", "stages.3"}


def test_moments_of_adam_move_with_their_weights() -> None:
    """A step after sorting is the sorted result of the same step."""
    space = space_of("convnext")
    x, labels = images(), torch.tensor([1, 3])
    mixers = (MIXERS[4], MIXERS[9], MIXERS[10])

    def train(supernet: Supernet, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            for mixer in mixers:
                logits = supernet(x, largest_with(space, mixer))
                torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()

    outputs = []
    for is_sorted in (False, True):
        supernet = randomised(space)
        optimizer = torch.optim.AdamW(supernet.parameters(), lr=1e-2)
        train(supernet, optimizer, 2)
        if is_sorted:
            names = {parameter: name for name, parameter in supernet.named_parameters()}
            averages = {name: p.detach().clone() for name, p in supernet.named_parameters()}
            state = {names[p]: dict(values) for p, values in optimizer.state.items()}
            for name, average in averages.items():
                state.setdefault(name, {})["average"] = average
            sort_channels(supernet, state)
            for name, parameter in supernet.named_parameters():
                assert torch.equal(averages[name], parameter)
        train(supernet, optimizer, 3)
        with torch.no_grad():
            outputs.append(supernet(x, largest_with(space, mixers[0])))
    torch.testing.assert_close(*outputs, rtol=1e-6, atol=1e-6)


def test_sorting_again_changes_nothing() -> None:
    supernet = randomised(space_of("poolformer"))
    sort_channels(supernet)
    once = {name: parameter.detach().clone() for name, parameter in supernet.named_parameters()}
    sort_channels(supernet)
    for name, parameter in supernet.named_parameters():
        assert torch.equal(parameter, once[name])
