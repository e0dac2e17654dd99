"""Costs of any network: counts, estimates and measured tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from scaling_cases import (
    SEEDS,
    network,
)

import search.scaling.cost as cost_module
from predictors.counts import count_architecture
from predictors.devices import Target, find_device
from predictors.estimates.calibrate import predict_network
from predictors.measuring.this_machine import local_conditions
from predictors.tables.correction import Correction
from predictors.tables.latency_table import EntryLatency, LatencyTable, MissingLatencyError
from search.scaling.base import (
    ScalingTask,
)
from search.scaling.cost import NetworkCosts
from search.scaling.exponents import FastCompound
from search.scaling.shapes import Shape
from search_space import Architecture, components


def test_costs_are_those_of_the_counts_and_of_the_latency_models() -> None:
    target = find_device("a100")
    costs = NetworkCosts([target], num_classes=10)
    table = LatencyTable(target.conditions, {}, {})
    for seed in SEEDS.values():
        found = costs(seed)
        assert found.pop("latency_ms@a100") == pytest.approx(predict_network(table, seed, 10))
        assert found == count_architecture(seed, 10)
    assert costs.metrics == ("num_params", "macs", "activations", "latency_ms@a100")
    assert costs.latencies["a100"].expected_error(list(SEEDS.values())) > 0.1
    assert "estimated from datasheet" in costs.latencies["a100"].provenance()


def test_a_component_is_costed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    count = cost_module.count_entry

    def counting(spec: object, size: int) -> object:
        asked.append((spec, size))
        return count(spec, size)  # type: ignore[arg-type]

    monkeypatch.setattr(cost_module, "count_entry", counting)
    costs = NetworkCosts(num_classes=10)
    seed = SEEDS["conv"]
    costs(seed)
    first = len(asked)
    assert (
        first
        == len({(c.spec, c.in_size) for c in components(seed, 10)})
        < len(components(seed, 10))
    )
    deeper = Shape((1, 1, 7, 1), seed.widths, 32).apply(seed)
    assert costs(deeper)["num_params"] > costs(seed)["num_params"]
    assert len(asked) == first


def measured_table(*seeds: Architecture) -> LatencyTable:
    """Latencies in proportion to the parameters, under this machine's conditions."""
    entries = {
        (c.spec, c.in_size): EntryLatency(value, value, value, 9)
        for seed in seeds
        for c in components(seed, 10)
        for value in [1.0 + 1e-3 * cost_module.count_entry(c.spec, c.in_size).num_params]
    }
    correction = Correction(
        space="known",
        scale=2.0,
        offset_ms=0.5,
        expected_error=0.04,
        checks=(),
        rounds=1,
        seconds=1.0,
        stopped="converged",
    )
    return LatencyTable(local_conditions(), entries, {"0" * 12: correction}, name="board")


def board(folder: Path, *seeds: Architecture) -> Target:
    path = folder / "board.parquet"
    measured_table(*seeds).save(path)
    return Target("board", local_conditions(), "table", path)


def test_a_measured_table_answers_for_what_it_has(tmp_path: Path) -> None:
    seed = SEEDS["conv"]
    target = board(tmp_path, seed)
    costs = NetworkCosts([target], num_classes=10)
    expected = predict_network(LatencyTable.load(target.path), seed, 10)
    assert costs(seed)["latency_ms@board"] == pytest.approx(expected)
    assert costs.latencies["board"].expected_error([seed]) == 0.04
    wider = network(widths=(16, 16, 24, 40))
    with pytest.raises(
        MissingLatencyError,
        match=r"'board' lacks stages\.3\.downsample of network .*downsample\(.* --interpolate.*"
        r"nas profile --space SPACE --device board",
    ):
        costs(wider)
    with pytest.raises(MissingLatencyError, match="'board' has no latency table"):
        NetworkCosts([replace(target, path=tmp_path / "none.parquet")])


def test_gaps_of_a_measured_table_are_interpolated(tmp_path: Path) -> None:
    widths = [(8, 8, 8, 8), (16, 16, 16, 16), (24, 24, 24, 24), (40, 40, 40, 40)]
    target = board(tmp_path, *(network(widths=w, depths=(1, 1, 1, 1)) for w in widths))
    costs = NetworkCosts([target], num_classes=10, interpolate=True)
    asked = network(widths=(32, 32, 32, 32), depths=(1, 1, 1, 1))
    total = sum(
        1 + 1e-3 * cost_module.count_entry(c.spec, c.in_size).num_params
        for c in components(asked, 10)
    )
    assert costs(asked)["latency_ms@board"] == pytest.approx(0.5 + 2 * total, rel=0.1)
    assert "interpolated" in costs.latencies["board"].provenance()
    task = ScalingTask(
        seed=network(widths=widths[0], depths=(1, 1, 1, 1)),
        by="latency_ms@board",
        budgets=(35.0, 45.0),
        costs=costs,
    )
    family = FastCompound().scale(task)
    assert [m.name for m in family.members] == ["35ms", "45ms"]
    assert all(m.costs["latency_ms@board"] <= m.budget for m in family.members)
