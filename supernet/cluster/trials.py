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
    """Holds an epoch of a trial: mean training loss, and loss and accuracy on validation images.

    ``seconds`` are those of training and validation.
    """

    epoch: int
    loss: float
    validation_loss: float
    validation_accuracy: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Holds one training of one network under one choice of hyper-parameters.

    Attributes:
        number: From 1, in the order in which they were begun.
        recipe: Whether the hyper-parameters are those that the others are drawn around.
        status: One of ``STATUSES``; ``error`` says more where it went wrong.
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
        """The name of the trial's checkpoints."""
        return trial_key(self.network, self.hyperparameters)

    @property
    def validation_loss(self) -> float:
        """The loss after the last epoch; NaN before the first."""
        return self.epochs[-1].validation_loss if self.epochs else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Reads the plain form. Raises CorruptFileError."""
        return parse_model(data, cls, "a trial of a fine-tuning")


def trial_key(network: str, hyperparameters: Mapping[str, float]) -> str:
    """Gives twelve digits that depend on all that two trials can differ in."""
    text = json.dumps([network, dict(hyperparameters)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """Finds the finished one with the smallest validation loss, the earlier of two alike."""
    finished = [trial for trial in trials if trial.status == FINISHED]
    return min(finished, key=lambda trial: (trial.validation_loss, trial.number), default=None)


@dataclass(frozen=True)
class TrialFolders:
    """Names the folders of the networks' first weights and of the trials' checkpoints.

    All are below the folder ``name`` of ``place``, a folder or a URL, as for ``CheckpointFolder``.
    """

    place: str
    name: str

    @classmethod
    def at(cls, place: str | Path, name: str) -> Self:
        """Makes a place that does not depend on a process's working directory."""
        place = str(place)
        return cls(place if "://" in place else str(Path(place).resolve()), name)

    @property
    def root(self) -> CheckpointFolder:
        """The folder that is claimed before anything is written, and that workers must see."""
        return CheckpointFolder(self.place, self.name)

    def trial(self, key: str) -> CheckpointFolder:
        """Gives the folder of a trial's checkpoints."""
        return CheckpointFolder(self.place, f"{self.name}/{key}")

    def inherited(self, network: str) -> CheckpointFolder:
        """Gives the folder of the weights that a network's trials start from."""
        return CheckpointFolder(self.place, f"{self.name}/inherited-{network}")
