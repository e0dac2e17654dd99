"""Expected length distortion L^E: how much a network stretches a circle of images.

Chen et al., Auto-scaling Vision Transformers without Training (As-ViT), 2022. The images of a
circle are ``x(θ) = U (cos θ, sin θ)ᵀ`` with U ``(values of an image, 2)`` orthonormal; f are the
last features, averaged over tokens. At ten angles from 0 to 2π, both ends among them,

    L^E = Σ_θ ‖∂f/∂θ‖₂

∂f/∂θ is a Jacobian-vector product in the direction dx/dθ. Forward-mode differentiation gives it in
one pass; by reverse mode it would take one pass per feature. Images do not see each other without
norms, so all angles go through the network together.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import (
    WithoutNorms,
    as_vit_weights,
    plain_attention,
    pooled_features,
    unit_scales,
)

ANGLES = 10


def length_distortion(module: nn.Module, plane: Tensor, at_once: int = ANGLES) -> float:
    """Computes L^E of ``module`` with its weights.

    Args:
        module: The network, in eval mode: dropout would be part of the derivative.
        plane: U, shape (3, height, width, 2), on the module's device.
        at_once: Number of angles that are in memory together.

    Raises:
        UndefinedProxyError: An operator has no forward derivative.
    """
    angles = torch.linspace(0, 2 * math.pi, ANGLES, dtype=plane.dtype, device=plane.device)
    total = 0.0
    for some in angles.split(at_once):
        cos, sin = some.cos(), some.sin()
        points = torch.einsum("...d,da->a...", plane, torch.stack([cos, sin]))
        velocities = torch.einsum("...d,da->a...", plane, torch.stack([-sin, cos]))
        total += float(_derivative(module, points, velocities).norm(dim=1).sum())
    return total


def _derivative(module: nn.Module, points: Tensor, velocities: Tensor) -> Tensor:
    """Of the pooled features, ``(points, channels)``."""
    try:
        with (
            # torch itself prepares forward derivatives in a way that it calls deprecated
            warnings.catch_warnings(action="ignore", category=FutureWarning),
            torch.no_grad(),
            plain_attention(),
            WithoutNorms(),
            forward_ad.dual_level(),
        ):
            features = pooled_features(module, forward_ad.make_dual(points, velocities))
            tangent = forward_ad.unpack_dual(features).tangent
    except NotImplementedError as error:
        raise UndefinedProxyError(f"no forward derivative: {str(error).splitlines()[0]}") from None
    return torch.zeros_like(features) if tangent is None else tangent


@register_proxy
class LengthDistortion(SampledProxy):
    """L^E with every norm replaced by the identity, in eval mode."""

    name = "length_distortion"
    summary = "L^E, how much the network stretches a circle of images (As-ViT, Chen et al. 2022)"
    applies = (
        "all norms are the identity, but for those that a model writes out in elementary "
        "operations; linear weights are drawn truncated normal with deviation "
        "0.02; layer scales and weights that start at zero are one; attention and gates stay as "
        "they are, so that gates, products of small numbers, stretch little"
    )

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        as_vit_weights(module, generator)
        gaussian = torch.randn(images[0].numel(), 2, generator=generator)
        plane = torch.linalg.qr(gaussian).Q.reshape(*images.shape[1:], 2).to(images)
        return length_distortion(module, plane, len(images))
