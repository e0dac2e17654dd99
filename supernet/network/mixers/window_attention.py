"""Self-attention in windows with relative position bias (Liu et al., Swin Transformer, 2021).

Maps that the window does not divide are padded with zeros after the norm, and the padding is
attended to, as in the published networks: where a map is padded, weights have learned it. A window
that is not smaller than the map becomes global and is never shifted.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_space.mixers import num_heads
from supernet.network.axes import Axes, Centre, Product
from supernet.network.layers import Linear
from supernet.network.mixers.mixer import Mixer
from supernet.network.registry import register_mixer


@register_mixer("window_attention")
class WindowAttention(Mixer):
    """Multi-head attention within ``window`` × ``window`` tokens.

    There are ``head_ratio * dim / head_dim`` heads. ``shifted`` moves the windows by half their
    side, cyclically, and masks what the wrapping brings together.
    """

    def __init__(
        self,
        dim: int,
        window: int = 7,
        head_dim: int = 32,
        head_ratio: float = 1.0,
        shifted: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.window, self.head_dim, self.shifted = dim, window, head_dim, shifted
        self.heads = num_heads(dim, head_dim, head_ratio)
        self.qkv = Linear(dim, 3 * self.heads * head_dim)
        self.proj = Linear(self.heads * head_dim, dim)
        side = 2 * window - 1
        self.relative_position_bias_table = nn.Parameter(torch.empty(side * side, self.heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self._constants: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor | None]] = {}

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        side_h, side_w = min(self.window, height), min(self.window, width)
        shift = (self._shift(height), self._shift(width))
        if any(shift):
            x = x.roll((-shift[0], -shift[1]), (1, 2))
        pad_h, pad_w = -height % side_h, -width % side_w
        if pad_h or pad_w:
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = (height + pad_h) // side_h, (width + pad_w) // side_w
        area = side_h * side_w
        # (batch, rows, side_h, columns, side_w, 3, heads, head_dim) → three times
        # (batch · windows, heads, area, head_dim)
        qkv = self.qkv(x).reshape(-1, rows, side_h, columns, side_w, 3, self.heads, self.head_dim)
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7)
        q, k, v = qkv.reshape(3, -1, self.heads, area, self.head_dim).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask(x))
        out = out.reshape(-1, rows, columns, self.heads, side_h, side_w, self.head_dim)
        out = out.permute(0, 1, 4, 2, 5, 3, 6)
        if torch.compiler.is_compiling():  # exporters may give attention's output other strides
            out = out.clone(memory_format=torch.contiguous_format)
        out = out.reshape(batch, height + pad_h, width + pad_w, self.heads * self.head_dim)
        if pad_h or pad_w:
            out = out[:, :height, :width]
        out = self.proj(out)
        if any(shift):
            out = out.roll(shift, (1, 2))
        return out

    def _shift(self, length: int) -> int:
        return self.window // 2 if self.shifted and length > self.window else 0

    def _mask(self, x: Tensor) -> Tensor:
        """Bias and mask to add to the scores of padded maps, for (batch · windows, heads, …)."""
        batch, height, width = x.shape[0], int(x.shape[1]), int(x.shape[2])  # tensors when traced
        key = (height, width, x.device)
        if key in self._constants:
            index, mask = self._constants[key]
        elif torch.compiler.is_compiling():  # tensors of a trace must not outlive it
            index, mask = self._make_constants(height, width, x.device)
        else:
            with torch.inference_mode(False):
                index, mask = self._make_constants(height, width, x.device)
            self._constants[key] = index, mask
        area = min(self.window, height) * min(self.window, width)
        bias = self.relative_position_bias_table[index].view(area, area, self.heads)
        bias = bias.permute(2, 0, 1)
        if mask is None:
            return bias.unsqueeze(0)
        both = bias + mask.to(bias.dtype)  # (windows, heads, area, area)
        return both.expand(batch, -1, -1, -1, -1).reshape(-1, self.heads, area, area)

    def _make_constants(
        self, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """Index into the bias table (area²,), and 0 / −inf mask (windows, 1, area, area)."""
        side_h, side_w = min(self.window, height), min(self.window, width)
        y, x = (axis.ravel() for axis in np.mgrid[:side_h, :side_w])
        dy, dx = y[:, None] - y + self.window - 1, x[:, None] - x + self.window - 1
        index = _constant((dy * (2 * self.window - 1) + dx).ravel(), device)
        if not self._shift(height) and not self._shift(width):
            return index, None
        regions = 2 * self._wrapped(height)[:, None] + self._wrapped(width)
        regions = regions.reshape(height // side_h, side_h, -1, side_w)
        regions = regions.transpose(0, 2, 1, 3).reshape(-1, side_h * side_w)
        apart = regions[:, :, None] != regions[:, None, :]
        mask = torch.zeros(apart.shape, device=device)
        return index, mask.masked_fill(_constant(apart, device), float("-inf")).unsqueeze(1)

    def _wrapped(self, length: int) -> np.ndarray:
        """Whether each position after shifting and padding is one of the last ``shift``.

        Without padding they are those that the shift has wrapped around.
        """
        return np.arange(length) >= length - self._shift(length)

    def axes(self) -> dict[str, Axes]:
        rows = Product(3, "heads", "head_dim")
        table = Product(Centre("table"), Centre("table"))
        return {
            "qkv.weight": (rows, "dim"),
            "qkv.bias": (rows,),
            "proj.weight": ("dim", Product("heads", "head_dim")),
            "proj.bias": ("dim",),
            "relative_position_bias_table": (table, "heads"),
        }

    def sizes(self) -> dict[str, int]:
        return {
            "dim": self.dim,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "table": 2 * self.window - 1,
        }

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})


def _constant(values: np.ndarray, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():  # exporters follow no array into a tensor
        return torch.tensor(values.tolist(), device=device)
    return torch.from_numpy(values).to(device)
