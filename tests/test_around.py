"""The space around a network: the network is its largest point, all others are smaller."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from architecture_strategies import architectures, small
from hypothesis import given, settings
from synthetic_search import every_row

from predictors.counts import counts
from predictors.tables.additive import AdditiveTable
from search.exact import sweep
from search_space import (
    BLOCKS,
    Architecture,
    Around,
    Block,
    BlockKind,
    Macro,
    Mixer,
    ModuleSpec,
    Param,
    SearchSpace,
    Stage,
    around,
    known,
    known_names,
    metaformer,
    space_from_dict,
)
from search_space.around import CHANNELS, lower_resolutions
from search_space.components import block_spec
from search_space.errors import InvalidSpaceError, UsageError
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.network.modules import build_module

SKIP, MAP = Block.of("skip"), Block.of("projection")
NOTHING = Around(ratios=(), mixer_ratios=(), smallest_kernel=99, resolutions=(), skip=False)


def inner_width(space: SearchSpace, i: int, j: int, block: Block) -> int | None:
    """The hidden channels of a block of a space with one width a stage, as its module gets them."""
    stage = space.stages[i]
    first = space.enters_by_block and j == 0
    entry = (space.widths_before[i][0], space.strides[i]) if first else (stage.widths[0], 1)
    spec = block_spec(space.macro, stage.widths[0], block, j, *entry)
    return None if spec is None else spec.as_dict().get("hidden")


@pytest.mark.parametrize("name", known_names())
def test_a_known_design_is_the_largest_point_around_itself(name: str) -> None:
    parent = known(name)
    space = around(parent, name=f"around-{name}")
    assert space.largest == parent
    assert space.contains(replace(parent, resolution=space.resolutions[0]))
    for i, (stage, own) in enumerate(zip(space.stages, parent.stages, strict=True)):
        assert stage.widths == (own.width,)
        assert stage.depths == (own.depth,)
        for j, (choices, block) in enumerate(zip(stage.positions, own.blocks, strict=True)):
            changes = space.enters_by_block and j == 0
            changes &= (parent.widths_before[i], 1) != (own.width, own.stride)
            assert (SKIP in choices) == (own.depth > 1 and not changes)
            assert (MAP in choices) == (SKIP in choices)
            blocks = [b for b in choices if b not in (SKIP, MAP)]
            widths = [inner_width(space, i, j, b) for b in blocks]
            if widths[-1] is None:  # a separable block has none
                assert widths == [None] * len(widths)
                continue
            parts = {nearest(part * widths[-1]) for part in (0.25, 0.5, 0.75)}
            assert {*widths} == {*(part for part in parts if part < widths[-1]), widths[-1]}
            assert {b.kind for b in blocks} == {block.kind}
            assert all(b.values.keys() == block.values.keys() for b in blocks)


def mixer_of(block: Block) -> Mixer:
    assert block.mixer is not None
    return block.mixer


def nearest(channels: float) -> int:
    multiples = range(CHANNELS, int(channels) + 2 * CHANNELS, CHANNELS)
    return min(reversed(multiples), key=lambda n: abs(n - channels))


def test_members_are_those_of_brute_force() -> None:
    convolution, pooling = Mixer.of("depthwise_conv", kernel=5), Mixer.of("pooling")
    first, second = metaformer(convolution, 2.0), metaformer(pooling, 1.5)
    macro = Macro(stem_kernel=2, stem_stride=2)
    parent = Architecture(macro, 32, (Stage(16, (first, second)), Stage(24, (first,))))
    space = around(parent, Around(ratios=(0.5, 0.26), resolutions=(16, 24)))

    def variants(kernels: tuple[int, ...], ratios: tuple[float, ...]) -> list[Block]:
        return [
            metaformer(Mixer.of("depthwise_conv", kernel=k), r) for k in kernels for r in ratios
        ]

    expected = {
        Architecture(macro, side, (Stage(16, (a, b)), Stage(24, (c,)))).digest
        for side, a, b, c in itertools.product(
            (16, 24, 32),
            [SKIP, MAP, *variants((3, 5), (0.5, 1.0, 2.0))],  # 8, 16 and 32 channels
            # 12 round to 16
            [SKIP, MAP, metaformer(pooling, 0.5), metaformer(pooling, 1.0), second],
            # of 48 channels, 24 and, rounded, 16; the only block of its stage is not left out
            variants((3, 5), (0.67, 1.0, 2.0)),
        )
    }
    members = space.decode(every_row(space))
    assert len(members) == space.size == len(expected) == 3 * 8 * 5 * 6
    assert {member.digest for member in members} == expected


def test_blocks_that_enter_stages_stay_and_scale_the_width_that_they_read() -> None:
    parent = known("mobilenetv2_100")
    space = around(parent)
    entry, inner = space.stages[1].positions  # from 16 to 24 channels, and 24
    assert [block["expansion"] for block in entry] == [1.5, 3.0, 4.5, 6.0]
    assert [inner_width(space, 1, 0, block) for block in entry] == [24, 48, 72, 96]
    assert inner[:2] == (SKIP, MAP)
    assert [inner_width(space, 1, 1, block) for block in inner[2:]] == [40, 72, 112, 144]
    assert space.stages[0].positions == (parent.stages[0].blocks,)  # nothing to make smaller
    # a squeeze is of the input's channels and stays as it is
    gated = around(known("efficientnet_b0")).stages[1].positions[1]
    assert {block["squeeze"] for block in gated[2:]} == {0.25}


def test_a_block_that_enters_without_a_change_may_be_left_out() -> None:
    space = around(known("resnet18"))  # from 64 channels of the stem to 64
    assert [choices[0] == SKIP for choices in space.stages[0].positions] == [True, True]
    assert [choices[0] == SKIP for choices in space.stages[1].positions] == [False, True]


def test_choices_grow_from_first_to_last() -> None:
    for name in ("convnext_atto", "mobilenetv3_small_100", "resnet14t", "swin_t"):
        space = around(known(name))
        for i, stage in enumerate(space.stages):
            last = len(stage.positions) - 1
            specs = (block_spec(space.macro, stage.widths[0], b, 1) for b in stage.positions[last])
            modules = [build_module(spec) for spec in specs if spec is not None]
            size = [sum(parameter.numel() for parameter in m.parameters()) for m in modules]
            # a channel of attention has twice the weights of one of an MLP
            slack = 1.2 if name == "swin_t" else 1.0
            assert all(a <= slack * b for a, b in itertools.pairwise(size)), (name, i)


def test_kernels_end_where_asked() -> None:
    parent = known("convnext_atto")
    only = replace(NOTHING, smallest_kernel=4, largest_kernel=10)
    choices = around(parent, only).stages[0].positions[0]
    assert [mixer_of(block)["kernel"] for block in choices] == [5, 9, 7]  # its own is the last
    assert around(parent, NOTHING).size == 1


def test_other_mixers_stand_where_they_suit() -> None:
    pooling, attention = Mixer.of("pooling"), Mixer.of("attention", head_dim=32)
    parent = known("convnext_atto")  # of 40, 80, 160 and 320 channels
    space = around(parent, replace(NOTHING, ratios=(0.5,), mixers=(pooling, attention)))
    names = [[mixer_of(block).name for block in s.positions[0]] for s in space.stages]
    assert names[0] == ["pooling", "depthwise_conv"] * 2
    assert names[2] == ["pooling", "attention", "depthwise_conv"] * 2
    assert space.largest == parent
    same = around(parent, replace(NOTHING, mixers=(Mixer.of("depthwise_conv", kernel=7),)))
    assert same.size == 1
    for wrong, mixer, reason in (
        (known("resnet18"), pooling, "such blocks do not exist"),
        (small(), Mixer.of("attention", head_dim=512), "a multiple of 512 .* have 16, 32, 48, 64 "),
    ):
        with pytest.raises(UsageError, match=f"{mixer.name} suits no block.*{reason}"):
            around(wrong, Around(mixers=(mixer,)))


def test_widths_inside_mixers_are_halved() -> None:
    space = around(known("convformer_s18"), replace(NOTHING, mixer_ratios=(0.5,)))
    assert [mixer_of(block)["expansion"] for block in space.stages[0].positions[0]] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "resolution", "expected"),
    [
        ("convnext_t", 224, (128, 160, 192)),
        ("tf_efficientnet_lite0", 96, (48, 64, 80)),
        ("resnet18", 64, (32, 48)),
        ("resnet18", 32, ()),  # its last map has one position
        ("swin_t", 224, (112, 192)),  # maps of 10 or 16 positions fill windows of 7 badly
    ],
)
def test_lower_resolutions_leave_maps(name: str, resolution: int, expected: Any) -> None:
    parent = replace(known(name), resolution=resolution)
    assert lower_resolutions(parent) == expected
    assert around(parent).resolutions == (*expected, resolution)


def test_stages_may_be_narrower() -> None:
    space = around(known("swin_t"), replace(NOTHING, widths=(0.75, 0.5)))
    assert [stage.widths for stage in space.stages] == [
        (64, 96),  # multiples of a head's 32 channels: 72 is nearer to 64
        (96, 160, 192),
        (192, 288, 384),
        (384, 576, 768),
    ]
    assert space.largest == known("swin_t")
    # where widths differ, the block that enters has to change them
    resnet = around(known("resnet18"), replace(NOTHING, widths=(0.5,), skip=True))
    assert SKIP not in resnet.stages[0].positions[0]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ratios": (0.5, 1.0)}, "ratios: 1.0 must lie between 0 and 1"),
        ({"mixer_ratios": ("half",)}, "mixer_ratios: 'half' must"),
        ({"widths": (0,)}, "widths: 0 must"),
        ({"smallest_kernel": 0}, "smallest_kernel=0 must be an integer of at least 1"),
        ({"resolutions": (256,)}, "resolution 256 is above the network's own of 224"),
        ({"resolutions": (8,)}, "resolution=8 is too small"),
    ],
)
def test_wrong_options_are_said(options: dict[str, Any], problem: str) -> None:
    with pytest.raises((UsageError, InvalidSpaceError), match=problem):
        around(known("convnext_t"), Around(**options))


def test_a_kind_of_another_package_is_narrowed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BLOCKS, "_rules", dict(BLOCKS._rules))
    params = {"growth": Param(3.0, minimum=0.1, maximum=9), "reach": Param(5, odd=True)}
    BLOCKS.add(BlockKind("mine", params, ratios=("growth",)))
    parent = Architecture(Macro(stem_kernel=2, stem_stride=2), 16, (Stage(16, (_mine(),) * 2),))
    choices = around(parent).stages[0].positions[0]
    # of 48 channels 12, 24 and 36 are kept, or the multiples of 8 above
    growths = (1.0, 1.5, 2.5, 3.0)
    mine = (_mine(growth, reach) for growth in growths for reach in (3, 5))
    assert choices == (SKIP, MAP, *mine)


def _mine(growth: float = 3.0, reach: int = 5) -> Block:
    return Block.of("mine", growth=growth, reach=reach)


@settings(max_examples=60, deadline=None)
@given(architectures())
def test_any_network_is_the_largest_point_around_itself(parent: Architecture) -> None:
    space = around(parent)
    assert space.largest == parent
    assert space_from_dict(space.to_dict()).digest == space.digest


def test_what_is_found_can_be_the_next_parent() -> None:
    """Around a smallest point, skipped blocks stay skipped, and a map may be left out."""
    space = around(known("convnext_atto"))
    again = around(space.smallest)
    assert again.largest == space.smallest
    assert again.stages[0].positions == (((SKIP,),) * 2)
    parent = known("convnext_atto")
    first = replace(parent.stages[0], blocks=(parent.stages[0].blocks[0], MAP))
    with_map = replace(parent, stages=(first, *parent.stages[1:]))
    assert around(with_map).stages[0].positions[1] == (SKIP, MAP)


def test_a_bank_of_weights_holds_the_network_and_takes_the_rest() -> None:
    """The smallest point has other modules everywhere, and blocks left out."""
    torch.manual_seed(0)
    expanded = Block.of("inverted_residual", expansion=4, kernel=5)
    macro = replace(known("mobilenetv2_100").macro, stem_width=8, head_width=24)
    parent = Architecture(macro, 32, (Stage(16, (expanded,) * 2), Stage(24, (expanded,) * 2)))
    network = build(parent, 5).eval()
    bank = WeightBank(around(parent), network).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(bank(images, parent), network(images))
    for entry in bank.missing():
        bank.put(entry, bank.fresh(entry))
    smallest = bank.space.smallest
    images = torch.randn(2, 3, smallest.resolution, smallest.resolution)
    assert torch.equal(bank.extract(smallest).eval()(images), bank(images, smallest))
    assert sum(block.skipped for stage in smallest.stages for block in stage.blocks) == 2


def made_up_loss(spec: ModuleSpec, size: int) -> float:
    """Blocks take off the more the wider they are, by chance, and larger maps a little more."""
    if spec.kind != "block":
        return -0.001 * size
    kept = int(spec.as_dict().get("hidden", 0)) / (4 * int(spec.as_dict()["dim"]))
    return -((0.3 + kept) ** 0.5) * (0.5 + zlib.crc32(str(spec).encode()) / 2**32)


def test_the_front_around_swin_b_is_proven() -> None:
    space = around(known("swin_b"))
    macs = counts(space, 1000)["macs"]
    loss = AdditiveTable.build(space, 1000, made_up_loss)
    front = sweep(space, loss, macs, points=12, maximise=(False, False))
    assert len(front) > 4
    assert front.gap < 1e-6
    assert (np.diff(front.cost) < 0).all()
    assert (np.diff(front.quality) > 0).all()
