"""Exponential moving average of weights over steps (Polyak & Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class MovingAverage:
    """Average of parameters with ``decay`` per step.

    The first steps, whose weights are worth little, are forgotten sooner: step t has decay
    min(decay, (1 + t) / (10 + t)).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: Mapping[str, nn.Parameter], step: int) -> None:
        """Take in the weights after ``step`` (0 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current: list[torch.Tensor] = [parameters[name] for name in self.values]
        torch._foreach_lerp_(list(self.values.values()), current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Put the average in the place of the weights."""
        for name, value in self.values.items():
            parameters[name].copy_(value)

    @contextmanager
    def applied(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """The average in the place of the weights for a while."""
        kept = {name: parameters[name].detach().clone() for name in self.values}
        self.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    parameters[name].copy_(value)
