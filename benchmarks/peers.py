"""Other people's optimisers, given all that ours have.

Everyone starts from the same spread population, changes rows by the space's own operators, and is
told for free which candidates break the limit or are known: only feasible new ones are evaluated.
BoTorch needs ``pip install -e .[benchmarks]``; whatever else it needs is imported when it runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from nonadditive import one_hot

from search import Problem
from search.feasibility import diverse_sample
from search.samplers import Sampler, make_sampler
from search.samplers.base import Screen
from search.samplers.proposals import first_population, neighbours
from search_space import Genes

Values = npt.NDArray[np.float64]
POPULATION = 24


class Started:
    """Proposes the common first population, then what ``propose`` gives.

    Args:
        problem: what is searched for.
        seed: of everything random; the population is the one that our samplers start from.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        self.screen = Screen(problem)
        self.first = first_population(problem, self.screen, self.rng, POPULATION)
        self.genes = self.first[:0]
        self.objectives = np.zeros((0, len(problem.objectives)))
        self.open: dict[bytes, Genes] = {}

    def ask(self, n: int) -> Genes:
        rows = self.screen.fresh(self.first[:n], n)
        self.first = self.first[n:]
        if len(rows) < n:
            rows = np.concatenate([rows, self.propose(n - len(rows))])
        self.open.update({row.tobytes(): row for row in rows})
        return rows

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        self.screen.mark(genes)
        self.genes = np.concatenate([self.genes, genes])
        self.objectives = np.concatenate([self.objectives, objectives])
        for row in genes:
            self.open.pop(row.tobytes(), None)

    def propose(self, n: int) -> Genes:
        raise NotImplementedError


class OptunaStarted(Started):
    """Optuna's sampler ``name`` behind the common start; infeasible suggestions cost nothing."""

    def __init__(self, problem: Problem, seed: int, name: str) -> None:
        super().__init__(problem, seed)
        self.inner: Sampler = make_sampler(name, problem, seed=seed)

    def propose(self, n: int) -> Genes:
        rows = self.inner.ask(n)
        self.screen.mark(rows)
        return rows

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        super().tell(genes, objectives, violations)
        self.inner.tell(genes, objectives, violations)


class PymooNSGA2(Started):
    """pymoo's NSGA-II with the space's crossover and mutation.

    Infeasible and known children count as duplicates, which pymoo breeds again for free. Its
    generations are whole: a generation is bred when all before are evaluated.
    """

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.crossover import Crossover
        from pymoo.core.duplicate import DuplicateElimination
        from pymoo.core.mutation import Mutation
        from pymoo.core.problem import Problem as PymooProblem

        space, rng, screen = problem.space, self.rng, self.screen

        class Crossing(Crossover):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__(2, 2, prob=0.5)

            def _do(self, _: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
                first, second = np.asarray(x[0], np.int64), np.asarray(x[1], np.int64)
                return np.stack(
                    [space.crossover(first, second, rng), space.crossover(second, first, rng)]
                )

        class Mutating(Mutation):  # type: ignore[misc]
            def _do(self, _: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
                rate = max(0.05, 2 / space.num_genes)
                return space.mutate(np.asarray(x, np.int64), rng, rate)

        class Useless(DuplicateElimination):  # type: ignore[misc]
            def _do(self, pop: Any, other: Any, is_duplicate: Any) -> Any:
                rows = np.asarray(pop.get("X"), np.int64).reshape(len(pop), -1)
                if other is None:
                    new = {row.tobytes() for row in screen.candidates(rows)}
                    seen: set[bytes] = set()
                    for i, row in enumerate(rows):
                        key = row.tobytes()
                        is_duplicate[i] |= key not in new or key in seen
                        seen.add(key)
                    return is_duplicate
                known = {np.asarray(ind.X, np.int64).tobytes() for ind in other}
                return is_duplicate | np.array([row.tobytes() in known for row in rows])

        self._algorithm = NSGA2(
            pop_size=POPULATION,
            sampling=self.first.copy(),
            crossover=Crossing(),
            mutation=Mutating(prob=0.75),
            eliminate_duplicates=Useless(),
        )
        self._algorithm.setup(
            PymooProblem(n_var=space.num_genes, n_obj=len(problem.objectives), xl=-1, xu=1000),
            termination=("n_gen", 10**6), seed=seed, verbose=False,
        )  # fmt: skip
        self._generation: Any = None
        self._queue = self.first[:0]
        self._results: dict[bytes, Values] = {}
        self.first = self.first[:0]  # pymoo proposes it itself

    def propose(self, n: int) -> Genes:
        if len(self._queue) == 0 and (self._generation is None or self._complete()):
            if self._generation is not None:
                self._algorithm.tell(infills=self._generation)
            self._generation = self._algorithm.ask()
            rows = np.asarray(self._generation.get("X"), np.int64)
            self._queue = rows
            self.screen.mark(rows)
        rows, self._queue = self._queue[:n], self._queue[n:]
        return rows

    def _complete(self) -> bool:
        rows = np.asarray(self._generation.get("X"), np.int64)
        if not all(row.tobytes() in self._results for row in rows):
            return False
        self._generation.set("F", np.stack([self._results[row.tobytes()] for row in rows]))
        return True

    def tell(self, genes: Genes, objectives: Values, violations: Values) -> None:
        super().tell(genes, objectives, violations)
        for row, values in zip(genes, objectives, strict=True):
            self._results[row.tobytes()] = values


class BoTorch(Started):
    """BoTorch's qLogNEHVI over one-hot genes and the known cost.

    The accuracy is a Gaussian process with BoTorch's defaults; the cost is known to the
    acquisition, and the process sees it too. The acquisition is maximised one candidate after the
    other over random rows, children of the front, and then the neighbours of the best of these.
    """

    POOL, SAMPLES = 128, 128

    def propose(self, n: int) -> Genes:
        import torch
        from botorch import fit_gpytorch_mll
        from botorch.acquisition.multi_objective.logei import (
            qLogNoisyExpectedHypervolumeImprovement,
        )
        from botorch.models import GenericDeterministicModel, ModelList, SingleTaskGP
        from botorch.sampling import ListSampler, SobolQMCNormalSampler
        from botorch.sampling.index_sampler import IndexSampler
        from gpytorch.mlls import ExactMarginalLogLikelihood

        torch.manual_seed(int(self.rng.integers(2**31)))
        ours = torch.from_numpy(-self.objectives)  # maximised: accuracy and minus the cost
        unit, level = float(ours[:, 1].abs().max()), float(ours[:, 0].std()) or 1.0
        known = self._encode(self.genes, unit)
        gain = (ours[:, :1] - ours[:, :1].mean()) / level
        process = SingleTaskGP(known, gain)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit_gpytorch_mll(
                ExactMarginalLogLikelihood(process.likelihood, process),
                optimizer_kwargs={"options": {"maxiter": 75}},
            )
        cost = GenericDeterministicModel(lambda x: -x[..., -1:], num_outputs=1)
        reference = -self.problem.reference
        mean = float(ours[:, 0].mean())
        reference = [(float(reference[0]) - mean) / level, float(reference[1]) / unit]
        # far below everything a reference adds nothing but rounding
        reference[0] = max(reference[0], float(gain.min()) - 1e3)
        waiting = self._encode(np.stack([*self.open.values()]), unit) if self.open else None
        shape = torch.Size([self.SAMPLES])
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model=ModelList(process, cost), ref_point=reference, X_baseline=known,
            sampler=ListSampler(SobolQMCNormalSampler(shape), IndexSampler(shape)),
            X_pending=waiting, prune_baseline=True, cache_root=False,
        )  # fmt: skip
        chosen: list[Genes] = []
        for _ in range(n):
            pool = self.screen.candidates(self._pool())
            values = self._values(acquisition, pool, unit)
            row, value = pool[int(values.argmax())], values.max()
            near = self.screen.candidates(neighbours(self.problem, row))
            if len(near):
                around = self._values(acquisition, near, unit)
                if around.max() > value:
                    row = near[int(around.argmax())]
            self.screen.mark(row[None])
            chosen.append(row)
            encoded = self._encode(row[None], unit)
            waiting = encoded if waiting is None else torch.cat([waiting, encoded])
            acquisition.set_X_pending(waiting)
        return np.stack(chosen)

    def _pool(self) -> Genes:
        from results.pareto import non_dominated

        space, rng = self.problem.space, self.rng
        front = self.genes[non_dominated(self.objectives)]
        parents = front[rng.integers(len(front), size=(2, self.POOL))]
        children = np.concatenate([parents[0], space.crossover(*parents, rng)])
        children = space.mutate(children, rng, max(0.05, 2 / space.num_genes))
        return np.concatenate([children, diverse_sample(self.problem, rng, self.POOL)])

    def _encode(self, genes: Genes, unit: float) -> Any:
        import torch

        cost = self.problem.tables["macs"].predict(genes)[:, None] / unit
        return torch.from_numpy(np.hstack([one_hot(self.problem.space, genes), cost]))

    def _values(self, acquisition: Any, rows: Genes, unit: float) -> Values:
        import torch

        encoded = self._encode(rows, unit)[:, None]
        with torch.no_grad():
            return np.concatenate([acquisition(part).numpy() for part in encoded.split(128)])


PEERS: dict[str, Callable[[Problem, int], Sampler]] = {
    "pymoo NSGA-II": PymooNSGA2,
    "Optuna TPE": lambda problem, seed: OptunaStarted(problem, seed, "optuna-TPE"),
    "BoTorch qLogNEHVI": BoTorch,
}
"""Makers by name."""
