"""Loggers, which show the figures of a training to people, and ``metrics.jsonl``.

A logger is a file here with a class of two methods beside its constructor; ``LOGGERS`` names it.
Its package is imported when it is made, and not before.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from search_space.errors import UnknownNameError, UsageError
from supernet.training.loggers.mlflow import MLflowLogger
from supernet.training.loggers.tensorboard import TensorBoardLogger
from supernet.training.loggers.wandb import WandbLogger

METRICS = "metrics.jsonl"
LOGGERS: dict[str, Callable[[Path], MetricLogger]] = {
    "tensorboard": TensorBoardLogger,
    "mlflow": MLflowLogger,
    "wandb": WandbLogger,
}


class MetricLogger(Protocol):
    """Shows the figures of one training."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the figures of an epoch, at its last step; a step may come again after a resume."""
        ...

    def close(self) -> None:
        """Writes what is held back."""
        ...


def _logger(name: str, directory: Path) -> MetricLogger:
    if name not in LOGGERS:
        raise UnknownNameError("logger", name, LOGGERS)
    try:
        return LOGGERS[name](directory)
    except ImportError as error:
        raise UsageError(
            f"logger {name!r} needs a package that is not installed ({error}); install it with "
            f"`pip install {name}`, or leave the logger out"
        ) from None


class MetricFiles:
    """Writes figures of a training by epoch: ``metrics.jsonl`` in ``directory``, and loggers.

    An epoch is a flat mapping (``EpochMetrics.to_dict``).

    Raises:
        UnknownNameError: There is no such logger.
        UsageError: A logger's package is not installed.
    """

    def __init__(self, directory: Path, loggers: Sequence[str] = ()) -> None:
        self.directory = directory
        self._loggers = [_logger(name, directory) for name in loggers]

    def rewrite(self, epochs: Iterable[Mapping[str, Any]]) -> None:
        """Writes all lines anew: none is doubled or lost by a resumption."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / METRICS
        temporary = path.with_suffix(".writing")
        lines = [json.dumps(dict(epoch)) + "\n" for epoch in epochs]
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, path)

    def log(self, epoch: Mapping[str, Any]) -> None:
        """Shows an epoch in all loggers."""
        figures = {name: value for name, value in epoch.items() if name not in ("epoch", "step")}
        for logger in self._loggers:
            logger.log(epoch["step"], figures)

    def close(self) -> None:
        for logger in self._loggers:
            logger.close()
