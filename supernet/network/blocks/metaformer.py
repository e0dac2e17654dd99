"""MetaFormer blocks: a mixer and an MLP in residual branches (Yu et al., 2022)."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import drop_path
from torch import Tensor, nn

from supernet.network.axes import Axes, StaticModule, prefixed
from supernet.network.layers import (
    Linear,
    activation_axes,
    build_activation,
    build_norm,
    folded_before,
    norm_axes,
)
from supernet.network.mixers import build_mixer
from supernet.network.registry import register_block


class Mlp(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.activation = build_activation(activation)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))

    def axes(self) -> dict[str, Axes]:
        """Returns the axes of its parameters; inner channels are ``hidden``."""
        return {
            "fc1.weight": ("hidden", "dim"),
            "fc1.bias": ("hidden",),
            "fc2.weight": ("dim", "hidden"),
            "fc2.bias": ("dim",),
        } | activation_axes("activation", self.activation)


@register_block("metaformer")
class MetaFormer(StaticModule):
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
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.dim, self.hidden = dim, hidden
        self.mixer = build_mixer(mixer, dim, **dict(params))
        self.inside_mlp = self.mixer.inside_mlp
        if not self.inside_mlp:
            self.norm1 = build_norm(norm, dim, norm_eps)
        self.norm2 = build_norm(norm, dim, norm_eps)
        self.mlp = Mlp(dim, hidden, activation)
        self.scale1: nn.Parameter | None = None
        self.scale2: nn.Parameter | None = None
        if layer_scale > 0:
            self.scale2 = nn.Parameter(torch.full((dim,), layer_scale))
            if not self.inside_mlp:
                self.scale1 = nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.inside_mlp:
            return x + self._branch(self.mlp(self.norm2(self.mixer(x))), self.scale2)
        x = x + self._branch(self.mixer(self.norm1(x)), self.scale1)
        return x + self._branch(self.mlp(self.norm2(x)), self.scale2)

    def fold(self) -> None:
        """Folds the norm of the MLP into its first layer; what a mixer begins with is its own."""
        self.norm2 = folded_before(self.norm2, self.mlp.fc1)

    def _branch(self, x: Tensor, scale: nn.Parameter | None) -> Tensor:
        return drop_path(x if scale is None else x * scale, self.drop_path_rate, self.training)

    def axes(self) -> dict[str, Axes]:
        result: dict[str, Axes] = prefixed("mixer", self.mixer.axes())
        if not self.inside_mlp:
            result |= norm_axes("norm1", self.norm1, "dim")
        result |= norm_axes("norm2", self.norm2, "dim")
        result |= prefixed("mlp", self.mlp.axes())
        for name in ("scale1", "scale2"):
            if getattr(self, name) is not None:
                result[name] = ("dim",)
        return result

    def sizes(self) -> dict[str, int]:
        return {**self.mixer.sizes(), "dim": self.dim, "hidden": self.hidden}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return *self.mixer.permutable(), frozenset({"hidden"})
