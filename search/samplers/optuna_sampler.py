"""Optuna's samplers behind ask and tell (Akiba et al. 2019), with Optuna's own storage.

Constraints are told to Optuna as such: the cheap ones by their slack as soon as a candidate is
suggested, the evaluated ones when it is told. A suggestion that breaks a cheap constraint is told
at once, infeasible and with infinitely bad results where only an evaluation would know, and
another one is asked for; one that is known already is told as failed, which Optuna's samplers
leave out. After a few such trials the last suggestion is repaired.

A study that has trials already is continued: its evaluated architectures are asked for first, in
their order, so that a journal answers them, and what is told of them again changes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from search.feasibility import repair
from search.problem import ROUNDING, Problem, Values, scale_of
from search.samplers.base import Screen
from search.samplers.optuna_parameters import parameters_of, row_of, suggest_row
from search.samplers.proposals import random_rows
from search_space.errors import RunError, UnknownNameError, UsageError
from search_space.stage_space import Genes

TRIES = 8
PATIENCE_SECONDS = 120.0
ATTEMPT_SECONDS = 10.0  # after so long without the lock, SQLite gives up and we say so
RETRY_SECONDS = 0.2
_LOCKED = ("locked", "busy", "deadlock", "Lock wait timeout")
SUFFIX = "Sampler"


def optuna_names() -> dict[str, type[optuna.samplers.BaseSampler]]:
    """Optuna's samplers that need no arguments, by lower-case name without ``Sampler``."""
    kinds: dict[str, type[optuna.samplers.BaseSampler]] = {}
    for name in optuna.samplers.__all__:
        kind = getattr(optuna.samplers, name)
        if not name.endswith(SUFFIX) or inspect.isabstract(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        if all(parameter.default is not parameter.empty for parameter in parameters):
            kinds[name.removesuffix(SUFFIX).lower()] = kind
    return kinds


def open_storage(place: str | None, say: Callable[[str], None] = lambda text: None) -> BaseStorage:
    """Storage in memory for None, in a database for a URL, else in a journal file.

    A database that another program holds is waited for, for at most ``PATIENCE_SECONDS`` at a
    time, and ``say`` is told so.

    Raises:
        RunError: the database cannot be opened, or later on is not free in time.
    """
    if place is None:
        return InMemoryStorage()
    options: dict[str, Any] = {}
    if place.startswith("sqlite"):  # a write begins with its lock, so that two never deadlock
        options = {"connect_args": {"timeout": ATTEMPT_SECONDS, "isolation_level": "IMMEDIATE"}}
    begin = time.monotonic()
    while True:
        try:
            if "://" in place:
                return _PatientDatabase(place, say=say, engine_kwargs=options)
            return JournalStorage(JournalFileBackend(place))
        except Exception as error:
            # others that create the same tables at once, or hold the file
            if not any(word in str(error) for word in (*_LOCKED, "already exists", "UNIQUE")):
                raise RunError(
                    f"the Optuna storage {place!r} cannot be opened: {error}. Give a database "
                    "URL as in sqlite:///study.db, or the path of a journal file."
                ) from error
            _wait(place, begin, say, error)


def _wait(place: str, begin: float, say: Callable[[str], None], error: Exception) -> None:
    """Waits a little for whoever holds a database; raises RunError if that took too long."""
    waited = time.monotonic() - begin
    if waited >= PATIENCE_SECONDS:
        raise RunError(
            f"the Optuna storage {place!r} has been locked by another program for {waited:.0f} s; "
            "close what holds it (a dashboard, a backup, another search), then continue with "
            "--resume."
        ) from error
    say(
        f"The Optuna storage {place!r} is locked by another program: waiting for {waited:.0f} s, "
        f"at most for {PATIENCE_SECONDS:.0f} s."
    )
    time.sleep(RETRY_SECONDS)


class _PatientDatabase(RDBStorage):
    """A database that waits for whoever holds it, and says so.

    Each method of a storage is one transaction, which is rolled back where it fails; so it can be
    repeated as a whole.
    """

    def __init__(self, url: str, *, say: Callable[[str], None], **options: Any) -> None:
        self._say = say
        super().__init__(url, **options)


def _patient(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(storage: _PatientDatabase, *args: Any, **options: Any) -> Any:
        begin = time.monotonic()
        while True:
            try:
                return method(storage, *args, **options)
            except StorageInternalError as error:
                cause = error.__cause__ or error
                if not any(word in str(cause) for word in _LOCKED):
                    raise RunError(
                        f"the Optuna storage {storage.url!r} cannot be used: {cause}. Fix what it "
                        "says, then continue with --resume."
                    ) from error
                _wait(storage.url, begin, storage._say, error)

    return call


for _name, _method in vars(RDBStorage).items():  # Optuna's cache calls further ones than the public
    if isinstance(_method, FunctionType) and not _name.startswith("__"):
        setattr(_PatientDatabase, _name, _patient(_method))


class OptunaSampler:
    """Proposes candidates by any of Optuna's samplers.

        sampler = OptunaSampler(problem, sampler="TPE", seed=0)

    Args:
        sampler: name of an Optuna sampler, as ``TPE``; upper and lower case are the same.
        storage: None for memory, a database URL, or the path of a journal file.
        say: is told when a storage is waited for.

    Raises:
        UnknownNameError: there is no such sampler.
        UsageError: it cannot have these objectives, or be used at all.
        RunError: the storage cannot be opened or is not free in time, or the study is of another
            problem.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        sampler: str = "tpe",
        seed: int = 0,
        storage: str | None = None,
        study: str = "nas",
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.problem = problem
        self.name = sampler
        self._seed, self._study_name = seed, study
        self._rng = np.random.default_rng(seed)
        self._screen = Screen(problem)
        self._live: dict[bytes, optuna.Trial] = {}
        self._told: set[bytes] = set()
        self._stored: list[Genes] = []  # of a continued study, to be asked for again
        directions = [objective.direction for objective in problem.objectives]
        with _quiet():
            self.study = optuna.create_study(
                storage=open_storage(storage, say),
                study_name=self._study_name,
                directions=directions,
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),
            )
            self._claim(directions)
            self._take_over()
            # a continued study must not draw the numbers of its beginning again
            past = len(self.study.get_trials(deepcopy=False))
            self.study.sampler = self._make(_seed_of(self._seed, past))

    def _claim(self, directions: Sequence[str]) -> None:
        """Checks that the study is of this problem; writes down its space where it is new."""
        stored = [direction.name.lower() for direction in self.study.directions]
        if stored != list(directions):
            raise RunError(
                f"study {self._study_name!r} has objectives {', '.join(stored)}; this problem "
                f"has {', '.join(directions)}. Take another name or storage."
            )
        digest = self.problem.space.digest
        known = self.study.user_attrs.get("space")
        if known not in (None, digest) or (known is None and self.study.get_trials(deepcopy=False)):
            raise RunError(
                f"study {self._study_name!r} is of another search space. Take another name or "
                "storage."
            )
        if known is None:
            self.study.set_user_attr("space", digest)
            self.study.set_metric_names([o.metric for o in self.problem.objectives])

    def _make(self, seed: int) -> optuna.samplers.BaseSampler:
        kinds = optuna_names()
        key = self.name.lower().removesuffix(SUFFIX.lower())
        if key not in kinds:
            names = [kind.__name__.removesuffix(SUFFIX) for kind in kinds.values()]
            raise UnknownNameError("Optuna sampler", self.name, names)
        if key == "cmaes" and len(self.problem.objectives) > 1:
            raise UsageError(
                f"CmaEs searches for one objective, not {len(self.problem.objectives)}; take "
                "TPE, NSGAII, NSGAIII or GP."
            )
        parameters = inspect.signature(kinds[key]).parameters
        chosen: dict[str, Any] = {"seed": seed} if "seed" in parameters else {}
        warn = parameters.get("warn_independent_sampling")
        if warn is not None and warn.default is True:  # it is what conditional genes need
            chosen["warn_independent_sampling"] = False
        try:
            return kinds[key](**chosen)
        except (ImportError, ValueError, TypeError) as error:
            raise UsageError(f"Optuna's {kinds[key].__name__} cannot be used: {error}") from error

    def _take_over(self) -> None:
        """Take over the trials of a continued study; those that never ended are failed."""
        for trial in self.study.get_trials(deepcopy=False):
            row = row_of(self.problem.space, trial.params)
            if trial.state == TrialState.RUNNING:
                self.study.tell(trial.number, state=TrialState.FAIL)
            repeated = trial.user_attrs.get("repeated", False)
            if row is None or repeated or self.problem.cheap_violation(row[None])[0] > 0:
                continue
            if trial.state.is_finished():
                self._told.add(row.tobytes())
            self._stored.append(row)

    # Asking -----------------------------------------------------------------------------------

    def ask(self, n: int) -> Genes:
        rows: list[Genes] = []
        while len(rows) < n and self._stored:
            rows += list(self._screen.fresh(self._stored.pop(0)[None], 1))
        while len(rows) < n:
            suggested = self._suggestion()
            if suggested is None:
                break
            rows.append(suggested)
        return np.array(rows, dtype=np.int64).reshape(-1, self.problem.space.num_genes)

    def _suggestion(self) -> Genes | None:
        """A new feasible row with a trial waiting for its result; None where there is none."""
        with _quiet():
            for _ in range(TRIES):
                trial, row = self._new_trial()
                violation = float(self.problem.cheap_violation(row[None])[0])
                if violation > 0:
                    self._tell_infeasible(trial, row)
                elif len(self._screen.fresh(row[None], 1)):
                    self._live[row.tobytes()] = trial
                    return row
                else:
                    trial.set_user_attr("repeated", True)
                    self.study.tell(trial, state=TrialState.FAIL)
        repaired, violations = repair(self.problem, row[None], self._rng, wanted=16)
        near = self._screen.candidates(repaired[violations == 0])
        if len(near):
            distance = (near != row).sum(axis=1)
            chosen = self._screen.fresh(near[[int(distance.argmin())]], 1)
        else:
            chosen = random_rows(self.problem, self._screen, self._rng, 1)
        if len(chosen) == 0:
            return None
        with _quiet():
            self._live[chosen[0].tobytes()] = self._trial_of(chosen[0])
        return chosen[0]

    def _new_trial(self) -> tuple[optuna.Trial, Genes]:
        trial = self.study.ask()
        row = suggest_row(self.problem.space, trial)
        trial.set_user_attr("architecture", self.problem.space.decode(row[None])[0].digest)
        cheap = self.problem.cheap_metrics(row[None])
        for metric, values in cheap.items():
            trial.set_user_attr(metric, float(values[0]))
        for limit in self.problem.constraints:
            value = float(cheap[limit.metric][0])
            for name, bound, sign in (
                ("maximum", limit.maximum, 1),
                ("minimum", limit.minimum, -1),
            ):
                if bound is not None:
                    excess = sign * (value - bound) / scale_of(bound)
                    excess = min(excess, 0.0) if excess <= ROUNDING else excess
                    trial.set_constraint(f"{limit.metric} {name}", excess)
        return trial, row

    def _trial_of(self, row: Genes) -> optuna.Trial:
        """A running trial of a row that Optuna did not suggest."""
        self.study.enqueue_trial(parameters_of(self.problem.space, row))
        trial, same = self._new_trial()
        assert (same == row).all()
        return trial

    def _tell_infeasible(self, trial: optuna.Trial, row: Genes) -> None:
        known = self.problem.cheap_metrics(row[None])
        values = self.problem.objective_values(known)[0]
        values = np.where(np.isnan(values), math.inf, values)
        self.study.tell(trial, self._signed(values))

    def _signed(self, minimised: Values) -> list[float]:
        pairs = zip(self.problem.objectives, minimised, strict=True)
        return [objective.sign * float(value) for objective, value in pairs]

    # Telling ----------------------------------------------------------------------------------

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self._screen.mark(genes)
        for row, values, violation in zip(genes, objectives, violations, strict=True):
            rejected = 0 < violation < math.inf  # and told so when it was suggested
            if not (rejected and np.isnan(values).any()):
                with _quiet():
                    self._tell_one(row, values, float(violation))

    def _tell_one(self, row: Genes, values: Values, violation: float) -> None:
        key = np.ascontiguousarray(row, dtype=np.int64).tobytes()
        if key in self._told:
            return
        self._told.add(key)
        trial = self._live.pop(key, None) or self._trial_of(row)
        if np.isnan(values).any() or not np.isfinite(violation):
            self.study.tell(trial, state=TrialState.FAIL)
            return
        self.study.tell(trial, self._signed(values))


def _seed_of(seed: int, past: int) -> int:
    """A seed of 32 bits, the sampler's own for a new study."""
    return seed if past == 0 else int(np.random.SeedSequence([seed, past]).generate_state(1)[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's announcements of studies and its warnings of what is meant to be so here:
    infinite results, constraints that a sampler leaves to the screen, experimental methods."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
