"""DSS of TF-TAS: diversity of attention and saliency of MLPs.

Zhou et al., Training-free Transformer Architecture Search (TF-TAS), 2022. With absolute weights,
an image of ones and R the sum of the outputs,

    DSS = Σ_attention ‖∂R/∂W‖_* · ‖W‖_*  +  Σ_MLP Σ |∂R/∂W · W|

over the weight matrices W as the network stores them (a fused qkv is one); ‖·‖_* is the sum of
singular values. The published code computes something else: weights keep their signs there, and
fused qkv matrices add nothing.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from predictors.proxies.base import SampledProxy, UndefinedProxyError, register_proxy
from predictors.proxies.preparation import absolute_weights, finite, layer_weights, unit_scales

ATTENTION, MLP = "attention", "mlp"
_MARKS = {ATTENTION: ("attn", "attention"), MLP: ("mlp", "ffn", "feedforward")}
# squeeze-and-excitation is often called attention; it has no queries
_QUERIES = re.compile(r"(to_)?q(_|uery|kv|k|$)|in_proj")


def roles(module: nn.Module) -> dict[str, str]:
    """Finds ``ATTENTION`` or ``MLP`` for each weight matrix that belongs to one, by its name.

    It is said by the innermost module around it whose class or own name has ``attn``,
    ``attention``, ``mlp``, ``ffn`` or ``feedforward`` in it; attention has queries of its own, too.
    """
    modules = dict(module.named_modules())
    result: dict[str, str] = {}
    for name in layer_weights(module):
        path = name.split(".")[:-1]
        while path and name not in result:
            holder = modules[".".join(path)]
            words = f"{path[-1]} {type(holder).__name__}".lower()
            own = (*holder.named_children(), *holder.named_parameters(recurse=False))
            queries = any(_QUERIES.match(child) for child, _ in own)
            for role, marks in _MARKS.items():
                if any(mark in words for mark in marks) and (role == MLP or queries):
                    result.setdefault(name, role)
            path.pop()
    return result


def saliency(module: nn.Module, image: Tensor) -> float:
    """Computes DSS of ``module`` with its weights for one image (1, channels, height, width).

    Raises:
        UndefinedProxyError: The network has neither attention nor MLPs.
    """
    named = roles(module)
    if not named:
        raise UndefinedProxyError("no weight belongs to attention or to an MLP")
    weights = layer_weights(module)
    output = module(image)
    if not isinstance(output, Tensor):
        raise UndefinedProxyError("the network has more than one output")
    gradients = torch.autograd.grad(
        output.sum(), [weights[name] for name in named], allow_unused=True
    )
    total = 0.0
    for (name, role), gradient in zip(named.items(), gradients, strict=True):
        if gradient is None:
            continue
        weight = weights[name].detach()
        if role == ATTENTION:
            total += _nuclear(gradient) * _nuclear(weight)
        else:
            total += float((gradient * weight).abs().sum())
    return finite(total, "the sum over weights")


def _nuclear(matrix: Tensor) -> float:
    """Sum of singular values; rows are outputs."""
    flat = matrix.flatten(1)
    if not bool(flat.isfinite().all()):
        raise UndefinedProxyError("gradients are not finite")
    return float(torch.linalg.matrix_norm(flat, "nuc"))


@register_proxy
class DSS(SampledProxy):
    """DSS with norms on."""

    name = "tf_tas_dss"
    summary = "attention's diversity and MLPs' saliency (TF-TAS, Zhou et al. 2022)"
    applies = (
        "norms and softmax stay as they are, batch norms with their first statistics; gates, "
        "convolutions and pooling that mix tokens add nothing: without attention only MLPs "
        "count; layer scales and weights that start at zero are one"
    )

    def sample(self, module: nn.Module, images: Tensor, generator: torch.Generator) -> float:
        unit_scales(module, generator)
        absolute_weights(module)
        # with absolute weights values grow from layer to layer beyond single precision
        return saliency(module.double(), torch.ones_like(images[:1]).double())
