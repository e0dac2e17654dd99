"""Synaptic flow (Tanaka et al., Pruning neural networks without any data, 2020), as a logarithm.

With all parameters θ replaced by their absolute values, an image of ones and R the sum of the
outputs, the score is ``log Σ θ · ∂R/∂θ``, in double precision.

The sum is the derivative of R when all parameters grow at the same rate, so one forward-mode pass
gives it. A chain of n layers has ``Σ θ · ∂R/∂θ = n R``: seen at any tensor x, the ratio of the
derivative to the value counts the weights that were multiplied on the way there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import (
    NORMS,
    Interceptor,
    absolute_weights,
    first_argument,
    plain_attention,
    unit_scales,
)

_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_PRODUCTS = {
    *(torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.mul_, Tensor.multiply_),
    *(Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__),
}
_MASKED = -50.0  # some models mask attention by −100 instead of −∞


class _Linearised(Interceptor):
    """While active, a network is of first degree in each of its layers, as synaptic flow assumes.

    Norms are the identity. Attention gives all keys that are not masked the same weight. In a
    product of two activations, the branch with fewer weights behind it is divided by its mean:
    gates neither add to the flow nor multiply magnitudes, which would otherwise grow beyond any
    number format. Only the images require gradients, which tells activations from weights.
    """

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func in NORMS:
            return first_argument(args, kwargs).clone()
        if func in _SOFTMAX:
            scores = first_argument(args, kwargs)
            rest = {key: value for key, value in kwargs.items() if key != "input"}
            return func(_equal(scores, scores == -math.inf), *args[1:], **rest)
        if func is F.scaled_dot_product_attention:
            args, kwargs = _equal_attention(*args, **kwargs)
        elif (
            func in _PRODUCTS
            and sum(isinstance(x, Tensor) and x.requires_grad for x in args[:2]) == 2
        ):
            first, second = args[:2]
            gate = min(first, second, key=_degree)
            mean = gate.abs().mean()
            second = second / torch.where(mean == 0, 1.0, mean)
            args = (first, second, *args[2:])
        return func(*args, **kwargs)


def _activations(operands: Sequence[Any]) -> bool:
    return all(isinstance(x, Tensor) and x.requires_grad for x in operands)


def _degree(x: Tensor) -> float:
    """Counts how many weights were multiplied on the way to ``x``, on average."""
    value, tangent = forward_ad.unpack_dual(x)
    if tangent is None:
        return 0.0
    return float(tangent.detach().abs().sum() / value.detach().abs().sum().clamp_min(1e-300))


def _equal(scores: Tensor, masked: Tensor) -> Tensor:
    return torch.zeros_like(scores).masked_fill(masked, -math.inf)


def _equal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **rest: Any,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of attention with the same masks and equal scores."""
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = _equal(attn_mask, attn_mask < _MASKED)
    return (torch.zeros_like(query), torch.zeros_like(key), value, attn_mask, *args), rest


def log_synaptic_flow(module: nn.Module, shape: Sequence[int]) -> float:
    """Computes log Σ θ · ∂R/∂θ for one image of ones, of ``shape`` (channels, height, width).

    The network is in double precision and without negative parameters.

    Raises:
        UndefinedProxyError: The flow is not a positive finite number.
    """
    parameter = next(module.parameters())
    images = torch.ones(1, *shape, dtype=parameter.dtype, device=parameter.device)
    try:
        with plain_attention(), _Linearised(), forward_ad.dual_level():
            growing = {
                name: forward_ad.make_dual(p.detach(), p.detach().clone())
                for name, p in module.named_parameters()
            }
            output = functional_call(module, growing, (images.requires_grad_(),))
            if not isinstance(output, Tensor):
                raise UndefinedProxyError("the network has more than one output")
            tangent = forward_ad.unpack_dual(output.sum()).tangent
    except NotImplementedError as error:
        raise UndefinedProxyError(f"no forward derivative: {str(error).splitlines()[0]}") from None
    flow = 0.0 if tangent is None else float(tangent.detach())
    if not math.isfinite(flow):
        raise UndefinedProxyError("the flow is beyond double precision")
    if flow <= 0:
        raise UndefinedProxyError(f"the flow is {flow:.3g}, which has no logarithm")
    return math.log(flow)


@register_proxy
class Synflow(SampledProxy):
    """log Σ θ · ∂R/∂θ of absolute weights, norms left out."""

    name = "synflow"
    summary = "logarithm of the synaptic flow (Tanaka et al. 2020)"
    applies = (
        "norms are the identity, but for those that a model writes out in elementary operations; "
        "softmax attention is the mean over keys, so that queries and keys have no flow; of two "
        "multiplied branches the one with fewer weights is divided by its mean; layer scales and "
        "weights that start at zero are one"
    )

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        absolute_weights(module)
        return log_synaptic_flow(module.double(), images.shape[1:])
