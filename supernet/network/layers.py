"""Layers with the initial values that our modules start from, and the norms.

A module initialises itself: it is made of these layers, or of any others whose values it then sets
in its constructor. Nothing overwrites them afterwards.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def initialise(layer: nn.Linear | nn.Conv2d) -> None:
    """Sets zero biases and truncated normal weights.

    The weights' standard deviation is 0.02, as in the published networks, but at least
    0.5/√fan_in: 0.02 is made for hundreds of channels and starves narrow layers.
    """
    fan_in = math.prod(layer.weight.shape[1:])
    nn.init.trunc_normal_(layer.weight, std=max(0.02, 0.5 / math.sqrt(fan_in)))
    if layer.bias is not None:
        layer.bias.zero_()


class Linear(nn.Linear):
    """A linear layer that starts as ``initialise`` says."""

    def reset_parameters(self) -> None:
        initialise(self)


class Conv2d(nn.Conv2d):
    """A convolution that starts as ``initialise`` says."""

    def reset_parameters(self) -> None:
        initialise(self)


class GroupNorm(nn.Module):
    """Group norm with one group, over height, width and channels (PoolFormer's norm)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)
        return F.group_norm(maps, 1, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)


def build_norm(norm: str, dim: int, eps: float) -> nn.Module:
    """Builds the norm called ``layer_norm``, ``group_norm`` or ``none``."""
    match norm:
        case "layer_norm":
            return nn.LayerNorm(dim, eps=eps)
        case "group_norm":
            return GroupNorm(dim, eps)
        case "none":
            return nn.Identity()
    raise ValueError(f"unknown norm {norm!r}")
