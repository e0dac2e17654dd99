"""The phases of a search with images, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nas.config import RunConfig
from nas.console import Console
from nas.finishing import best_finetuned, export_chosen, judged
from nas.measuring import Measured
from nas.reporting import Findings, assemble, curves
from nas.run import Run
from predictors.latency.table import LatencyTable
from results.journal import Evaluation
from results.report_data import Chosen, ReportData
from results.store import EXPORT, SNAPSHOT, SUPERNET, RunDirectory
from search import InProcessExecutor, Objective, Problem, search
from search.evaluator import SupernetEvaluator
from search.loop import Progress
from search.samplers import NSGA2
from search_space import known, known_names
from search_space.errors import RunError
from supernet import Backbone, Supernet
from supernet.checkpoints import load_latest
from supernet.data import ImageData, eval_batches, open_data
from supernet.training import train_supernet

FINETUNE = "finetune"
CHECKPOINTS = "checkpoints"


class TrainedSearch(Run):
    """A search with images: a supernet is trained, and networks are judged with its weights."""

    evaluated = ("accuracy", "loss")

    def __init__(self, config: RunConfig, directory: RunDirectory, console: Console) -> None:
        super().__init__(config, directory, console)
        # what tells networks apart with inherited weights
        self.quality = Objective("loss", "minimize")
        if config.search.objective == "accuracy":
            self.quality = Objective("accuracy", "maximize")

    @property
    def num_classes(self) -> int:
        return self.data.num_classes

    def all_phases(self) -> ReportData:
        if (done := self.complete()) is not None:
            return done
        _ = self.target, self.others  # one that is not there is an error before images are read
        self.open_data(self.space.resolutions[-1])
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
            self.num_classes,
            self.limits,
            Findings(self.evaluations, found, baselines, measured, chosen, tuple(self.notes)),
        )
        return self.finish(data)

    def training_only(self) -> ReportData:
        self.open_data(self.space.resolutions[-1])
        self.trained_supernet()
        self.directory.update_manifest(status="trained")
        return ReportData(run=self.path.name, status="trained", training=curves(self.path))

    def open_data(self, resolution: int) -> None:
        """Images for networks of up to ``resolution``; a continued run must find the same."""
        config = self.config
        assert config.data is not None
        with self.phase("opening images"):
            self.data: ImageData = open_data(
                config.data,
                resolution,
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

    def trained_supernet(self) -> Supernet:
        torch.manual_seed(self.config.seed)
        supernet = Supernet(self.space, self.data.num_classes).to(self.compute)
        if self.config.supernet is not None:
            self._load_supernet(supernet, Path(self.config.supernet))
            return supernet.eval()
        with self.phase("training the supernet") as progress:
            train_supernet(
                supernet,
                self.data,
                self.config.train,
                self.path / SUPERNET,
                progress=lambda done, total, info: progress(done, total, training_text(info)),
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
        with self.phase("searching") as progress:

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

    def finetuned(
        self, supernet: Supernet, finalists: Sequence[Evaluation], measured: Mapping[str, Measured]
    ) -> tuple[Backbone, Chosen]:
        """The chosen network, trained on, with its test accuracy before and after."""
        with self.phase("fine-tuning the finalists") as progress:
            network, evaluation = best_finetuned(
                supernet,
                finalists,
                self.data,
                self.config,
                self.path / FINETUNE,
                self.compute,
                lambda done, total, info: progress(done, total, training_text(info)),
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
        with self.phase("exporting"):
            return export_chosen(network, chosen, folder, self.data, self.config, table)


def training_text(info: Mapping[str, Any]) -> str:
    parts = [f"epoch {info['epoch']}"] if "epoch" in info else []
    parts += [f"{key} {value:.3f}" for key, value in info.items() if key.startswith("loss")][:1]
    return ", ".join(parts)


def _percent(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}"
