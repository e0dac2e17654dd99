"""The two scores of As-ViT: how evenly training can fit images, and how much they are stretched.

Chen et al., Auto-scaling Vision Transformers without Training (As-ViT), 2022. The condition number
κ is that of the neural tangent kernel: with g_i the gradient, over all parameters named weight, of
the sum of image i's features (averaged over tokens, before the final norm),

    K_ij = g_i · g_j        κ = λ_max(K) / λ_min(K)

Gradients come from one backward pass per image, which costs no more than a pass of the batch.

The expected length distortion L^E is that of a circle of images ``x(θ) = U (cos θ, sin θ)ᵀ`` with
U ``(values of an image, 2)`` orthonormal; f are the last features, averaged over tokens. At ten
angles from 0 to 2π, both ends among them,

    L^E = Σ_θ ‖∂f/∂θ‖₂

∂f/∂θ is a Jacobian-vector product in the direction dx/dθ, which forward-mode differentiation gives
in one pass. Images do not see each other without norms, so all angles go through together.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from psutil import virtual_memory
from torch import Tensor, nn
from torch.autograd import forward_ad

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import (
    WithoutNorms,
    as_vit_weights,
    final_norm,
    plain_attention,
    pooled_features,
    unit_scales,
)

PART = 1 << 20  # numbers that are held in float64 at once
ANGLES = 10


def tangent_kernel(module: nn.Module, images: Tensor, max_bytes: int | None = None) -> Tensor:
    """Computes K of ``module`` with its weights, shape (batch, batch), float64 on the CPU.

    At most ``max_bytes`` of gradients are kept, two of them at least, by default half of the memory
    that is free where the images (batch, 3, side, side) are. What does not fit is computed again.

    Raises:
        UndefinedProxyError: No weight matters.
    """
    if max_bytes is None:
        on_gpu = images.device.type == "cuda"
        free = torch.cuda.mem_get_info(images.device)[0] if on_gpu else virtual_memory().available
        max_bytes = int(free) // 2
    number = final_norm(module, images[:1])
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]

    def gradient(index: int) -> Tensor:
        # fused kernels of CUDA refuse the biases of a single image
        with plain_attention(), WithoutNorms(number):
            features = pooled_features(module, images[index : index + 1])
        if not features.requires_grad:
            raise UndefinedProxyError("the features do not depend on any weight")
        parts = torch.autograd.grad(features.sum(), weights, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return _gram(gradient, len(images), max(1, max_bytes // max(1, size)))


def _gram(gradient: Callable[[int], Tensor], count: int, kept: int) -> Tensor:
    """Products of all pairs of vectors, of which ``kept`` and one more are held together."""
    result = torch.zeros(count, count, dtype=torch.float64)
    for begin in range(0, count, kept):
        block: list[Tensor] = []
        for index in range(begin, count):
            row = gradient(index)
            if len(block) < kept:
                block.append(row)
            for position, other in enumerate(block, begin):
                result[position, index] = result[index, position] = _product(other, row)
    return result


def _product(first: Tensor, second: Tensor) -> float:
    """Scalar product of two vectors, summed in float64 part by part: κ divides by differences."""
    pairs = zip(first.split(PART), second.split(PART), strict=True)
    return sum(float(a.double().dot(b.double())) for a, b in pairs)


def condition_number(kernel: Tensor) -> float:
    """Computes λ_max / λ_min of a symmetric matrix.

    Raises:
        UndefinedProxyError: The matrix is singular or not finite.
    """
    if not bool(kernel.isfinite().all()):
        raise UndefinedProxyError("gradients are not finite")
    eigenvalues = torch.linalg.eigvalsh(kernel)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    # gradients are float32: smaller eigenvalues are rounding errors
    if smallest <= len(kernel) * torch.finfo(torch.float32).eps * largest:
        raise UndefinedProxyError(
            "the tangent kernel is singular in single precision: some images look the same"
        )
    return largest / smallest


@register_proxy
class TangentKernelCondition(SampledProxy):
    """κ with norms on, in eval mode: batch norms, if any, have their fresh statistics."""

    name = "ntk_condition"
    summary = "κ, condition number of the neural tangent kernel (As-ViT, Chen et al. 2022)"
    applies = (
        "layer norms stay on except the last, batch norms keep their first statistics; linear "
        "weights are drawn truncated normal with deviation 0.02; layer scales and weights that "
        "start at zero are one; attention and gates are differentiated as they are"
    )
    larger_is_better = False

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        if len(images) < 2:
            raise UndefinedProxyError("a condition number needs two images or more per batch")
        unit_scales(module, generator)
        as_vit_weights(module, generator)
        return condition_number(tangent_kernel(module, images))


def length_distortion(module: nn.Module, plane: Tensor, at_once: int = ANGLES) -> float:
    """Computes L^E of ``module``, in eval mode, with its weights.

    ``plane`` is U, shape (3, height, width, 2); ``at_once`` angles are in memory together.

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
