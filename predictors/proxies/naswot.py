"""NASWOT: how differently activations switch for different images.

Mellor et al., Neural Architecture Search without Training, 2021. Every unit in front of an
activation function gives one bit per image, whether its input is positive. With X the bits of a
layer, ``(batch, units)``,

    K = Σ_layers X Xᵀ + (1 − X)(1 − X)ᵀ        score = log det K

The published code hooks ReLU modules. Here calls of activation functions are seen, by modules or
not, and GELU, SiLU and others count by the sign of what goes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import BatchStatistics, Interceptor, first_argument, unit_scales

_NAMES = (
    *("relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "rrelu", "rrelu_", "elu"),
    *("elu_", "selu", "selu_", "celu", "celu_", "gelu", "silu", "mish", "hardswish", "hardtanh"),
    *("hardtanh_",),
)
ACTIVATIONS: frozenset[Callable[..., Any]] = frozenset(
    getattr(namespace, name)
    for namespace in (F, torch, Tensor)
    for name in _NAMES
    if hasattr(namespace, name)
)
_UNITS = 2**22  # float32 counts exactly to 2^24


class Codes(Interceptor):
    """While active, adds the kernel of every activation's code to ``kernel`` ``(batch, batch)``."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.kernel = torch.zeros(batch, batch, dtype=torch.float64)

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func in ACTIVATIONS:
            self._add(first_argument(args, kwargs))
        return func(*args, **kwargs)

    def _add(self, x: Tensor) -> None:
        batch = len(self.kernel)
        if len(x) % batch:  # windows of an image lie beside each other
            return  # not computed from the images, as a relative position bias
        for part in (x > 0).reshape(batch, -1).split(_UNITS, dim=1):
            bits = part.float()
            both, on = (bits @ bits.T).double().cpu(), bits.sum(1).double().cpu()
            # X Xᵀ + (1 − X)(1 − X)ᵀ, with the second product multiplied out
            self.kernel += 2 * both + part.shape[1] - on[:, None] - on[None, :]


def log_determinant(kernel: Tensor) -> float:
    """Computes log det.

    Raises:
        UndefinedProxyError: The matrix is singular.
    """
    sign, logarithm = torch.linalg.slogdet(kernel)
    if not sign > 0:
        raise UndefinedProxyError("some images switch all activations alike")
    return float(logarithm)


@register_proxy
class NASWOT(SampledProxy):
    """log det of the kernel of binary codes of one batch."""

    name = "naswot"
    summary = "log det of the kernel of activation codes (Mellor et al. 2021)"
    applies = (
        "norms stay on, batch norms with the batch's statistics; GELU, SiLU and others count by "
        "the sign of their input; attention and gates without an activation function have no "
        "code; layer scales and weights that start at zero are one"
    )

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        with torch.no_grad(), BatchStatistics(), Codes(len(images)) as codes:
            module(images)
        if not codes.kernel.any():
            raise UndefinedProxyError("the network calls no known activation function")
        return log_determinant(codes.kernel)
