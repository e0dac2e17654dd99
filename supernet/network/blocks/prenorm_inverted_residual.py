"""Inverted residuals with a norm at their beginning, as between attention (CoAtNet, MaxViT, MOAT).

Tu et al., MaxViT, 2022, appendix A: norm, 1 × 1 expansion, depthwise convolution with the stride,
squeeze-excite and a 1 × 1 projection without a norm; the shortcut is pooled.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from supernet.network.axes import Axes
from supernet.network.blocks.residual import ConvBlock, PooledConvNorm
from supernet.network.layers import ConvNorm, folded_before
from supernet.network.norms import build_norm, norm_axes
from supernet.network.registry import register_block


@register_block("prenorm_inverted_residual")
class PreNormInvertedResidual(ConvBlock):
    """Norm, 1 × 1 expansion, depthwise convolution, squeeze-excite and 1 × 1 projection.

    Args:
        kernel: Odd side of the depthwise kernel.
        activation: After expansion and depthwise convolution.
        squeeze: Channels inside squeeze-excite, 0 for none; SiLU is inside.
        gate: Of squeeze-excite.
        hidden: Channels inside.
        eca: Whether these are scaled by ECA, too.
        style: Channels, stride, norm and padding, as for ``ConvBlock``.
    """

    def __init__(
        self,
        *,
        kernel: int,
        activation: str,
        hidden: int,
        squeeze: int = 0,
        gate: str = "sigmoid",
        eca: bool = False,
        **style: Any,
    ) -> None:
        super().__init__(kernel=kernel, hidden=hidden, **style)
        dim, out_dim = self.widths["dim"], self.widths["out_dim"]
        self.norm = build_norm(self.style["norm"], dim, self.style["norm_eps"])
        self.convolve("expand", "dim", "hidden", activation=activation)
        self.convolve(
            "depthwise",
            "hidden",
            "hidden",
            kernel,
            self.stride,
            depthwise=True,
            activation=activation,
        )
        self.scale_channels("hidden", squeeze, eca, "silu", gate)
        project = ConvNorm(hidden, out_dim, norm="none", norm_eps=0.0)
        self.add("project", project, "hidden", "out_dim")
        if dim != out_dim:
            layer = ConvNorm if self.stride == 1 else PooledConvNorm
            self.shortcut = layer(dim, out_dim, norm="none", norm_eps=0.0)
        elif self.stride > 1:
            self.shortcut = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
        else:
            self.shortcut = nn.Identity()

    @property
    def keeps_channels(self) -> bool:
        return not isinstance(self.shortcut, ConvNorm)

    def begin(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def fold(self) -> None:
        """Folds the norm at the beginning into the expansion."""
        expand = self.get_submodule("expand")
        assert isinstance(expand, ConvNorm)
        self.norm = folded_before(self.norm, expand.conv)

    def axes(self) -> dict[str, Axes]:
        return norm_axes("norm", self.norm, "dim") | super().axes()
