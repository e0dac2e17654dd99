"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from search.problem import Problem
from search.samplers.base import Sampler
from search.samplers.evolution import NSGA2, RegularisedEvolution
from search.samplers.local_search import LocalSearch
from search.samplers.random_search import RandomSearch
from search_space.errors import UnknownNameError, UsageError

DEFAULT = "surrogate"
EXACT = "exact"
"""No sampler that learns from evaluations: ``search.exact``, for what needs none."""
OPTUNA = "optuna-"


@dataclass(frozen=True)
class Settings:
    """Settings that samplers are made from.

    Args:
        problem: what to search for.
        seed: seed of everything random.
        population: of the first candidates, and survivors where a method has them; None for the
            method's own. Models start from half of it, and at most a quarter of the budget.
        budget: evaluations of the whole search.
        storage: of Optuna's studies: None for memory, a database URL or a journal file's path.
        study: name of Optuna's study.
        say: is told when a storage is waited for.
    """

    problem: Problem
    seed: int = 0
    population: int | None = None
    budget: int = 100
    storage: str | None = None
    study: str = "nas"
    say: Callable[[str], None] = lambda text: None

    @property
    def sized(self) -> dict[str, int]:
        """Population where one is set."""
        return {} if self.population is None else {"population": self.population}


def _surrogate(model: str) -> Callable[[Settings], Sampler]:
    def make(settings: Settings) -> Sampler:
        from search.samplers.surrogate import SurrogateSampler

        # a model learns from fewer than evolution needs to breed from
        population = max(8, min((settings.population or 24) // 2, settings.budget // 4))
        return SurrogateSampler(
            settings.problem, seed=settings.seed, model=model, population=population
        )

    return make


def _optuna(name: str) -> Callable[[Settings], Sampler]:
    def make(settings: Settings) -> Sampler:
        from search.samplers.optuna_sampler import OptunaSampler

        return OptunaSampler(
            settings.problem,
            sampler=name,
            seed=settings.seed,
            storage=settings.storage,
            study=settings.study,
            say=settings.say,
        )

    return make


SAMPLERS: dict[str, Callable[[Settings], Sampler]] = {
    "nsga2": lambda s: NSGA2(s.problem, seed=s.seed, **s.sized),
    "evolution": lambda s: RegularisedEvolution(s.problem, seed=s.seed, **s.sized),
    "random": lambda s: RandomSearch(s.problem, seed=s.seed),
    "local": lambda s: LocalSearch(s.problem, seed=s.seed, population=s.population or 24),
    "surrogate": _surrogate("gaussian_process"),
    "surrogate-trees": _surrogate("trees"),
    "surrogate-additive": _surrogate("additive"),
}
"""Makers by name; ``optuna-NAME`` is Optuna's sampler of that name."""


def check_sampler(name: str, storage: str | None = None) -> None:
    """Check the name of a sampler and the use of a storage.

    Raises:
        UnknownNameError: There is no such sampler.
        UsageError: It cannot search with evaluations, or has no use for the storage.
    """
    if name.startswith(OPTUNA):
        return
    if name == EXACT:
        raise UsageError(
            "the sampler exact proves optima of what adds up over a network's parts, and how well "
            f"trained networks do does not. Take {DEFAULT} here, or search without images by a "
            "score that adds up: nas search --sampler exact --score deepmad."
        )
    if name not in SAMPLERS:
        known = [*SAMPLERS, "optuna-TPE", "optuna-NSGAII", "optuna-GP"]
        raise UnknownNameError("sampler", name, known)
    if storage is not None:
        raise UsageError(
            f"an Optuna storage is of no use to the sampler {name!r}; take optuna-TPE or another "
            "of Optuna's, or leave the storage out."
        )


def make_sampler(name: str, problem: Problem, **settings: Any) -> Sampler:
    """The sampler ``name``: one of ``SAMPLERS``, or ``optuna-TPE`` and the like.

        sampler = make_sampler("surrogate", problem, seed=0, budget=100)

    Args:
        name: of the sampler.
        problem: what to search for.
        settings: further fields of ``Settings``.

    Raises:
        UnknownNameError: there is no such sampler.
        UsageError: it has no use for the storage.
    """
    values = Settings(problem, **settings)
    check_sampler(name, values.storage)
    maker = SAMPLERS.get(name) or _optuna(name.removeprefix(OPTUNA))
    return maker(values)
