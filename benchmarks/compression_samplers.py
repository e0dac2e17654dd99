"""Ways of compressing a network at equal numbers of evaluations, on made-up losses.

The space is the one around ``tf_efficientnet_lite0``, the cost its real MACs, at most 60 % of the
network's. Each change of one block or of the resolution loses something of its own, more where
more is taken away, and neighbouring changes lose more together than alone; another problem for
each seed. What changes lose alone is a quality table as ``predictors.tables.quality`` measures one.
It is given to those rows that have "table" in their names, beside as many evaluations as the others
have; measuring it takes one evaluation of a changed network for each of its entries.

    python benchmarks/compression_samplers.py

Reported: share of the best known hypervolume of accuracy and MACs after so many evaluations, the
mean of seeds and the worst. Two minutes of a core.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau
from search_quality import Task, curve

from predictors.counts import counts
from predictors.tables.additive import AdditiveTable
from results.pareto import hypervolume
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search.exact.front import sweep
from search.samplers import Sampler, make_sampler
from search_space import Block, Genes, SearchSpace, known
from search_space.around import around

Values = npt.NDArray[np.float64]
PARENT, SHARE = "tf_efficientnet_lite0", 0.6
BUDGETS = (50, 100, 200)
BATCH = 12
ENTANGLED = 1.0
SAMPLERS = ("random", "nsga2", "surrogate", "slimming", "reinforce")
PROGRAMME, SLIMMING = "programme, table", "slimming, table"
RESULTS = Path(__file__).parent / "results" / "compression_samplers.json"


@dataclass(frozen=True, eq=False)
class Losses:
    """What networks lose, in nats: of each choice alone, and of pairs of neighbours.

    Args:
        alone: shape (genes, choices).
        pairs: what two neighbouring changes lose beside, relative to the root of their product;
            shape (genes - 1,).
    """

    space: SearchSpace
    alone: Values
    pairs: Values

    @classmethod
    def of(cls, space: SearchSpace, seed: int) -> Losses:
        rng = np.random.default_rng([seed, 80])
        alone = np.zeros((space.num_genes, int(space.cardinalities.max())))
        sides = np.array(space.resolutions) / space.resolutions[-1]
        alone[0, : len(sides)] = 0.5 * (1 / sides - 1) * rng.uniform(0.5, 1.5)
        for i, stage in enumerate(space.stages):
            start = space.block_columns(i).start
            for j, choices in enumerate(stage.positions):
                worth = 0.15 * rng.lognormal(sigma=0.8)
                for c, block in enumerate(choices):
                    noise = rng.lognormal(sigma=0.3)
                    alone[start + j, c] = worth * taken(block, choices[-1]) ** 1.5 * noise
        return cls(space, alone, ENTANGLED * rng.exponential(size=space.num_genes - 1))

    def of_changes(self, genes: Genes) -> Values:
        """Shape (n, genes) to (n, genes)."""
        return self.alone[np.arange(genes.shape[1]), genes]

    def __call__(self, genes: Genes) -> Values:
        """Accuracy, shape (n, genes) to (n,)."""
        lost = self.of_changes(genes)
        together = np.sqrt(lost[:, 1:] * lost[:, :-1]) @ self.pairs
        return 0.75 * np.exp(-lost.sum(axis=1) - together)

    def table(self) -> AdditiveTable:
        """What is lost if changes add up."""
        space, sides = self.space, len(self.space.resolutions)
        blocks, transitions = [], []
        for i, stage in enumerate(space.stages):
            most = max(map(len, stage.positions))
            of_stage = self.alone[space.block_columns(i), None, :most].copy()
            transitions.append(of_stage[:1, :, : len(stage.positions[0])].copy())
            of_stage[0] = 0.0
            blocks.append(np.repeat(of_stage[None], sides, axis=0))
        entries = tuple(np.repeat(entry[None], sides, axis=0) for entry in transitions)
        stem = self.alone[0, :sides, None]
        return AdditiveTable(space, stem, tuple(blocks), entries, np.zeros((sides, 1)))


def taken(block: Block, own: Block) -> float:
    """The part of a block that a variant of it lacks: of its width, and a little of its kernel."""
    if block.skipped:
        return 1.0
    mine, whole = block.traits, own.traits
    width = float(mine.get("expansion", 1)) / float(whole.get("expansion", 1))
    return 0.85 * (1 - width) + 0.1 * (1 - float(mine["kernel"]) / float(whole["kernel"]))


def problem_of(space: SearchSpace) -> Problem:
    macs = counts(space, 1000)["macs"]
    whole = float(macs.predict(space.encode([space.largest]))[0])
    return Problem(
        space,
        (Objective("accuracy", "maximize"), Objective("macs", "minimize")),
        (Constraint("macs", maximum=SHARE * whole),),
        {"macs": macs},
    )


@dataclass(frozen=True)
class Case:
    """A problem of one seed, and the networks that each way visits."""

    problem: Problem
    losses: Losses
    seed: int

    @cached_property
    def task(self) -> Task:
        front = scored_front(
            self.problem, self.losses, "accuracy", seed=0, population=600, generations=150
        )
        best = hypervolume(front.objectives, self.problem.reference.tolist())
        return Task(self.problem, self.losses, best)

    def shares(self, name: str) -> list[float]:
        """Shares of the best known hypervolume after each of ``BUDGETS``."""
        if name == PROGRAMME:
            points = self.programme()
            # the sweep goes along the costs: a smaller front is every so manieth of its points
            fewer = [points[:: -(-len(points) // budget)] for budget in BUDGETS]
            return [curve(self.task, some, len(some))[-1] for some in fewer]
        by_count = curve(self.task, self.search(name), BUDGETS[-1])
        return [by_count[budget - 1] for budget in BUDGETS]

    def programme(self) -> Values:
        """Objectives of the front of the table and the cost, found without any evaluation."""
        macs = self.problem.tables["macs"]
        assert isinstance(macs, AdditiveTable)
        front = sweep(
            self.problem.space,
            self.losses.table(),
            macs,
            self.problem.constraints,
            {"macs": macs},
            maximise=(False, False),
            points=BUDGETS[-1],
        )
        return self.task.results(front.genes)[0]

    def search(self, name: str) -> Values:
        """Objectives in the order told."""
        budget, told = BUDGETS[-1], [np.zeros((0, 2))]
        sampler = self.sampler(name)
        while (count := sum(map(len, told))) < budget:
            rows = sampler.ask(min(BATCH, budget - count))
            objectives, violations = self.task.results(rows)
            sampler.tell(rows, objectives, violations)
            told.append(objectives)
        return np.concatenate(told)

    def sampler(self, name: str) -> Sampler:
        prior = {"accuracy": self.losses.table().predict} if name == SLIMMING else None
        name, _, _ = name.partition(",")
        return make_sampler(name, self.problem, seed=self.seed, budget=BUDGETS[-1], prior=prior)


def agreement(case: Case) -> float:
    """Kendall τ of the table's sum and what is lost, over random networks within the limit."""
    rows = case.problem.space.sample(np.random.default_rng(0), 1000)
    rows = rows[case.problem.cheap_violation(rows) == 0]
    return float(kendalltau(case.losses.table().predict(rows), -case.losses(rows)).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samplers", nargs="+", default=(*SAMPLERS, PROGRAMME, SLIMMING))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    problem = problem_of(around(known(PARENT)))
    space = problem.space
    shares: dict[str, list[list[float]]] = {name: [] for name in options.samplers}
    seconds = dict.fromkeys(options.samplers, 0.0)
    taus = []
    for seed in range(options.seeds):
        case = Case(problem, Losses.of(space, seed), seed)
        taus.append(round(agreement(case), 3))
        for name in options.samplers:
            begin = time.perf_counter()
            shares[name].append(case.shares(name))
            seconds[name] += time.perf_counter() - begin
            print(seed, name, np.round(shares[name][-1], 4), flush=True)
    content = {
        "parent": PARENT,
        "architectures": f"{space.size:.2g}",
        "table_entries": int((space.cardinalities - 1).sum()),
        "table_tau": taus,
        "hypervolume": {
            name: {
                str(budget): {
                    "mean": round(float(np.mean([share[i] for share in of_seeds])), 4),
                    "worst": round(float(np.min([share[i] for share in of_seeds])), 4),
                }
                for i, budget in enumerate(BUDGETS)
            }
            for name, of_seeds in shares.items()
        },
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }
    options.results.write_text(json.dumps(content, indent=1) + "\n")
    print(options.results)


if __name__ == "__main__":
    main()
