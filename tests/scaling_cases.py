"""Seeds, costs and made-up scores that the tests of scaling share."""

from __future__ import annotations

from collections.abc import Sequence

from search.scaling.base import (
    Family,
    ScalingMethod,
    ScalingTask,
)
from search.scaling.contract import (
    Contract,
)
from search.scaling.cost import NetworkCosts
from search.scaling.two_criteria import TwoScores
from search_space import Architecture, Macro, Mixer, Stage, metaformer

COSTS = NetworkCosts(num_classes=10)
CONV = Mixer.of("depthwise_conv", kernel=7)
ATTENTION = Mixer.of("window_attention", window=4, head_dim=16)


def network(
    widths: Sequence[int] = (16, 16, 24, 32),
    depths: Sequence[int] = (1, 1, 2, 1),
    mixer: Mixer = CONV,
    resolution: int = 32,
) -> Architecture:
    stages = tuple(
        Stage(width, (metaformer(mixer, 3.0),) * depth)
        for width, depth in zip(widths, depths, strict=True)
    )
    return Architecture(Macro(stem_kernel=2, stem_stride=2), resolution, stages)


SEEDS = {
    "conv": network(),
    "odd width": network(widths=(12, 20, 24, 36)),
    "attention": network(widths=(16, 16, 32, 32), mixer=ATTENTION),
    "gnconv": network(widths=(16, 16, 32, 48), mixer=Mixer.of("gnconv", order=5, kernel=3)),
}


def params(architecture: Architecture) -> float:
    return COSTS(architecture)["num_params"]


def grows_width(architecture: Architecture) -> TwoScores:
    """κ and L^E that like wide last stages and shallow first ones."""
    return TwoScores(architecture.depths[0] + 1.0, float(architecture.widths[-1]))


def size(architecture: Architecture) -> float:
    """A score that wants depth times width in every stage."""
    stages = zip(architecture.depths, architecture.widths, strict=True)
    return sum(depth * width for depth, width in stages) * architecture.resolution


def contract_by_size() -> Contract:
    return Contract(size, "size")


def grown(method: ScalingMethod, seed: Architecture, *factors: float) -> Family:
    budgets = tuple(params(seed) * factor for factor in factors)
    return method.scale(ScalingTask(seed=seed, by="num_params", budgets=budgets, costs=COSTS))
