"""Efficient modulation (Ma et al., Efficient modulation for vision networks, 2024, equation 4).

    y = W_out (GELU(W_in x) ⊙ tile(W_g GELU(D * W_f x)))

with D a depthwise convolution. The published blocks have no MLP beside it: ``expansion``, in
alternation 1 and 4 or 6 there, is what makes the mixer as wide as one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from supernet.network.axes import Axes, Centre, Product
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("efficient_modulation")
class EfficientModulation(Mixer):
    """A context of ``kernel`` × ``kernel`` positions gates ``expansion`` times ``dim`` channels."""

    def __init__(self, dim: int, expansion: int = 1, kernel: int = 7) -> None:
        super().__init__()
        self.dim, self.expansion, self.kernel = dim, expansion, kernel
        self.proj_in = Linear(dim, expansion * dim)
        self.context_in = Linear(dim, dim)
        self.filter = Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.context_out = Linear(dim, dim)
        self.proj_out = Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        context = self.filter(self.context_in(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        context = self.context_out(F.gelu(context))
        if self.expansion > 1:
            context = context.repeat(1, 1, 1, self.expansion)
        return self.proj_out(F.gelu(self.proj_in(x)) * context)

    def axes(self) -> dict[str, Axes]:
        hidden, kernel = Product("expansion", "inner"), Centre("kernel")
        return {
            "proj_in.weight": (hidden, "dim"),
            "proj_in.bias": (hidden,),
            "context_in.weight": ("context", "dim"),
            "context_in.bias": ("context",),
            "filter.weight": ("context", 1, kernel, kernel),
            "filter.bias": ("context",),
            "context_out.weight": ("inner", "context"),
            "context_out.bias": ("inner",),
            "proj_out.weight": ("dim", hidden),
            "proj_out.bias": ("dim",),
        }

    def sizes(self) -> dict[str, int]:
        inner = {"inner": self.dim, "context": self.dim, "expansion": self.expansion}
        return {"dim": self.dim, **inner, "kernel": self.kernel}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return tuple(frozenset({name}) for name in ("dim", "inner", "context", "expansion"))
