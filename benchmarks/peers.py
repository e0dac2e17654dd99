"""Other people's optimisers on the raw parameters, as their users would call them.

One integer or categorical parameter a gene. Every new architecture that they propose counts as an
evaluation, infeasible ones too, as nobody else checks the limit for them; one that is proposed
again is free.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from search_space import Genes

Values = npt.NDArray[np.float64]
POPULATION = 24
MOST_TRIALS = 4  # proposals per evaluation of the budget


class _Evaluated:
    """Results by architecture; remembers the order."""

    def __init__(self, task: Any, budget: int) -> None:
        self.task, self.budget = task, budget
        self.known: dict[bytes, tuple[Values, float]] = {}
        self.points: list[Values] = []

    @property
    def done(self) -> bool:
        return len(self.points) >= self.budget

    def __call__(self, genes: Genes) -> tuple[Values, Values]:
        space = self.task.problem.space
        rows = np.where(space.active(genes), genes, -1)
        objectives, violations = self.task.results(rows)
        for row, values, violation in zip(rows, objectives, violations, strict=True):
            if row.tobytes() not in self.known:
                self.known[row.tobytes()] = (values, violation)
                self.points.append(np.where(violation > 0, np.nan, values))
        return objectives, violations

    def result(self, begin: float) -> tuple[Values, float]:
        return np.stack(self.points), time.perf_counter() - begin


def pymoo_nsga2(task: Any, seed: int, budget: int) -> tuple[Values, float]:
    """pymoo's NSGA-II on integers, constraint given."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    evaluated, upper = _Evaluated(task, budget), task.problem.space.cardinalities - 1
    begin = time.perf_counter()

    class Raw(Problem):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                n_var=len(upper), n_obj=2, n_ieq_constr=1, xl=np.zeros(len(upper)), xu=upper,
                vtype=int,
            )  # fmt: skip

        def _evaluate(self, x: Values, out: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            out["F"], violations = evaluated(np.asarray(x, dtype=np.int64))
            out["G"] = violations[:, None]

    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(prob=0.9, eta=3.0, vtype=float, repair=RoundingRepair()),
        mutation=PM(eta=3.0, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    generations = MOST_TRIALS * budget // POPULATION
    algorithm.setup(Raw(), termination=("n_gen", generations), seed=seed, verbose=False)
    while algorithm.has_next() and not evaluated.done:
        algorithm.next()
    return evaluated.result(begin)


def optuna_raw(sampler: Callable[[int], Any]) -> Callable[[Any, int, int], tuple[Values, float]]:
    """Optuna's ``study.optimize``, constraint given."""

    def run(task: Any, seed: int, budget: int) -> tuple[Values, float]:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        evaluated, space = _Evaluated(task, budget), task.problem.space

        def objective(trial: Any) -> list[float]:
            genes = [
                trial.suggest_categorical(f"x{i}", range(count))
                if blocks
                else trial.suggest_int(f"x{i}", 0, int(count) - 1)
                for i, (count, blocks) in enumerate(zip(space.cardinalities, is_block, strict=True))
            ]
            values, violations = evaluated(np.array([genes], dtype=np.int64))
            trial.set_constraint("limit", float(violations[0]))
            if evaluated.done:
                trial.study.stop()
            return [float(v) for v in values[0]]

        is_block = np.ones(space.num_genes, dtype=bool)
        is_block[[0, *space.width_columns, *(space.width_columns + 1)]] = False
        begin = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler(seed))
            study.optimize(objective, n_trials=MOST_TRIALS * budget)
        return evaluated.result(begin)

    return run


def _tpe(seed: int) -> Any:
    import optuna

    return optuna.samplers.TPESampler(seed=seed)


def _nsga2(seed: int) -> Any:
    import optuna

    return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)


PEERS = {
    "pymoo NSGA-II": pymoo_nsga2,
    "Optuna NSGA-II, raw": optuna_raw(_nsga2),
    "Optuna TPE, raw": optuna_raw(_tpe),
}
