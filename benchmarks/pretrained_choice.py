"""What ``pretrained.py`` makes of the adapted parent: alternatives, tables, chosen networks."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pretrained_setup as setup
from pretrained_pruned import latencies, macs, pruned, snapshots
from pretrained_training import Chosen, store
from scipy.stats import kendalltau
from torch import Tensor, nn

from predictors.measuring.bench import Limits
from predictors.measuring.profile import profile
from predictors.measuring.quality import measure_quality
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import AdditiveTable
from predictors.tables.conditions import Conditions
from search.exact.front import Front, sweep
from search_space import Architecture
from supernet import Backbone, build
from supernet.data.evaluation_batches import EvalBatches, eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.stored_bank import load_entries, parent_identity, save_entries
from supernet.training.evaluation import evaluate
from supernet.training.recalibration import calibration_batches, extract, recalibrate

POINTS = 40  # of the front, at evenly spaced latencies
TRIED = 4  # members of the front that are measured for a budget


@dataclass(frozen=True)
class Around:
    """A parent and what is known of the networks around it; made when it is first asked for."""

    options: Namespace
    seed: int

    @cached_property
    def parent(self) -> Backbone:
        return setup.adapted(self.options, self.seed)

    @cached_property
    def conditions(self) -> Conditions:
        return local_conditions(threads=1, runtime="onnxruntime")

    @cached_property
    def rows(self) -> setup.Rows:
        return setup.Rows(self.options.out / f"table-{self.seed}.json")

    @cached_property
    def fitting(self) -> EvalBatches:
        return self.calibration(self.options.side)

    def calibration(self, side: int) -> EvalBatches:
        data = setup.data_of(self.options, self.seed).at(side)
        return calibration_batches(data, self.options.fitted, self.seed)

    def held_out(self, side: int) -> EvalBatches:
        data = setup.data_of(self.options, self.seed).at(side)
        return eval_batches(data.validation, limit=self.options.table_images)

    @cached_property
    def bank(self) -> WeightBank:
        """All alternatives, cut and folded."""
        bank = WeightBank(setup.space_of(self.options), self.parent).eval()
        identity = {"parent": parent_identity(bank), "images": self.options.fitted}
        folder = self.options.out / f"alternatives-{self.seed}"
        load_entries(folder, bank, bank.missing(), identity=identity)

        def cut() -> dict[str, Any]:
            begin = time.perf_counter()
            made = cut_alternatives(bank, self.fitting, seed=self.seed)
            seconds = round(time.perf_counter() - begin, 1)
            save_entries(folder, bank, made, identity=identity)
            return {"alternatives": len(made), "seconds": seconds}

        self.rows.once("cutting", cut)
        assert not bank.missing()
        return bank

    @cached_property
    def latency(self) -> AdditiveTable:
        space, folder = setup.space_of(self.options), self.options.out / "latencies"
        begin = time.perf_counter()
        limits = Limits(min_seconds=self.options.table_seconds)
        table = profile(space, setup.CLASSES, self.conditions, folder, limits=limits)
        seconds = round(time.perf_counter() - begin, 1)
        self.rows.once("latency table", lambda: {"entries": len(table.entries), "seconds": seconds})
        return table.compile(space, setup.CLASSES)

    @cached_property
    def quality(self) -> AdditiveTable:
        bank, begin = self.bank, time.perf_counter()
        file = self.options.out / f"quality-{self.seed}.parquet"
        table = measure_quality(
            bank, self.held_out, self.calibration, file=file, device=self.options.device
        )
        seconds = round(time.perf_counter() - begin, 1)
        self.rows.once(
            "quality table",
            lambda: {
                "changes": len(table.changes),
                "parent_loss": round(table.loss, 4),
                "seconds": seconds,
            },
        )
        return table.compile(bank.space)

    def front(self) -> Front:
        """The proven front of predicted loss and latency."""
        quality, latency = self.quality, self.latency
        front = sweep(quality.space, quality, latency, maximise=(False, False), points=POINTS)
        self.rows.once(
            "front", lambda: {"points": len(front), "gap": front.gap, "seconds": front.seconds}
        )
        return front


def table(around: Around) -> None:
    """Does the table's sum order real losses of assembled networks?"""
    around.front()
    space, parent = around.bank.space, around.bank.parent
    rng = np.random.default_rng(around.seed)
    own = space.encode([parent])[0]
    drawn = []
    for row in space.sample(rng, around.options.assembled):
        kept = rng.random(len(row)) < rng.random()  # from like the parent to like none
        drawn.append(np.where(kept, own, row))
    genes = np.stack(drawn)

    def assembled() -> dict[str, Any]:
        losses = []
        for architecture in space.decode(genes):
            side = architecture.resolution
            network = extract(around.bank, architecture, around.calibration(side))
            losses.append(evaluate(network, around.held_out(side)).loss)
        predicted, latency = around.quality.predict(genes), around.latency.predict(genes)
        thirds = np.array_split(np.argsort(latency), 3)
        taus = [float(kendalltau(predicted[t], np.array(losses)[t]).statistic) for t in thirds]
        return {
            "networks": len(losses),
            "kendall": round(float(kendalltau(predicted, losses).statistic), 3),
            "kendall_in_thirds": [round(tau, 3) for tau in taus],
            "predicted": predicted.round(4).tolist(),
            "losses": np.round(losses, 4).tolist(),
            "latency_ms": latency.round(4).tolist(),
        }

    around.rows.once("random networks", assembled)


# Choice -----------------------------------------------------------------------------------------


def choose(around: Around) -> None:
    """Chooses networks for all budgets, measured together, and stores them untrained."""
    options, side, parent = around.options, around.options.side, around.parent
    folder = options.out / "chosen"
    if (folder / f"parent-100-{around.seed}.json").exists():
        return
    candidates: list[tuple[str, float, int, nn.Module]] = []
    front, latency = around.front(), around.latency
    whole_ms = float(latency.predict(latency.space.encode([around.bank.parent]))[0])
    tried: set[str] = set()
    for budget in setup.BUDGETS:
        fitting = np.flatnonzero(front.cost <= 1.03 * budget * whole_ms)[:TRIED]
        for architecture in latency.space.decode(front.genes[fitting]):
            if architecture.digest not in tried:
                tried.add(architecture.digest)
                network = extract(
                    around.bank, architecture, around.calibration(architecture.resolution)
                )
                candidates.append(("ours", budget, architecture.resolution, network))
    for resolution in options.resolutions:
        smaller = build(replace(around.bank.parent, resolution=resolution), setup.CLASSES)
        smaller.load_state_dict(parent.state_dict())
        candidates.append(("resolution", 0.0, resolution, smaller.eval()))
    steps = snapshots(parent, endless(around), options.prune_steps, min(setup.BUDGETS) / 3)
    found = pruned(steps, side, setup.BUDGETS, around.conditions, options.measure_seconds / 2)
    candidates += [("pruned", 0.0, side, network) for network in found.values()]
    networks = [(network, resolution) for _, _, resolution, network in candidates]
    parent_ms, *measured = latencies(
        [(parent, side), *networks], around.conditions, options.measure_seconds
    )
    for budget in (*setup.BUDGETS, 1.0):
        for way in ("ours", "pruned", "resolution", "parent"):
            if (way == "parent") != (budget == 1.0):
                continue
            best = (
                ("parent", 1.0, side, parent, parent_ms)
                if way == "parent"
                else within(way, budget * parent_ms, candidates, measured, budget)
            )
            if best is None:
                print(f"{way} has nothing within {budget:.0%} of the latency", flush=True)
                continue
            _, _, resolution, winner, milliseconds = best
            chosen = Chosen(
                way=way,
                seed=around.seed,
                budget=budget,
                side=resolution,
                macs=macs(winner, resolution),
                parent_macs=macs(parent, side),
                latency_ms=round(milliseconds, 4),
                parent_ms=round(parent_ms, 4),
                guided={"ours": (True,), "parent": (False,)}.get(way, (False, True)),
                architecture=winner.architecture.to_dict()
                if isinstance(winner, Backbone)
                else None,
                recalibrated=way != "parent",
            )
            store(folder, chosen, winner)
            print(chosen.name, f"{milliseconds / parent_ms:.2f} of {parent_ms:.2f} ms", flush=True)


def within(
    way: str,
    limit: float,
    candidates: list[tuple[str, float, int, nn.Module]],
    measured: list[float],
    budget: float,
) -> tuple[str, float, int, nn.Module, float] | None:
    """The first candidate of a way within a limit; of ours those of the budget or smaller ones."""
    for (its, wanted, side, network), milliseconds in zip(candidates, measured, strict=True):
        smaller = 0 < wanted <= budget or wanted == 0
        if its == way and smaller and milliseconds <= limit:
            return its, wanted, side, network, milliseconds
    return None


def endless(around: Around) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from around.fitting


# Phases -----------------------------------------------------------------------------------------


def phases(around: Around, chosen: list[Chosen]) -> None:
    """Validation accuracy of networks before any training, after each phase."""
    bare = WeightBank(around.bank.space, around.parent).eval()
    cut_alternatives(bare, around.fitting, fold=False, seed=around.seed)
    rows = setup.Rows(around.options.out / f"phases-{around.seed}.json")
    own = [c for c in chosen if c.way == "ours" and c.seed == around.seed and c.architecture]
    networks = {
        f"{c.budget:.0%} of the latency": Architecture.from_dict(c.architecture) for c in own
    }
    networks["3/4 of the inner channels"] = narrower(around.bank)
    networks["parent"] = around.bank.parent
    for name, architecture in networks.items():

        def measured(architecture: Architecture = architecture) -> dict[str, Any]:
            figures = {}
            side = architecture.resolution
            for how, bank in (("cut", bare), ("folded", around.bank)):
                network = bank.extract(architecture)
                for suffix in ("", ", recalibrated"):
                    if suffix:
                        recalibrate(network, around.calibration(side))
                    quality = evaluate(network, around.held_out(side))
                    figures[how + suffix] = round(quality.accuracy, 4)
            return figures

        rows.once(name, measured)


def narrower(bank: WeightBank) -> Architecture:
    """The parent with three quarters of the channels inside each block that can be cut."""
    stages = []
    for stage, own in zip(bank.space.stages, bank.parent.stages, strict=True):
        blocks = []
        for choices, block in zip(stage.positions, own.blocks, strict=True):
            same = [
                b for b in choices[:-1] if b.kind == block.kind and kernels(b) == kernels(block)
            ]
            blocks.append(same[-1] if same else block)
        stages.append(replace(own, blocks=tuple(blocks)))
    return replace(bank.parent, stages=tuple(stages))


def kernels(block: Any) -> dict[str, Any]:
    return {key: value for key, value in dict(block.params).items() if "kernel" in key}
