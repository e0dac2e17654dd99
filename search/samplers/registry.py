"""Samplers by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from search.problem import Problem, Values
from search.samplers.base import Sampler
from search.samplers.evolution import NSGA2, RegularisedEvolution
from search.samplers.local_search import LocalSearch
from search.samplers.random_search import RandomSearch
from search_space import Genes
from search_space.errors import UnknownNameError, UsageError

DEFAULT = "surrogate"
EXACT = "exact"
"""No sampler that learns from evaluations: ``search.exact``, for what needs none."""
OPTUNA = "optuna-"


SAMPLERS = (
    *("nsga2", "evolution", "random", "local"),
    *("surrogate", "surrogate-trees", "surrogate-additive"),
    *("slimming", "reinforce"),
)
"""Names; ``optuna-NAME`` is Optuna's sampler of that name."""


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


def make_sampler(
    name: str,
    problem: Problem,
    *,
    seed: int = 0,
    population: int | None = None,
    budget: int = 100,
    storage: str | None = None,
    study: str = "nas",
    say: Callable[[str], None] = lambda text: None,
    prior: Mapping[str, Callable[[Genes], Values]] | None = None,
) -> Sampler:
    """The sampler ``name``: one of ``SAMPLERS``, or ``optuna-TPE`` and the like.

        sampler = make_sampler("surrogate", problem, seed=0, budget=100)

    Args:
        population: of the first candidates, and survivors where a method has them; None for the
            method's own. Models start from half of it, and at most a quarter of the budget.
        budget: evaluations of the whole search.
        prior: as of ``SurrogateSampler``; ``slimming`` makes use of it, too, and others none.
        storage: of Optuna's studies: None for memory, a database URL or a journal file's path.

    Raises:
        UnknownNameError: there is no such sampler.
        UsageError: it has no use for the storage.
    """
    check_sampler(name, storage)
    sized = {} if population is None else {"population": population}
    match name:
        case "nsga2":
            return NSGA2(problem, seed=seed, **sized)
        case "evolution":
            return RegularisedEvolution(problem, seed=seed, **sized)
        case "random":
            return RandomSearch(problem, seed=seed)
        case "local":
            return LocalSearch(problem, seed=seed, **sized)
    # a model learns from fewer than evolution needs to breed from
    start = max(8, min((population or 24) // 2, budget // 4))
    if name == "slimming":
        from search.samplers.slimming import WAYS, Slimming

        steps = max(1, (budget - start) // (2 * WAYS))  # two walks
        return Slimming(problem, seed=seed, population=start, steps=steps, prior=prior)
    if name == "reinforce":
        from search.samplers.reinforce import Reinforce  # it imports torch

        return Reinforce(problem, seed=seed)
    if name in SAMPLERS:
        from search.samplers.surrogate import SurrogateSampler

        model = name.partition("-")[2] or "gaussian_process"
        return SurrogateSampler(problem, seed=seed, model=model, population=start, prior=prior)
    from search.samplers.optuna_sampler import OptunaSampler

    name = name.removeprefix(OPTUNA)
    return OptunaSampler(problem, sampler=name, seed=seed, storage=storage, study=study, say=say)
