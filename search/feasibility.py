"""Feasibility: whether a problem has a solution, decided before any evaluation.

One constraint on an additive table is decided exactly by the table's own extremes, several at once
by an integer programme where a short evolution has not met them. Nothing here samples "until
feasible", and "infeasible" is said with a proof only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.exact import linear_constraints, meeting
from search.problem import Constraint, Problem, Values
from search_space.errors import InfeasibleError
from search_space.metrics import LATENCY, typed
from search_space.stage_space import Genes

REPAIR_ROUNDS = 40
REPAIR_SIZE = 256
QUICK_ROUNDS = 10  # before the programme, which takes longer than so few, is asked
SEED_ROWS = 4096
SECONDS = 120.0  # for the programme


@dataclass(frozen=True)
class FeasibleRange:
    """The range of one constrained metric in the space.

    Attributes:
        smallest, largest: exact extremes over the whole space.
        share: fraction of uniformly random architectures that meet this constraint.
    """

    constraint: Constraint
    smallest: float
    largest: float
    share: float


def feasible_range(
    problem: Problem, rng: np.random.Generator, n: int = 2000
) -> dict[str, FeasibleRange]:
    """Range of every cheap constrained metric, and the share of ``n`` random rows that pass."""
    genes = problem.space.sample(rng, n)
    result = {}
    for limit in problem.constraints:
        table = problem.tables[limit.metric]
        low, high = table.predict(np.stack([table.argmin(), table.argmax()])).tolist()
        passed = limit.violation(table.predict(genes)) == 0
        result[limit.metric] = FeasibleRange(limit, low, high, float(passed.mean()))
    return result


def extreme_rows(problem: Problem) -> Genes:
    """Smallest and largest architecture and the ends of every constrained metric, distinct."""
    space = problem.space
    rows = [*space.encode([space.smallest, space.largest])]
    for constraint in problem.constraints:
        table = problem.tables[constraint.metric]
        rows += [table.argmin(), table.argmax()]
    return unique_rows(np.stack(rows))


def unique_rows(genes: Genes) -> Genes:
    """Distinct rows in the order of their first appearance."""
    if genes.size == 0:
        return genes[:1]
    # choices are few: as bytes, eight of them are one number to sort by
    small = np.ascontiguousarray(genes, dtype=np.min_scalar_type(-int(np.abs(genes).max()) - 1))
    octets = small.view(np.uint8).reshape(len(genes), -1)
    padded = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    keys = padded.view(np.uint64)
    order = np.lexsort(keys.T)  # stable: the first of equals comes first
    new = np.ones(len(genes), dtype=bool)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    return genes[np.sort(order[new])]


def diverse_sample(problem: Problem, rng: np.random.Generator, n: int) -> Genes:
    """``n`` random rows of which half are crossed with an extreme one, shape (n, genes).

    Sums over many random blocks crowd around their mean; the crossed half spreads over the
    whole range of every cost.
    """
    rows = problem.space.sample(rng, n)
    half = n // 2
    extremes = extreme_rows(problem)
    partners = extremes[rng.integers(len(extremes), size=half)]
    rows[:half] = problem.space.crossover(rows[:half], partners, rng)
    return rows


def repair(
    problem: Problem,
    rows: Genes,
    rng: np.random.Generator,
    *,
    wanted: int = 1,
    rounds: int = REPAIR_ROUNDS,
) -> tuple[Genes, Values]:
    """Evolve rows towards the cheap constraints until ``wanted`` distinct ones meet them all.

    Keeps the least violating of parents and children of crossover and mutation, for at most
    ``rounds`` rounds. Returns distinct rows by ascending violation and their violations.
    """
    size = max(REPAIR_SIZE, 2 * wanted)
    rows = unique_rows(rows)
    violation = problem.cheap_violation(rows)
    for _ in range(rounds + 1):
        order = np.argsort(violation, kind="stable")[:size]
        rows, violation = rows[order], violation[order]
        if np.count_nonzero(violation == 0) >= wanted:
            break
        # parents by rank: the minimum of two draws from rows sorted by violation
        picks = rng.integers(len(rows), size=(2, 2, size)).min(axis=1)
        children = problem.space.crossover(rows[picks[0]], rows[picks[1]], rng)
        mutated = rng.random(size) < 0.75
        children[mutated] = problem.space.mutate(children[mutated], rng, 0.1)
        rows = unique_rows(np.concatenate([rows, children]))
        violation = problem.cheap_violation(rows)
    return rows, violation


def check_feasible(problem: Problem, members: int = 1) -> tuple[Genes, bool]:
    """Rows that meet every cheap constraint, shape (k, genes), and whether such are rare.

    A short evolution looks for one. Where it sees none, members are so rare that samplers would
    see none either: an integer programme over the whole space (``search.exact``) then gives up to
    ``members`` of them, or proves that there is none.

    Raises:
        InfeasibleError: There is none; names the nearest architecture and the limit that it meets.
            Where a metric does not add up, which no table of this project has, it says that none
            was seen instead.
        RunError: The programme's time limit passed before either was known.
    """
    rng = np.random.default_rng(0)
    for constraint in problem.constraints:
        _check_alone(problem, constraint)
    start = np.concatenate([extreme_rows(problem), diverse_sample(problem, rng, SEED_ROWS)])
    rows, violation = repair(problem, start, rng, rounds=QUICK_ROUNDS)
    if violation[0] == 0:
        return rows[:1], False
    constraints, tables, shape_rule, others = linear_constraints(problem)
    exact = meeting(problem.space, constraints, tables, shape_rule, count=members, seconds=SECONDS)
    if not others:
        return exact, True
    rows, violation = repair(problem, np.concatenate([exact, rows]), rng)
    if violation[0] == 0:
        return rows[:1], True
    raise InfeasibleError(
        f"no architecture of space {problem.space.name!r} was seen that meets all of "
        f"{'; '.join(str(c) for c in problem.constraints)}. "
        "Loosen these constraints, or take another space."
    )


def _check_alone(problem: Problem, constraint: Constraint) -> None:
    """Checks a limit against the extremes of its table; raises InfeasibleError."""
    table = problem.tables[constraint.metric]
    for bound, extreme, sign, word in (
        (constraint.maximum, table.argmin, 1.0, "smallest"),
        (constraint.minimum, table.argmax, -1.0, "largest"),
    ):
        if bound is None:
            continue
        row = extreme()
        value = float(table.predict(row[None])[0])
        if sign * (value - bound) <= 0:
            continue
        name = constraint.metric
        if name.partition("@")[0] == LATENCY:
            word = "fastest" if sign > 0 else "slowest"
        architecture = problem.space.decode(row[None])[0]
        room = 1 - constraint.margin  # what is typed is lowered to what must be met
        raise InfeasibleError(
            f"{name} {'≤' if sign > 0 else '≥'} {typed(name, bound / room)} cannot be met in "
            f"space {problem.space.name!r}: its {word} architecture {architecture} has "
            f"{typed(name, value)}{constraint.note}. Either {constraint.advice(value, sign > 0)}, "
            "or take another space."
        )
