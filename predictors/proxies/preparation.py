"""Preparation of networks for proxies, whatever network it is: weights, norms, features.

Functions are intercepted, not modules: a norm is a call of ``layer_norm``, ``batch_norm`` or the
like, wherever a model makes it. What it writes out in elementary operations is not recognised.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from predictors.proxies.base import UndefinedProxyError

NORMS: frozenset[Callable[..., Any]] = frozenset(
    getattr(namespace, name)
    for namespace in (F, torch)
    for name in ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm")
)
_SCALES = re.compile(r"weight|gamma|scale|gain")
_NOT_SCALES = re.compile(r"bias|beta|token|embed")
SMALL = 0.2  # layer scales start at 0.1 or below, learned slopes of activations at 0.25
WEIGHT_STD = 0.02


# Weights ------------------------------------------------------------------------------------------


@torch.no_grad()
def unit_scales(module: nn.Module, generator: torch.Generator) -> None:
    """Lets no branch start switched off.

    Networks start residual branches at or near zero, by the weight of a last norm or by a layer
    scale, and some their classifier: gradients then say little about the network. Vectors of one
    small constant become ones; matrices of zeros are drawn from the normal distribution truncated
    at two units, with standard deviation 0.02.
    """
    for name, parameter in module.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if not _SCALES.search(leaf) or _NOT_SCALES.search(leaf):
            continue
        first = parameter.flatten()[0]
        if not first.abs() < SMALL or not bool((parameter == first).all()):
            continue
        if parameter.numel() == max(parameter.shape, default=1):
            parameter.fill_(1.0)
        elif first == 0:
            _draw(parameter, generator)


@torch.no_grad()
def as_vit_weights(module: nn.Module, generator: torch.Generator) -> None:
    """Draws weights of linear layers and 1 × 1 convolutions as As-ViT does, with deviation 0.02.

    Biases of both become zero; all else keeps the network's own initialisation.
    """
    for layer in module.modules():
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        if isinstance(layer, nn.Linear) or (pointwise and layer.groups == 1):
            assert isinstance(layer, (nn.Linear, nn.Conv2d))
            _draw(layer.weight, generator)
            if layer.bias is not None:
                layer.bias.zero_()


def _draw(parameter: Tensor, generator: torch.Generator) -> None:
    """On the CPU, so that devices agree."""
    values = torch.empty(parameter.shape)
    nn.init.trunc_normal_(values, std=WEIGHT_STD, generator=generator)
    parameter.copy_(values)


@torch.no_grad()
def absolute_weights(module: nn.Module) -> None:
    """Replaces every parameter by its absolute value."""
    for parameter in module.parameters():
        parameter.abs_()


def layer_weights(module: nn.Module) -> dict[str, nn.Parameter]:
    """Lists weights of linear layers and convolutions: named weight, with two axes or more."""
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if name.endswith("weight") and parameter.ndim >= 2
    }


# Norms --------------------------------------------------------------------------------------------


class Interceptor(TorchFunctionMode):
    """While active, calls of torch's functions go through ``call``."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class WithoutNorms(Interceptor):
    """While active, norms give back a copy of their input; with ``number``, that norm alone."""

    def __init__(self, number: int | None = None) -> None:
        super().__init__()
        self._number, self._called = number, 0

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func in NORMS:
            self._called += 1
            if self._number in (None, self._called):
                # a copy, since what follows may work in place on what is also a shortcut
                return first_argument(args, kwargs).clone()
        return func(*args, **kwargs)


class BatchStatistics(Interceptor):
    """While active, batch norms use the statistics of their batch, as in training.

    Those of a fresh network would be no norms at all. Only where a channel has more than one value.
    """

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if func is F.batch_norm:
            x = first_argument(args, kwargs)
            weight, bias = _argument(args, kwargs, 3, "weight"), _argument(args, kwargs, 4, "bias")
            eps = kwargs.get("eps", args[7] if len(args) > 7 else 1e-5)
            if x.numel() > x.shape[1]:
                return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)
        return func(*args, **kwargs)


class _NormRecorder(Interceptor):
    """Remembers the last norm: its number, its output and how often that had been changed."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.version = 0, -1
        self.output: Tensor | None = None

    def call(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if func in NORMS:
            self.number, self.output, self.version = self.number + 1, result, result._version
        return result


def first_argument(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Returns what a function of ``torch.nn.functional`` works on."""
    return args[0] if args else kwargs["input"]


def _argument(args: Sequence[Any], kwargs: dict[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


# Features -----------------------------------------------------------------------------------------


def pooled_features(module: nn.Module, images: Tensor) -> Tensor:
    """Averages the last features of timm's or our networks over tokens: (batch, channels).

    Raises:
        UndefinedProxyError: The module has not one last map of features.
    """
    maps = _last_features(module, images)
    if maps.ndim == 4:
        channels_last = str(getattr(module, "output_fmt", "NCHW")) == "NHWC"
        return maps.mean((1, 2)) if channels_last else maps.mean((2, 3))
    return maps.mean(1) if maps.ndim == 3 else maps


def _last_features(module: nn.Module, images: Tensor) -> Tensor:
    forward = getattr(module, "forward_features", None)
    if forward is None:
        raise UndefinedProxyError(
            f"{type(module).__name__} has no forward_features, so its last features are unknown"
        )
    maps = forward(images)
    if not isinstance(maps, Tensor) or maps.ndim not in (2, 3, 4):
        raise UndefinedProxyError(f"{type(module).__name__} gives more than one map of features")
    return maps


def final_norm(module: nn.Module, image: Tensor) -> int:
    """Finds the number of the norm, from 1, whose output are the features, or 0."""
    with torch.no_grad(), _NormRecorder() as recorder:
        features = _last_features(module, image)
    last = recorder.output
    # the same storage at the same version: at most seen from another side since
    if (
        last is not None
        and features.untyped_storage()._cdata == last.untyped_storage()._cdata
        and features._version == recorder.version
    ):
        return recorder.number
    return 0


def plain_attention() -> AbstractContextManager[Any]:
    """Computes attention by matrix products and softmax, which have forward derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


def finite(value: float, what: str) -> float:
    """Returns ``value``, or raises ``UndefinedProxyError`` where it is not finite."""
    if not math.isfinite(value):
        raise UndefinedProxyError(f"{what} is not finite")
    return value
