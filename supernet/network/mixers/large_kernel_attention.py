"""Large-kernel attention (Guo et al., Visual attention network, 2022, equations 1 and 2).

    y = x + W_out (u ⊙ W (D_d * D * u)),   u = GELU(W_in x)

with D a depthwise convolution and D_d a dilated one: together they see as far as one large kernel.
The shortcut is within, beside the block's own, as in the published networks.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from supernet.network.axes import Axes, Centre
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("large_kernel_attention")
class LargeKernelAttention(Mixer):
    """A kernel of side ``kernel``, then one of side ``dilated`` whose taps are ``dilation`` apart.

    The usual 5, 7 and 3 stand for one kernel of side 21.
    """

    def __init__(self, dim: int, kernel: int = 5, dilated: int = 7, dilation: int = 3) -> None:
        super().__init__()
        self.dim, self.kernel, self.dilated = dim, kernel, dilated
        self.proj_in = Linear(dim, dim)
        self.near = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        margin = dilation * (dilated // 2)
        self.far = Conv2d(dim, dim, dilated, padding=margin, dilation=dilation, groups=dim)
        self.gate = Linear(dim, dim)
        self.proj_out = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.proj_in(x))
        context = self.far(self.near(inner.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + self.proj_out(inner * self.gate(context))

    def axes(self) -> dict[str, Axes]:
        near, far = Centre("kernel"), Centre("kernel_dilated")
        return {
            "proj_in.weight": ("inner", "dim"),
            "proj_in.bias": ("inner",),
            "near.weight": ("inner", 1, near, near),
            "near.bias": ("inner",),
            "far.weight": ("inner", 1, far, far),
            "far.bias": ("inner",),
            "gate.weight": ("inner", "inner"),
            "gate.bias": ("inner",),
            "proj_out.weight": ("dim", "inner"),
            "proj_out.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        kernels = {"kernel": self.kernel, "kernel_dilated": self.dilated}
        return {"dim": self.dim, "inner": self.dim, **kernels}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"inner"})
