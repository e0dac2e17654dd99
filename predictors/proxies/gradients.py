"""Scores of the gradients of batches: their norm, the saliency of SNIP, and ZiCo.

Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, 2021; Lee et al., SNIP, 2019; Li et al.,
ZiCo: Zero-shot NAS via Inverse Coefficient of Variation on Gradients, 2023. The loss is the cross
entropy of random labels, since weights that know nothing are as far from any labels; W are the
weights of linear layers and convolutions, l layers and g the gradients of one weight in several
batches:

    grad_norm = Σ_W ‖∂L/∂W‖₂        snip = Σ_W Σ |W · ∂L/∂W|

    zico = Σ_l log Σ_{w in l} mean|g| / std(g)

ZiCo grows with the number of layers, so it compares networks of about the same depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import BatchStatistics, finite, layer_weights, unit_scales

ZICO_BATCHES = 2  # as published
_APPLIES = (
    "norms, attention and gates stay as they are, batch norms with the batch's statistics; "
    "layer scales and weights that start at zero are one"
)


def loss_gradients(
    module: nn.Module, images: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """Computes gradients of the mean cross entropy in weights of linear layers and convolutions.

    Weights that the loss does not depend on are left out. Images have shape (batch, 3, side, side).

    Raises:
        UndefinedProxyError: The network is no classifier, or has no such weight.
    """
    with BatchStatistics():
        logits = module(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UndefinedProxyError("the network is no classifier: it gives no (batch, classes)")
    labels = torch.randint(logits.shape[1], (len(images),), generator=generator)
    loss = F.cross_entropy(logits, labels.to(logits.device))
    weights = layer_weights(module)
    if not loss.requires_grad or not weights:
        raise UndefinedProxyError("the network has no linear layer or convolution")
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    return {
        name: gradient
        for name, gradient in zip(weights, gradients, strict=True)
        if gradient is not None
    }


@register_proxy
class GradNorm(SampledProxy):
    """Sum of the Euclidean norms of gradients."""

    name = "grad_norm"
    summary = "sum of the norms of the loss's gradients (Abdelfattah et al. 2021)"
    applies = _APPLIES

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        gradients = loss_gradients(module, images, generator)
        weights = {name: weight.detach() for name, weight in layer_weights(module).items()}
        return finite(self.of_gradients(weights, gradients), "the sum over weights")

    def of_gradients(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        """Computes the score from weights and gradients by name."""
        return sum(float(gradient.norm()) for gradient in gradients.values())


@register_proxy
class Snip(GradNorm):
    """Sum of absolute products of weights and gradients."""

    name = "snip"
    summary = "sum of |weight × gradient| (Lee et al. 2019)"

    def of_gradients(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> float:
        return sum(float((weights[name] * g).abs().sum()) for name, g in gradients.items())


def zico(gradients: Sequence[dict[str, Tensor]]) -> float:
    """Computes ZiCo of the gradients of two or more batches, by layer.

    Standard deviations are those of the batches. Weights whose gradient never changes are left out,
    and so are layers of them.

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
    applies = f"{_APPLIES}; grows with the number of layers"

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        gradients = []
        for _ in range(ZICO_BATCHES):
            gradients.append(loss_gradients(module, images, generator))
            images = torch.randn(images.shape, generator=generator).to(images)
        return zico(gradients)
