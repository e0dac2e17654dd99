"""ASHA with a memory, and a watcher of trials, which Ray Tune calls in this process.

Both know trials by what they train, not by Tune's numbers for them: those are other ones after a
tuning was continued.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from search_space.errors import DataError, NasError
from supernet.cluster.trials import (
    DIVERGED,
    FAILED,
    FINISHED,
    OVER,
    RUNNING,
    STOPPED,
    Trial,
    TrialEpoch,
    trial_key,
)
from supernet.cluster.tuning_worker import IMPOSSIBLE, LOSS, NETWORK, TIME


def _identity(trial: Any) -> tuple[str, dict[str, float]]:
    """Gives network and hyper-parameters of a trial of Tune's."""
    values = dict(trial.config)
    return str(values.pop(NETWORK)), values


def _known(key: str) -> Any:
    """A trial as ASHA sees it."""
    return SimpleNamespace(trial_id=key)


def _same(trial: Any) -> Any:
    return _known(trial_key(*_identity(trial)))


class Halving(ASHAScheduler):
    """Halves successively and asynchronously (Li et al., MLSys 2020) by the validation loss.

    Args:
        recipes: Keys of trials that are never stopped.
        epochs: Of a whole trial.
        first: Epochs before the first decision; each further one is ``reduction`` times later.
    """

    def __init__(
        self,
        known: Sequence[Trial],
        recipes: Set[str],
        epochs: int,
        first: int,
        reduction: int,
    ) -> None:
        super().__init__(
            time_attr=TIME,
            metric=LOSS,
            mode="min",
            max_t=epochs,
            grace_period=first,
            reduction_factor=reduction,
        )
        self.recipes, self.epochs = recipes, epochs
        for trial in known:
            no_controller: Any = None
            same = _known(trial.key)
            super().on_trial_add(no_controller, same)
            for epoch in trial.epochs:
                result = {TIME: epoch.epoch + 1, LOSS: epoch.validation_loss}
                super().on_trial_result(no_controller, same, result)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, _same(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        same = _same(trial)
        decision: str = super().on_trial_result(tune_controller, same, result)
        if same.trial_id in self.recipes and result[TIME] < self.epochs:
            return str(TrialScheduler.CONTINUE)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, _same(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_remove(tune_controller, _same(trial))


class TrialWatcher(Callback):
    """Keeps all trials of an experiment as they are; Tune's thread writes, another one reads."""

    def __init__(self, known: Sequence[Trial], recipes: Set[str], epochs: int) -> None:
        self.recipes, self.epochs = recipes, epochs
        self.impossible: NasError | None = None
        self._trials = {trial.key: trial for trial in known}
        self._notes: list[str] = []
        self._changed = False
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune stores it; it is never read again

    def all(self) -> list[Trial]:
        """Lists all trials by number."""
        with self._lock:
            return sorted(self._trials.values(), key=lambda trial: trial.number)

    def take(self) -> tuple[list[Trial], bool, list[str]]:
        """Gives all trials, and since the last call: whether anything changed, and what to tell."""
        trials = self.all()
        with self._lock:
            changed, notes = self._changed, self._notes
            self._changed, self._notes = False, []
        return trials, changed, notes

    def _set(self, trial: Any, **changes: Any) -> Trial:
        network, values = _identity(trial)
        key = trial_key(network, values)
        with self._lock:
            known = self._trials.get(key) or Trial(
                number=1 + max((each.number for each in self._trials.values()), default=0),
                network=network,
                hyperparameters=values,
                recipe=key in self.recipes,
            )
            self._trials[key] = replace(known, **changes)
            self._changed = True
            return self._trials[key]

    def _now(self, trial: Any) -> Trial | None:
        with self._lock:
            return self._trials.get(trial_key(*_identity(trial)))

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._set(trial, status=RUNNING, error="")

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **info: Any
    ) -> None:
        if IMPOSSIBLE in result:
            self.impossible = DataError(result[IMPOSSIBLE])
        elif DIVERGED in result:
            self._set(trial, status=DIVERGED, error=result[DIVERGED])
        else:
            fields = TrialEpoch.__dataclass_fields__
            epoch = TrialEpoch(**{name: result[name] for name in fields})
            known = self._now(trial)
            epochs = {} if known is None else {each.epoch: each for each in known.epochs}
            epochs[epoch.epoch] = epoch
            self._set(trial, epochs=tuple(epochs[number] for number in sorted(epochs)))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        known = self._now(trial)
        if known is None or known.status in OVER or self.impossible is not None:
            return
        finished = len(known.epochs) >= self.epochs
        self._set(trial, status=FINISHED if finished else STOPPED)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        number = self._set(trial).number
        with self._lock:
            self._notes.append(
                f"trial {number} lost its worker; it goes on from its last checkpoint"
            )

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._set(trial, status=FAILED, error=_last_error(Path(trial.error_file)))


def _last_error(file: Path) -> str:
    """Finds the line of Tune's file of a trial's failures that says most of the last one."""
    try:
        lines = file.read_text().rpartition("Failure # ")[2].splitlines()[1:]
    except OSError:
        lines = []
    lines = [line.strip() for line in lines if line.strip()] or ["no reason was given"]
    raised = any("Traceback" in line for line in lines) or lines[0].startswith("ray::")
    return lines[-1 if raised else 0][:300]
