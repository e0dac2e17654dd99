"""Trials of a tuned fine-tuning as plain data, and the folders that their checkpoints are in."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field

from search_space.boundary import parse_model
from search_space.names import Digest
from supernet.training.checkpoints import CheckpointFolder

RUNNING = "running"
FINISHED = "finished"  # trained all epochs
STOPPED = "stopped"  # looked worse than others after some
DIVERGED = "diverged"
FAILED = "failed"  # lost its worker too often
OVER = frozenset({FINISHED, STOPPED, DIVERGED})
"""What does not go on when a tuning is continued; a trial that lost its workers does."""
STATUSES = OVER | {RUNNING, FAILED}


@dataclass(frozen=True, kw_only=True)
class TrialEpoch:
    """One epoch of a trial: mean training loss, and loss and accuracy on the validation split.

    seconds: training and validation.
    """

    epoch: int
    loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training of one network under one choice of hyper-parameters.

    number: from 1, in the order in which they were begun. network: its digest.
    recipe: whether the hyper-parameters are those that the others are drawn around.
    status: one of those above; ``error`` says more where it went wrong.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    number: int
    network: Digest
    hyperparameters: Mapping[str, float]
    recipe: bool = False
    status: Annotated[str, Field(pattern="^(" + "|".join(sorted(STATUSES)) + ")$")] = RUNNING
    epochs: tuple[TrialEpoch, ...] = ()
    error: str = ""

    @property
    def key(self) -> str:
        """Names the trial's checkpoints."""
        return trial_key(self.network, self.hyperparameters)

    @property
    def validation_loss(self) -> float:
        """After the last epoch; NaN before the first."""
        return self.epochs[-1].validation_loss if self.epochs else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of ``to_dict``. Raises CorruptFileError."""
        return parse_model(data, cls, "a trial of a fine-tuning")


def trial_key(network: str, hyperparameters: Mapping[str, float]) -> str:
    """Twelve digits that depend on all that two trials can differ in."""
    text = json.dumps([network, dict(hyperparameters)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The finished one with the smallest validation loss, the earlier of two alike."""
    finished = [trial for trial in trials if trial.status == FINISHED]
    return min(finished, key=lambda trial: (trial.validation_loss, trial.number), default=None)


@dataclass(frozen=True)
class TrialFolders:
    """Folders where all workers find the networks' first weights and the trials' checkpoints.

    place: a folder, or a URL, as for ``CheckpointFolder``; all is below its folder ``name``.
    """

    place: str
    name: str

    @classmethod
    def at(cls, place: str | Path, name: str) -> Self:
        """A place that does not depend on a process's working directory."""
        place = str(place)
        return cls(place if "://" in place else str(Path(place).resolve()), name)

    @property
    def root(self) -> CheckpointFolder:
        """The folder that is claimed before anything is written, and that workers must see."""
        return CheckpointFolder(self.place, self.name)

    def trial(self, key: str) -> CheckpointFolder:
        """Checkpoints of a trial."""
        return CheckpointFolder(self.place, f"{self.name}/{key}")

    def inherited(self, network: str) -> CheckpointFolder:
        """The weights that a network's trials start from."""
        return CheckpointFolder(self.place, f"{self.name}/inherited-{network}")
