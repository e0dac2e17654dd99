"""Weights & Biases: a run of the project that ``WANDB_PROJECT`` names, else of ``nas``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

RUN_ID = "wandb.txt"  # in the training's directory, so that a resumed training goes on with it


class WandbLogger:
    """Logs to a run of Weights & Biases."""

    def __init__(self, directory: Path) -> None:
        import wandb

        directory.mkdir(parents=True, exist_ok=True)
        file = directory / RUN_ID
        known = file.read_text(encoding="utf-8").strip() if file.exists() else None
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "nas"),
            name="/".join(directory.resolve().parts[-2:]),
            dir=str(directory),
            id=known,
            resume="allow",
            reinit="create_new",
        )
        file.write_text(self._run.id, encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # the step is a figure too: a run's own counter cannot go back after a resumption
        self._run.log({**metrics, "training_step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
