"""Fine-tuning of networks as one Ray Tune experiment: ASHA stops trials, Optuna proposes them.

Tune starts, stops and replaces workers. What it would keep on disk, pickles, is thrown away: a
trial's checkpoints are the training loop's own, and a continued experiment is told what is known
of each trial (Optuna the values, ASHA the losses by epoch), so nothing needs to be unpickled.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
import ray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from ray.tune.stopper import Stopper

from search_space.errors import RunError
from supernet.cluster.connection import connection_lost, fit_aside
from supernet.cluster.jobs import hired
from supernet.cluster.trials import OVER, Trial, TrialFolders, trial_key
from supernet.cluster.tuning_state import Halving, TrialWatcher
from supernet.cluster.tuning_worker import LOSS, NETWORK, TrialJob, run_trial
from supernet.data.augmentation import mix_seed
from supernet.data.dataset import ImageData
from supernet.network.backbone import Backbone
from supernet.training.checkpoints import Checkpoint
from supernet.training.config import TrainConfig
from supernet.training.hyperparameters import ranges

POLL_SECONDS = 0.5
REDUCTION = 3
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table whatever is asked
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
}


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """States how many trials there are, and what trains them.

    Attributes:
        trials: In all, the recipe of each network among them.
        workers: Trials at a time.
        gpus: Of each worker; None for one where the cluster has any.
        address: As for ``supernet.cluster.connection.connected``.
        seed: Of what is tried.
        max_failures: Workers that a trial may lose.
    """

    trials: int
    workers: int = 1
    gpus: float | None = None
    address: str | None = None
    seed: int = 0
    max_failures: int = 3


def first_rung(config: TrainConfig) -> int:
    """Counts the epochs before a trial may stop: past the warm-up, two rungs below the end."""
    warmup = min(config.warmup_epochs, config.epochs / 2)
    return max(1, -(-config.epochs // REDUCTION**2), round(warmup))


def tune_networks(
    networks: Mapping[str, Backbone],
    data: ImageData,
    config: TrainConfig,
    tuning: Tuning,
    open_images: Callable[[], ImageData],
    folders: TrialFolders,
    known: Sequence[Trial] = (),
    *,
    on_change: Callable[[Sequence[Trial]], None] | None = None,
    progress: Callable[[Sequence[Trial]], None] | None = None,
    notice: Callable[[str], None] | None = None,
    loader_workers: int = 0,
    checkpoint_seconds: float = 60.0,
) -> list[Trial]:
    """Trains ``networks``, by digest, from the weights they have, and returns all trials.

    The first trial of each has the recipe, ``config`` itself, and is never stopped early; so the
    best one is at least as good. All others draw network and hyper-parameters.

    Args:
        open_images: Called on each worker; must give there what ``data`` is here.
        known: Trials of the experiment that is continued. Those that are over stay as they are,
            the others go on from their checkpoints in ``folders``.
        on_change: Called with all trials after something happened, to be stored.
        progress: Called with all trials twice a second.
        notice: Called with a sentence where workers are lost.

    Raises:
        RunError: Cluster or storage cannot be used, or ``tuning.trials`` does not reach for the
            recipes.
        DataError: A worker finds other images.
    """
    known = list(known)
    space = _space(networks, config)
    recipes = [_recipe(digest, config) for digest in networks]
    keys = {_key(recipe) for recipe in recipes}
    pending = [trial for trial in known if trial.status not in OVER]
    begun = {trial.key for trial in known}
    first = [{NETWORK: trial.network, **trial.hyperparameters} for trial in pending]
    first += [recipe for recipe in recipes if _key(recipe) not in begun]
    left = tuning.trials - (len(known) - len(pending))
    if left < len(first):
        raise RunError(
            f"{tuning.trials} trials are too few: {len(known)} are begun and each of the "
            f"{len(networks)} networks begins with its recipe; ask for "
            f"{tuning.trials + len(first) - left} or more"
        )
    if left == 0:
        return known
    watcher = TrialWatcher(known, keys, config.epochs)
    root = folders.root
    with hired(root, tuning.address, tuning.workers, tuning.gpus) as (token, resources):
        _store_weights(networks, folders)
        job = TrialJob(
            architectures={d: net.architecture.to_dict() for d, net in networks.items()},
            num_classes=data.num_classes,
            config=config,
            open_images=open_images,
            fingerprint=data.fingerprint,
            folders=folders,
            storage=root,
            token=token,
            resources=resources,
            loader_workers=loader_workers,
            checkpoint_seconds=checkpoint_seconds,
        )
        halving = Halving(known, keys, config.epochs, first_rung(config), REDUCTION)
        with tempfile.TemporaryDirectory() as scratch, _silence():
            tuner = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(run_trial, job=job),
                    tune.PlacementGroupFactory([dict(resources)]),
                ),
                tune_config=tune.TuneConfig(
                    search_alg=_search(space, first, known, tuning),
                    scheduler=halving,
                    num_samples=left,
                    max_concurrent_trials=tuning.workers,
                ),
                run_config=tune.RunConfig(
                    name="experiment",
                    storage_path=scratch,
                    failure_config=tune.FailureConfig(max_failures=tuning.max_failures),
                    callbacks=[watcher],
                    stop=_Stop(watcher),
                    verbose=0,
                ),
            )
            _fit(tuner, watcher, on_change, progress, notice)
    if watcher.impossible is not None:
        raise watcher.impossible
    return watcher.all()


def _space(networks: Mapping[str, Backbone], config: TrainConfig) -> dict[str, BaseDistribution]:
    return {
        NETWORK: CategoricalDistribution(list(networks)),
        **{
            name: FloatDistribution(values.low, values.high, log=values.log)
            for name, values in ranges(config).items()
        },
    }


def _recipe(digest: str, config: TrainConfig) -> dict[str, Any]:
    return {NETWORK: digest, **{name: values.recipe for name, values in ranges(config).items()}}


def _key(values: Mapping[str, Any]) -> str:
    return trial_key(
        values[NETWORK], {name: value for name, value in values.items() if name != NETWORK}
    )


class _Proposals(OptunaSearch):
    """Ray's searcher; losses on the way are ASHA's business, and repeated after a lost worker."""

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        pass


def _search(
    space: Mapping[str, BaseDistribution],
    first: Sequence[Mapping[str, Any]],
    known: Sequence[Trial],
    tuning: Tuning,
) -> OptunaSearch:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        search = _Proposals(
            dict(space),
            metric=LOSS,
            mode="min",
            points_to_evaluate=[dict(values) for values in first],
            # a continued experiment must not draw again what it began with
            sampler=TPESampler(
                seed=mix_seed(tuning.seed, len(known)) % 2**32,
                n_startup_trials=min(10, max(3, tuning.trials // 3)),
            ),
        )
    finally:
        optuna.logging.set_verbosity(before)
    for trial in known:
        if trial.status in OVER:
            values = {NETWORK: trial.network, **trial.hyperparameters}
            failed = not trial.epochs or bool(trial.error)
            search.add_evaluated_point(values, trial.validation_loss, error=failed)
    return search


def _store_weights(networks: Mapping[str, Backbone], folders: TrialFolders) -> None:
    for digest, network in networks.items():
        folder = folders.inherited(digest)
        weights = dict(network.state_dict())
        folder.save(Checkpoint(step=0, weights=weights, optimizer={}, metadata={}))


class _Stop(Stopper):
    """Ends the experiment where a worker found that no trial can be trained."""

    def __init__(self, watcher: TrialWatcher) -> None:
        self.watcher = watcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.watcher.impossible is not None


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps Tune from printing; the watcher tells what happens to trials."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    os.environ.update(_QUIET)
    try:
        yield
    finally:
        logger.setLevel(level)


def _fit(
    tuner: tune.Tuner,
    watcher: TrialWatcher,
    on_change: Callable[[Sequence[Trial]], None] | None,
    progress: Callable[[Sequence[Trial]], None] | None,
    notice: Callable[[str], None] | None,
) -> None:
    def hear() -> None:
        trials, changed, notes = watcher.take()
        if changed and on_change is not None:
            on_change(trials)
        if notice is not None:
            for note in notes:
                notice(note)
        if progress is not None:
            progress(trials)

    try:
        error = fit_aside(tuner.fit, POLL_SECONDS, hear)
    finally:
        hear()
    if isinstance(error, ray.exceptions.RayError):
        raise connection_lost(error) from None
    if error is not None:
        raise error
