"""What is seen of an activation, and the registry of ways to find its range."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from search_space.errors import UsageError
from search_space.registry import Functions

_HALF = 1 << 13  # bins on each side of zero; at least 16 of them are a level of 256


class Seen:
    """What passed one place while it was watched: a histogram of all values.

    All are counted, since a sample misses the few outliers that the network may depend on.

    Attributes:
        low: The smallest value.
        high: The largest value.
        count: The number of values.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.count = 0
        self._limit = 0.0  # a power of two; bins are even from −limit to limit
        self._counts = torch.zeros(2 * _HALF, dtype=torch.float64)
        self._sums = torch.zeros(2 * _HALF, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Takes a tensor into account.

        Raises:
            UsageError: A value is not finite.
        """
        x = x.detach().float().flatten()
        low, high = float(x.min()), float(x.max())
        largest = max(-low, high)
        if not math.isfinite(largest):
            raise UsageError(
                f"an activation is {largest} on calibration images; give a trained network, whose "
                "batch norms have averages, and images that are normalised as it knows them"
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += len(x)
        self._widen(largest)
        places = (x * (_HALF / self._limit)).floor().long().add_(_HALF).clamp_(0, 2 * _HALF - 1)
        self._counts += torch.bincount(places, minlength=2 * _HALF).cpu()
        self._sums += torch.bincount(places, x.double(), minlength=2 * _HALF).cpu()

    def _widen(self, largest: float) -> None:
        """Doubles bins until they reach the largest value; pairs of them become one."""
        if self._limit == 0:
            self._limit = 2.0 ** math.ceil(math.log2(max(largest, 1e-30)))
        while largest > self._limit:
            self._limit *= 2
            for kept in (self._counts, self._sums):
                pairs = kept.reshape(-1, 2).sum(1)
                kept.zero_()
                kept[_HALF // 2 : -_HALF // 2] = pairs

    def values(self) -> tuple[Tensor, Tensor]:
        """Returns the mean value of each bin that has any, ascending, and how many it has.

        Both are (bins,) float64. Values that many elements have, as zero and the end of a ReLU6,
        are nearly alone in their bin.
        """
        filled = self._counts > 0
        counts = self._counts[filled]
        return self._sums[filled] / counts, counts


Range = tuple[float, float]
Ranges = Callable[[Seen], Sequence[Range]]
"""Finds what levels may cover, the lowest and the highest value; of several ranges that one is
taken with which the output of the module stays closest to what it is in float."""


RANGES: Functions[Ranges] = Functions("way to find ranges", "nas.ranges")
way = RANGES.register


def parts_of(seen: Seen, parts: Sequence[float]) -> list[Range]:
    """Returns parts of the range of all that was seen, shrunk on both sides alike."""
    return [(part * seen.low, part * seen.high) for part in parts]


def rounded(values: Tensor, low: Any, high: Any, levels: int = 255) -> Tensor:
    """Rounds values to even levels between ``low`` and ``high``, of which zero is one."""
    scale = (high - low) / levels
    zero = torch.round(torch.as_tensor(-low / scale))
    return ((values / scale).round() + zero).clamp(0, levels).sub(zero).mul(scale)
