"""Condition number κ of the neural tangent kernel: how evenly training can fit different images.

Chen et al., Auto-scaling Vision Transformers without Training (As-ViT), 2022. With g_i the
gradient, over all parameters named weight, of the sum of image i's features (averaged over tokens,
before the final norm),

    K_ij = g_i · g_j        κ = λ_max(K) / λ_min(K)

Gradients come from one backward pass per image, which costs no more than a pass of the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import (
    WithoutNorms,
    as_vit_weights,
    final_norm,
    pooled_features,
    unit_scales,
)

PART = 1 << 20  # numbers that are held in float64 at once


def tangent_kernel(module: nn.Module, images: Tensor, max_bytes: int | None = None) -> Tensor:
    """Computes the tangent kernel of ``module`` with its weights.

    Args:
        module: The network.
        images: Its input, shape (batch, 3, side, side).
        max_bytes: Most bytes of gradients that are kept, two of them at least, by default half of
            the memory that is free where the images are. What does not fit is computed again.

    Returns:
        K, shape (batch, batch), float64 on the CPU.

    Raises:
        UndefinedProxyError: No weight matters.
    """
    if max_bytes is None:
        max_bytes = _free_bytes(images.device) // 2
    number = final_norm(module, images[:1])
    weights = [p for name, p in module.named_parameters() if name.endswith("weight")]

    def gradient(index: int) -> Tensor:
        with WithoutNorms(number):
            features = pooled_features(module, images[index : index + 1])
        if not features.requires_grad:
            raise UndefinedProxyError("the features do not depend on any weight")
        parts = torch.autograd.grad(features.sum(), weights, allow_unused=True)
        return torch.cat([part.flatten() for part in parts if part is not None])

    size = sum(weight.numel() * weight.element_size() for weight in weights)
    return _gram(gradient, len(images), max(1, max_bytes // max(1, size)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


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
