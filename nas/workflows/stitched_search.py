"""Phases of a search of the routes through several trained networks of one family.

parents adapted ──► stitches fitted (and trained) ──► routes within the limits judged ──► trained

There are some dozens to some hundreds of routes, so there is no sampler: all are measured, and
those within the limits are judged, or as many as ``--evaluations`` allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from nas.cli.console import Console
from nas.config import TrainedConfig
from nas.workflows.adapting import LOADING, adapted, begin, gentle
from nas.workflows.inherited import JOINT, PARENT, check_parent, copied
from nas.workflows.network_latencies import AT_ONCE, network_latencies
from nas.workflows.reporting import Findings, report_of
from nas.workflows.stitched_parents import (
    STITCHES,
    folder_of,
    parents_of,
    route_words,
    stitched_net,
)
from nas.workflows.stitched_report import with_parents
from nas.workflows.trained_search import TrainedSearch
from nas.workflows.with_images import shown
from predictors.counts import count_architecture
from predictors.devices import Target
from predictors.tables.latency_table import LatencyTable
from results.journal import Evaluation
from results.pareto import non_dominated
from results.report.data import ReportData
from results.store import SNAPSHOT, RunDirectory
from search import Constraint
from search.evaluator import SupernetEvaluator
from search_space import Architecture
from search_space.boundary import read_model
from search_space.errors import InfeasibleError, RunError, UsageError
from search_space.metrics import (
    ACCURACY,
    ACTIVATIONS,
    LATENCY,
    MACS,
    PARAMS,
    format_metric,
    metric_named,
)
from search_space.stitched import routes_of
from supernet import Backbone
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.guidance import finetune_guided
from supernet.inherit.stitching.network import StitchedNet
from supernet.inherit.stitching.training import train_stitched
from supernet.network.tensor_files import read_tensors, write_tensors
from supernet.training.loop import ProgressCallback
from supernet.training.recalibration import calibration_batches

LATENCIES, STITCHING, JOINING, JUDGING = (
    "latencies of the routes",
    "fitting stitches",
    "training the routes together",
    "judging routes",
)
ROUTES = "routes"  # files of their latencies
_COUNTS = (PARAMS, MACS, ACTIVATIONS)


class StitchedSearch(TrainedSearch):
    """A search of the routes through several trained networks, each a network of its own."""

    def __init__(self, config: TrainedConfig, directory: RunDirectory, console: Console) -> None:
        super().__init__(config, directory, console)
        self.parents = parents_of(config)
        self.names = [Path(parent.name).name for parent in self.parents]
        self.routes = routes_of([parent.architecture for parent in self.parents])

    def all_phases(self) -> ReportData:
        _ = self.target, self.others  # one that is not there is an error before images are read
        self._check_metrics()
        self.open_data(self.space.resolutions[-1])
        self.check_trainings()
        costs = self.route_costs()
        within = self.within(costs)
        net = self.stitched()
        evaluator = SupernetEvaluator(
            net, [eval_batches(self.data.validation, folder=self.path)], **self._judging()
        )
        self.evaluations = self.judged(evaluator, within, costs)
        front = self.front(self.evaluations)
        baselines = self.judged_parents(evaluator, costs)
        measured = {}
        if self.target.at_hand:
            networks = {e.digest: e for e in (*front.values(), *baselines.values())}
            measured = self._measured(
                {d: Architecture.from_dict(e.architecture) for d, e in networks.items()}
            )
        network, chosen = self.finetuned(net, self.finalists(front, measured), measured)
        table = self._table_of(self.target)
        chosen = self.exported(network, chosen, table)
        route = self.routes[network.architecture]
        self.note(f"The chosen network is {route_words(route, self.names)}.")
        findings = Findings(self.evaluations, front, baselines, measured, chosen, tuple(self.notes))
        words = f"{len(self.routes)} routes through {', '.join(self.names)}"
        return self.finish(with_parents(self, report_of(self, findings, table.conditions, words)))

    # Costs ------------------------------------------------------------------------------------

    def route_costs(self) -> dict[Architecture, dict[str, float]]:
        """Cheap metrics of all routes; those without a latency are left out.

        Raises:
            RunError: No route has a latency on the device.
        """
        targets = {LATENCY: self.target, **self.others}
        latencies = {metric: self._latencies(target) for metric, target in targets.items()}
        result = {}
        for architecture in self.routes:
            times = {metric: known[architecture.digest] for metric, known in latencies.items()}
            counts = count_architecture(architecture, self.num_classes)
            if not any(value is None for value in times.values()):
                found = {metric: value for metric, value in times.items() if value is not None}
                result[architecture] = found | {name: float(counts[name]) for name in _COUNTS}
        if not result:
            raise RunError(
                f"the table of {' or '.join(t.name for t in targets.values())} lacks parts of all "
                f"{len(self.routes)} routes; measure them there, or take a device that is at hand "
                "or estimated."
            )
        return result

    def _latencies(self, target: Target) -> dict[str, float | None]:
        """Of all routes by digest, a few at a time; what is known is kept."""
        file = self.path / f"{ROUTES}-{target.name}.json"
        known: dict[str, float | None] = {}
        if file.exists():
            known = read_model(file, dict[str, float | None], fix="Delete it and continue the run.")
        missing = [each for each in self.routes if each.digest not in known]
        if not missing:
            return known
        with self.phase(LATENCIES) as progress:
            for first in range(0, len(missing), AT_ONCE):
                some = missing[first : first + AT_ONCE]
                found = network_latencies(some, target, self.num_classes, seed=self.config.seed)
                known |= {each.digest: ms for each, ms in zip(some, found, strict=True)}
                self.directory.write_json(file.name, known)
                progress(first + len(some), len(missing), "networks")
        return known

    def within(self, costs: Mapping[Architecture, Mapping[str, float]]) -> list[Architecture]:
        """Routes within all limits, the fastest first.

        Raises:
            InfeasibleError: There are none; names the closest.
        """
        limits = self.constraints()
        excess = {
            architecture: sum(
                float(limit.violation(np.array([known[limit.metric]]))[0]) for limit in limits
            )
            for architecture, known in costs.items()
        }
        found = [architecture for architecture, value in excess.items() if value == 0]
        self.console.say(
            f"  {len(found)} of {len(self.routes)} routes through {', '.join(self.names)} are "
            "within the limits"
        )
        if found:
            return sorted(found, key=lambda architecture: costs[architecture][LATENCY])
        closest = min(excess, key=lambda architecture: excess[architecture])
        reached = ", ".join(
            f"{limit.metric} {format_metric(limit.metric, costs[closest][limit.metric])}"
            for limit in limits
        )
        raise InfeasibleError(
            f"no route through {', '.join(self.names)} meets {' and '.join(map(str, limits))}; the "
            f"closest, {route_words(self.routes[closest], self.names)}, has {reached}. Raise the "
            "limits, give a smaller network among --from, or search around one alone."
        )

    def _check_metrics(self) -> None:
        """Refuses limits of what routes have no figure of."""
        asked = [*self.limits, *self.config.lower_limits(), *self.config.minimised()]
        for metric in dict.fromkeys(asked):
            if metric not in (LATENCY, *self.others, *_COUNTS):
                raise UsageError(
                    f"{metric_named(metric).option or metric} is not known of stitched networks; "
                    "limit and minimise latency, params, macs or activations."
                )

    def constraints(self) -> list[Constraint]:
        """The limits as the search keeps them."""
        upper, lower = self.limits, self.config.lower_limits()
        timed = {LATENCY: self.target, **self.others}
        limits = [
            Constraint(metric, maximum=upper.get(metric), minimum=lower.get(metric))
            for metric in dict.fromkeys([*upper, *lower])
        ]
        return [
            self._with_margin(limit, self._table_of(timed[limit.metric]))
            if limit.metric in timed
            else limit
            for limit in limits
        ]

    def _table_of(self, target: Target) -> LatencyTable:
        """Where latencies come from; an empty table where they are measured."""
        if target.at_hand:
            return LatencyTable(target.conditions, {}, {})
        return self.latency_table(target)

    # Weights ----------------------------------------------------------------------------------

    @cached_property
    def networks(self) -> list[Backbone]:
        """The parents, trained on the images."""
        self._check_weights()
        for number, parent in enumerate(self.parents):
            self._begin(number, parent.architecture)
        result = []
        for number, parent in enumerate(self.parents):
            self.console.say(f"  {self.names[number]}")
            result.append(adapted(self, folder_of(number), parent.architecture))
        return result

    def _check_weights(self) -> None:
        """Refuses weights that are not those that the run began with."""
        known = self.directory.manifest.get("parents", [None] * len(self.parents))
        found = [parent.fingerprint() for parent in self.parents]
        for name, before, now in zip(self.names, known, found, strict=True):
            if now is not None and before not in (None, now):
                raise RunError(
                    f"the weights of {name} changed since this run began (fingerprint {before} -> "
                    f"{now}). Restore them, or start a new run with another --name."
                )
        if not (self.path / PARENT).exists():
            self.directory.update_manifest(parents=found)

    def _begin(self, number: int, architecture: Architecture) -> None:
        def load() -> Backbone:
            with self.phase(LOADING):
                return self.parents[number].load(
                    "where there is no network, give a file of the weights of each network of "
                    f"--from, as in --from {','.join(self.names)} --from-weights "
                    f"{','.join('FILE' for _ in self.names)}."
                )

        begin(self, folder_of(number), architecture, load)

    def stitched(self) -> StitchedNet:
        """All routes with weights: stitches fitted, then trained together where that is asked."""
        if self.config.inherit.run is not None:
            self._take_over(Path(self.config.inherit.run))
        net = stitched_net(self.networks).to(self.compute)
        file = self.path / STITCHES
        if not file.exists():
            with self.phase(STITCHING):
                count = self.config.inherit.images
                net.fit(calibration_batches(self.data, count, self.config.seed))
                write_tensors(file, net.layers.state_dict())
        net.layers.load_state_dict(read_tensors(file))
        if self.config.inherit.joint_epochs:
            self._train_jointly(net)
        return net.eval()

    def _take_over(self, run: Path) -> None:
        """Copies what another run knows of the parents and the stitches between them."""
        if not (self.path / PARENT).exists():
            for number in range(len(self.parents)):
                check_parent(run, folder_of(number))
            for name in (STITCHES, JOINT, PARENT):  # the parents last: then all is this run's own
                copied(run / name, self.path / name)
        self.notes.append(f"Parents and stitches were taken from {run}.")

    def _train_jointly(self, net: StitchedNet) -> None:
        """All routes together, at a tenth of the parents' rate, costs drawn alike."""
        recipe = replace(
            gentle(self.config.adapt, self.data),
            epochs=self.config.inherit.joint_epochs,
            lr=self.config.adapt.lr / 10,
            layer_decay=1.0,
            patience=0,
        )
        costs = [count_architecture(a, self.num_classes)[MACS] for a in net.architectures]
        with self.phase(JOINING) as progress:
            train_stitched(
                net,
                self.data,
                recipe,
                self.path / JOINT,
                costs=costs,
                progress=shown(progress),
                device=self.compute,
                workers=self.config.loader_workers,
            )

    def train_finalist(self, network: Backbone, folder: str, progress: ProgressCallback) -> None:
        finetune_guided(
            network,
            self.networks[-1],
            self.data,
            gentle(self.config.finetune, self.data),
            self.path / folder,
            progress=progress,
            device=self.compute,
            workers=self.config.loader_workers,
        )

    # Judgement --------------------------------------------------------------------------------

    def judged(
        self,
        evaluator: SupernetEvaluator,
        within: Sequence[Architecture],
        costs: Mapping[Architecture, Mapping[str, float]],
    ) -> tuple[Evaluation, ...]:
        """Routes as they are judged on validation images, evenly over their latencies."""
        count = min(len(within), self.config.search.evaluations)
        some = [within[i] for i in np.linspace(len(within) - 1, 0, count).round().astype(int)]
        journal = self.directory.journal()
        for warning in journal.warnings:
            self.console.warn(warning)
        result = []
        with self.phase(JUDGING) as progress:
            for number, architecture in enumerate(some):
                known = journal.get(architecture.digest)
                if known is None:
                    metrics = {**costs[architecture], **evaluator(architecture)}
                    known = Evaluation.of(architecture, metrics, number)
                    journal.append(known)
                result.append(known)
                best = max(each.metrics[ACCURACY] for each in result)
                progress(number + 1, count, f"best {best:.1%}")
        journal.snapshot(self.path / SNAPSHOT)
        journal.close()
        self.console.say(f"  {count} of {len(within)} routes within the limits were judged")
        return tuple(result)

    def front(self, evaluations: Sequence[Evaluation]) -> dict[str, Evaluation]:
        """Those that no other dominates, by digest, the fastest first."""
        metric, sign = self.quality.metric, self.quality.sign
        minimised = self.config.minimised()
        points = [
            (sign * e.metrics[metric], *(e.metrics[m] for m in minimised)) for e in evaluations
        ]
        best = [evaluations[i] for i in np.flatnonzero(non_dominated(points)).tolist()]
        best.sort(key=lambda e: e.metrics[LATENCY])
        return {e.digest: e for e in best}

    def judged_parents(
        self, evaluator: SupernetEvaluator, costs: Mapping[Architecture, Mapping[str, float]]
    ) -> dict[str, Evaluation]:
        """The parents under the same rules, whether or not they are within the limits."""
        result = {}
        for name, parent in zip(self.names, self.parents, strict=True):
            architecture = parent.architecture
            if architecture in costs:
                metrics = {**costs[architecture], **evaluator(architecture)}
                result[f"parent {name}"] = Evaluation.of(architecture, metrics)
        return result
