"""Phases of a fine-tuning: networks of a finished search, trained as trials, the best exported.

What is validated decides; the test split is opened once, for the network that was chosen.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from nas.cli.console import Console
from nas.workflows.finetune_config import FinetuneConfig
from nas.workflows.finished_search import FinishedSearch
from nas.workflows.finishing import judged
from nas.workflows.inherited import read_bank
from nas.workflows.measuring import read_measured
from nas.workflows.reporting import facts
from nas.workflows.reporting import summary as search_summary
from nas.workflows.run import MEASURED
from nas.workflows.starting import Start, header, new_manifest, open_run
from nas.workflows.stitched_parents import read_stitched
from nas.workflows.trained_search import TrainedSearch
from predictors.tables.folder import provenance
from predictors.tables.latency_table import LatencyTable
from results.files import read_json
from results.journal import Evaluation
from results.report.data import Baseline, Chosen, Epoch, ReportData, TrialRow
from results.store import RunDirectory
from search_space import Architecture
from search_space.errors import CorruptFileError, NasError, RunError
from search_space.precision import in_precision
from search_space.registry import FLOAT
from supernet import Backbone
from supernet.cluster.connection import prepare
from supernet.cluster.trials import FAILED, FINISHED, STOPPED, Trial, TrialFolders, best_trial
from supernet.inherit.parents import find_parent
from supernet.network.supernet import Subnets

TRIALS = "trials"  # folder of their checkpoints
TABLE = "trials.json"
_PACKAGES = ("nas", "torch", "timm", "numpy", "ray", "optuna")


class Finetuning(TrainedSearch):
    """Networks of a finished search, each trained with several choices of hyper-parameters."""

    def __init__(
        self,
        settings: FinetuneConfig,
        source: FinishedSearch,
        directory: RunDirectory,
        console: Console,
    ) -> None:
        config = settings.search
        if config.parent is None and config.supernet is None:
            config = config.model_copy(update={"supernet": str(source.path)})
        super().__init__(config, directory, console)
        self.settings, self.source = settings, source
        place = str(self.path) if settings.storage is None else settings.storage
        name = TRIALS if settings.storage is None else self.path.name
        self.folders = TrialFolders.at(place, name)

    def all_phases(self) -> ReportData:
        self.folders.root.check()
        for table in self.source.path.glob("latency*.parquet"):  # what the search predicted by
            if not (self.path / table.name).exists():
                shutil.copy(table, self.path)
        self.open_data(self.space.resolutions[-1])
        supernet = self.trained_supernet()
        evaluations = self.source.evaluations()
        architectures = {
            digest: Architecture.from_dict(evaluations[digest].architecture)
            for digest in self.settings.networks
        }
        networks = {
            digest: self.extracted(supernet, in_precision(architecture, FLOAT))
            for digest, architecture in architectures.items()
        }
        trials = self.tuned(networks)
        best = best_trial(trials)
        if best is None:
            raise RunError(
                "no trial was trained to its end, so there is no network to choose. "
                + " ".join(self._failures(trials)[:3])
            )
        network = self._trained(supernet, best, networks[best.network].architecture)
        architecture, recipe = architectures[best.network], self.settings.recipe
        network = self.quantised(network, architecture, best.network, recipe)
        chosen = self._judged(supernet, network, evaluations[best.network], trials, best)
        latencies = self._latencies()
        chosen = self.exported(network, chosen, latencies)
        data = self._report(chosen, trials, best, latencies)
        data = self.finish(data)
        self._tidy(trials)
        return data

    def trained_supernet(self) -> Subnets:
        if self.config.parent is None:
            return super().trained_supernet()
        if self.config.is_stitched:
            return read_stitched(self.source.path, self.config, self.data).to(self.compute)
        parent = find_parent(self.config.parent, self.config.parent_weights)
        return read_bank(self.source.path, self.config, self.data, parent).to(self.compute)

    def tuned(self, networks: dict[str, Backbone]) -> list[Trial]:
        """All trials of the experiment; what is known of them is stored as they go on."""
        prepare(self.settings.address)  # Ray is imported with the next
        from supernet.cluster.tuning import Tuning, tune_networks

        settings = self.settings
        known = self.trials()
        with self.phase("trying hyper-parameters") as progress:
            trials = tune_networks(
                networks,
                self.data,
                settings.recipe,
                Tuning(
                    trials=settings.trials,
                    workers=settings.workers,
                    gpus=settings.gpus_per_worker,
                    address=settings.address,
                    seed=settings.seed,
                ),
                self.open_images,
                self.folders,
                known,
                on_change=self._store,
                progress=_Shown(settings, known, progress),
                notice=self.console.warn,
                loader_workers=settings.loader_workers,
            )
        self._store(trials)
        for sentence in self._failures(trials):
            self.console.warn(sentence)
        return trials

    def trials(self) -> list[Trial]:
        """Trials as stored so far."""
        if not (self.path / TABLE).exists():
            return []
        stored = read_json(self.path / TABLE, list)
        try:
            return [Trial.from_dict(item) for item in stored]
        except CorruptFileError as error:
            raise CorruptFileError(
                f"{self.path / TABLE}: {error}. Restore it from a copy, or start anew with another "
                "--name."
            ) from None

    def _store(self, trials: Sequence[Trial]) -> None:
        self.directory.write_json(TABLE, [trial.to_dict() for trial in trials])

    def _failures(self, trials: Sequence[Trial]) -> list[str]:
        return [
            f"Trial {trial.number} failed after {len(trial.epochs)} epochs: {trial.error}."
            for trial in trials
            if trial.status == FAILED
        ]

    def _trained(self, supernet: Subnets, trial: Trial, architecture: Architecture) -> Backbone:
        storage = self.folders.trial(trial.key)
        checkpoint = storage.newest()
        if checkpoint is None:
            raise RunError(
                f"{storage} holds no checkpoint of trial {trial.number} any more; restore it, or "
                "start anew with another --name."
            )
        network = supernet.extract(architecture)
        network.load_state_dict(checkpoint.trained_weights())
        return network.to(self.compute)

    def _judged(
        self,
        supernet: Subnets,
        network: Backbone,
        evaluation: Evaluation,
        trials: Sequence[Trial],
        best: Trial,
    ) -> Chosen:
        measured = read_measured(self.source.path / MEASURED).get(evaluation.digest)
        inherited = self.extracted(supernet, network.architecture)
        chosen = judged(
            inherited, network, evaluation, measured, self.data, self.settings.recipe.amp
        )
        self.console.say(
            f"  chosen {chosen.digest} of trial {best.number}: test accuracy "
            f"{chosen.test_accuracy_before:.2%} inherited, {chosen.test_accuracy:.2%} fine-tuned"
        )
        ended = sum(trial.status == FINISHED for trial in trials)
        return replace(
            chosen,
            reason=f"trial {best.number} has the smallest validation loss of {ended} trials that "
            f"were trained to their end",
        )

    def _latencies(self) -> LatencyTable:
        """The search's table; an empty one where it measured whole networks."""
        if self.config.is_stitched and self.target.at_hand:
            return LatencyTable(self.target.conditions, {}, {})
        return self.latency_table()

    def _report(
        self, chosen: Chosen, trials: Sequence[Trial], best: Trial, table: LatencyTable
    ) -> ReportData:
        source = self.source
        architecture = Architecture.from_dict(chosen.architecture)
        if self.space.contains(architecture):  # which routes through several networks are not
            latency = table.compile(self.space, self.num_classes)
            parts = latency.breakdown(self.space.encode([architecture])[0])
            chosen = replace(chosen, component_latency_ms=dict(parts))
        return ReportData(
            targets=source.result.targets,
            summary={
                "data": self.config.data,
                "networks from": source.path.name,
                "device": str(table.conditions),
                "latency": "measured as a whole"
                if self.config.is_stitched and self.target.at_hand
                else provenance(table),
            },
            chosen=chosen,
            baselines=(_before(source),),
            training=tuple(
                Epoch(epoch=epoch.epoch, loss=epoch.loss, accuracy=epoch.validation_accuracy)
                for epoch in best.epochs
            ),
            trials=tuple(_row(trial, best) for trial in trials),
            device=table.conditions.to_dict()["device"],
            notes=(*self._notes(trials), *self.notes),
            **facts(self.directory, self.settings),
        )

    def _notes(self, trials: Sequence[Trial]) -> list[str]:
        stopped = sum(trial.status == STOPPED for trial in trials)
        note = (
            f"{stopped} of {len(trials)} trials were stopped early: their validation loss is "
            "that of the last epoch they were trained for."
        )
        return [*([note] if stopped else []), *self._failures(trials)]

    def _tidy(self, trials: Sequence[Trial]) -> None:
        """Keep the last checkpoint of each network's best trial and nothing else."""
        kept = {best.key for best in best_by_network(trials).values()}
        for trial in trials:
            self.folders.trial(trial.key).close(1 if trial.key in kept else 0)
        for digest in self.settings.networks:
            self.folders.inherited(digest).close(0)
        self.folders.root.close()


class _Shown:
    """Trials as a line of progress: epochs done, and the time that those left will take."""

    def __init__(
        self, settings: FinetuneConfig, known: Sequence[Trial], progress: Callable[..., None]
    ) -> None:
        self.settings, self.progress = settings, progress
        self.started, self.before = time.monotonic(), self._done(known)

    def __call__(self, trials: Sequence[Trial]) -> None:
        total, done = self.settings.trials * self.settings.epochs, self._done(trials)
        left = None
        if done > self.before:
            left = (total - done) * (time.monotonic() - self.started) / (done - self.before)
        counts = {"done": FINISHED, "running": "running", "stopped": STOPPED, "failed": FAILED}
        of_status = Counter(trial.status for trial in trials)
        parts = [f"{of_status[s]} {name}" for name, s in counts.items() if of_status[s]]
        losses = [trial.validation_loss for trial in trials if trial.epochs]
        parts += [f"best validation loss {min(losses):.4g}"] if losses else []
        self.progress(done, total, f"trials: {', '.join(parts)}" if parts else "", left)

    def _done(self, trials: Sequence[Trial]) -> int:
        """Epochs that need not be trained any more."""
        return sum(
            len(trial.epochs) if trial.status in ("running", FAILED) else self.settings.epochs
            for trial in trials
        )


def best_by_network(trials: Sequence[Trial]) -> dict[str, Trial]:
    """The best finished trial of each network that has one."""
    digests = dict.fromkeys(trial.network for trial in trials)
    best = {d: best_trial(trial for trial in trials if trial.network == d) for d in digests}
    return {digest: trial for digest, trial in best.items() if trial is not None}


def run_finetuning(
    config: FinetuneConfig, source: FinishedSearch, path: Path, **start: Unpack[Start]
) -> tuple[ReportData, list[Trial]]:
    """Run, or continue, the fine-tuning that ``config`` describes in the directory ``path``.

    Returns what the report shows, and all trials. Raises a NasError for everything that the user
    can fix; a new run that fails before anything was trained is removed again.
    """
    console, resume = start.get("console") or Console(), start.get("resume", False)
    resumed = ("nas", "finetune", source.path, "--name", path.name, "--resume")
    comments = header("fine-tuning", (), resumed)
    manifest = new_manifest(config.seed, start.get("command", ""), _PACKAGES)
    manifest |= {"data": source.fingerprint, "test_data": source.test_fingerprint}
    opened = open_run(path, config.to_dict(), manifest, console, resume=resume, comments=comments)
    with opened as (directory, new):
        run = Finetuning(config, source, directory, console)
        try:
            return run.run(), run.trials()
        except NasError:
            if new and not any(trial.epochs for trial in run.trials()):
                with suppress(NasError):
                    for digest in config.networks:
                        run.folders.inherited(digest).close(0)
                    run.folders.root.close()
                shutil.rmtree(path)
            raise


def _before(source: FinishedSearch) -> Baseline:
    chosen = source.chosen
    return Baseline(
        name=f"{source.path.name}: {chosen.digest}",
        predicted=chosen.predicted,
        measured=chosen.measured,
        architecture=chosen.architecture,
        test_accuracy=chosen.test_accuracy,
        note="as the search itself fine-tuned its chosen network",
    )


def _row(trial: Trial, best: Trial) -> TrialRow:
    last = trial.epochs[-1] if trial.epochs else None
    return TrialRow(
        number=trial.number,
        network=trial.network,
        status=trial.status,
        chosen=trial.number == best.number,
        epochs=len(trial.epochs),
        validation_loss=None if last is None else last.validation_loss,
        validation_accuracy=None if last is None else last.validation_accuracy,
        hyperparameters=trial.hyperparameters,
        note=trial.error or ("the search's own settings" if trial.recipe else ""),
    )


def summary(data: ReportData, trials: Sequence[Trial], path: Path) -> dict[str, Any]:
    """Plain data that ``nas finetune --json`` prints; ``best`` as of ``nas search``, and more."""
    plain = search_summary(data, path)
    best = best_trial(trials)
    assert best is not None  # a fine-tuning without one ends with an error
    facts = {"trial": best.number, "validation_loss": best.validation_loss}
    return {
        "run": plain["run"],
        "status": plain["status"],
        "best": {**plain["best"], **facts, "hyperparameters": dict(best.hyperparameters)},
        "networks": {
            digest: {"trial": trial.number, "validation_loss": trial.validation_loss}
            for digest, trial in best_by_network(trials).items()
        },
        "trials": [trial.to_dict() for trial in trials],
    }
