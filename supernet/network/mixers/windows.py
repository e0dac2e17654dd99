"""Maps cut into windows and put together again, and the relative positions within one."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def partition(x: Tensor, sides: tuple[int, int]) -> Tensor:
    """Cuts maps into windows, padded with zeros below and on the right.

    Args:
        x: Maps, (batch, height, width, dim).
        sides: Height and width of a window.

    Returns:
        The windows, (batch · rows · columns, side, side, dim).
    """
    height, width, dim = int(x.shape[1]), int(x.shape[2]), x.shape[3]
    pad_h, pad_w = -height % sides[0], -width % sides[1]
    if pad_h or pad_w:
        x = F.pad(x, (0, 0, 0, pad_w, 0, pad_h))
    rows, columns = (height + pad_h) // sides[0], (width + pad_w) // sides[1]
    if rows == columns == 1:
        return x
    x = x.reshape(-1, rows, sides[0], columns, sides[1], dim).transpose(2, 3)
    return x.reshape(-1, *sides, dim)


def together(windows: Tensor, height: int, width: int) -> Tensor:
    """Puts windows (batch · rows · columns, side, side, dim) together.

    Returns:
        The maps, (batch, height, width, dim), without what they were padded with.
    """
    side_h, side_w, dim = int(windows.shape[1]), int(windows.shape[2]), windows.shape[3]
    rows, columns = -(-height // side_h), -(-width // side_w)
    if rows * columns > 1:
        windows = windows.reshape(-1, rows, columns, side_h, side_w, dim).transpose(2, 3)
        windows = windows.reshape(-1, rows * side_h, columns * side_w, dim)
    return windows[:, :height, :width].contiguous()


def distances(sides: tuple[int, int], length: int, device: torch.device) -> Tensor:
    """Indexes a table (length, length), flat, by the absolute distances of positions.

    Args:
        sides: Height and width of a window.
        length: Of the table, at least as large as the sides.
        device: Of the result.

    Returns:
        For each pair of the window's positions, row by row, the place of its distances; (area²,).
    """
    if torch.compiler.is_dynamo_compiling():  # it follows no grid of NumPy
        y = torch.arange(sides[0], device=device).repeat_interleave(sides[1])
        x = torch.arange(sides[1], device=device).repeat(sides[0])
        return ((y[:, None] - y).abs() * length + (x[:, None] - x).abs()).flatten()
    if torch.compiler.is_compiling():  # tensors of a trace must not outlive it
        return torch.tensor(_distances(sides, length).tolist(), device=device)
    return _on_device(sides, length, device)


@lru_cache(maxsize=256)
def _on_device(sides: tuple[int, int], length: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(_distances(sides, length)).to(device)


@lru_cache(maxsize=256)
def _distances(sides: tuple[int, int], length: int) -> np.ndarray:
    y, x = (axis.ravel() for axis in np.mgrid[: sides[0], : sides[1]])
    return (abs(y[:, None] - y) * length + abs(x[:, None] - x)).ravel()
