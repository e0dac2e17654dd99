"""Focal modulation (Yang et al., Focal modulation networks, 2022, equations 4 to 7).

A query is multiplied by a modulator: contexts of growing range, each a depthwise convolution
of the one before, summed with one gate per level and position, plus a gated global mean.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Centre, Concat
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer

STEP = 2  # growth of the kernel from level to level


@register_mixer("focal_modulation")
class FocalModulation(Mixer):
    """``levels`` contexts, the first with a ``window`` × ``window`` kernel, each 2 larger.

    ``post_norm`` adds a LayerNorm after the modulation, which large models need to be stable.
    """

    def __init__(self, dim: int, levels: int = 2, window: int = 3, post_norm: bool = False) -> None:
        super().__init__()
        self.dim, self.levels = dim, levels
        self.kernels = [window + STEP * level for level in range(levels)]
        self.proj_in = Linear(dim, 2 * dim + levels + 1)
        self.contexts = nn.ModuleList(
            Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim, bias=False)
            for kernel in self.kernels
        )
        self.modulator = Linear(dim, dim)
        self.norm = nn.LayerNorm(dim) if post_norm else None
        self.proj_out = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        query, context, gates = self.proj_in(x).split([self.dim, self.dim, self.levels + 1], -1)
        context = context.permute(0, 3, 1, 2)
        gates = gates.permute(0, 3, 1, 2)
        context = F.gelu(self.contexts[0](context))
        total = context * gates[:, 0:1]
        for level in range(1, self.levels):
            context = F.gelu(self.contexts[level](context))
            total = total + context * gates[:, level : level + 1]
        everywhere = F.gelu(context.mean((2, 3), keepdim=True))
        total = total + everywhere * gates[:, self.levels :]
        out = query * self.modulator(total.permute(0, 2, 3, 1))
        if self.norm is not None:
            out = self.norm(out)
        return self.proj_out(out)

    def axes(self) -> dict[str, Axes]:
        # the gate of the global mean comes last and must not become a level's
        rows = Concat("dim", "dim", "levels", 1)
        result: dict[str, Axes] = {
            "proj_in.weight": (rows, "dim"),
            "proj_in.bias": (rows,),
            "modulator.weight": ("dim", "dim"),
            "modulator.bias": ("dim",),
            "proj_out.weight": ("dim", "dim"),
            "proj_out.bias": ("dim",),
        }
        for level in range(self.levels):
            kernel = Centre(f"kernel{level}")
            result[f"contexts.{level}.weight"] = ("dim", 1, kernel, kernel)
        if self.norm is not None:
            result |= {"norm.weight": ("dim",), "norm.bias": ("dim",)}
        return result

    def sizes(self) -> dict[str, int]:
        kernels = {f"kernel{level}": kernel for level, kernel in enumerate(self.kernels)}
        return {"dim": self.dim, "levels": self.levels, **kernels}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return (frozenset({"dim"}),)  # each level has a gate of its own
