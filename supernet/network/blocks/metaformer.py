"""MetaFormer blocks: a mixer and an MLP in residual branches (Yu et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import drop_path
from torch import Tensor, nn

from supernet.network.axes import Axes, StaticModule, prefixed
from supernet.network.layers import (
    Conv2d,
    Linear,
    activation_axes,
    build_activation,
    folded_after,
    folded_before,
)
from supernet.network.mixers import build_mixer
from supernet.network.norms import build_norm, norm_axes
from supernet.network.registry import register_block


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, dim: int, hidden: int, activation: str, bias: bool = True) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias)
        self.activation = build_activation(activation)
        self.fc2 = Linear(hidden, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))

    def axes(self) -> dict[str, Axes]:
        """Returns the axes of its parameters; inner channels are ``hidden``."""
        result: dict[str, Axes] = {"fc1.weight": ("hidden", "dim"), "fc2.weight": ("dim", "hidden")}
        if self.fc1.bias is not None:
            result["fc1.bias"] = ("hidden",)
        if self.fc2.bias is not None:
            result["fc2.bias"] = ("dim",)
        return result | activation_axes("activation", self.activation)


@register_block("metaformer")
class MetaFormer(StaticModule):
    """A mixer and an MLP in residual branches.

    Usually ``x + mixer(norm1(x))``, then ``x + mlp(norm2(x))``; a mixer that sits inside the MLP
    gives ``x + mlp(norm2(mixer(x)))``. With ``res_post_norm`` norms end the branches instead,
    ``x + norm1(mixer(x))``; their weights start at 1, so that every branch counts from the start
    (at 0 in SwinV2). With ``position`` both follow ``x + conv(x)``, a depthwise 3 × 3 convolution
    that tells positions apart (Li et al., UniFormer, 2022, equation 3). Each branch may have a
    layer scale, and each shortcut a learned scale, too. In training a branch is dropped with
    probability ``drop_path_rate``, which whoever calls the block sets.
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
        shortcut_scale: bool = False,
        activation: str = "gelu",
        bias: bool = True,
        res_post_norm: bool = False,
        position: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.hidden, self.res_post_norm = dim, hidden, res_post_norm
        self.position = Conv2d(dim, dim, 3, padding=1, groups=dim) if position else None
        self.mixer = build_mixer(mixer, dim, **dict(params))
        self.inside_mlp = self.mixer.inside_mlp
        if not self.inside_mlp:
            self.norm1 = build_norm(norm, dim, norm_eps, bias)
        self.norm2 = build_norm(norm, dim, norm_eps, bias)
        self.mlp = Mlp(dim, hidden, activation, bias)
        branches = (2,) if self.inside_mlp else (1, 2)

        def scale(branch: int, initial: float) -> nn.Parameter | None:
            used = initial > 0 and branch in branches
            return nn.Parameter(torch.full((dim,), initial)) if used else None

        self.scale1, self.scale2 = scale(1, layer_scale), scale(2, layer_scale)
        kept = float(shortcut_scale)  # 1, or none
        self.shortcut1, self.shortcut2 = scale(1, kept), scale(2, kept)

    def forward(self, x: Tensor) -> Tensor:
        # maps are arguments, not local variables, so that none outlives its use
        if self.position is not None:
            x = x + self.position(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.inside_mlp:
            return self._sum(
                x, self.shortcut2, self._normed(self.norm2, self.mlp, self.mixer(x)), self.scale2
            )
        x = self._sum(x, self.shortcut1, self._normed(self.norm1, self.mixer, x), self.scale1)
        return self._sum(x, self.shortcut2, self._normed(self.norm2, self.mlp, x), self.scale2)

    def _normed(self, norm: nn.Module, branch: nn.Module, x: Tensor) -> Tensor:
        return norm(branch(x)) if self.res_post_norm else branch(norm(x))

    def fold(self) -> None:
        """Folds the norm of the MLP into its layer; what a mixer begins or ends with is its own."""
        if self.res_post_norm:
            self.norm2 = folded_after(self.mlp.fc2, self.norm2)
        else:
            self.norm2 = folded_before(self.norm2, self.mlp.fc1)

    def _sum(
        self,
        x: Tensor,
        shortcut: nn.Parameter | None,
        branch: Tensor,
        scale: nn.Parameter | None,
    ) -> Tensor:
        branch = drop_path(_scaled(branch, scale), self.drop_path_rate, self.training)
        return _scaled(x, shortcut) + branch

    def axes(self) -> dict[str, Axes]:
        result: dict[str, Axes] = prefixed("mixer", self.mixer.axes())
        if not self.inside_mlp:
            result |= norm_axes("norm1", self.norm1, "dim")
        result |= norm_axes("norm2", self.norm2, "dim")
        result |= prefixed("mlp", self.mlp.axes())
        if self.position is not None:
            result |= {"position.weight": ("dim", 1, 3, 3), "position.bias": ("dim",)}
        for name in ("scale1", "scale2", "shortcut1", "shortcut2"):
            if getattr(self, name) is not None:
                result[name] = ("dim",)
        return result

    def sizes(self) -> dict[str, int]:
        return {**self.mixer.sizes(), "dim": self.dim, "hidden": self.hidden}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return *self.mixer.permutable(), frozenset({"hidden"})


def _scaled(x: Tensor, scale: nn.Parameter | None) -> Tensor:
    return x if scale is None else x * scale
