"""Spaces of every sort against plain listing: encoding, operators, tables, programmes, models."""

from __future__ import annotations

import itertools
import zlib
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from space_kinds import NAMES, kind_of_space
from synthetic_search import cost_table

from predictors.counts import count_architecture, counts
from predictors.memory import peak_memory
from predictors.proxies import Network
from predictors.proxies.deepmad import stage_ends
from predictors.proxies.space_tables import (
    CLOSED_FORMS,
    PathTables,
    SpaceScores,
    architecture_ends,
    score_architecture,
)
from predictors.surrogates.features import AdditiveFeatures, GeneFeatures
from predictors.tables.additive import AdditiveTable, entries
from results.pareto import non_dominated
from search import Constraint, Objective, Problem
from search.exact import optimise, solve, sweep
from search.samplers import SAMPLERS, make_sampler
from search.samplers.base import enumerate_rows
from search.samplers.optuna_parameters import parameters_of, row_of
from search.scaling.base import ScalingMethod, ScalingTask
from search.scaling.contract import Contract
from search.scaling.cost import NetworkCosts
from search.scaling.deepmad import DeepMADGrowth
from search.shape import ShapeRule
from search_space import (
    Architecture,
    Genes,
    ModuleSpec,
    SearchSpace,
    Stage,
    components,
    load_space,
    space_names,
)
from search_space.errors import InfeasibleError
from search_space.space_definition import space_from_dict
from search_space.stage_space import INACTIVE

every_kind = pytest.mark.parametrize("name", NAMES)
seeds = st.integers(0, 2**32 - 1)


def listed(space: SearchSpace) -> list[Architecture]:
    """All architectures, of the definition and without the encoding."""
    stages = [
        [
            Stage(width, blocks, stage.stride)
            for width in stage.widths
            for depth in stage.depths
            for blocks in itertools.product(*stage.positions[:depth])
        ]
        for stage in space.stages
    ]
    chosen = itertools.product(space.resolutions, *stages)
    return [Architecture(space.macro, side, tuple(rest)) for side, *rest in chosen]


@cache
def rows_of(name: str) -> Genes:
    return enumerate_rows(kind_of_space(name))


def any_value(spec: ModuleSpec, in_size: int) -> float:
    """Any number that differs between entries."""
    return zlib.crc32(f"{spec}@{in_size}".encode()) / 2**32


def assert_canonical(space: SearchSpace, genes: Genes) -> None:
    np.testing.assert_array_equal(space.encode(space.decode(genes)), genes)


# Rows ---------------------------------------------------------------------------------------


@every_kind
def test_rows_are_the_architectures_one_by_one(name: str) -> None:
    space, everything = kind_of_space(name), listed(kind_of_space(name))
    rows = rows_of(name)
    assert space.size == len(rows) == len(everything) == len(set(everything))
    assert len(np.unique(rows, axis=0)) == space.size
    assert {a.digest for a in space.decode(rows)} == {a.digest for a in everything}
    assert_canonical(space, rows)
    assert space_from_dict(space.to_dict()) == space
    assert {space.smallest, space.largest} <= set(everything)


@given(st.sampled_from(NAMES), seeds, st.sampled_from([0.0, 0.2, 1.0]))
@settings(max_examples=40, deadline=None)
def test_operators_give_rows_of_the_space(name: str, seed: int, rate: float) -> None:
    space, rng = kind_of_space(name), np.random.default_rng(seed)
    parents = space.sample(rng, 8)
    assert_canonical(space, parents)
    mutated = space.mutate(parents, rng, rate)
    assert_canonical(space, mutated)
    assert (mutated != parents).any(axis=1).all()
    child = space.crossover(parents, parents[::-1], rng)
    assert_canonical(space, child)
    assert (((child == parents) | (child == parents[::-1])) | (child == INACTIVE)).all()


@every_kind
def test_mutation_reaches_everything(name: str) -> None:
    space, rng = kind_of_space(name), np.random.default_rng(0)
    reached = space.encode([space.smallest])
    for _ in range(60):
        reached = np.unique(np.concatenate([reached, space.mutate(reached, rng, 0.3)]), axis=0)
    assert len(reached) == space.size


@pytest.mark.parametrize("name", [*NAMES, *space_names()])
def test_neighbours_differ_in_one_parameter(name: str) -> None:
    space = kind_of_space(name) if name in NAMES else load_space(name)
    for stage in space.stages:
        for choices, of_choice in zip(stage.positions, stage.neighbours, strict=True):
            plain = [block.to_dict() for block in choices]
            for i, near in enumerate(of_choice):
                expected = [
                    j
                    for j, other in enumerate(plain)
                    if other.keys() == plain[i].keys()
                    and sum(other[key] != plain[i][key] for key in other) == 1
                    and all(other.get(key) == plain[i].get(key) for key in ("block", "mixer"))
                ]
                assert near.tolist() == (expected or [i])


@every_kind
def test_parameters_of_optuna_give_the_row_again(name: str) -> None:
    space = kind_of_space(name)
    for row in rows_of(name)[::7]:
        np.testing.assert_array_equal(row_of(space, parameters_of(space, row)), row)


# Tables -------------------------------------------------------------------------------------


@every_kind
def test_a_table_is_the_sum_over_components(name: str) -> None:
    space, rows = kind_of_space(name), rows_of(name)
    table = AdditiveTable.build(space, 5, any_value, scale=1.5, offset=0.25)
    chains = [components(architecture, 5) for architecture in space.decode(rows)]
    expected = [sum(any_value(item.spec, item.in_size) for item in chain) for chain in chains]
    predicted = table.predict(rows)
    np.testing.assert_allclose(predicted, 0.25 + 1.5 * np.array(expected), rtol=1e-12)
    asked = {(item.spec, item.in_size) for chain in chains for item in chain}
    assert set(entries(space, 5)) == asked
    largest = AdditiveTable.build(space, 5, any_value, combine="max")
    expected = [max(any_value(item.spec, item.in_size) for item in chain) for chain in chains]
    np.testing.assert_allclose(largest.predict(rows), expected, rtol=1e-12)
    for row, chain, value in list(zip(rows, chains, predicted, strict=True))[::5]:
        parts = table.breakdown(row)
        assert [path for path, _ in parts] == [*(item.path for item in chain), "correction"]
        assert sum(share for _, share in parts) == pytest.approx(value)


@every_kind
@pytest.mark.parametrize("combine", ["sum", "max"])
def test_extremes_are_those_of_the_list(name: str, combine: str) -> None:
    space, rows = kind_of_space(name), rows_of(name)
    for salt in range(4):
        table = AdditiveTable.build(
            space,
            5,
            lambda spec, size, salt=salt: (
                any_value(spec, size + 100 * salt) - 0.3 * (combine == "sum")
            ),
            combine=combine,
        )
        values, ends = table.predict(rows), np.stack([table.argmin(), table.argmax()])
        assert_canonical(space, ends)
        np.testing.assert_allclose(table.predict(ends), [values.min(), values.max()])


@every_kind
def test_counts_and_closed_forms_are_those_of_each_architecture(name: str) -> None:
    space = kind_of_space(name)
    rows = rows_of(name)[:: max(1, space.size // 12)]
    scores, tables = SpaceScores.build(space), counts(space, 1000)
    for row, architecture in zip(rows, space.decode(rows), strict=True):
        counted = count_architecture(architecture, 1000)
        for metric, table in tables.items():
            assert table.predict(row[None])[0] == counted[metric]
        for form in CLOSED_FORMS:
            expected = score_architecture(form, architecture)
            assert scores.predict(form, row[None])[0] == pytest.approx(expected, rel=1e-9)
        path = Network.of_architecture(architecture).structure.path
        assert scores.paths.layers.predict(row[None])[0] == path.layers
        assert scores.paths.entropy.predict(row[None])[0] == pytest.approx(path.entropy)


@every_kind
def test_ends_of_scales_are_those_of_the_trace(name: str) -> None:
    """But that stems of several strides, and wide entries of blocks, are further scales there."""
    space = kind_of_space(name)
    for architecture in (space.smallest, space.largest):
        ends = architecture_ends(architecture)
        if name in ("blocks", "entries"):
            ends = ends[-1:]
        traced = stage_ends(Network.of_architecture(architecture).structure)[-len(ends) :]
        for one, other in zip(ends, traced, strict=True):
            assert (one.channels, one.positions, one.layers) == (
                other.channels,
                other.positions,
                other.layers,
            )
            assert one.entropy == pytest.approx(other.entropy)


@every_kind
def test_extremes_of_the_shape_are_those_of_the_list(name: str) -> None:
    rule, rows = ShapeRule(kind_of_space(name)), rows_of(name)
    ends = np.stack([rule.argmin(), rule.argmax()])
    assert_canonical(kind_of_space(name), ends)
    excess = rule.predict(rows)
    np.testing.assert_array_equal(rule.predict(ends), [excess.min(), excess.max()])


# Models -------------------------------------------------------------------------------------


@every_kind
def test_what_is_linear_in_features_is_a_table(name: str) -> None:
    space, rows = kind_of_space(name), rows_of(name)
    features = AdditiveFeatures(space)
    encoded = features.encode(rows)
    weights = np.random.default_rng(0).normal(size=encoded.shape[1])
    table = features.table(weights, 0.5)
    np.testing.assert_allclose(table.predict(rows), 0.5 + encoded @ weights, atol=1e-9)
    ends = table.predict(np.stack([table.argmin(), table.argmax()]))
    np.testing.assert_allclose(ends, [table.predict(rows).min(), table.predict(rows).max()])
    for row in rows[::17]:
        total = sum(share for _, share in table.breakdown(row))
        assert total == pytest.approx(table.predict(row[None])[0])


@every_kind
def test_features_of_genes_tell_all_rows_apart(name: str) -> None:
    space, rows = kind_of_space(name), rows_of(name)
    features = GeneFeatures(space)
    encoded = features.encode(rows)
    assert len(np.unique(encoded.round(9), axis=0)) == space.size
    near = np.zeros((len(rows), space.num_genes))
    for column, gene in enumerate(features.group):  # distance to the first row, gene by gene
        near[:, gene] += (encoded[:, column] - encoded[0, column]) ** 2
    both = (rows != INACTIVE) & (rows[0] != INACTIVE)
    assert (near[both] <= 1 + 1e-9).all()
    np.testing.assert_array_equal(near > 1e-12, rows != rows[0])


# Programmes ---------------------------------------------------------------------------------


def tables_of(space: SearchSpace) -> dict[str, AdditiveTable]:
    return {
        "accuracy": cost_table(space, "quality", growth=3.0),
        "latency_ms": cost_table(space, "time"),
        "memory_bytes": peak_memory(space, 10),
        **counts(space, 10),
    }


@every_kind
@pytest.mark.parametrize("share", [None, 0.4])
def test_optimum_and_front_are_those_of_the_list(name: str, share: float | None) -> None:
    space, rows = kind_of_space(name), rows_of(name)
    tables = tables_of(space)
    values = {metric: table.predict(rows) for metric, table in tables.items()}
    limits: tuple[Constraint, ...] = ()
    if share is not None:
        limits = (
            Constraint("num_params", maximum=float(np.quantile(values["num_params"], share))),
            Constraint("memory_bytes", maximum=float(np.quantile(values["memory_bytes"], 0.8))),
            Constraint("macs", minimum=float(np.quantile(values["macs"], 0.1))),
        )
    meets = np.ones(len(rows), dtype=bool)
    for limit in limits:
        meets &= limit.violation(values[limit.metric]) == 0
    assert meets.any()
    objectives = (Objective("accuracy", "maximize"), Objective("latency_ms", "minimize"))
    for objective in objectives:
        single = Problem(space, (objective,), limits, tables, evaluated=())
        optimum = solve(single, gap=0.0).points[0]
        expected = objective.sign * (objective.sign * values[objective.metric][meets]).min()
        assert optimum.value == pytest.approx(expected, rel=1e-9)
        assert_canonical(space, optimum.genes[None])
    front = sweep(space, tables["accuracy"], tables["latency_ms"], limits, tables)
    # equal but for rounding is equal
    points = np.stack([-values["accuracy"][meets], values["latency_ms"][meets]], axis=1).round(9)
    expected = np.unique(points[non_dominated(points)], axis=0)
    found = np.stack([-front.quality, front.cost], axis=1)
    assert front.complete
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), rtol=1e-6)


@every_kind
def test_deepmad_within_limits_is_that_of_the_list(name: str) -> None:
    space, rows, paths = kind_of_space(name), rows_of(name), PathTables.build(kind_of_space(name))
    tables = counts(space, 10)
    macs, rho, score = tables["macs"].predict(rows), paths.effectiveness(rows), paths.score(rows)
    most = float(np.quantile(macs, 0.6))
    bound = float(np.quantile(rho, 0.7)) * (1 + 1e-9)
    meets = (macs <= most) & (rho <= bound)
    assert meets.any()
    limits = [Constraint("macs", maximum=most)]
    optimum = optimise(space, paths, limits, tables, effectiveness=(paths, bound), gap=0.0)
    assert optimum.value == pytest.approx(score[meets].max(), rel=1e-6)


# Samplers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [*SAMPLERS, "optuna-TPE"])
def test_a_sampler_asks_valid_rows_until_nothing_is_left(sampler: str) -> None:
    for name in ("positions", "entries")[: 1 if "optuna" in sampler else 2]:
        space, rows = kind_of_space(name), rows_of(name)
        tables = {"latency_ms": cost_table(space, "time")}
        values = tables["latency_ms"].predict(rows)
        bound = Constraint("latency_ms", maximum=float(np.quantile(values, 0.2)))
        objectives = (Objective("accuracy", "maximize"), Objective("latency_ms", "minimize"))
        problem = Problem(space, objectives, (bound,), tables)
        asker, seen = make_sampler(sampler, problem, population=8, budget=100), set()
        quality = cost_table(space, "quality")
        while len(asked := asker.ask(12)):
            assert_canonical(space, asked)
            assert (problem.cheap_violation(asked) == 0).all()
            keys = {row.tobytes() for row in asked}
            assert len(keys) == len(asked)
            assert not keys & seen
            seen |= keys
            metrics = {"accuracy": quality.predict(asked), **problem.cheap_metrics(asked)}
            asker.tell(asked, problem.objective_values(metrics), problem.violation(metrics))
        assert len(seen) == np.count_nonzero(bound.violation(values) == 0)


# Scaling ------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("method", [Contract(), DeepMADGrowth()], ids=["contract", "deepmad"])
def test_an_architecture_of_any_space_scales(name: str, method: ScalingMethod) -> None:
    space = kind_of_space(name)
    for seed in space.decode(rows_of(name)[:: space.size // 2]):
        costs = NetworkCosts(num_classes=10)
        size = costs(seed)["macs"]
        budgets = (0.8 * size, 0.9 * size) if isinstance(method, Contract) else (1.2 * size,)
        task = ScalingTask(seed=seed, by="macs", budgets=budgets, costs=costs)
        try:
            family = method.scale(task)
        except InfeasibleError:  # nothing of it can be taken away
            assert isinstance(method, Contract)
            continue
        for member, budget in zip(family.members, task.budgets, strict=True):
            assert costs(member.step.architecture)["macs"] <= budget
        assert not any(b.skipped for s in family.seed.stages if s.depth > 1 for b in s.blocks)
