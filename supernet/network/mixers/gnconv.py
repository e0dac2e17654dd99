"""Recursive gated convolution (Rao et al., HorNet, 2022, equations 3.2 to 3.5).

    p_0, q_0 … q_{n−1} = split(x W_in);   p_{k+1} = f_k(q_k) ⊙ g_k(p_k) / α;   y = p_n W_out

with f one depthwise convolution over all q, g_0 the identity and g_k linear, on channels that
double from step to step. 1/α is 1/3, as in the published networks.
"""

from __future__ import annotations

from torch import Tensor, nn

from search_space.mixers import MIXERS
from supernet.network.axes import Axes, Axis, Centre, Concat
from supernet.network.layers import Conv2d, Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer

SCALE = 1 / 3
MAX_ORDER = int(MIXERS["gnconv"].params["order"].maximum or 0)


@register_mixer("gnconv")
class GnConv(Mixer):
    """``order`` gated steps, with a depthwise ``kernel`` × ``kernel`` convolution.

    Parts are numbered from the last step, which has all ``dim`` channels, so that part k has
    ``dim / 2^k`` channels whatever the order: orders share weights.
    """

    def __init__(self, dim: int, order: int = 3, kernel: int = 7) -> None:
        super().__init__()
        self.dim, self.order, self.kernel = dim, order, kernel
        self.widths = [dim // 2**part for part in reversed(range(order))]  # narrow to wide
        total = sum(self.widths)
        self.proj_in = Linear(dim, self.widths[0] + total)
        self.conv = Conv2d(total, total, kernel, padding=kernel // 2, groups=total)
        self.gates = nn.ModuleDict(
            {
                str(order - 2 - step): Linear(self.widths[step], self.widths[step + 1])
                for step in range(order - 1)
            }
        )
        self.proj_out = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.proj_in(x).split([self.widths[0], sum(self.widths)], dim=-1)
        rest = self.conv(rest.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * SCALE
        filtered = rest.split(self.widths, dim=-1)
        state = first * filtered[0]
        for step in range(self.order - 1):
            state = self.gates[str(self.order - 2 - step)](state) * filtered[step + 1]
        return self.proj_out(state)

    def axes(self) -> dict[str, Axes]:
        # all orders declare the same parts, those that an order lacks with size 0
        parts: list[Axis] = [f"part{part}" for part in reversed(range(MAX_ORDER))]
        rest, kernel = Concat(*parts), Centre("kernel")
        result: dict[str, Axes] = {
            "proj_in.weight": (Concat("first", rest), "dim"),
            "proj_in.bias": (Concat("first", rest),),
            "conv.weight": (rest, 1, kernel, kernel),
            "conv.bias": (rest,),
            "proj_out.weight": ("dim", "dim"),
            "proj_out.bias": ("dim",),
        }
        for part in range(self.order - 1):
            result[f"gates.{part}.weight"] = (f"part{part}", f"part{part + 1}")
            result[f"gates.{part}.bias"] = (f"part{part}",)
        return result

    def sizes(self) -> dict[str, int]:
        parts = {
            f"part{part}": self.dim // 2**part if part < self.order else 0
            for part in range(MAX_ORDER)
        }
        return {"dim": self.dim, "kernel": self.kernel, "first": self.widths[0], **parts}

    def permutable(self) -> tuple[frozenset[str], ...]:
        # what enters is multiplied by the last part, and what the recursion ends with is projected
        if self.order == 1:
            return (frozenset({"dim", "part0", "first"}),)
        middle = (frozenset({f"part{part}"}) for part in range(1, self.order - 1))
        entry = frozenset({"first", f"part{self.order - 1}"})
        return frozenset({"dim", "part0"}), *middle, entry
