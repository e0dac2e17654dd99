"""What a training leaves for people: ``metrics.jsonl`` and TensorBoard events."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


class MetricFiles:
    """The files in ``directory``; an epoch is a flat mapping (``EpochMetrics.to_dict``)."""

    def __init__(self, directory: Path, *, tensorboard: bool = True) -> None:
        self.directory, self.tensorboard = directory, tensorboard
        self._writer: Any = None

    def rewrite(self, epochs: Iterable[Mapping[str, Any]]) -> None:
        """All lines anew: none is doubled or lost by a resumption."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / METRICS
        temporary = path.with_suffix(".writing")
        lines = [json.dumps(dict(epoch)) + "\n" for epoch in epochs]
        temporary.write_text("".join(lines), encoding="utf-8")
        os.replace(temporary, path)

    def add_events(self, epoch: Mapping[str, Any]) -> None:
        """Events of one epoch, at its last step."""
        if not self.tensorboard:
            return
        step = epoch["step"]
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Events of steps that are trained again after a resumption are superseded.
            self._writer = SummaryWriter(str(self.directory / "tensorboard"), purge_step=step)
        for name, value in epoch.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
