"""Heads: from the last maps ``(batch, height, width, dim)`` to logits ``(batch, classes)``."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, StaticModule
from supernet.network.layers import (
    ConvNorm,
    Linear,
    activation_axes,
    build_activation,
    folded_before,
)
from supernet.network.norms import build_norm, norm_axes
from supernet.network.registry import register_head


class Head(StaticModule):
    """What all heads are: features, global pooling, dropout and a linear classifier.

    ``num_classes`` 0 leaves out the classifier; ``global_pool`` is ``avg``, ``max`` or empty.

    Args:
        dim: Channels of the maps.
        width: Channels that the classifier sees.
        num_classes: Outputs of the classifier, 0 for none.
        global_pool: ``avg``, ``max`` or empty.
        drop_rate: Dropout before the classifier.
    """

    def __init__(
        self, dim: int, width: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        super().__init__()
        self.dim, self.width, self.drop_rate = dim, width, drop_rate
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str) -> None:
        """Replaces the classifier by a new one; raises ValueError for an unknown pooling."""
        if global_pool not in ("avg", "max", ""):
            raise ValueError(f"global_pool {global_pool!r} must be 'avg', 'max' or ''.")
        self.num_classes, self.global_pool = num_classes, global_pool
        self.fc = Linear(self.width, num_classes) if num_classes > 0 else nn.Identity()

    def features(self, x: Tensor) -> Tensor:
        """Returns the maps that are pooled."""
        return x

    def strip(self) -> None:
        """Leaves out what ``features`` does."""

    def after_pool(self, x: Tensor) -> Tensor:
        """What is done to pooled maps before dropout: nothing, unless overridden."""
        return x

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turns the last feature map into logits (batch, classes) or the classifier's input."""
        if self.global_pool == "avg":
            x = x.mean((1, 2), keepdim=True)
        elif self.global_pool == "max":
            x = x.amax((1, 2), keepdim=True)
        x = self.after_pool(x)
        if self.global_pool:
            x = x.flatten(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def fc_axes(self, axis: str | int) -> dict[str, Axes]:
        """Returns the axes of the classifier, whose input is ``axis``."""
        if self.num_classes == 0:
            return {}
        return {"fc.weight": (self.num_classes, axis), "fc.bias": (self.num_classes,)}

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)


@register_head("linear")
class LinearHead(Head):
    """Norm and pooling in either order, and the classifier."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        norm: str,
        norm_eps: float,
        norm_after_pool: bool,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        width: int | None = None,
    ) -> None:
        super().__init__(dim, width or dim, num_classes, global_pool, drop_rate)
        self.norm_after_pool = norm_after_pool
        self.norm = build_norm(norm, dim, norm_eps)

    def features(self, x: Tensor) -> Tensor:
        return x if self.norm_after_pool else self.norm(x)

    def strip(self) -> None:
        self.norm = nn.Identity()

    def after_pool(self, x: Tensor) -> Tensor:
        return self.norm(x) if self.norm_after_pool else x

    def fold(self) -> None:
        """Folds the norm into the classifier; a mean over the map changes nothing about it."""
        self._fold_into(self.fc)

    def _fold_into(self, layer: nn.Module) -> None:
        if isinstance(layer, Linear) and (self.norm_after_pool or self.global_pool == "avg"):
            self.norm = folded_before(self.norm, layer)

    def axes(self) -> dict[str, Axes]:
        return norm_axes("norm", self.norm, "dim") | self.fc_axes("dim")


@register_head("hidden")
class HiddenHead(LinearHead):
    """Norm and pooling in either order, linear layer, activation and classifier (MaxViT).

    Args:
        width: Channels of the layer, which the classifier sees.
        activation: After it.
    """

    def __init__(self, *, dim: int, width: int, activation: str, **options: Any) -> None:
        super().__init__(dim=dim, width=width, **options)
        self.hidden: nn.Module = Linear(dim, width)
        self.activation = build_activation(activation)

    def after_pool(self, x: Tensor) -> Tensor:
        return self.activation(self.hidden(super().after_pool(x)))

    def strip(self) -> None:
        super().strip()
        self.hidden = self.activation = nn.Identity()

    def fold(self) -> None:
        """Folds the norm into the linear layer."""
        self._fold_into(self.hidden)

    def axes(self) -> dict[str, Axes]:
        return (
            norm_axes("norm", self.norm, "dim")
            | {"hidden.weight": (self.width, "dim"), "hidden.bias": (self.width,)}
            | activation_axes("activation", self.activation)
            | self.fc_axes(self.width)
        )


@register_head("mlp")
class MlpHead(HiddenHead):
    """Norm and pooling in either order, linear layer, activation, norm, classifier (CAFormer)."""

    def __init__(self, *, width: int, norm: str, norm_eps: float, **options: Any) -> None:
        super().__init__(width=width, norm=norm, norm_eps=norm_eps, **options)
        self.hidden_norm = build_norm(norm, width, norm_eps)

    def after_pool(self, x: Tensor) -> Tensor:
        return self.hidden_norm(super().after_pool(x))

    def strip(self) -> None:
        super().strip()
        self.hidden_norm = nn.Identity()

    def fold(self) -> None:
        """Folds each norm into the linear layer after it."""
        super().fold()
        if isinstance(self.fc, Linear):
            self.hidden_norm = folded_before(self.hidden_norm, self.fc)

    def axes(self) -> dict[str, Axes]:
        return super().axes() | norm_axes("hidden_norm", self.hidden_norm, self.width)


@register_head("conv")
class ConvHead(Head):
    """1 × 1 convolution with norm and activation, pooling, and the classifier (MobileNetV2)."""

    def __init__(
        self,
        dim: int,
        num_classes: int,
        width: int,
        norm: str,
        norm_eps: float,
        activation: str,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        conv_width: int | None = None,
    ) -> None:
        super().__init__(dim, width, num_classes, global_pool, drop_rate)
        self.conv_width = conv_width or width
        self.conv: nn.Module = ConvNorm(
            dim, self.conv_width, norm=norm, norm_eps=norm_eps, activation=activation
        )

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def strip(self) -> None:
        self.conv = nn.Identity()

    def axes(self) -> dict[str, Axes]:
        assert isinstance(self.conv, ConvNorm)
        return self.conv.axes("conv", "dim", self.conv_width) | self.fc_axes(self.width)


@register_head("conv_hidden")
class ConvHiddenHead(ConvHead):
    """Convolution as in ``conv``, pooling, a linear layer with activation, and the classifier.

    It is MobileNetV3's (Howard et al., 2019).
    """

    def __init__(self, *, width: int, conv_width: int, activation: str, **options: Any) -> None:
        super().__init__(width=width, conv_width=conv_width, activation=activation, **options)
        self.hidden: nn.Module = Linear(conv_width, width)
        self.activation = build_activation(activation)

    def after_pool(self, x: Tensor) -> Tensor:
        return self.activation(self.hidden(x))

    def strip(self) -> None:
        super().strip()
        self.hidden = nn.Identity()

    def axes(self) -> dict[str, Axes]:
        return (
            super().axes()
            | {"hidden.weight": (self.width, self.conv_width), "hidden.bias": (self.width,)}
            | activation_axes("activation", self.activation)
        )
