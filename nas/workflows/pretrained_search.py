"""Phases of a search that starts from a trained network, its parent.

parent adapted ──► alternatives: cut, folded, distilled ──► quality table
                                                                 │
   finalists trained with the parent ◄── judged ◄── proven front ┘
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from nas.cli.console import Console
from nas.config import TrainedConfig
from nas.workflows.adapting import LOADING, adapted, begin, gentle
from nas.workflows.finishing import qualities
from nas.workflows.inherited import (
    BANK,
    JOINT,
    PARENT,
    REFINED,
    START,
    TABLE,
    architecture_of,
    bank_identity,
    check_parent,
    copied,
    fitting_images,
    read_parent,
    refine,
)
from nas.workflows.inherited_report import with_parent
from nas.workflows.reporting import Findings, assemble
from nas.workflows.trained_search import Plan, TrainedSearch
from nas.workflows.with_images import shown
from predictors.measuring.quality import measure_quality
from predictors.tables.additive import AdditiveTable
from predictors.tables.quality import QualityTable
from results.journal import Evaluation
from results.report.data import Chosen, ReportData
from results.store import RunDirectory
from search.candidates import candidates
from search.evaluator import SupernetEvaluator
from search.exact.front import sweep
from search.problem import Problem
from search_space import Architecture
from search_space.errors import RunError
from search_space.metrics import ACCURACY, LATENCY, format_metric
from search_space.precision import point_of
from supernet import Backbone, build
from supernet.cluster.connection import prepare
from supernet.data.evaluation_batches import EvalBatches, eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.guidance import finetune_guided
from supernet.inherit.importance import CRITERIA
from supernet.inherit.joint_training import train_jointly
from supernet.inherit.local_distillation import (
    Distillation,
    Teaching,
    distil_alternatives,
    teach_here,
)
from supernet.inherit.parents import find_parent
from supernet.inherit.quantised import quantise_alternatives
from supernet.inherit.stored_bank import load_entries, save_entries
from supernet.network.norms import has_batch_norms
from supernet.training.loop import ProgressCallback
from supernet.training.recalibration import calibration_batches, range_images

DISTILLING = "distilling"  # folder of alternatives while others are still trained
_POINTS = 40  # of the front that the table promises, at most
_FIRST_SHARE = 0.5  # of the evaluations: networks that the table alone chooses


class PretrainedSearch(TrainedSearch):
    """A search around a trained network, whose knowledge the found ones begin with."""

    def __init__(self, config: TrainedConfig, directory: RunDirectory, console: Console) -> None:
        super().__init__(config, directory, console)
        assert config.parent is not None
        self.parent = find_parent(config.parent, config.parent_weights)
        self.parent_name = f"parent {Path(self.parent.name).name}"
        self.architecture = architecture_of(self.parent, self.space, config.parent)
        point = point_of(self.architecture, self.space)
        assert point is not None
        self.point = point  # of the space, in whose precisions the parent is the first answer
        _ = CRITERIA[config.inherit.importance]  # an unknown name is an error before a training

    def all_phases(self) -> ReportData:
        if self.config.inherit.run is None:
            self._check_weights()
        plan = self.planned()
        network = self.network
        bank = WeightBank(self.space, network).eval()
        first = self.first_answer(bank, plan.problem)
        self.console.say(
            f"  the parent: validation accuracy {first.metrics[ACCURACY]:.1%} at "
            f"{format_metric(LATENCY, first.metrics[LATENCY])}"
        )
        genes = self.space.encode([self.point])
        if plan.problem.cheap_violation(genes)[0] == 0 and not self.config.inherit.beyond:
            self.note(
                f"The parent meets the limits as it is, at "
                f"{format_metric(LATENCY, first.metrics[LATENCY])}, so it is the answer; --beyond "
                "searches for networks that are faster still."
            )
            return self._of_parent(network, first, plan)
        self.fill(bank)
        table = self.quality_table(bank)
        found = self.promising(table, plan.problem)
        prior = {self.quality.metric: table.compile(self.space).predict}
        sampler = self.sampler(plan.problem, prior)
        return self.concluded(replace(plan, sampler=sampler, first=(*plan.first, *found)), bank)

    # The parent -------------------------------------------------------------------------------

    def _check_weights(self) -> None:
        """Refuses weights that are none of the parent's, or not those that the run began with."""
        found, known = self.parent.fingerprint(), self.directory.manifest.get("parent")
        if found is not None and known not in (None, found):
            raise RunError(
                f"the weights of {self.parent.name} changed since this run began (fingerprint "
                f"{known} -> {found}). Restore them, or start a new run with another --name."
            )
        if not (self.path / PARENT / START).exists():
            _ = self.published
        if known is None:
            self.directory.update_manifest(parent=found)

    @cached_property
    def network(self) -> Backbone:
        """The parent with a classifier of the images' classes, trained on them."""
        if self.config.inherit.run is not None:
            network = build(self.architecture, self.num_classes)
            self._take_over(Path(self.config.inherit.run))
            read_parent(self.path, network, self.data)
            return network.to(self.compute).eval()
        begin(self, PARENT, self.architecture, lambda: self.published)
        return adapted(self, PARENT, self.architecture)

    def _take_over(self, run: Path) -> None:
        """Copies what another run knows of the parent, so that this one needs it no more.

        The parent comes last, each at one stroke: once it is there, all of it is this run's own.
        """
        if not (self.path / PARENT).exists():
            check_parent(run)
            for name in (BANK, REFINED, JOINT, TABLE, PARENT):
                copied(run / name, self.path / name)
        self.notes.append(f"Parent, alternatives and their quality were taken from {run}.")

    @cached_property
    def published(self) -> Backbone:
        """The parent as it was published."""
        with self.phase(LOADING):
            return self.parent.load()

    def first_answer(self, bank: WeightBank, problem: Problem) -> Evaluation:
        """The parent as an evaluated network: what everything else is compared with."""
        evaluator = SupernetEvaluator(
            bank, [eval_batches(self.data.validation, folder=self.path)], **self._judging()
        )
        cheap = problem.cheap_metrics(self.space.encode([self.point]))
        metrics = {key: float(values[0]) for key, values in cheap.items()}
        return Evaluation.of(self.point, metrics | evaluator(self.point))

    def _of_parent(self, network: Backbone, first: Evaluation, plan: Plan) -> ReportData:
        """The report of a run that ends with its parent."""
        front = {first.digest: first}
        measured = self.measured([first], [], plan.table)
        network = self.quantised(network, self.point, PARENT, self.config.adapt)
        quality = qualities(network, self.data, self.config.adapt.amp)
        known = measured.get(first.digest)
        chosen = Chosen(
            digest=first.digest,
            architecture=first.architecture,
            predicted=first.metrics,
            measured={} if known is None else known.metrics,
            test_accuracy=quality["test"].accuracy,
            quality={split: value.to_dict() for split, value in quality.items()},
            class_names=self.data.class_names,
            reason="the parent meets the limits as it is",
        )
        chosen = self.exported(network, chosen, plan.table)
        named = {self.parent_name: first}
        findings = Findings((first,), front, named, measured, chosen, tuple(self.notes))
        return self.finish(self.reported(assemble(self, plan.table, findings)))

    # Weights and table ------------------------------------------------------------------------

    def fill(self, bank: WeightBank) -> None:
        """Gives all alternatives weights; those that are stored are read."""
        inherit, config = self.config.inherit, self.config
        identity = bank_identity(bank, config, self.data)
        load_entries(self.path / BANK, bank, bank.missing(), identity=identity)
        if bank.missing():
            with self.phase("cutting blocks of the parent") as progress:
                made = cut_alternatives(
                    bank,
                    fitting_images(config, self.data),
                    importance=inherit.importance,
                    seed=config.seed,
                    progress=lambda done, total: progress(done, total, f"{done} of {total}"),
                )
                save_entries(self.path / BANK, bank, made, identity=identity)
        if bank.missing():
            with self.phase("teaching other blocks what the parent's do") as progress:
                made = distil_alternatives(
                    bank,
                    fitting_images(config, self.data),
                    settings=Distillation(steps=inherit.distil_steps, seed=config.seed),
                    folder=self.path / DISTILLING,
                    data=self.data.fingerprint,
                    progress=shown(progress),
                    teaching=self._teaching(),
                )
                save_entries(self.path / BANK, bank, made, identity=identity)
        if inherit.refine_steps:
            with self.phase("refining what was cut") as progress:
                refine(bank, config, self.data, self.path, shown(progress), self._teaching())
        self.console.say(f"  {len(bank.entries)} modules around the parent have weights")
        if inherit.joint_epochs:
            self._train_jointly(bank)
        if bank.quantised:
            with self.phase("finding ranges of what computes in int8") as progress:
                quantise_alternatives(
                    bank,
                    [images for images, _ in range_images(self.data, config.seed)],
                    progress=lambda done, total: progress(done, total, f"{done} of {total} places"),
                )

    def _teaching(self) -> Teaching:
        """Where alternatives learn from the parent: here, or on workers, place by place."""
        config = self.config
        if config.workers == 1:
            return teach_here
        prepare(config.address)  # Ray is imported with the next
        from supernet.cluster.distillation import TeachingOnRay

        return TeachingOnRay(config.workers, config.address, config.gpus_per_worker)

    def _train_jointly(self, bank: WeightBank) -> None:
        """All alternatives together, each step some networks, at a tenth of the parent's rate."""
        recipe = replace(
            gentle(self.config.adapt, self.data),
            epochs=self.config.inherit.joint_epochs,
            lr=self.config.adapt.lr / 10,
            strategy="sandwich",
            layer_decay=1.0,
            patience=0,
        )
        with self.phase("training the alternatives together") as progress:
            train_jointly(
                bank,
                self.data,
                recipe,
                self.path / JOINT,
                progress=shown(progress),
                device=self.compute,
                workers=self.config.loader_workers,
            )
        bank.eval()

    def quality_table(self, bank: WeightBank) -> QualityTable:
        """What the parent loses by each alternative, measured on images that trained nothing."""
        count, config = self.config.inherit.table_images, self.config
        calibrates = has_batch_norms(bank)

        def judged(side: int) -> EvalBatches:
            return eval_batches(self.data.at(side).validation, limit=count)

        def calibration(side: int) -> EvalBatches:
            return calibration_batches(self.data.at(side), config.inherit.images, config.seed)

        with self.phase("measuring what each alternative loses") as progress:
            return measure_quality(
                bank,
                judged,
                calibration if calibrates else None,
                file=self.path / TABLE,
                device=self.compute,
                progress=lambda done, total: progress(done, total, f"{done} of {total} places"),
            )

    def promising(self, quality: QualityTable, problem: Problem) -> list[Architecture]:
        """What to judge first: the proven front within the limits, and what may be as good."""
        cost = problem.tables[self.config.minimised()[0]]
        assert isinstance(cost, AdditiveTable)
        tables = {n: t for n, t in problem.tables.items() if isinstance(t, AdditiveTable)}
        count = max(2, int(_FIRST_SHARE * self.config.search.evaluations))
        with self.phase("the front that the table promises") as progress:
            front = sweep(
                self.space,
                quality.compile(self.space),
                cost,
                problem.constraints,
                tables,
                maximise=(False, False),
                points=_POINTS,
                progress=lambda n, share: progress(int(100 * share), 100, f"{n} points"),
            )
        self.console.say(
            f"  {len(front)} points in {front.seconds:.1f} s, each proven; the best within the "
            f"limits is predicted to have a loss of {front.quality.min():.3f}"
        )
        rng = np.random.default_rng(self.config.seed)
        highest = float(front.cost.max())
        return self.space.decode(candidates(front.genes, quality, cost, highest, count, rng))

    # Judgement --------------------------------------------------------------------------------

    def designs(self) -> dict[str, Architecture]:
        return {self.parent_name: self.point, "smallest around it": self.space.smallest}

    def train_finalist(self, network: Backbone, folder: str, progress: ProgressCallback) -> None:
        finetune_guided(
            network,
            self.network,
            self.data,
            gentle(self.config.finetune, self.data),
            self.path / folder,
            progress=progress,
            device=self.compute,
            workers=self.config.loader_workers,
        )

    def reported(self, data: ReportData) -> ReportData:
        return with_parent(self, data)
