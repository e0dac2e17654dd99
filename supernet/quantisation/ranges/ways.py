"""What is seen of an activation, and the registry of ways to find its range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from search_space.registry import Registry

_VALUES = 1 << 13  # of each tensor that are kept


@dataclass
class Seen:
    """What passed one place while it was watched.

    Attributes:
        low: The smallest value.
        high: The largest value.
        parts: Some values of each tensor, drawn evenly, float32.
    """

    low: float = 0.0
    high: float = 0.0
    parts: list[Tensor] = field(default_factory=list)

    def add(self, x: Tensor) -> None:
        """Takes a tensor into account."""
        x = x.detach().float()
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        flat = x.flatten()
        # a step that has no factor in common with usual numbers of channels and positions
        step = max(1, len(flat) // _VALUES) | 1
        self.parts.append(flat[::step].cpu())

    @property
    def values(self) -> Tensor:
        """The values that were kept, in one tensor."""
        return torch.cat(self.parts)


Range = Callable[[Seen], tuple[float, float]]
"""Finds the lowest and the highest value that levels are to cover."""


@dataclass(frozen=True)
class _Way:
    name: str
    find: Range


RANGES: Registry[_Way] = Registry("way to find ranges", "nas.ranges")


def way(name: str) -> Callable[[Range], Range]:
    """Registers a function under a name; it is a decorator."""

    def register(find: Range) -> Range:
        RANGES.add(_Way(name, find))
        return find

    return register


def find_range(name: str, seen: Seen) -> tuple[float, float]:
    """Finds the range of what was seen in the way of that name.

    Raises:
        UnknownNameError: There is no such way.
    """
    return RANGES[name].find(seen)


def rounded(values: Tensor, low: Any, high: Any, levels: int = 255) -> Tensor:
    """Rounds values to even levels between ``low`` and ``high``, of which zero is one."""
    scale = (high - low) / levels
    zero = torch.round(torch.as_tensor(-low / scale))
    return ((values / scale).round() + zero).clamp(0, levels).sub(zero).mul(scale)
