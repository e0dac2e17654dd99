"""The exact solver against brute force, and what it says when there is nothing to find."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_search import cost_table, every_row

from predictors.counts import counts
from predictors.memory import peak_memory
from predictors.proxies.space_tables import PathTables
from predictors.tables.additive import AdditiveTable
from search import Constraint
from search.exact import optimise
from search.shape import ShapeRule
from search_space import Genes, SearchSpace, load_space
from search_space.errors import InfeasibleError


def mixed_space() -> SearchSpace:
    """About 50,000 architectures; window attention costs differ by a position's parity."""
    mixers = ["pooling", {"window_attention": {"window": 4, "head_dim": 8}}]
    return SearchSpace.from_dict(
        {
            "name": "mixed",
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
    return mixed_space()


@pytest.fixture(scope="module")
def rows(space: SearchSpace) -> Genes:
    rows = every_row(space)
    assert len(rows) == space.size > 30_000
    return rows


@pytest.fixture(scope="module")
def tables(space: SearchSpace) -> dict[str, AdditiveTable]:
    return {
        "latency_ms": cost_table(space, "a"),
        "latency_ms@b": cost_table(space, "b"),
        "benefit": cost_table(space, "c", growth=3.0),
    }


@pytest.fixture(scope="module")
def paths(space: SearchSpace) -> PathTables:
    return PathTables.build(space)


shares = st.floats(0.0, 1.0)


@settings(max_examples=10, deadline=None)
@given(first=shares, second=shares, low=st.floats(0.0, 0.5), maximise=st.booleans())
def test_the_optimum_is_that_of_brute_force(
    space: SearchSpace,
    rows: Genes,
    tables: dict[str, AdditiveTable],
    first: float,
    second: float,
    low: float,
    maximise: bool,
) -> None:
    values = {name: table.predict(rows) for name, table in tables.items()}

    def quantile(name: str, share: float) -> float:
        return float(np.quantile(values[name], share))

    constraints = [
        Constraint("latency_ms", maximum=quantile("latency_ms", first)),
        Constraint(
            "latency_ms@b",
            minimum=quantile("latency_ms@b", low * second),
            maximum=quantile("latency_ms@b", second),
        ),
    ]
    meets = sum(c.violation(values[c.metric]) for c in constraints) == 0
    if not meets.any():
        with pytest.raises(InfeasibleError, match="proven by integer programming"):
            optimise(space, tables["benefit"], constraints, tables, maximise=maximise)
        return
    feasible = values["benefit"][meets]
    expected = feasible.max() if maximise else feasible.min()
    found = optimise(space, tables["benefit"], constraints, tables, maximise=maximise, gap=0.0)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert tables["benefit"].predict(found.genes[None])[0] == pytest.approx(found.value)
    for constraint in constraints:
        value = tables[constraint.metric].predict(found.genes[None])
        assert constraint.violation(value)[0] == 0
    space.decode(found.genes[None])


@pytest.mark.parametrize("quantile", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("rho_share", [0.05, 0.5, 1.0])
def test_deepmad_under_a_bound_on_effectiveness_is_that_of_brute_force(
    space: SearchSpace,
    rows: Genes,
    tables: dict[str, AdditiveTable],
    paths: PathTables,
    quantile: float,
    rho_share: float,
) -> None:
    latency, rho = tables["latency_ms"].predict(rows), paths.effectiveness(rows)
    most, bound = float(np.quantile(latency, quantile)), float(np.quantile(rho, rho_share))
    meets = (latency <= most) & (rho <= bound * (1 + 1e-9))
    assert meets.any()
    found = optimise(
        space,
        paths,
        [Constraint("latency_ms", maximum=most)],
        tables,
        paths=paths,
        effectiveness=bound * (1 + 1e-9),
        gap=0.0,
    )
    assert found.value == pytest.approx(paths.score(rows)[meets].max(), rel=1e-6)
    assert paths.effectiveness(found.genes[None])[0] <= bound * (1 + 2e-9)
    assert found.bound >= found.value * (1 - 1e-9)


def test_rules_on_shape_and_memory_are_kept(
    space: SearchSpace, rows: Genes, tables: dict[str, AdditiveTable], paths: PathTables
) -> None:
    memory = peak_memory(space, 10)
    peak = memory.predict(rows)
    most = float(np.quantile(peak, 0.4))
    limits = [Constraint("memory_bytes", maximum=most)]
    all_tables = {**tables, "memory_bytes": memory}
    found = optimise(space, paths, limits, all_tables, shape_rule=True, gap=0.0)
    meets = (peak <= most) & (ShapeRule(space).predict(rows) == 0)
    assert found.value == pytest.approx(paths.score(rows)[meets].max(), rel=1e-6)


def test_no_limit_is_exceeded_by_the_solver_s_tolerance() -> None:
    space = load_space("digits")
    paths, tables = PathTables.build(space), counts(space, 10)
    rng = np.random.default_rng(0)
    macs = np.sort(tables["macs"].predict(space.sample(rng, 2000)))
    for limit in macs[[200, 900, 1700]] - 0.4:
        found = optimise(space, paths, [Constraint("macs", maximum=float(limit))], tables)
        assert tables["macs"].predict(found.genes[None])[0] <= limit
        assert found.bound >= found.value


def test_what_is_impossible_is_proven_to_be(
    space: SearchSpace, tables: dict[str, AdditiveTable], paths: PathTables
) -> None:
    with pytest.raises(InfeasibleError, match=r"latency_ms ≤ .*; effectiveness ρ ≤ 0.001: proven"):
        optimise(
            space,
            paths,
            [Constraint("latency_ms", maximum=100.0)],
            tables,
            paths=paths,
            effectiveness=0.001,
        )


def test_the_shape_rule_counts_and_finds_its_extremes(space: SearchSpace, rows: Genes) -> None:
    rule = ShapeRule(space)
    values = rule.predict(rows)
    for row, value in zip(rows[::1009], values[::1009], strict=True):
        architecture = space.decode(row[None])[0]
        w, d = architecture.widths, architecture.depths
        narrower = sum(max(0, a - b) for a, b in itertools.pairwise(w))
        assert value == narrower + sum(max(0, depth - d[2]) for depth in d)
    assert rule.predict(rule.argmin()[None])[0] == values.min() == 0
    assert rule.predict(rule.argmax()[None])[0] == values.max() > 0
    space.decode(np.stack([rule.argmin(), rule.argmax()]))
