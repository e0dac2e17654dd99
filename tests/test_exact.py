"""The integer programme against brute force: optima, fronts, feasibility, and what is refused."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import MemoryJournal, cost_table

from predictors.counts import counts
from predictors.memory import peak_memory
from predictors.proxies.space_tables import PathTables
from predictors.tables.additive import AdditiveTable
from results.pareto import non_dominated
from search import Constraint, InProcessExecutor, Objective, Problem, check_feasible, search
from search.exact import Front, meeting, optimise, solve, sweep
from search.exact.programme import Programme
from search.exact.system import Answer, System, Values
from search.samplers.base import enumerate_rows
from search.samplers.random_search import RandomSearch
from search.shape import ShapeRule
from search_space import Architecture, Genes, SearchSpace, load_space
from search_space.errors import InfeasibleError, RunError, UsageError
from search_space.space_definition import space_from_dict

Metrics = dict[str, np.ndarray]
RESOLUTION = 2e-6  # of the ranges: what a sweep tells apart


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """64,512 architectures; window attention costs differ by a position's parity."""
    mixers = ["pooling", {"window_attention": {"window": 4, "head_dim": 8}}]
    return space_from_dict(
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
def values(rows: Genes, tables: dict[str, AdditiveTable]) -> Metrics:
    return {name: table.predict(rows) for name, table in tables.items()}


@pytest.fixture(scope="module")
def paths(space: SearchSpace) -> PathTables:
    return PathTables.build(space)


METRICS = ("latency_ms", "latency_ms@b", "macs", "num_params", "activations", "memory_bytes")


@st.composite
def constraint_sets(draw: st.DrawFn) -> list[tuple[str, float | None, float]]:
    """Metrics with the quantiles of their lower and upper limit."""
    chosen = draw(st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique=True))
    result = []
    for metric in chosen:
        high = draw(st.floats(0.02, 1.0))
        result.append(
            (metric, draw(st.floats(0, 0.9)) * high if draw(st.booleans()) else None, high)
        )
    return result


def constraints_of(
    drawn: list[tuple[str, float | None, float]], values: Metrics
) -> tuple[Constraint, ...]:
    return tuple(
        Constraint(
            metric,
            maximum=float(np.quantile(values[metric], high)),
            minimum=None if low is None else float(np.quantile(values[metric], low)),
        )
        for metric, low, high in drawn
    )


def feasible(constraints: tuple[Constraint, ...], values: Metrics) -> np.ndarray:
    n = len(values["accuracy"])
    return sum((c.violation(values[c.metric]) for c in constraints), np.zeros(n)) == 0


def check_front(front: Front, problem: Problem, points: np.ndarray) -> None:
    """Nothing dominates a point of the front, and nothing of ``points`` is missed by it.

    Args:
        points: objectives of all feasible architectures, minimised, shape (n, 2).
    """
    metrics = problem.cheap_metrics(front.genes)
    own = problem.objective_values(metrics)
    assert problem.violation(metrics).max() == 0
    problem.space.decode(front.genes)
    expected = points[non_dominated(points)]
    size = np.maximum(np.ptp(expected, axis=0), 1e-9)
    rounding = 1e-10 * np.abs(points).max(axis=0)
    dominated = (expected[None] < own[:, None] - rounding).all(axis=2)
    assert not dominated.any()
    near = (own[None] <= expected[:, None] + RESOLUTION * size + rounding).all(axis=2)
    assert near.any(axis=1).all()
    assert front.complete
    assert all(point.proof.status == "optimal" for point in front.points)
    sign = problem.objectives[0].sign
    bounds = sign * np.array([point.proof.bound for point in front.points])
    assert (bounds <= own[:, 0] + rounding[0]).all()
    assert front.gap <= 3e-6 * max(1.0, size[0] / np.abs(own[:, 0]).min())
    np.testing.assert_allclose(sign * front.quality, own[:, 0])


@settings(max_examples=4, deadline=None, derandomize=True)
@given(drawn=constraint_sets(), directions=st.tuples(st.booleans(), st.booleans()))
def test_optimum_and_front_are_those_of_brute_force(
    space: SearchSpace,
    tables: dict[str, AdditiveTable],
    values: Metrics,
    drawn: list[tuple[str, float | None, float]],
    directions: tuple[bool, bool],
) -> None:
    constraints = constraints_of(drawn, values)
    objectives = (
        Objective("accuracy", "maximize" if directions[0] else "minimize"),
        Objective("latency_ms", "maximize" if directions[1] else "minimize"),
    )
    single = Problem(space, objectives[:1], constraints, tables, evaluated=())
    meets = feasible(constraints, values)
    if not meets.any():
        with pytest.raises(InfeasibleError, match="proven"):
            solve(single)
        return
    points = single.objective_values({"accuracy": values["accuracy"][meets]})
    optimum = solve(single, gap=0.0).points[0]
    assert objectives[0].sign * optimum.value == pytest.approx(points.min(), rel=1e-9)
    assert optimum.proof.bound == pytest.approx(optimum.value, rel=1e-8)
    assert single.violation(single.cheap_metrics(optimum.genes[None]))[0] == 0
    double = Problem(space, objectives, constraints, tables, evaluated=())
    front = solve(double, points=3)
    own = double.objective_values(double.cheap_metrics(front.genes))
    all_points = double.objective_values({name: v[meets] for name, v in values.items()})
    for point in own:
        better = all_points < point - 1e-9 * np.abs(all_points).max(axis=0)
        assert not better.all(axis=1).any()


@pytest.mark.parametrize("share", [None, 0.4])
def test_the_whole_front_is_that_of_brute_force(
    space: SearchSpace, tables: dict[str, AdditiveTable], values: Metrics, share: float | None
) -> None:
    """Under a cap on parameters as without: a sweep ends, and steps over nothing."""
    constraints = () if share is None else constraints_of([("num_params", 0.1, share)], values)
    objectives = (Objective("accuracy", "maximize"), Objective("latency_ms", "minimize"))
    limits = (*constraints, *constraints_of([("latency_ms", None, 0.02)], values))
    problem = Problem(space, objectives, limits, tables, evaluated=())
    meets = feasible(limits, values)
    points = problem.objective_values({name: v[meets] for name, v in values.items()})
    front = solve(problem)
    assert len(front) > 10
    check_front(front, problem, points)


def test_equal_quality_counts_once_and_at_its_least_cost(
    space: SearchSpace, rows: Genes, values: Metrics, tables: dict[str, AdditiveTable]
) -> None:
    """Many architectures share a quality of few levels, and costs lie closer than rounding."""
    layers = PathTables.build(space).layers
    front = sweep(space, layers, tables["latency_ms"])
    points = np.stack([-layers.predict(rows), values["latency_ms"]], axis=1)
    least = {q: points[points[:, 0] == q, 1].min() for q in np.unique(points[:, 0])}
    for point, cost in zip(front.points, front.cost, strict=True):
        assert cost == pytest.approx(least[-point.value], rel=1e-9)
    assert len(np.unique(front.quality)) == len(front)


def test_points_are_evenly_spaced_and_proven(
    space: SearchSpace, tables: dict[str, AdditiveTable], values: Metrics
) -> None:
    seen: list[tuple[int, float]] = []
    front = sweep(
        space,
        tables["accuracy"],
        tables["latency_ms"],
        points=5,
        progress=lambda n, share: seen.append((n, share)),
    )
    assert [n for n, _ in seen] == list(range(1, len(front) + 1))
    assert seen[-1][1] == pytest.approx(1.0)
    assert 3 <= len(front) <= 5
    assert not front.complete
    assert front.cost[-1] == pytest.approx(values["latency_ms"].min())
    assert front.quality[0] == pytest.approx(values["accuracy"].max())
    assert all(a > b for a, b in itertools.pairwise(front.cost))


def timed_out(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Lets the solver's time limit pass in each solve but the first ones."""
    solve, calls = System.maximise, itertools.count()

    def maximise(self: System, objective: Values, **options: float) -> Answer:
        if next(calls) < after:
            return solve(self, objective, **options)
        return Answer(None, np.inf, 0, False)

    monkeypatch.setattr(System, "maximise", maximise)


def test_a_front_that_the_time_limit_cuts_is_not_called_complete(
    space: SearchSpace, tables: dict[str, AdditiveTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = tables["accuracy"], tables["latency_ms"]
    timed_out(monkeypatch, 1)  # the best is known, the cheapest is not
    with pytest.raises(RunError, match="gave no architecture within 5 s"):
        sweep(space, *sums, seconds=5)
    monkeypatch.undo()
    timed_out(monkeypatch, 4)  # both, and two points
    front = sweep(space, *sums)
    assert len(front) == 2
    assert not front.complete


def test_a_tightened_solve_without_time_is_not_called_beyond_precision(
    space: SearchSpace, tables: dict[str, AdditiveTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Programme, "meets", lambda self, genes: False)
    timed_out(monkeypatch, 1)
    with pytest.raises(RunError, match="gave no architecture within 5 s"):
        optimise(space, tables["accuracy"], seconds=5)


@pytest.mark.parametrize(("quantile", "rho_share"), [(0.02, 0.5), (0.3, 0.05), (0.9, 1.0)])
def test_deepmad_under_a_bound_on_effectiveness_is_that_of_brute_force(
    space: SearchSpace,
    rows: Genes,
    tables: dict[str, AdditiveTable],
    values: Metrics,
    paths: PathTables,
    quantile: float,
    rho_share: float,
) -> None:
    rho = paths.effectiveness(rows)
    most = float(np.quantile(values["latency_ms"], quantile))
    bound = float(np.quantile(rho, rho_share)) * (1 + 1e-9)
    meets = (values["latency_ms"] <= most) & (rho <= bound)
    limits = [Constraint("latency_ms", maximum=most)]
    optimum = optimise(space, paths, limits, tables, effectiveness=(paths, bound), gap=0.0)
    assert optimum.value == pytest.approx(paths.score(rows)[meets].max(), rel=1e-6)
    assert paths.effectiveness(optimum.genes[None])[0] <= bound * (1 + 2e-9)
    assert optimum.proof.bound >= optimum.value * (1 - 1e-9)


def test_rules_on_shape_and_memory_are_kept(
    space: SearchSpace,
    rows: Genes,
    tables: dict[str, AdditiveTable],
    values: Metrics,
    paths: PathTables,
) -> None:
    low, high = (float(np.quantile(values["memory_bytes"], share)) for share in (0.2, 0.4))
    limits = [Constraint("memory_bytes", minimum=low, maximum=high)]
    optimum = optimise(space, paths, limits, tables, shape_rule=True, gap=0.0)
    meets = (values["memory_bytes"] <= high) & (values["memory_bytes"] >= low)
    meets &= ShapeRule(space).predict(rows) == 0
    assert optimum.value == pytest.approx(paths.score(rows)[meets].max(), rel=1e-6)


def test_what_is_impossible_is_proven_to_be(
    space: SearchSpace, tables: dict[str, AdditiveTable], paths: PathTables
) -> None:
    with pytest.raises(InfeasibleError, match=r"latency_ms ≤ .*; effectiveness ρ ≤ 0.001: proven"):
        optimise(
            space,
            paths,
            [Constraint("latency_ms", maximum=100.0)],
            tables,
            effectiveness=(paths, 0.001),
        )


@cache
def large(preset: str) -> tuple[SearchSpace, dict[str, AdditiveTable]]:
    space = load_space(preset)
    return space, {"latency_ms": cost_table(space, "a"), **counts(space, 10)}


@pytest.mark.parametrize(("seed", "width"), [(0, 0.01), (1, 0.01), (3, 0.01), (4, 0.01)])
def test_bands_around_a_known_architecture_have_a_member(seed: int, width: float) -> None:
    space, tables = large("digits")
    row = space.sample(np.random.default_rng(seed), 1)
    constraints = tuple(
        Constraint(m, maximum=value * (1 + width), minimum=value * (1 - width))
        for m in ("latency_ms", "num_params", "macs")
        for value in [float(tables[m].predict(row)[0])]
    )
    problem = Problem(space, (Objective("latency_ms", "minimize"),), constraints, tables, ())
    members, _ = check_feasible(problem)
    assert len(members) >= 1
    assert problem.cheap_violation(members).max() == 0
    space.decode(members)


def test_a_search_within_a_narrow_band_evaluates_members_that_no_sampler_sees() -> None:
    space, tables = large("digits")
    row = space.sample(np.random.default_rng(1), 1)
    constraints = tuple(
        Constraint(m, maximum=value * 1.01, minimum=value * 0.99)
        for m in ("latency_ms", "num_params", "macs")
        for value in [float(tables[m].predict(row)[0])]
    )
    objectives = (Objective("accuracy", "maximize"), Objective("latency_ms", "minimize"))
    problem = Problem(space, objectives, constraints, tables)
    result = search(
        problem,
        RandomSearch(problem, seed=0),
        InProcessExecutor(lambda architecture: {"accuracy": 0.5}),
        MemoryJournal(),
        num_evaluations=2,
        batch_size=2,
    )
    assert len(result.evaluations) == 2
    genes = space.encode([Architecture.from_dict(e.architecture) for e in result.evaluations])
    assert problem.cheap_violation(genes).max() == 0


def test_a_band_as_narrow_as_one_architecture_has_it(
    space: SearchSpace, rows: Genes, tables: dict[str, AdditiveTable], values: Metrics
) -> None:
    for i in range(0, len(rows), len(rows) // 5):
        exact = [Constraint(m, *(2 * [float(values[m][i])])) for m in ("latency_ms", "macs")]
        row = meeting(space, exact, tables)
        assert tables["latency_ms"].predict(row)[0] == pytest.approx(values["latency_ms"][i])


def test_what_cannot_be_met_together_names_the_nearest_and_what_would_do(
    space: SearchSpace, tables: dict[str, AdditiveTable], values: Metrics
) -> None:
    least = float(values["latency_ms"].min())
    many = float(values["macs"].max())
    constraints = (
        Constraint("latency_ms", maximum=1.2 * least, margin=0.2),
        Constraint("macs", minimum=0.9 * many),
    )
    assert not feasible(constraints, values).any()
    problem = Problem(space, (Objective("macs", "minimize"),), constraints, tables, ())
    with pytest.raises(InfeasibleError, match="proven by an integer programme") as error:
        check_feasible(problem)
    # what the message says to type is met when it is typed
    text = str(error.value)
    limit = text.partition("raise the limit of latency_ms to ")[2].partition("ms or more")[0]
    lower = text.partition("lower the minimum of macs to ")[2].partition("M or less")[0]
    loosened = []
    if limit:
        assert "the margin of 20% is left free" in text
        loosened.append(Constraint("latency_ms", maximum=float(limit) * 0.8))
    if lower:
        loosened.append(Constraint("macs", minimum=float(lower) * 1e6))
    kept = {c.metric: c for c in (*constraints, *loosened)}
    assert feasible(tuple(kept.values()), values).any()
    assert loosened


def test_problems_that_are_not_additive_are_refused_with_a_way_out(
    space: SearchSpace, tables: dict[str, AdditiveTable]
) -> None:
    down = [Objective(m, "minimize") for m in ("macs", "latency_ms", "num_params")]
    for objectives, message in (
        ([Objective("accuracy", "maximize")], r"accuracy does not add up.*surrogate"),
        ([Objective("memory_bytes", "minimize")], "memory_bytes is the largest of its parts"),
        (down, "3 objectives: exact fronts have two"),
    ):
        cheap = {m: t for m, t in tables.items() if m != "accuracy"}
        with pytest.raises(UsageError, match=message):
            solve(Problem(space, tuple(objectives), (), cheap))


def test_the_shape_rule_counts_and_finds_its_extremes(space: SearchSpace, rows: Genes) -> None:
    rule = ShapeRule(space)
    excess = rule.predict(rows)
    for row, value in zip(rows[::1009], excess[::1009], strict=True):
        architecture = space.decode(row[None])[0]
        w, d = architecture.widths, architecture.depths
        narrower = sum(max(0, a - b) for a, b in itertools.pairwise(w))
        assert value == narrower + sum(max(0, depth - d[2]) for depth in d)
    assert rule.predict(rule.argmin()[None])[0] == excess.min() == 0
    assert rule.predict(rule.argmax()[None])[0] == excess.max() > 0
    space.decode(np.stack([rule.argmin(), rule.argmax()]))


def test_a_large_space_is_solved_to_the_last_digit() -> None:
    """On ``digits``: proven without a gap, and no worse than anything of a large sample."""
    space, tables = large("digits")
    paths = PathTables.build(space)
    rows = space.sample(np.random.default_rng(0), 50_000)
    macs, params = (tables[name].predict(rows) for name in ("macs", "num_params"))
    limits = [
        Constraint("macs", maximum=float(np.quantile(macs, 0.3)) - 0.4),
        Constraint("num_params", maximum=float(np.quantile(params, 0.3))),
    ]
    meets = (macs <= limits[0].maximum) & (params <= limits[1].maximum)
    for objective, of_rows in ((paths, paths.score), (paths.entropy, paths.entropy.predict)):
        optimum = optimise(space, objective, limits, tables, gap=0.0)
        assert optimum.proof.gap <= 1e-8
        assert optimum.value >= of_rows(rows[meets]).max()
        assert of_rows(optimum.genes[None])[0] == pytest.approx(optimum.value, rel=1e-12)
        for limit in limits:
            assert limit.violation(tables[limit.metric].predict(optimum.genes[None]))[0] == 0
