"""Does giving up bad candidates early find a better front for the same images looked at?

One supernet on ``digits``; the front of validation loss and MACs is searched with every candidate
judged on all validation images, and with successive halving: for as many candidates, and for as
many images in all. Reported for each seed: images looked at, in evaluations on all of them, and the
hypervolume of the front, whose members are always judged on all; then, over the seeds, the median
ratio of hypervolumes to the search without halving, and how often it is above one.

    python benchmarks/halving.py [--seeds 10] [--evaluations 200] [--sampler surrogate]

Figures go to ``benchmarks/results/halving.json``; a sampler that is there already is measured anew.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from predictors.counts import counts
from results.journal import Evaluation
from results.pareto import hypervolume
from search import Constraint, InProcessExecutor, Objective, Problem, search
from search.evaluator import SupernetEvaluator
from search.samplers import make_sampler
from search_space import Architecture, load_space
from search_space.metrics import IMAGES
from supernet import Supernet
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import doubling_batches
from supernet.training.train import TrainConfig, train_supernet

RESULTS = Path(__file__).parent / "results" / "halving.json"
BATCH = 12
WORST_LOSS = 1.0  # of the hypervolume's reference
LIMIT = 4e6  # MACs; the largest subnet has 14 million


class Memory:
    """A journal without a disk."""

    def __init__(self) -> None:
        self.known: dict[str, Evaluation] = {}

    def get(self, digest: str) -> Evaluation | None:
        return self.known.get(digest)

    def append(self, evaluation: Evaluation) -> None:
        self.known[evaluation.digest] = evaluation


class Remembered:
    """Evaluations of all seeds and settings, each made once."""

    def __init__(self, supernet: Supernet, data: Any) -> None:
        self._evaluators: dict[int, SupernetEvaluator] = {}
        self._known: dict[tuple[str, int, int | None], dict[str, float]] = {}
        self._supernet, self._data = supernet, data

    def with_halvings(self, halvings: int) -> Any:
        parts = doubling_batches(self._data.validation, halvings)
        evaluator = self._evaluators.setdefault(halvings, SupernetEvaluator(self._supernet, parts))

        def evaluate(architecture: Architecture, part: int | None = None) -> dict[str, float]:
            key = architecture.digest, halvings if part is not None else 0, part
            if key not in self._known:
                self._known[key] = evaluator(architecture, part)
            return self._known[key]

        return evaluate


def cost_share(halvings: int) -> float:
    """Images that a batch's candidates see, as a share of all images for all of them."""
    left, total = BATCH, BATCH / 2**halvings
    for k in range(halvings):
        left = -(-left // 2)
        total += left / 2 ** (halvings - k)
    return total / BATCH


def one(
    problem: Problem, evaluate: Any, sampler: str, seed: int, evaluations: int, halvings: int
) -> dict[str, float]:
    result = search(
        problem,
        make_sampler(sampler, problem, seed=seed, population=24, budget=evaluations),
        InProcessExecutor(evaluate),
        Memory(),
        num_evaluations=evaluations,
        batch_size=BATCH,
        halvings=halvings,
    )
    images = sum(e.metrics[IMAGES] for e in result.evaluations)
    whole = max(e.metrics[IMAGES] for e in result.evaluations)
    seen = [e for e in result.evaluations if e.status == "ok" and e.metrics[IMAGES] == whole]
    points = np.array([[e.metrics["loss"], e.metrics["macs"]] for e in seen])
    reference = [WORST_LOSS, float(problem.reference[1])]
    return {
        "full_evaluations": images / whole,
        "hypervolume": hypervolume(points, reference),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--sampler", default="surrogate")
    parser.add_argument("--epochs", type=int, default=32)
    options = parser.parse_args()
    space, data = load_space("digits"), open_data("digits", 24, seed=0)
    torch.manual_seed(0)
    supernet = Supernet(space, data.num_classes)
    train_supernet(supernet, data, TrainConfig(epochs=options.epochs, seed=0), None)
    memory = Remembered(supernet.eval(), data)
    macs = counts(space, data.num_classes)["macs"]
    problem = Problem(
        space,
        (Objective("loss", "minimize"), Objective("macs", "minimize")),
        (Constraint("macs", maximum=LIMIT),),
        {"macs": macs},
        evaluated=("loss",),
    )
    n = options.evaluations
    settings = [(0, n)] + [
        (h, count) for h in (1, 2, 3) for count in (n, round(n / cost_share(h) / BATCH) * BATCH)
    ]
    found: dict[str, Any] = {}
    for halvings, count in settings:
        runs = [
            one(problem, memory.with_halvings(halvings), options.sampler, seed, count, halvings)
            for seed in range(options.seeds)
        ]
        name = f"{halvings} halvings, {count} candidates"
        plain = next(iter(found.values()), {"runs": runs})["runs"]
        ratios = [a["hypervolume"] / b["hypervolume"] for a, b in zip(runs, plain, strict=True)]
        found[name] = {
            "full_evaluations": float(np.median([run["full_evaluations"] for run in runs])),
            "median_ratio": float(np.median(ratios)),
            "quartiles": [float(q) for q in np.quantile(ratios, [0.25, 0.75])],
            "above_one": sum(ratio > 1 for ratio in ratios),
            "runs": runs,
        }
        print(name, {k: v for k, v in found[name].items() if k != "runs"}, flush=True)
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content[options.sampler] = {"validation_images": len(data.validation), "settings": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
