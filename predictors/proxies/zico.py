"""ZiCo: how large gradients are against how much they differ between batches.

Li et al., ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, 2023. With g the
gradients of one weight of layer l in several batches,

    ZiCo = Σ_l log Σ_{w in l} mean|g| / std(g)

It grows with the number of layers, so it compares networks of about the same depth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.gradients import loss_gradients
from predictors.proxies.preparation import unit_scales

BATCHES = 2  # as published


def zico(gradients: Sequence[dict[str, Tensor]]) -> float:
    """Computes ZiCo of the gradients of two or more batches, by layer.

    Standard deviations are those of the batches, not estimates for more. Weights whose gradient
    never changes are left out, and so are layers of them.

    Raises:
        UndefinedProxyError: Nothing is left.
    """
    total, layers = 0.0, 0
    for name in gradients[0]:
        stacked = torch.stack([batch[name] for batch in gradients])
        deviation = stacked.std(0, correction=0)
        changing = deviation > 0
        ratio = float((stacked.abs().mean(0)[changing] / deviation[changing]).double().sum())
        if ratio > 0:
            total, layers = total + math.log(ratio), layers + 1
    if layers == 0:
        raise UndefinedProxyError("no gradient differs between batches")
    return total


@register_proxy
class ZiCo(SampledProxy):
    """ZiCo of two batches with random labels."""

    name = "zico"
    summary = "gradients' mean over deviation between batches (ZiCo, Li et al. 2023)"
    applies = (
        "norms, attention and gates stay as they are, batch norms with the batch's statistics; "
        "layer scales and weights that start at zero are one; grows with the number of layers"
    )

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        gradients = []
        for _ in range(BATCHES):
            gradients.append(loss_gradients(module, images, generator))
            images = torch.randn(images.shape, generator=generator).to(images)
        return zico(gradients)
