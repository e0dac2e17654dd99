"""Static modules that a network is a chain of: stem, block, downsampling, head.

Maps are ``(batch, height, width, dim)``, contiguous, at every module boundary: the one memory
layout that latency tables assume. The styles cover the published networks in
``search_space.known``; ``timm_weights`` shows which is which.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import drop_path
from torch import Tensor, nn

from search_space.architecture import conv_padding
from search_space.components import ModuleSpec
from supernet.network.axes import Axes, Axis, Product, StaticModule, prefixed
from supernet.network.layers import Conv2d, Linear, build_norm
from supernet.network.mixers import build_mixer


def _norm_axes(prefix: str, norm: nn.Module, axis: Axis) -> dict[str, Axes]:
    if isinstance(norm, nn.Identity):
        return {}
    return {f"{prefix}.weight": (axis,), f"{prefix}.bias": (axis,)}


class Stem(StaticModule):
    """Strided convolution of images ``(batch, channels, height, width)``, and a norm."""

    def __init__(
        self, dim: int, kernel: int, stride: int, norm: str, norm_eps: float, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.dim, self.kernel, self.stride, self.in_chans = dim, kernel, stride, in_chans
        self.conv = Conv2d(in_chans, dim, kernel, stride, conv_padding(kernel, stride))
        self.norm = build_norm(norm, dim, norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.conv(images.contiguous(memory_format=torch.channels_last))
        return self.norm(maps.permute(0, 2, 3, 1))

    def axes(self) -> dict[str, Axes]:
        conv: dict[str, Axes] = {
            "conv.weight": ("dim", self.in_chans, self.kernel, self.kernel),
            "conv.bias": ("dim",),
        }
        return conv | _norm_axes("norm", self.norm, "dim")

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)


class Downsample(StaticModule):
    """Halves the map and changes the width, in one of the published styles."""

    def __init__(
        self, dim: int, out_dim: int, style: str, kernel: int, norm: str, norm_eps: float
    ) -> None:
        super().__init__()
        self.dim, self.out_dim, self.style, self.kernel = dim, out_dim, style, kernel
        self.norm: nn.Module = nn.Identity()
        if style == "patch_merging":
            self.norm = build_norm(norm, kernel**2 * dim, norm_eps)
            self.reduction = Linear(kernel**2 * dim, out_dim, bias=False)
            return
        if style != "conv":
            self.norm = build_norm(norm, dim if style == "norm_conv" else out_dim, norm_eps)
        self.conv = Conv2d(dim, out_dim, kernel, 2, conv_padding(kernel, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.style == "patch_merging":
            return self.reduction(self.norm(self._patches(x)))
        if self.style == "norm_conv":
            x = self.norm(x)
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.norm(x) if self.style == "conv_norm" else x

    def _patches(self, x: Tensor) -> Tensor:
        """Every second kernel × kernel patch as one vector; odd maps are padded by one."""
        batch, height, width, dim = x.shape
        if height % 2 or width % 2:
            x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        rows, columns = (height + 1) // 2, (width + 1) // 2
        if self.kernel == 2:
            x = x.reshape(batch, rows, 2, columns, 2, dim)
            return x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # columns before rows, as published
        padding = conv_padding(self.kernel, 2)
        x = F.unfold(x.permute(0, 3, 1, 2), self.kernel, padding=padding, stride=2)
        x = x.reshape(batch, dim, self.kernel**2, rows * columns)
        return x.permute(0, 3, 2, 1).reshape(batch, rows, columns, -1)

    def axes(self) -> dict[str, Axes]:
        if self.style == "patch_merging":
            merged = Product(self.kernel**2, "dim")
            return _norm_axes("norm", self.norm, merged) | {"reduction.weight": ("out_dim", merged)}
        conv: dict[str, Axes] = {
            "conv.weight": ("out_dim", "dim", self.kernel, self.kernel),
            "conv.bias": ("out_dim",),
        }
        axis = "dim" if self.style == "norm_conv" else "out_dim"
        return conv | _norm_axes("norm", self.norm, axis)

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "out_dim": self.out_dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"out_dim"})


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(StaticModule):
    """A mixer and an MLP in residual branches.

    Usually ``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``; a mixer that sits inside the MLP
    gives ``x + mlp(norm2(mixer(x)))``. Each branch may have a layer scale. In training a branch
    is dropped with probability ``drop_path_rate``, which whoever calls the block sets.
    """

    def __init__(
        self,
        dim: int,
        mixer: str,
        params: tuple[tuple[str, Any], ...],
        hidden: int,
        norm: str,
        norm_eps: float,
        layer_scale: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.mixer = build_mixer(mixer, dim, **dict(params))
        self.inside_mlp = self.mixer.inside_mlp
        if not self.inside_mlp:
            self.norm1 = build_norm(norm, dim, norm_eps)
        self.norm2 = build_norm(norm, dim, norm_eps)
        self.mlp = Mlp(dim, hidden)
        self.scale1: nn.Parameter | None = None
        self.scale2: nn.Parameter | None = None
        if layer_scale > 0:
            self.scale2 = nn.Parameter(torch.full((dim,), layer_scale))
            if not self.inside_mlp:
                self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path_rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        if self.inside_mlp:
            return x + self._branch(self.mlp(self.norm2(self.mixer(x))), self.scale2)
        x = x + self._branch(self.mixer(self.norm1(x)), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def _branch(self, x: Tensor, scale: nn.Parameter | None) -> Tensor:
        return drop_path(x if scale is None else x * scale, self.drop_path_rate, self.training)

    def axes(self) -> dict[str, Axes]:
        result: dict[str, Axes] = prefixed("mixer", self.mixer.axes())
        if not self.inside_mlp:
            result |= _norm_axes("norm1", self.norm1, "dim")
        result |= _norm_axes("norm2", self.norm2, "dim")
        result |= {
            "mlp.fc1.weight": ("hidden", "dim"),
            "mlp.fc1.bias": ("hidden",),
            "mlp.fc2.weight": ("dim", "hidden"),
            "mlp.fc2.bias": ("dim",),
        }
        for name in ("scale1", "scale2"):
            if getattr(self, name) is not None:
                result[name] = ("dim",)
        return result

    def sizes(self) -> dict[str, int]:
        return {**self.mixer.sizes(), "dim": self.dim, "hidden": self.hidden}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return *self.mixer.permutable(), frozenset({"hidden"})


class Head(StaticModule):
    """Norm, global pooling (in either order) and a linear classifier.

    ``num_classes`` 0 leaves out the classifier; ``global_pool`` is ``avg``, ``max`` or empty.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        norm: str,
        norm_eps: float,
        norm_after_pool: bool,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim, self.norm_after_pool, self.drop_rate = dim, norm_after_pool, drop_rate
        self.norm = build_norm(norm, dim, norm_eps)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        """Replaces the classifier by a new one; raises ValueError for an unknown pooling."""
        if global_pool not in ("avg", "max", ""):
            raise ValueError(f"global_pool {global_pool!r} must be 'avg', 'max' or ''.")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.fc = Linear(self.dim, num_classes) if num_classes > 0 else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """Returns the last feature map, normed where the norm comes before pooling."""
        return x if self.norm_after_pool else self.norm(x)

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turns the last feature map into logits (batch, classes) or the classifier's input."""
        if self.global_pool == "avg":
            x = x.mean((1, 2), keepdim=True)
        elif self.global_pool == "max":
            x = x.amax((1, 2), keepdim=True)
        if self.norm_after_pool:
            x = self.norm(x)
        if self.global_pool:
            x = x.flatten(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def axes(self) -> dict[str, Axes]:
        result = _norm_axes("norm", self.norm, "dim")
        if self.num_classes > 0:
            result |= {"fc.weight": (self.num_classes, "dim"), "fc.bias": (self.num_classes,)}
        return result

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)


_KINDS: dict[str, type[StaticModule]] = {
    "stem": Stem,
    "downsample": Downsample,
    "block": Block,
    "head": Head,
}


def build_module(spec: ModuleSpec, **extra: Any) -> StaticModule:
    """Builds the static module of a component, with ``extra`` constructor options."""
    return _KINDS[spec.kind](**spec.as_dict(), **extra)


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Returns the drop-path rates of ``depth`` blocks, from 0 linearly to ``rate`` at the last.

    Source: Huang et al., Deep networks with stochastic depth, 2016.
    """
    return [rate * i / max(1, depth - 1) for i in range(depth)]
