"""DeepMAD: the entropy of a structure, and the effectiveness that bounds its depth.

Shen et al., DeepMAD: Mathematical Architecture Design for Deep Convolutional Neural Network,
2023. With ``w_l`` the width ``c_in · k² / groups`` of layer l, c_i and r_i the channels and the
feature maps' side at the end of stage i, and sums from the image to there,

    H_i = log(c_i · r_i²) · Σ_l ½·log w_l        score = Σ_i α_i · H_i
    ρ_i = L_i / (Π_l w_l)^(1 / L_i)              ρ = max_i ρ_i

α is 8 for the last stage and 1 for the others. Deep and narrow networks have a large entropy but
also a large ρ, at which information no longer passes; the paper bounds ρ by 0.3 to 0.5.

The paper speaks of chains of convolutions. In any other network the layers that count are those
on the longest path (``structure``), and a stage is what shares a number of positions, up to a
class token or the padding of windows: a stride leaves half of them or less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from predictors.proxies.base import ClosedFormProxy, UndefinedProxyError, register_proxy
from predictors.proxies.structure import Structure

LAST_WEIGHT = 8.0


@dataclass(frozen=True)
class StageEnd:
    """End of a stage, for the formulas; sums are over all layers from the image to there.

    The map there has ``channels`` and ``positions`` (the product of its sides); ``entropy`` is
    Σ ½·log w of that many ``layers``.
    """

    channels: int
    positions: int
    entropy: float
    layers: int


def score_of_ends(ends: Sequence[StageEnd]) -> float:
    """Computes Σ α_i H_i from the stages' ends."""
    weights = [1.0] * (len(ends) - 1) + [LAST_WEIGHT]
    return sum(
        weight * math.log(end.channels * end.positions) * end.entropy
        for weight, end in zip(weights, ends, strict=True)
    )


def effectiveness_of_ends(ends: Sequence[StageEnd]) -> float:
    """Computes the largest ρ_i; (Π w)^(1/L) is the exponential of the mean log width."""
    return max(_effectiveness(end) for end in ends if end.layers)


def final_effectiveness(ends: Sequence[StageEnd]) -> float:
    """Computes ρ of the whole network, at the end of its last stage."""
    return _effectiveness(ends[-1])


def _effectiveness(end: StageEnd) -> float:
    return end.layers / math.exp(2 * end.entropy / end.layers)


def stage_ends(structure: Structure) -> list[StageEnd]:
    """Finds the ends of the stages of any network: the longest path at each scale, finest first.

    Raises:
        UndefinedProxyError: The network has no linear layer or convolution.
    """
    ends: list[StageEnd] = []
    finest = 0  # positions of the stage under way
    for layer in sorted(structure.layers, key=lambda layer: layer.positions, reverse=True):
        end = StageEnd(layer.channels, layer.positions, layer.path.entropy, layer.path.layers)
        if 2 * layer.positions <= finest or not ends:
            finest = layer.positions
            ends.append(end)
        elif end.entropy >= ends[-1].entropy:
            ends[-1] = end
    if not ends:
        raise UndefinedProxyError("the network has no linear layer or convolution on feature maps")
    return ends


@register_proxy
class DeepMAD(ClosedFormProxy):
    """Σ α_i H_i over the longest path."""

    name = "deepmad"
    summary = "entropy of the longest path, weighted by stage (Shen et al. 2023)"
    applies = (
        "norms and activations do not count; attention counts as its two projections; of gated "
        "branches only the longest counts"
    )

    def value(self, structure: Structure) -> float:
        return score_of_ends(stage_ends(structure))


@register_proxy
class Effectiveness(ClosedFormProxy):
    """ρ over the longest path: depth over mean width."""

    name = "effectiveness"
    summary = "ρ, depth over mean width on the longest path (Shen et al. 2023)"
    applies = DeepMAD.applies

    def value(self, structure: Structure) -> float:
        return effectiveness_of_ends(stage_ends(structure))
