"""A run from data and budget to a deployed network; what is missing is made.

Phases: latency table, supernet, search, re-measurement, fine-tuning, export, report. Each leaves
its result in the run directory and finds it there when the run is continued, so a run that was
killed anywhere ends as if it had not been.
"""

from __future__ import annotations

import platform
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from nas.config import MAY_DIFFER, RunConfig
from nas.console import Console, PhaseProgress
from nas.finishing import best_finetuned, export_chosen, judged
from nas.measuring import Measured, measure_twice, read_measured, to_json
from nas.reporting import Findings, assemble, curves, rebuild_report
from predictors.additive import AdditiveTable
from predictors.counts import counts
from predictors.latency.catalog import (
    Target,
    find_device,
    latency_table,
    provenance,
    stored_target,
)
from predictors.latency.devices import local_device_names
from predictors.latency.table import LatencyTable
from predictors.memory import peak_memory
from results.export import read_export
from results.journal import Evaluation
from results.report import write_report
from results.report_data import (
    Chosen,
    ReportData,
)
from results.store import EXPORT, JOURNAL, MANIFEST, SNAPSHOT, SUPERNET, RunDirectory, is_run
from search import Constraint, InProcessExecutor, Objective, Problem, check_feasible, search
from search.evaluator import SupernetEvaluator
from search.loop import Progress
from search.samplers import NSGA2
from search_space import Architecture, SearchSpace, known, known_names
from search_space.errors import CorruptFileError, InfeasibleError, NasError, RunError
from search_space.units import format_latency
from supernet import Backbone, Supernet
from supernet.checkpoints import load_latest
from supernet.data import ImageData, eval_batches, open_data
from supernet.training import train_supernet

LATENCY_TABLE = "latency.parquet"
MEASURED = "measured.json"
FINETUNE = "finetune"
CHECKPOINTS = "checkpoints"
_PACKAGES = ("nas", "torch", "timm", "numpy", "onnx", "onnxruntime")


def run_search(
    config: RunConfig,
    path: Path,
    *,
    resume: bool = False,
    command: str = "",
    console: Console | None = None,
) -> ReportData:
    """Run, or continue, the search that ``config`` describes in the directory ``path``.

    Returns what the report shows; the files lie in ``path``. Raises a NasError for everything
    that the user can mend: RunError where the run exists, InfeasibleError where no architecture
    meets the limits, DataError, ExportError. A new run that fails before anything was trained is
    removed again.
    """
    console = console or Console()
    return _start(config, path, resume, command, console, _Run.all_phases)


def run_training(
    config: RunConfig,
    path: Path,
    *,
    resume: bool = False,
    command: str = "",
    console: Console | None = None,
) -> ReportData:
    """Only train the supernet; ``run_search`` with ``supernet`` set to ``path`` then uses it."""
    console = console or Console()
    return _start(config, path, resume, command, console, _Run.training_only)


def _start(
    config: RunConfig,
    path: Path,
    resume: bool,
    command: str,
    console: Console,
    steps: Callable[[_Run], ReportData],
) -> ReportData:
    new, first = not (resume and is_run(path)), not path.parent.exists()
    if not new:
        directory = RunDirectory.resume(path, config.to_dict(), MAY_DIFFER)
        console.say(f"continuing {path}")
        try:
            _ = directory.manifest
        except CorruptFileError as error:
            console.warn(f"{error} It is written anew; times of earlier phases are lost.")
            directory.write_json(MANIFEST, {"phases": [], **_manifest(config, command)})
    else:
        if resume:
            console.say(f"nothing to continue at {path} yet: starting it")
        directory = RunDirectory.create(path, config.to_dict(), _manifest(config, command))
    with directory, warnings.catch_warnings():
        warnings.showwarning = lambda message, *rest: console.warn(str(message))
        try:
            return steps(_Run(config, directory, console))
        except NasError:
            if new and not _can_be_continued(path):
                shutil.rmtree(path)
                if first:
                    with suppress(OSError):  # another run may have begun beside it
                        path.parent.rmdir()
            raise


def _can_be_continued(path: Path) -> bool:
    """Whether more than the latency table, which is cached elsewhere, would be lost with it."""
    return (path / JOURNAL).exists() or (path / SUPERNET / CHECKPOINTS).exists()


def _manifest(config: RunConfig, command: str) -> dict[str, Any]:
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": "running",
        "command": command,
        "seed": config.seed,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "platform": platform.platform(),
    }


class _Run:
    """One run: what the phases share, and the phases in their order."""

    def __init__(self, config: RunConfig, directory: RunDirectory, console: Console) -> None:
        self.config, self.directory, self.console = config, directory, console
        self.path = directory.path
        self.space: SearchSpace = config.search_space()
        self.compute = "cuda" if torch.cuda.is_available() else "cpu"
        self.notes: list[str] = []

    def all_phases(self) -> ReportData:
        if self.directory.manifest.get("status") == "complete":
            try:
                return self._complete()
            except (CorruptFileError, RunError) as error:
                self.console.warn(f"{error} What is missing is made again.")
        _ = self.target  # a device that is not there is an error before images are read
        self.open_data()
        table = self.latency_table()
        problem = self.problem(table)
        supernet = self.trained_supernet()
        found = self.searched(problem, supernet)
        baselines = self.baselines(problem, supernet)
        measured = self.measured([*found.values(), *baselines.values()])
        finalists = self.finalists(found, measured)
        network, chosen = self.finetuned(supernet, finalists, measured)
        chosen = self.exported(network, chosen, table)
        data = assemble(
            self.directory,
            self.config,
            self.space,
            table,
            self.data.num_classes,
            self.limits,
            Findings(self.evaluations, found, baselines, measured, chosen, tuple(self.notes)),
        )
        with self._phase("report"):
            write_report(self.path, data)
        self.directory.update_manifest(
            status="complete", finished=datetime.now(UTC).isoformat(timespec="seconds")
        )
        return data

    def training_only(self) -> ReportData:
        self.open_data()
        self.trained_supernet()
        self.directory.update_manifest(status="trained")
        return ReportData(run=self.path.name, status="trained", training=curves(self.path))

    def _complete(self) -> ReportData:
        """A complete run's report; raises where its result or its export is damaged."""
        data = rebuild_report(self.path)
        if data.chosen is not None:
            read_export(self.path / EXPORT / data.chosen.digest)
        self.console.say("this run is complete; its report was written again")
        return data

    # Phases -----------------------------------------------------------------------------------

    def open_data(self) -> None:
        config = self.config
        with self._phase("opening images"):
            self.data: ImageData = open_data(
                config.data,
                self.space.resolutions[-1],
                validation_fraction=config.validation_fraction,
                seed=config.seed,
                image_column=config.image_column,
                label_column=config.label_column,
            )
        known_data = self.directory.manifest.get("data")
        if known_data not in (None, self.data.fingerprint):
            raise RunError(
                f"the images of {config.data!r} changed since this run began (fingerprint "
                f"{known_data} -> {self.data.fingerprint}). Restore them, or start a new run "
                "with another --name."
            )
        self.directory.update_manifest(data=self.data.fingerprint)
        self.console.say(
            f"  {len(self.data.train)} training, {len(self.data.validation)} validation, "
            f"{len(self.data.test)} test images of {self.data.num_classes} classes"
        )

    @cached_property
    def target(self) -> Target:
        """The device that latencies are for; a continued run goes on under its table's conditions.

        Tables that have come or gone since do not matter to it.
        """
        latency, file = self.config.latency, self.path / LATENCY_TABLE
        if file.exists():
            with suppress(CorruptFileError):  # reported, and measured again, where it is needed
                return stored_target(self.config.device, LatencyTable.load(file))
        return find_device(
            self.config.device,
            runtime=latency.runtime,
            precision=latency.precision,
            batch_size=latency.batch_size,
            threads=latency.threads,
        )

    @cached_property
    def limits(self) -> dict[str, float]:
        """Upper limits by metric name, as asked; the margin is not taken off."""
        return self.config.limits(self.target.conditions.batch_size)

    def margin(self, table: LatencyTable) -> float:
        """Share of the latency budget that the search leaves free."""
        if self.config.latency.margin is not None:
            return self.config.latency.margin
        if self.target.at_hand or self.config.device in local_device_names():
            return 0.0
        return min(0.9, table.expected_error(self.space))

    def latency_table(self) -> LatencyTable:
        """The run's own table: a continued run predicts what it predicted before."""
        file = self.path / LATENCY_TABLE
        if file.exists():
            try:
                return LatencyTable.load(file)
            except CorruptFileError as error:
                self.console.warn(f"{error} The table is measured again.")
        with self._phase(f"latency table of {self.config.device}") as progress:
            table = latency_table(
                self.target,
                self.space,
                self.data.num_classes,
                interpolate=self.config.latency.interpolate,
                seed=self.config.seed,
                progress=lambda done, total, left: progress(done, total, "rounds", left),
            )
        for warning in table.correction(self.space).warnings:
            self.console.warn(warning)
        self.console.say(
            f"  {provenance(table)}; expected error {table.expected_error(self.space):.1%}"
        )
        table.save(file)
        return table

    @property
    def quality(self) -> Objective:
        """What tells networks apart with inherited weights."""
        if self.config.search.objective == "accuracy":
            return Objective("accuracy", "maximize")
        return Objective("loss", "minimize")

    def problem(self, table: LatencyTable) -> Problem:
        """The search problem; raises InfeasibleError before anything is trained."""
        cheap = counts(self.space, self.data.num_classes)
        tables: dict[str, AdditiveTable] = {
            "latency_ms": table.compile(self.space, self.data.num_classes),
            **cheap,
        }
        if "memory_bytes" in self.limits:
            conditions = self.target.conditions
            tables["memory_bytes"] = peak_memory(
                self.space,
                self.data.num_classes,
                batch_size=conditions.batch_size,
                precision=conditions.precision,
            )
        limits, margin = dict(self.limits), self.margin(table)
        if margin and "latency_ms" in limits:
            limits["latency_ms"] *= 1 - margin
            note = (
                f"Latencies of {self.config.device} are {provenance(table)}, with an expected "
                f"error of {table.expected_error(self.space):.0%}. The search kept "
                f"{margin:.0%} below the budget of {format_latency(self.limits['latency_ms'])}, at "
                f"{format_latency(limits['latency_ms'])}."
            )
            self.console.say(f"  {note}")
            self.notes.append(note)
        problem = Problem(
            self.space,
            (self.quality, Objective("latency_ms", "minimize")),
            tuple(Constraint(metric, maximum=limit) for metric, limit in limits.items()),
            tables,
            evaluated=("accuracy", "loss"),
        )
        latency = tables["latency_ms"]
        low = latency.predict(latency.argmin()[None])[0]
        high = latency.predict(latency.argmax()[None])[0]
        self.console.say(
            f"  {self.space.name}: {self.space.size:.2g} architectures from {format_latency(low)} "
            f"to {format_latency(high)} on {self.config.device}"
        )
        try:
            check_feasible(problem)
        except InfeasibleError as error:
            if not margin:
                raise
            raise InfeasibleError(
                f"{error} The latency budget was lowered by a margin of {margin:.0%}, since "
                "predictions cannot be checked here; --margin sets another."
            ) from None
        return problem

    def trained_supernet(self) -> Supernet:
        torch.manual_seed(self.config.seed)
        supernet = Supernet(self.space, self.data.num_classes).to(self.compute)
        if self.config.supernet is not None:
            self._load_supernet(supernet, Path(self.config.supernet))
            return supernet.eval()
        with self._phase("training the supernet") as progress:
            train_supernet(
                supernet,
                self.data,
                self.config.train,
                self.path / SUPERNET,
                progress=lambda done, total, info: progress(done, total, _training_text(info)),
                device=self.compute,
                workers=self.config.workers,
            )
        for epoch in curves(self.path)[-1:]:
            self.console.say(
                f"  validation accuracy: largest {_percent(epoch.accuracy_largest)}, "
                f"smallest {_percent(epoch.accuracy_smallest)}"
            )
        return supernet.eval()

    def _load_supernet(self, supernet: Supernet, run: Path) -> None:
        checkpoint = load_latest(run / SUPERNET / CHECKPOINTS)
        if checkpoint is None:
            raise RunError(f"{run} holds no trained supernet; train one with `nas train`.")
        identity = checkpoint.metadata["identity"]
        if identity.get("space") != self.space.digest:
            raise RunError(
                f"the supernet of {run} was trained for another space (digest "
                f"{identity.get('space')}, asked {self.space.digest}); give the same --space."
            )
        if identity["data"] != self.data.fingerprint:
            raise RunError(
                f"the supernet of {run} was trained on other images, or on some that are now for "
                f"validation (fingerprint {identity['data']}, asked {self.data.fingerprint}); "
                "give the same --data and --seed."
            )
        done, epochs = len(checkpoint.metadata["state"]["history"]), identity["train"]["epochs"]
        if done < epochs:
            raise RunError(
                f"the supernet of {run} is trained for {done} of {epochs} epochs; finish it with "
                "--resume first."
            )
        supernet.load_state_dict(checkpoint.weights)
        self.notes.append(f"The supernet's weights come from {run}.")

    def searched(self, problem: Problem, supernet: Supernet) -> dict[str, Evaluation]:
        """Search with inherited weights; the front by digest, fastest first."""
        config = self.config
        batches = eval_batches(self.data.validation)
        evaluator = SupernetEvaluator(supernet, batches, self.compute)
        sampler = NSGA2(problem, seed=config.seed, population=config.search.population)
        journal = self.directory.journal()
        for warning in journal.warnings:
            self.console.warn(warning)
        with self._phase("searching") as progress:

            def show(state: Progress) -> None:
                best = "none yet" if state.best is None else f"{state.best.metrics['accuracy']:.1%}"
                text = f"best {best}, hypervolume {state.hypervolume:.4g}"
                progress(state.evaluations, state.total, text)

            result = search(
                problem,
                sampler,
                InProcessExecutor(evaluator),
                journal,
                num_evaluations=config.search.evaluations,
                batch_size=max(2, config.search.population // 2),
                on_progress=show,
            )
        journal.snapshot(self.path / SNAPSHOT)
        journal.close()
        self.evaluations = result.evaluations
        self.console.say(
            f"  {len(result.evaluations)} evaluated ({result.cached} from before), "
            f"{len(result.front)} on the front"
        )
        return {evaluation.digest: evaluation for evaluation in result.front}

    def baselines(self, problem: Problem, supernet: Supernet) -> dict[str, Evaluation]:
        """Extremes of the space and the known designs that it holds, under the same rules."""
        designs = {"smallest subnet": self.space.smallest, "largest subnet": self.space.largest}
        designs |= {n: known(n) for n in known_names() if self.space.contains(known(n))}
        evaluator = SupernetEvaluator(supernet, eval_batches(self.data.validation), self.compute)
        result = {}
        for name, architecture in designs.items():
            cheap = problem.cheap_metrics(self.space.encode([architecture]))
            metrics = {key: float(values[0]) for key, values in cheap.items()}
            metrics |= evaluator(architecture)
            result[name] = Evaluation(architecture.digest, architecture.to_dict(), metrics, 0)
        return result

    def measured(self, evaluations: Sequence[Evaluation]) -> dict[str, Measured]:
        """Every network measured twice on the device; kept in the run."""
        if not self.target.at_hand:
            if self.config.device in local_device_names():
                self.console.warn(
                    "this machine, or what is installed on it, is not what the latency table was "
                    "measured on; networks are not measured again."
                )
            return {}
        by_digest = {e.digest: Architecture.from_dict(e.architecture) for e in evaluations}
        file = self.path / MEASURED
        try:
            stored = read_measured(file)
        except CorruptFileError as error:
            self.console.warn(f"{error} The networks are measured again.")
            stored = {}
        if stored.keys() >= by_digest.keys():
            return stored
        with self._phase(f"measuring {len(by_digest)} networks on the device") as progress:
            result = measure_twice(
                by_digest, self.data.num_classes, self.target.conditions, self.config.seed, progress
            )
        for warning in sorted({w for m in result.values() for w in m.second.warnings}):
            self.console.warn(warning)
        self.directory.write_json(MEASURED, to_json(result))
        return result

    def finalists(
        self, front: Mapping[str, Evaluation], measured: Mapping[str, Measured]
    ) -> list[Evaluation]:
        """The best front members that meet the budget when measured, best first."""
        target = self.limits["latency_ms"]

        def latency(evaluation: Evaluation) -> float:
            if evaluation.digest not in measured:  # no such device here
                return evaluation.metrics["latency_ms"]
            return measured[evaluation.digest].metrics["latency_ms"]

        within = [evaluation for evaluation in front.values() if latency(evaluation) <= target]
        if within:
            metric, sign = self.quality.metric, self.quality.sign
            within.sort(key=lambda e: (sign * e.metrics[metric], latency(e)))
            return within[: self.config.search.finalists]
        fastest = min(front.values(), key=latency)
        message = (
            "No member of the front met the budget when measured; the fastest was taken, at "
            f"{format_latency(latency(fastest))}."
        )
        self.console.warn(
            f"{message} The machine may be busier than when its table was measured: run "
            "`nas profile --fresh` and search again, or ask for less."
        )
        self.notes.append(message)
        return [fastest]

    def finetuned(
        self, supernet: Supernet, finalists: Sequence[Evaluation], measured: Mapping[str, Measured]
    ) -> tuple[Backbone, Chosen]:
        """The chosen network, trained on, with its test accuracy before and after."""
        with self._phase("fine-tuning the finalists") as progress:
            network, evaluation = best_finetuned(
                supernet,
                finalists,
                self.data,
                self.config,
                self.path / FINETUNE,
                self.compute,
                lambda done, total, info: progress(done, total, _training_text(info)),
            )
        chosen = judged(supernet, network, evaluation, measured.get(evaluation.digest), self.data)
        self.console.say(
            f"  chosen {chosen.digest}: test accuracy {chosen.test_accuracy_before:.2%} inherited, "
            f"{chosen.test_accuracy:.2%} fine-tuned"
        )
        count = len(finalists)
        reason = f"the smallest validation loss of {count} front members that were fine-tuned"
        if count == 1:
            reason = "the only front member that was fine-tuned"
        return network, replace(chosen, reason=reason)

    def exported(self, network: Backbone, chosen: Chosen, table: LatencyTable) -> Chosen:
        folder = self.path / EXPORT / chosen.digest
        with self._phase("exporting"):
            return export_chosen(network, chosen, folder, self.data, self.config, table)

    @contextmanager
    def _phase(self, name: str) -> Iterator[PhaseProgress]:
        """A phase that people see and the manifest remembers."""
        with self.directory.phase(name), self.console.phase(name) as progress:
            yield progress


def _training_text(info: Mapping[str, Any]) -> str:
    parts = [f"epoch {info['epoch']}"] if "epoch" in info else []
    parts += [f"{key} {value:.3f}" for key, value in info.items() if key.startswith("loss")][:1]
    return ", ".join(parts)


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}"
