"""Search quality per evaluation: hypervolume against the number of evaluations, by sampler.

Problems are accuracy against the real MACs of a space, under a limit that a share of random
architectures meets, another landscape for each seed:

- ``SPACE:SHARE:ENTANGLED`` (``landscapes.py``): additive worths, saturating, entangled by pairs of
  genes whose part has so much of the additive part's standard deviation;
- ``SPACE:network`` and ``SPACE:forest`` (``nonadditive.py``): a random network or forest of genes;
- with ``--table``, accuracies that were tabulated before, from a Parquet or JSON file with the
  columns ``architecture`` (canonical JSON) and ``accuracy``.

All samplers are asked in chunks with others outstanding, as in a search on several workers, and
all have the same: the peers of ``peers.py`` (pymoo's NSGA-II, Optuna's TPE, BoTorch's qLogNEHVI)
start from a spread population, use the space's operators, and reject infeasible and known
candidates for free, as ours do.

Reported by sampler: hypervolume relative to the best known front's at each budget; evaluations
until random search's final hypervolume; and a Wilcoxon signed-rank test over seeds against the
peer that is best at that budget.

    python benchmarks/search_quality.py [--samplers nsga2 surrogate] [--problems cifar:0.3:0.3]
    python benchmarks/search_quality.py --problems digits:network digits:forest --seeds 5 \\
        --budgets 50 100 200 --results benchmarks/results/search_quality_nonadditive.json
    python benchmarks/search_quality.py --table accuracies.parquet --space space.yaml

Runs in ``--results`` are kept; only missing ones are run, unless ``--fresh`` is given. BoTorch
takes a minute a run, everything else of the second command some six minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from landscapes import best_known, named_landscape
from nonadditive import named_random
from peers import PEERS
from scipy.stats import wilcoxon
from tabulated import Tabulated, read_table

from results.pareto import hypervolume
from search import Problem
from search.samplers import DEFAULT, make_sampler
from search_space import Genes

Values = npt.NDArray[np.float64]
PROBLEMS = ("cifar:0.3:0.3", "tiny:0.3:0.3", "cifar:0.3:1", "cifar:0.02:0.3")
BUDGETS = (50, 100, 200, 400)
CHUNK, OUTSTANDING = 4, 12
OURS = (
    "random", "nsga2", "evolution", "local", "surrogate", "surrogate-additive",
    "surrogate-trees", "optuna-NSGAII",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results" / "search_quality.json"


@dataclass(frozen=True)
class Task:
    """A problem whose evaluations are free, and the hypervolume that can be had."""

    problem: Problem
    accuracy: Callable[[Genes], Values]
    known: float

    def results(self, genes: Genes) -> tuple[Values, Values]:
        """Minimised objectives (n, 2) and violations (n,)."""
        metrics = {"accuracy": self.accuracy(genes), **self.problem.cheap_metrics(genes)}
        return self.problem.objective_values(metrics), self.problem.violation(metrics)

    def volume(self, objectives: Values) -> float:
        """Hypervolume of minimised objectives up to the problem's reference."""
        return hypervolume(objectives, self.problem.reference.tolist())


def run(name: str, task: Task, seed: int, budget: int) -> tuple[Values, float]:
    """Objectives in the order told, (≤ budget, 2), and seconds within the sampler."""
    peer = PEERS.get(name)
    sampler = (
        peer(task.problem, seed)
        if peer
        else make_sampler(name, task.problem, seed=seed, budget=budget)
    )
    told: list[Values] = []
    waiting = np.zeros((0, task.problem.space.num_genes), dtype=np.int64)
    asked, seconds = 0, 0.0
    while True:
        begin = time.perf_counter()
        while asked < budget and len(waiting) < OUTSTANDING:
            rows = sampler.ask(min(CHUNK, budget - asked))
            if len(rows) == 0:
                budget = budget if len(waiting) else asked
                break
            asked += len(rows)
            waiting = np.concatenate([waiting, rows])
        seconds += time.perf_counter() - begin
        if len(waiting) == 0:
            return np.concatenate(told), seconds
        rows, waiting = waiting[:CHUNK], waiting[CHUNK:]
        objectives, violations = task.results(rows)
        begin = time.perf_counter()
        sampler.tell(rows, objectives, violations)
        seconds += time.perf_counter() - begin
        told.append(np.where(violations[:, None] > 0, np.nan, objectives))


def curve(task: Task, objectives: Values, budget: int) -> list[float]:
    """Share of the known hypervolume after each evaluation; a shorter run keeps its last."""
    reference = task.problem.reference
    volumes: list[float] = []
    front = np.zeros((0, objectives.shape[1]))
    for point in objectives[:budget]:
        grows = not np.isnan(point).any() and (point < reference).all()
        if grows and not (front <= point).all(axis=1).any():
            front = np.concatenate([front[~(point <= front).all(axis=1)], point[None]])
            volumes.append(task.volume(front) / task.known)
        else:
            volumes.append(volumes[-1] if volumes else 0.0)
    return volumes + [volumes[-1]] * (budget - len(volumes))


def landscape_task(name: str, seed: int, known: float | None) -> Task:
    named = named_random if name.count(":") == 1 else named_landscape
    problem, accuracy = named(name, seed)
    if known is None:
        known = hypervolume(best_known(problem, accuracy), problem.reference.tolist())
    return Task(problem, accuracy, known)


def table_task(table: Tabulated) -> Task:
    points, violations = table.objectives()
    best = hypervolume(points[violations == 0], table.problem.reference.tolist())
    return Task(table.problem, table.accuracy, best)


# Summary -----------------------------------------------------------------------------------------


def summary(runs: dict[str, dict[str, list[float]]], budgets: Sequence[int]) -> dict[str, Any]:
    """Figures by sampler of one problem; runs by sampler and seed are curves."""
    goal = float(np.mean([curve[-1] for curve in runs["random"].values()]))
    # runs named "raw" are of peers that knew the parameters only, and paid for what is infeasible
    peers = [name for name in runs if name in PEERS or name == "random" or name.endswith("raw")]
    result = {}
    for name, by_seed in runs.items():
        values = np.array(list(by_seed.values()))
        first = [int(np.argmax(c >= goal)) + 1 if (c >= goal).any() else np.inf for c in values]
        needed = float(np.median(first))
        entry: dict[str, Any] = {
            "seeds": len(values),
            "hypervolume": {str(b): round(float(values[:, b - 1].mean()), 4) for b in budgets},
            "worst_seed": {str(b): round(float(values[:, b - 1].min()), 4) for b in budgets},
            "evaluations_to_random": needed if np.isfinite(needed) else None,
            "speedup_on_random": round(values.shape[1] / needed, 2),
        }
        if name not in peers:
            entry["against_best_peer"] = {str(b): _against(runs, name, peers, b) for b in budgets}
        result[name] = entry
    return result


def _against(
    runs: dict[str, dict[str, list[float]]], name: str, peers: list[str], budget: int
) -> dict[str, Any]:
    """The best peer at a budget and one-sided tests over the seeds that both have."""

    def mean(peer: str) -> float:
        return float(np.mean([curve[budget - 1] for curve in runs[peer].values()]))

    best = max(peers, key=mean)
    seeds = runs[name].keys() & runs[best].keys()
    difference = np.array(
        [runs[name][s][budget - 1] - runs[best][s][budget - 1] for s in sorted(seeds)]
    )
    return {
        "peer": best,
        "difference": round(float(difference.mean()), 4),
        "p_worse": round(_p_value(difference, "less"), 4),
        "p_better": round(_p_value(difference, "greater"), 4),
    }


def _p_value(difference: Values, alternative: str) -> float:
    """Wilcoxon's signed-rank test; 1 where nothing differs."""
    return float(wilcoxon(difference, alternative=alternative).pvalue) if difference.any() else 1.0


def show(name: str, figures: dict[str, Any], budgets: Sequence[int]) -> None:
    print(f"\n{name}\n{'sampler':22}" + "".join(f"{b:>8}" for b in budgets) + "  to random")
    for sampler, entry in sorted(
        figures.items(), key=lambda item: -item[1]["hypervolume"][str(budgets[-1])]
    ):
        row = "".join(f"{entry['hypervolume'][str(b)]:8.4f}" for b in budgets)
        print(f"{sampler:22}{row}  {entry['evaluations_to_random']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", nargs="+", default=[*OURS, *PEERS])
    parser.add_argument("--problems", nargs="+", default=PROBLEMS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--table", type=Path, help="tabulated accuracies; replaces --problems")
    parser.add_argument("--space", help="space of --table: a preset or a YAML file")
    parser.add_argument("--fresh", action="store_true", help="repeat runs that are known")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs are kept")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    options = parser.parse_args()
    most = options.budgets[-1]
    warnings.filterwarnings("ignore", module="optuna")
    content = json.loads(options.results.read_text()) if options.results.exists() else {}
    table = None if options.table is None else read_table(options.table, options.space or "cifar")
    names = options.problems if table is None else [f"table:{options.table.stem}"]
    for problem_name in names:
        part = content.setdefault(problem_name, {"known": {}, "runs": {}, "seconds": {}})
        for seed in range(options.seeds):
            task: Task | None = None
            for name in options.samplers:
                runs = part["runs"].setdefault(name, {})
                if str(seed) in runs and not options.fresh:
                    continue
                if task is None:
                    known = part["known"].get(str(seed))
                    task = table_task(table) if table else landscape_task(problem_name, seed, known)
                    part["known"][str(seed)] = task.known
                objectives, seconds = run(name, task, seed, most)
                runs[str(seed)] = [round(v, 5) for v in curve(task, objectives, most)]
                part["seconds"].setdefault(name, {})[str(seed)] = round(seconds, 2)
                options.results.write_text(_dump(content))
        if "random" in part["runs"]:
            part["summary"] = summary(part["runs"], options.budgets)
            show(problem_name, part["summary"], options.budgets)
    content["default"] = DEFAULT
    options.results.write_text(_dump(content))
    print(options.results)


def _dump(content: dict[str, Any]) -> str:
    """JSON with one curve a line."""
    text = json.dumps(content, indent=1)
    lines, inside = [], False
    for line in text.splitlines():
        if inside:
            lines[-1] += line.strip() + ("" if line.strip().startswith("]") else " ")
            inside = not line.strip().startswith("]")
        else:
            lines.append(line)
            inside = line.rstrip().endswith("[")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
