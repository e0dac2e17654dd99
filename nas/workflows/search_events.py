"""The course of a search as TensorBoard scalars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search import Progress


class SearchEvents:
    """Hypervolume, best quality and failures against the number of evaluations."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def add(self, state: Progress) -> None:
        """Note the state after an evaluation; those that a continued run repeats are replaced."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=state.evaluations)
        step = state.evaluations
        self._writer.add_scalar("search/hypervolume", state.hypervolume, step)
        self._writer.add_scalar("search/failed", state.failed, step)
        if state.best is not None:
            for name, value in state.best.metrics.items():
                self._writer.add_scalar(f"search/best_{name.replace('@', '_')}", value, step)

    def close(self) -> None:
        """Write everything."""
        if self._writer is not None:
            self._writer.close()
