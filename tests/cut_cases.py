"""Small parents, one for each sort of block, and the spaces around them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from mixer_sizes import narrow
from torch import Tensor, nn

from search_space import MIXERS, Architecture, Around, Block, Macro, Stage, around, metaformer
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.inherit.importance import Scores, Units, criterion
from supernet.inherit.observing import is_layer
from supernet.inherit.smaller import inner_units
from supernet.network.axes import StaticModule, take
from supernet.network.backbone import Backbone
from supernet.network.norms import BatchNorm
from supernet.training.evaluation import Batches

CONV = Macro(stem="conv_act", stem_kernel=3, stem_stride=2, downsample="block", padding="same")
META = Macro(stem_kernel=2, stem_stride=2)
BATCH_NORM = Macro(stem_kernel=2, stem_stride=2, norm="batch_norm", head_norm="none")
_LARGE = {"additive_attention": {"kernel": 5}, "focal_modulation": {"window": 5}}
_GATED = {"squeeze": 0.5, "activation": "silu"}
CASES: dict[str, tuple[Macro, Block]] = {
    "inverted": (CONV, Block.of("inverted_residual", kernel=3)),
    "wide": (CONV, Block.of("inverted_residual", kernel=5, activation="silu")),
    "gated": (CONV, Block.of("inverted_residual", **_GATED, kernel=5)),
    "hard": (CONV, Block.of("inverted_residual", **_GATED, gate="hard_sigmoid")),
    "fused": (CONV, Block.of("fused_inverted_residual", activation="silu", kernel=5)),
    "basic": (CONV, Block.of("basic", ratio=2.0)),
    "bottleneck": (CONV, Block.of("bottleneck", ratio=2.0)),
    "prenorm": (CONV, Block.of("prenorm_inverted_residual", squeeze=0.5, kernel=5)),
    "moat": (CONV, Block.of("moat", narrow("attention"), conv_kernel=5)),
    "batch_norm": (BATCH_NORM, metaformer(narrow("pooling"), 4)),
    **{name: (META, metaformer(narrow(name, **_LARGE.get(name, {})), 4)) for name in MIXERS},
}
"""Macro style and block by name; each has 16 hidden channels or more at 8 channels."""
cases = pytest.mark.parametrize("case", CASES)
WIDTH = {"inception_depthwise": 16}  # where 8 do not suit
ONLY_UNITS = Around(ratios=(0.5,), resolutions=(), skip=False, smallest_kernel=99)


def architecture(case: str) -> Architecture:
    """A network of two stages of the block, the second of stride 2 where it can enter."""
    macro, block = CASES[case]
    width = WIDTH.get(case, 8)
    stages = (Stage(width, (block, block)), Stage(2 * width, (block,)))
    return Architecture(macro, 16, stages)


def parent(case: str, seed: int = 0) -> Backbone:
    """A network of random weights, whose batch norms have averages and scales of their own."""
    torch.manual_seed(seed)
    return randomised(build(architecture(case), num_classes=5).eval())


@torch.no_grad()
def randomised(network: Backbone) -> Backbone:
    for part in network.modules():
        if isinstance(part, BatchNorm):
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            part.weight.uniform_(0.5, 1.5)
        elif isinstance(part, nn.Linear | nn.Conv2d):
            part.weight.normal_(0, part.weight[0].numel() ** -0.5)
            if part.bias is not None:
                part.bias.normal_(0, 0.2)
    return network


def bank_of(network: Backbone, options: Around | None = ONLY_UNITS) -> WeightBank:
    return WeightBank(around(network.architecture, options), network).eval()


def images(count: int = 48, side: int = 16, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Two batches."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, side, side, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)
    half = count // 2
    return [(pixels[:half], labels[:half]), (pixels[half:], labels[half:])]


def reordered(module: StaticModule, kept: dict[str, Sequence[int]]) -> dict[str, Tensor]:
    """A module's state with other entries along some names, batch norms included."""
    axes, sizes = module.axes(), module.sizes()
    return {
        name: take(value, axes[_like(name)], sizes, kept)
        for name, value in module.state_dict().items()
    }


def _like(name: str) -> str:
    return name.replace("running_mean", "weight").replace("running_var", "weight")


@torch.no_grad()
def twinned(network: Backbone) -> Backbone:
    """Makes the second half of each axis' units twins of the first half, but for their readers."""
    for module in network.modules():
        if isinstance(module, StaticModule):
            axes, sizes = module.axes(), module.sizes()
            units = {name for names in inner_units(module) for name in names}
            twins = {n: [*range(sizes[n] // 2)] * 2 for n in units if sizes[n] % 2 == 0}
            for name, value in module.state_dict().items():
                written = axes[_like(name)]
                if is_layer(module.get_submodule(name.rpartition(".")[0])):
                    written = (written[0], *value.shape[1:])
                value.copy_(take(value, written, sizes, twins))
    return network


@criterion("first")
def first(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Keeps the first units of each axis."""
    return {axis: -torch.arange(len(axis.zeros(axis.module(network)))).double() for axis in units}
