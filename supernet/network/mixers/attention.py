"""Self-attention of all positions (Vaswani et al. 2017), without biases as in CAFormer."""

from __future__ import annotations

from torch import Tensor

from search_space.mixers import num_heads
from supernet.network.axes import Axes, Product
from supernet.network.layers import Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.mixers.normalisers import attend
from supernet.network.registry import register_mixer


@register_mixer("attention")
class Attention(Mixer):
    """Multi-head attention of every position to all, ``head_ratio * dim / head_dim`` heads.

    Its cost grows with the square of the number of positions, which it does not tell apart by
    where they are. ``normaliser`` says how scores become weights.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int = 32,
        head_ratio: float = 1.0,
        normaliser: str = "softmax",
    ) -> None:
        super().__init__()
        self.dim, self.head_dim, self.normaliser = dim, head_dim, normaliser
        self.heads = num_heads(dim, head_dim, head_ratio)
        inner = self.heads * head_dim
        self.qkv = Linear(dim, 3 * inner, bias=False)
        self.proj = Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = attend(q, k, v, self.normaliser).transpose(1, 2)
        return self.proj(out.reshape(batch, height, width, self.heads * self.head_dim))

    def axes(self) -> dict[str, Axes]:
        rows = Product(3, "heads", "head_dim")
        return {
            "qkv.weight": (rows, "dim"),
            "proj.weight": ("dim", Product("heads", "head_dim")),
        }

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "heads": self.heads, "head_dim": self.head_dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})
