"""Optima and fronts of whole problems against brute force; the parts of the solver alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import Accuracy, cost_table, small_space

from predictors.counts import counts
from predictors.memory import peak_memory
from predictors.proxies.space_tables import PathTables
from predictors.tables.additive import AdditiveTable
from results.pareto import non_dominated
from search import Constraint, Objective, Problem
from search.exact import Front, Optimum, Programme, optimise, solve, sweep, weighted_sum
from search.exact.core import Core, resolve
from search.exact.dual import minimise
from search.exact.integer import relaxed_bound, solve_integer
from search.exact.optimum import Combinations
from search.exact.relaxation import Relaxation
from search.samplers.base import enumerate_rows
from search.shape import SHAPE, ShapeRule
from search_space import Genes, SearchSpace, load_space
from search_space.errors import InfeasibleError, UsageError


def preset() -> SearchSpace:
    """64,512 architectures; window attention costs differ by a position's parity."""
    mixers = ["pooling", {"window_attention": {"window": 4, "head_dim": 8}}]
    return SearchSpace.from_dict(
        {
            "name": "enumerable",
            "macro": {"stem_kernel": 2, "stem_stride": 2},
            "resolution": [16, 24],
            "stages": [
                {"width": [8, 16], "depth": [1, 2], "mixers": mixers, "mlp_ratio": 2},
                {"width": [16, 24], "depth": 1, "mixers": mixers, "mlp_ratio": [2, 3]},
                {"width": [16, 32], "depth": [1, 2, 3], "mixers": mixers, "mlp_ratio": [2, 4]},
                {"width": [32, 40], "depth": 1, "mixers": ["pooling"], "mlp_ratio": [2]},
            ],
        }
    )


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return preset()


@pytest.fixture(scope="module")
def rows(space: SearchSpace) -> Genes:
    rows = enumerate_rows(space)
    assert len(rows) == space.size >= 50_000
    return rows


@pytest.fixture(scope="module")
def tables(space: SearchSpace) -> dict[str, AdditiveTable]:
    return {
        "accuracy": cost_table(space, "c", growth=3.0),
        "latency_ms": cost_table(space, "a"),
        "latency_ms@b": cost_table(space, "b"),
        "memory_bytes": peak_memory(space, 10),
        **counts(space, 10),
    }


@pytest.fixture(scope="module")
def values(rows: Genes, tables: dict[str, AdditiveTable]) -> dict[str, np.ndarray]:
    return {name: table.predict(rows) for name, table in tables.items()}


METRICS = ("latency_ms", "latency_ms@b", "macs", "num_params", "activations", "memory_bytes")
shares = st.floats(0.02, 1.0)


@st.composite
def constraint_sets(draw: st.DrawFn) -> list[tuple[str, float | None, float]]:
    """Metrics with the quantiles of their lower and upper limit."""
    chosen = draw(st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique=True))
    result = []
    for metric in chosen:
        high = draw(shares)
        banded = metric != "memory_bytes" and draw(st.booleans())
        result.append((metric, draw(st.floats(0.0, 0.6)) * high if banded else None, high))
    return result


def constraints_of(
    drawn: list[tuple[str, float | None, float]], values: dict[str, np.ndarray]
) -> tuple[Constraint, ...]:
    return tuple(
        Constraint(
            metric,
            maximum=float(np.quantile(values[metric], high)),
            minimum=None if low is None else float(np.quantile(values[metric], low)),
        )
        for metric, low, high in drawn
    )


def feasible(constraints: tuple[Constraint, ...], values: dict[str, np.ndarray]) -> np.ndarray:
    n = len(values["accuracy"])
    return sum((c.violation(values[c.metric]) for c in constraints), np.zeros(n)) == 0


def check_front(front: Front, problem: Problem, expected: np.ndarray) -> None:
    """The front's points are ``expected``, minimised, and its rows have them within the limits."""
    metrics = problem.cheap_metrics(front.genes)
    points = problem.objective_values(metrics)
    assert front.complete
    assert points.shape == expected.shape
    np.testing.assert_allclose(points, expected, rtol=1e-10)
    assert problem.violation(metrics).max() == 0
    first, second = problem.objectives
    np.testing.assert_allclose(front.quality, metrics[first.metric], rtol=1e-12)
    np.testing.assert_allclose(front.cost, metrics[second.metric], rtol=1e-12)
    assert front.gaps.max() <= 1e-11
    problem.space.decode(front.genes)


def distinct_front(points: np.ndarray) -> np.ndarray:
    """Distinct minimised points that nothing dominates, by the first objective."""
    front = points[non_dominated(points)]
    front = front[np.lexsort((front[:, 1], front[:, 0]))]
    near = np.isclose(front[1:], front[:-1], rtol=1e-12, atol=0).all(axis=1)
    return front[np.r_[True, ~near]]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(drawn=constraint_sets(), directions=st.tuples(st.booleans(), st.booleans()))
def test_optimum_and_front_are_those_of_brute_force(
    space: SearchSpace,
    rows: Genes,
    tables: dict[str, AdditiveTable],
    values: dict[str, np.ndarray],
    drawn: list[tuple[str, float | None, float]],
    directions: tuple[bool, bool],
) -> None:
    constraints = constraints_of(drawn, values)
    objectives = (
        Objective("accuracy", "maximize" if directions[0] else "minimize"),
        Objective("latency_ms", "maximize" if directions[1] else "minimize"),
    )
    single = Problem(space, objectives[:1], constraints, tables, evaluated=())
    double = Problem(space, objectives, constraints, tables, evaluated=())
    meets = feasible(constraints, values)
    if not meets.any():
        for problem in (single, double):
            with pytest.raises(InfeasibleError, match="proven"):
                solve(problem)
        return
    points = double.objective_values({name: v[meets] for name, v in values.items()})
    found = solve(single, gap=0.0)
    assert isinstance(found, Optimum)
    assert objectives[0].sign * found.value == pytest.approx(points[:, 0].min(), rel=1e-11)
    assert found.bound == pytest.approx(found.value, rel=1e-11)
    assert single.violation(single.cheap_metrics(found.genes[None]))[0] == 0
    front = solve(double)
    assert isinstance(front, Front)
    check_front(front, double, distinct_front(points))


def test_points_that_are_hardly_apart_are_all_found(space: SearchSpace) -> None:
    """Costs of which many differ by less than a solver's tolerance of a millionth."""
    rows = enumerate_rows(space)
    cost, fine = cost_table(space, "coarse"), cost_table(space, "fine")
    coarse = AdditiveTable(
        space,
        np.ones_like(cost.stem) + 1e-6 * fine.stem,
        tuple(np.round(b, 1) + 1e-6 * f for b, f in zip(cost.blocks, fine.blocks, strict=True)),
        cost.downsamples,
        np.ones_like(cost.head),
    )
    quality = weighted_sum([(1.0, coarse), (1e-6, cost_table(space, "other"))])
    tables = {"accuracy": quality, "latency_ms": coarse}
    objectives = (Objective("accuracy", "maximize"), Objective("latency_ms", "minimize"))
    limit = float(np.quantile(coarse.predict(rows), 0.001))
    limits = (Constraint("latency_ms", maximum=limit),)
    problem = Problem(space, objectives, limits, tables, evaluated=())
    metrics = problem.cheap_metrics(rows)
    points = problem.objective_values(metrics)[problem.violation(metrics) == 0]
    expected = distinct_front(points)
    apart = np.diff(np.sort(expected[:, 1])) / limit
    assert np.sum(apart < 1e-6) > 10
    front = solve(problem)
    assert isinstance(front, Front)
    check_front(front, problem, expected)


def test_equal_quality_counts_once_and_at_its_least_cost(
    space: SearchSpace, rows: Genes, tables: dict[str, AdditiveTable]
) -> None:
    """Many architectures share an entropy, in many combinations of widths."""
    paths = PathTables.build(space, 10)
    cost = tables["latency_ms"]
    points = np.stack([-np.round(paths.entropy.predict(rows), 11), cost.predict(rows)], axis=1)
    assert len(np.unique(points[:, 0])) < len(points) / 50
    expected = distinct_front(points)
    front = sweep(space, paths.entropy, cost)
    assert front.complete
    found = np.stack([-front.quality, front.cost], axis=1)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_few_points_have_bounds_that_nothing_exceeds(
    space: SearchSpace, tables: dict[str, AdditiveTable], values: dict[str, np.ndarray]
) -> None:
    for gap in (0.0, 0.05):
        front = sweep(
            space, tables["accuracy"], tables["latency_ms"], points=7, gap=gap, tables=tables
        )
        assert 3 <= len(front) <= 7
        assert not front.complete
        assert np.all(np.diff(front.cost) < 0)
        assert np.all(front.cost <= front.limits)
        assert front.gaps.max() <= gap + 1e-11
        for quality, limit, bound in zip(front.quality, front.limits, front.bounds, strict=True):
            best = values["accuracy"][values["latency_ms"] <= limit * (1 + 1e-12)].max()
            assert quality <= best * (1 + 1e-12)
            assert best <= bound * (1 + 1e-12)
    told: list[tuple[int, float]] = []
    sweep(
        space,
        tables["accuracy"],
        tables["latency_ms"],
        points=3,
        progress=lambda n, share: told.append((n, share)),
    )
    assert [n for n, _ in told] == list(range(1, len(told) + 1))
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert 0 <= told[0][1] <= told[-1][1] <= 1


def test_weighted_sums_and_the_rule_on_shape(
    space: SearchSpace,
    rows: Genes,
    tables: dict[str, AdditiveTable],
    values: dict[str, np.ndarray],
) -> None:
    both = weighted_sum([(2.0, tables["latency_ms"]), (-0.5, tables["latency_ms@b"])])
    expected = 2.0 * values["latency_ms"] - 0.5 * values["latency_ms@b"]
    np.testing.assert_allclose(both.predict(rows), expected, atol=1e-12)
    rule = ShapeRule(space)
    problem = Problem(
        space,
        (Objective("both", "maximize"),),
        (Constraint(SHAPE, maximum=0.0), Constraint("both", maximum=float(np.median(expected)))),
        {"both": both, SHAPE: rule},
        evaluated=(),
    )
    found = solve(problem, gap=0.0)
    assert isinstance(found, Optimum)
    meets = (rule.predict(rows) == 0) & (expected <= np.median(expected))
    assert found.value == pytest.approx(expected[meets].max(), rel=1e-11)
    corrected = AdditiveTable(
        space, both.stem, both.blocks, both.downsamples, both.head, scale=3.0, offset=-7.0
    )
    doubled = weighted_sum([(2.0, corrected)])
    np.testing.assert_allclose(doubled.predict(rows), 2 * corrected.predict(rows), atol=1e-12)


def test_what_cannot_be_proven_is_refused(
    space: SearchSpace, tables: dict[str, AdditiveTable]
) -> None:
    accuracy, latency = Objective("accuracy", "maximize"), Objective("latency_ms", "minimize")

    def problem(*objectives: Objective, limits: tuple[Constraint, ...] = ()) -> Problem:
        return Problem(space, objectives, limits, {**tables, SHAPE: ShapeRule(space)}, ("quality",))

    with pytest.raises(UsageError, match="quality has no additive table"):
        solve(problem(Objective("quality", "maximize")))
    with pytest.raises(UsageError, match="3 objectives"):
        solve(problem(accuracy, latency, Objective("macs", "minimize")))
    with pytest.raises(UsageError, match="lower limits can be kept of sums only"):
        solve(problem(accuracy, limits=(Constraint("memory_bytes", minimum=10.0),)))
    with pytest.raises(UsageError, match="only sums can be optimised"):
        solve(problem(Objective("memory_bytes", "minimize")))
    with pytest.raises(UsageError, match="only sums can be optimised"):
        solve(problem(accuracy, Objective("memory_bytes", "minimize")))
    with pytest.raises(UsageError, match="≤ 0 only"):
        solve(problem(accuracy, limits=(Constraint(SHAPE, maximum=1.0),)))
    with pytest.raises(UsageError, match="no place in a sum"):
        weighted_sum([(1.0, tables["memory_bytes"])])
    for objectives in ((accuracy,), (accuracy, latency)):
        with pytest.raises(InfeasibleError, match=r"no architecture .* latency_ms ≤ .*: proven"):
            solve(problem(*objectives, limits=(Constraint("latency_ms", maximum=1e-6),)))


# The parts --------------------------------------------------------------------------------------


def programmes(
    space: SearchSpace, tables: dict[str, AdditiveTable], share: float
) -> list[Programme]:
    limits = []
    for metric in ("latency_ms", "macs"):
        low, high = tables[metric].predict(
            np.stack([tables[metric].argmin(), tables[metric].argmax()])
        )
        limits.append(Constraint(metric, maximum=float(low + share * (high - low))))
    return Combinations(space).programmes(tables["accuracy"], limits, tables)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_bounds_enumeration_and_integer_programme_agree(
    space: SearchSpace, tables: dict[str, AdditiveTable], share: float
) -> None:
    every = programmes(space, tables, share)
    relaxation = Relaxation(every)
    rng, cut_short = np.random.default_rng(0), 0
    for row in rng.choice(len(every), 8, replace=False):
        programme = every[row]
        exact = solve_integer(programme, gap=0.0)
        lowest = float(relaxation.lowest()[row])
        prices = rng.random(2)
        core = Core(relaxation, int(row), prices)
        resolved = resolve(core, lowest, -np.inf, 0.0)
        assert resolved.complete
        if exact is None:
            assert resolved.best is None
            assert resolved.ceiling == -np.inf
            continue
        assert resolved.best is not None
        assert resolved.best.value == pytest.approx(exact.value, rel=1e-9)
        assert exact.value <= core.bound * (1 + 1e-12)
        placed = relaxation.placed(int(row), resolved.best.depths, resolved.best.counts)
        assert programme.meets(placed)
        assert programme.value(placed) == pytest.approx(resolved.best.value, rel=1e-12)
        # an enumeration that is cut short still says what nothing exceeds
        short = resolve(Core(relaxation, int(row), prices, most=3), lowest, -np.inf, 0.0)
        cut_short += not short.complete
        assert short.ceiling >= exact.value * (1 - 1e-12)
    assert cut_short > 0


def test_prices_reach_the_bound_of_the_linear_relaxation(
    space: SearchSpace, tables: dict[str, AdditiveTable]
) -> None:
    every = programmes(space, tables, 0.3)
    relaxation = Relaxation(every)
    lowest = relaxation.lowest()
    reached = 0
    for row in range(0, len(every), len(every) // 8):
        seen: list[float] = []
        minimise(
            relaxation,
            np.array([row]),
            np.zeros(2),
            lambda: -np.inf,
            float(lowest[row]),
            100,
            lambda rows, prices, found, seen=seen: seen.append(float(found.bounds[0])),
        )
        expected = relaxed_bound(every[row])
        if expected is None:
            assert min(seen) < lowest[row]
        else:
            reached += 1
            assert min(seen) == pytest.approx(expected, rel=1e-6)
    assert reached > 0


def test_too_many_candidates_go_to_the_integer_programme(
    space: SearchSpace,
    tables: dict[str, AdditiveTable],
    values: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("search.exact.best.EASY", 2)
    monkeypatch.setattr("search.exact.best.MOST_LABELS", 2)
    most = float(np.quantile(values["latency_ms"], 0.3))
    limits = [Constraint("latency_ms", maximum=most)]
    found = optimise(space, tables["accuracy"], limits, tables, gap=0.0)
    expected = values["accuracy"][values["latency_ms"] <= most].max()
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.bound >= expected * (1 - 1e-12)


def test_a_large_space_is_solved_to_the_last_digit() -> None:
    """On ``tiny``: proven without a gap, and no worse than anything of a large sample."""
    space = load_space("tiny")
    tables, paths = counts(space), PathTables.build(space)
    rows = space.sample(np.random.default_rng(0), 50_000)
    macs, params = (tables[name].predict(rows) for name in ("macs", "num_params"))
    for share in (0.1, 0.6):
        limits = [
            Constraint("macs", maximum=float(np.quantile(macs, share))),
            Constraint("num_params", maximum=float(np.quantile(params, share))),
        ]
        meets = (macs <= limits[0].maximum) & (params <= limits[1].maximum)
        for objective, of_rows in ((paths, paths.score), (paths.entropy, paths.entropy.predict)):
            found = optimise(space, objective, limits, tables, gap=0.0)
            assert found.proof.gap <= 1e-11
            assert found.value >= of_rows(rows[meets]).max()
            assert of_rows(found.genes[None])[0] == pytest.approx(found.value, rel=1e-12)
            for limit in limits:
                assert limit.violation(tables[limit.metric].predict(found.genes[None]))[0] == 0


def test_the_interface_of_the_small_space_is_exact_too() -> None:
    space = small_space()
    additive = Accuracy(space).table
    latency = cost_table(space, "latency")
    rows = enumerate_rows(space)
    front = sweep(space, additive, latency)
    points = np.stack([-additive.predict(rows), latency.predict(rows)], axis=1)
    expected = distinct_front(points)
    np.testing.assert_allclose(np.stack([-front.quality, front.cost], axis=1), expected)
    assert all(a < b for a, b in itertools.pairwise(-front.quality))
