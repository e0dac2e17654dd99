"""Phases of a search with images, in their order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.cli.console import Console
from nas.config import TrainedConfig
from nas.workflows.finishing import card_figures, export_trained, judged, latency_text
from nas.workflows.idle_budget import idle_budget
from nas.workflows.measuring import Measured
from nas.workflows.reporting import Findings, assemble
from nas.workflows.with_images import ImageRun, shown
from predictors.tables.latency_table import LatencyTable
from results.journal import Evaluation, read_journal
from results.pareto import non_dominated
from results.report.data import Chosen, ReportData
from results.store import EXPORT, JOURNAL, SNAPSHOT, RunDirectory
from search import Executor, InProcessExecutor, Objective, Problem, Progress, search, window_for
from search.evaluator import SupernetEvaluator, SupernetFactory
from search.samplers import Sampler, make_sampler
from search_space import Architecture, known, known_names
from search_space.errors import UsageError
from search_space.metrics import (
    ACCURACY,
    EVALUATION,
    LATENCY,
    metric_of_option,
    metrics,
)
from search_space.precision import in_precision, quantised
from search_space.registry import FLOAT
from supernet import Backbone
from supernet.cluster.connection import prepare
from supernet.data.evaluation_batches import EvalBatches, doubling_batches, eval_batches
from supernet.network.supernet import Subnets
from supernet.training.evaluation import evaluate
from supernet.training.loggers.tensorboard import TensorBoardLogger
from supernet.training.loop import ProgressCallback

if TYPE_CHECKING:
    from search.samplers.surrogate import Predict

FINETUNE = "finetune"
MIN_IMAGES = 16  # of a first look that tells anything


@dataclass(frozen=True)
class Plan:
    """What a search is to find and how: latencies, problem, sampler, and what it judges first."""

    table: LatencyTable
    problem: Problem
    sampler: Sampler
    first: tuple[Architecture, ...]


class TrainedSearch(ImageRun):
    """A search with images: a supernet is trained, and networks are judged with its weights."""

    evaluated = tuple(m.name for m in metrics(EVALUATION))

    def __init__(self, config: TrainedConfig, directory: RunDirectory, console: Console) -> None:
        super().__init__(config, directory, console)
        # what tells networks apart with inherited weights
        self.quality = Objective.on(metric_of_option(config.search.objective, EVALUATION).name)

    @property
    def num_finalists(self) -> int:
        return self.config.search.finalists

    def all_phases(self) -> ReportData:
        plan = self.planned()
        return self.concluded(plan, self.trained_supernet())

    def planned(self) -> Plan:
        """What is to be found and how; whatever is wrong with it is an error before a training."""
        _ = self.target, self.others  # one that is not there is an error before images are read
        self.open_data(self.space.resolutions[-1])
        self.check_trainings()
        self._check_halvings()
        _ = self.cost_tables  # what they lack is an error before anything is measured
        table = self.latency_table()
        problem = self.problem(table)
        return Plan(table, problem, self.sampler(problem), tuple(self.warm_start()))

    def concluded(self, plan: Plan, supernet: Subnets) -> ReportData:
        """The phases after the weights of all networks are there."""
        table, problem = plan.table, plan.problem
        front = self.searched(problem, plan.sampler, plan.first, supernet)
        self._note_idle_budget(front)
        baselines = self.baselines(problem, supernet)
        measured = self.measured([*front.values()], [*baselines.values()], table)
        finalists = self.finalists(front, measured)
        network, chosen = self.finetuned(supernet, finalists, measured)
        chosen = self.exported(network, chosen, table)
        findings = Findings(self.evaluations, front, baselines, measured, chosen, tuple(self.notes))
        return self.finish(self.reported(assemble(self, table, findings)))

    def reported(self, data: ReportData) -> ReportData:
        """The report's data, with what else this kind of search has to say."""
        return data

    def sampler(self, problem: Problem, prior: Mapping[str, Predict] | None = None) -> Sampler:
        """The sampler that proposes architectures; ``prior`` is what is known by metric."""
        config = self.config
        return make_sampler(
            config.search.sampler,
            problem,
            seed=config.seed,
            population=config.search.population,
            budget=config.search.evaluations,
            storage=config.search.optuna_storage,
            study=self.path.name,
            say=self.console.warn,
            prior=prior,
        )

    def searched(
        self, problem: Problem, sampler: Sampler, first: Sequence[Architecture], supernet: Subnets
    ) -> dict[str, Evaluation]:
        """Search with inherited weights, ``first`` first; the front by digest, fastest first."""
        config = self.config
        parts = doubling_batches(self.data.validation, config.search.halvings, folder=self.path)
        batch_size = max(2, config.search.population // 2)
        window = config.search.window or window_for(config.workers, batch_size)
        journal = self.directory.journal()
        for warning in journal.warnings:
            self.console.warn(warning)
        started, known_before = time.perf_counter(), len(journal)
        events = TensorBoardLogger(self.path)
        with (
            self.phase("searching") as progress,
            closing(self._executor(supernet, parts)) as executor,
            ExitStack() as stack,
        ):
            stack.callback(events.close, failed=False)

            def show(state: Progress) -> None:
                figures = {"hypervolume": state.hypervolume, "failed": float(state.failed)}
                best = "none yet"
                if state.best is not None:
                    best = f"{state.best.metrics[ACCURACY]:.1%}"
                    for name, value in state.best.metrics.items():
                        figures[f"best_{name.replace('@', '_')}"] = value
                step = state.evaluations
                events.log(step, {f"search/{name}": value for name, value in figures.items()})
                rate = (step - known_before) / (time.perf_counter() - started)
                text = f"best {best}, hypervolume {state.hypervolume:.4g}, {rate:.2g}/s"
                progress(step, state.total, text)

            result = search(
                problem,
                sampler,
                executor,
                journal,
                num_evaluations=config.search.evaluations,
                batch_size=min(batch_size, window),
                window=window,
                halvings=config.search.halvings,
                warm_start=first,
                on_progress=show,
            )
        journal.snapshot(self.path / SNAPSHOT)
        journal.close()
        self.evaluations = result.evaluations
        count = result.stopped_early
        early = f", {count} on a part of the images only" if count else ""
        self.console.say(
            f"  {len(result.evaluations)} evaluated ({result.cached} from before{early}), "
            f"{len(result.front)} on the front"
        )
        return {evaluation.digest: evaluation for evaluation in result.front}

    def _note_idle_budget(self, front: Mapping[str, Evaluation]) -> None:
        if (limit := self.limits.get(LATENCY)) is None:
            return
        note = idle_budget(self.evaluations, front.values(), self.quality, limit, str(self.path))
        if note is not None:
            self.note(note)

    def _check_halvings(self) -> None:
        """Refuses halvings that leave too few images for the first look."""
        images, halvings = len(self.data.validation), self.config.search.halvings
        if halvings and images >> halvings < MIN_IMAGES:
            most = max(0, (images // MIN_IMAGES).bit_length() - 1)
            raise UsageError(
                f"--halvings {halvings} leaves {images >> halvings} of {images} validation images "
                f"for the first look; it must be at least {MIN_IMAGES}. Give --halvings {most} or "
                "less."
            )

    def _executor(self, supernet: Subnets, parts: list[EvalBatches]) -> Executor:
        config, on_gpu = self.config, self.compute == "cuda"
        if config.workers == 1:
            return InProcessExecutor(SupernetEvaluator(supernet, parts, **self._judging()))
        prepare(config.address)  # Ray is imported with the next
        from search.executors.on_ray import RayExecutor

        return RayExecutor(
            SupernetFactory.of(supernet, parts, **self._judging()),
            workers=config.workers,
            address=config.address,
            num_gpus=float(on_gpu) if config.gpus_per_worker is None else config.gpus_per_worker,
        )

    def _judging(self) -> dict[str, Any]:
        counts = np.bincount(self.data.validation.labels, minlength=self.num_classes)
        amp = self.config.train.amp
        return {
            "device": self.compute,
            "amp": amp,
            "class_counts": tuple(counts.tolist()),
            "calibration": self.calibration,
        }

    def warm_start(self) -> list[Architecture]:
        """Members of the fronts of earlier runs that lie in the space."""
        result: dict[str, Architecture] = {}
        for run in map(Path, self.config.search.warm_start):
            if not (run / JOURNAL).exists():
                raise UsageError(
                    f"--warm-start {run} holds no evaluations; give the folder of a run that "
                    "searched."
                )
            metric, sign = self.quality.metric, self.quality.sign
            evaluations = [e for e in read_journal(run / JOURNAL) if e.status == "ok"]
            evaluations = [e for e in evaluations if metric in e.metrics]
            values = [(sign * e.metrics[metric], e.metrics[LATENCY]) for e in evaluations]
            front = [evaluations[i] for i in np.flatnonzero(non_dominated(values))]
            members = [Architecture.from_dict(e.architecture) for e in front]
            inside = {a.digest: a for a in members if self.space.contains(a)}
            self.console.say(f"  {len(inside)} of {len(front)} front members of {run} come first")
            result |= inside
        return list(result.values())

    def baselines(self, problem: Problem, supernet: Subnets) -> dict[str, Evaluation]:
        """Extremes of the space and the known designs that it holds, under the same rules."""
        designs = self.designs()
        evaluator = SupernetEvaluator(
            supernet, [eval_batches(self.data.validation, folder=self.path)], **self._judging()
        )
        result = {}
        for name, architecture in designs.items():
            cheap = problem.cheap_metrics(self.space.encode([architecture]))
            metrics = {key: float(values[0]) for key, values in cheap.items()}
            metrics |= evaluator(architecture)
            result[name] = Evaluation.of(architecture, metrics)
        if self.calibration is not None and evaluator.recalibrated:
            seconds = evaluator.recalibration_seconds / evaluator.recalibrated
            int8 = quantised(self.space.smallest)
            found = " and its ranges in int8 found" if int8 else ""
            self.note(
                f"Batch norms of each candidate were recalibrated{found} on "
                f"{self.calibration.num_images:,} training images before it was judged, which "
                f"takes {seconds:.2g} s a candidate here (mean of {evaluator.recalibrated} "
                "baselines); --recalibration-images sets their number."
            )
        return result

    def designs(self) -> dict[str, Architecture]:
        """Networks to compare with, by name."""
        designs = {"smallest subnet": self.space.smallest, "largest subnet": self.space.largest}
        return designs | {n: known(n) for n in known_names() if self.space.contains(known(n))}

    def finetuned(
        self, supernet: Subnets, finalists: Sequence[Evaluation], measured: Mapping[str, Measured]
    ) -> tuple[Backbone, Chosen]:
        """Train every finalist on by itself; the one with the smallest validation loss is chosen.

        Inherited weights are close together at the top, and the search has looked at many of
        them, so the last decision is made on trained networks. Ties go to the earlier finalist.
        """
        recipe, count = self.config.finetune, len(finalists)
        tuned: list[tuple[float, Backbone, Backbone, Evaluation]] = []
        with self.phase("fine-tuning the finalists") as progress:
            for i, evaluation in enumerate(finalists):
                architecture = Architecture.from_dict(evaluation.architecture)
                rate = recipe.drop_path_rate
                twin = in_precision(architecture, FLOAT)
                in_float = self.extracted(supernet, twin, drop_path_rate=rate)
                folder, shows = f"{FINETUNE}/{evaluation.digest}", shown(progress, i, count)
                self.train_finalist(in_float, folder, shows)
                network = self.quantised(in_float, architecture, folder, recipe, shows)
                images = self.data.at(architecture.resolution)  # as its export asks for them
                loss = evaluate(network, eval_batches(images.validation), amp=recipe.amp).loss
                tuned.append((loss, network, in_float, evaluation))
        _, network, in_float, evaluation = min(tuned, key=lambda item: item[0])
        known_latency = measured.get(evaluation.digest)
        inherited = self.extracted(supernet, network.architecture)
        chosen = judged(inherited, network, evaluation, known_latency, self.data, recipe.amp)
        self.console.say(
            f"  chosen {chosen.digest}: test accuracy {chosen.test_accuracy_before:.2%} inherited, "
            f"{chosen.test_accuracy:.2%} fine-tuned"
        )
        if network is not in_float:
            images = self.data.at(network.architecture.resolution)
            accuracy = evaluate(in_float, eval_batches(images.test), amp=recipe.amp).accuracy
            self.note(
                f"The chosen network's test accuracy is {chosen.test_accuracy:.2%} in int8 and "
                f"{accuracy:.2%} in float."
            )
        reason = f"the smallest validation loss of {count} front members that were fine-tuned"
        if count == 1:
            reason = "the only front member that was fine-tuned"
        return network, replace(chosen, reason=reason)

    def train_finalist(self, network: Backbone, folder: str, progress: ProgressCallback) -> None:
        """Train a finalist on by itself, on the pixels that it is judged on.

        A teacher looks at the same images, which then are as large as it may need.
        """
        recipe = self.config.finetune
        images = self.data.at(network.architecture.resolution)
        seen = images if recipe.teacher is None else self.data
        self.train_network(network, recipe, folder, progress, seen)

    def exported(self, network: Backbone, chosen: Chosen, table: LatencyTable) -> Chosen:
        """The chosen network in every format; it is an error where one does not reproduce it."""
        latency = latency_text(chosen.predicted, chosen.measured, table)
        accuracy = f"{chosen.test_accuracy:.2%}"
        if chosen.test_accuracy_before is not None:
            accuracy += f" (before fine-tuning {chosen.test_accuracy_before:.2%})"
        figures = {"test accuracy": accuracy, **card_figures(chosen.predicted, latency)}
        folder = self.path / EXPORT / chosen.digest
        with self.phase("exporting"):
            exports = export_trained(network, folder, figures, self.data, self.config)
        return replace(chosen, exports=tuple(exports))
