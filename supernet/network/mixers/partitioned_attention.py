"""Self-attention in parts of a map: windows of neighbours, or grids of positions far apart.

Maps that the side of a part does not divide are padded with zeros after the norm, and the padding
is attended to, as in the published networks: where a map is padded, weights have learned it. A side
that is not smaller than the map becomes the map's, and the attention global and never shifted.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from search_space.mixers import num_heads
from supernet.network.axes import Axes, Product
from supernet.network.layers import Linear
from supernet.network.mixers.mixer import Mixer

# of (batch, rows, side_h, columns, side_w, 3, heads, head_dim): three times (batch, rows, columns,
# heads, side_h, side_w, head_dim), and back; of a grid rows and columns lie within the sides
_WINDOWS = (5, 0, 1, 3, 6, 2, 4, 7), (0, 1, 4, 2, 5, 3, 6)
_GRIDS = (5, 0, 2, 4, 6, 1, 3, 7), (0, 4, 1, 5, 2, 3, 6)


class PartitionedAttention(Mixer):
    """Multi-head attention within parts of ``window`` × ``window`` positions.

    Args:
        dim: Channels of the map.
        window: Side of a part.
        head_dim: Channels of a head.
        head_ratio: There are ``head_ratio * dim / head_dim`` heads.
        shifted: Whether the parts are moved by half their side, cyclically, and what the wrapping
            brings together is masked.
        strided: Whether a part holds every n-th position of both sides, which together cover the
            map, instead of neighbours.
        bias: Whether queries, keys and values have biases.
    """

    def __init__(
        self,
        dim: int,
        window: int,
        head_dim: int,
        head_ratio: float,
        *,
        shifted: bool = False,
        strided: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.dim, self.window, self.head_dim = dim, window, head_dim
        self.shifted, self.strided = shifted, strided
        self.heads = num_heads(dim, head_dim, head_ratio)
        self.qkv = Linear(dim, 3 * self.heads * head_dim, bias)
        self.proj = Linear(self.heads * head_dim, dim)
        self._constants: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor | None]] = {}

    @abstractmethod
    def position_bias(self, index: Tensor, sides: tuple[int, int]) -> Tensor:
        """Returns what positions add to the scores, (area, area, heads), flattened as wanted.

        Args:
            index: For each pair of positions of a part, the place of their distance in a table of
                all distances of two positions of a whole window, (area²,).
            sides: Height and width of the part.
        """

    def attended(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Returns what heads see of parts, (batch · parts, heads, area, head_dim)."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        side_h, side_w = min(self.window, height), min(self.window, width)
        shift = (self._shift(height), self._shift(width))
        if any(shift):
            x = _rolled(x, (-shift[0], -shift[1]))
        pad_h, pad_w = -height % side_h, -width % side_w
        if pad_h or pad_w:
            x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = (height + pad_h) // side_h, (width + pad_w) // side_w
        area = side_h * side_w
        apart, together = _GRIDS if self.strided else _WINDOWS
        down = (side_h, rows) if self.strided else (rows, side_h)
        across = (side_w, columns) if self.strided else (columns, side_w)
        qkv = self.qkv(x).reshape(-1, *down, *across, 3, self.heads, self.head_dim)
        qkv = qkv.permute(apart).reshape(3, -1, self.heads, area, self.head_dim)
        q, k, v = qkv.unbind(0)
        out = self.attended(q, k, v, self._mask(x))
        out = out.reshape(-1, rows, columns, self.heads, side_h, side_w, self.head_dim)
        out = out.permute(together)
        if torch.compiler.is_compiling():  # exporters may give attention's output other strides
            out = out.clone(memory_format=torch.contiguous_format)
        out = out.reshape(batch, height + pad_h, width + pad_w, self.heads * self.head_dim)
        if pad_h or pad_w:
            # linear layers choose other kernels for strided inputs if weights need gradients
            out = out[:, :height, :width].contiguous()
        out = self.proj(out)
        if any(shift):
            out = _rolled(out, shift)
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
        sides = min(self.window, height), min(self.window, width)
        area = sides[0] * sides[1]
        bias = self.position_bias(index, sides).view(area, area, self.heads).permute(2, 0, 1)
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
        result: dict[str, Axes] = {
            "qkv.weight": (rows, "dim"),
            "proj.weight": ("dim", Product("heads", "head_dim")),
            "proj.bias": ("dim",),
        }
        return result if self.qkv.bias is None else result | {"qkv.bias": (rows,)}

    def sizes(self) -> dict[str, int]:
        return {"dim": self.dim, "heads": self.heads, "head_dim": self.head_dim}

    def permutable(self) -> tuple[frozenset[str], ...]:
        return frozenset({"dim"}), frozenset({"heads"}), frozenset({"head_dim"})


def _constant(values: np.ndarray, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():  # exporters follow no array into a tensor
        return torch.tensor(values.tolist(), device=device)
    return torch.from_numpy(values).to(device)


def _rolled(x: Tensor, shifts: tuple[int, int]) -> Tensor:
    """Rolls height and width of (batch, height, width, dim).

    ONNX graphs gather lines, which takes as long: the exporter's own slices and concatenations, two
    in a row, OpenVINO (2026.4) cannot compile in int8.
    """
    if not torch.onnx.is_in_onnx_export():
        return x.roll(shifts, (1, 2))
    for axis, shift in enumerate(shifts, 1):
        length = int(x.shape[axis])
        x = x.index_select(axis, _constant((np.arange(length) - shift) % length, x.device))
    return x
