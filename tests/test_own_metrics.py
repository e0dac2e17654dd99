"""A metric is added in one place: by registering it, or by a table of the user's own."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_job import FAILED, INFEASIBLE, USAGE, Ran, every_architecture, nas

from predictors.tables.additive import entries
from predictors.tables.cost_table import load_cost, save_costs
from results.export.write import export_network
from results.journal import read_journal
from results.report.data import read_result
from results.report.tables import front_table
from search_space import Architecture, ModuleSpec, components, load_space
from search_space import metrics as registry
from search_space.errors import CorruptFileError, NasError, UsageError
from search_space.metrics import Metric, register, unit_of


@pytest.fixture
def light_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    light = functools.partial(export_network, formats=("timm",))
    monkeypatch.setattr("nas.workflows.finishing.export_network", light)


def energy_mj(spec: ModuleSpec, in_size: int) -> float:
    return 0.001 * (len(str(spec)) + in_size)


def energy_of(architecture: Architecture) -> float:
    return sum(energy_mj(part.spec, part.in_size) for part in components(architecture, 10))


def searched(*more: object) -> Ran:
    return nas(
        *("search", "--space", "pebble.yaml", "--device", "a100", "--num-classes", 10),
        *("--target-latency", "1s", "--name", "energetic", *more),
    )


def limit_and_check(*more: object) -> None:
    """Searches with half of the architectures too hungry; every place must know the metric."""
    every = list(every_architecture(load_space("pebble.yaml")))
    limit = sorted(energy_of(a) for a in every)[len(every) // 2]
    said = searched("--max", f"energy={1e3 * limit:.6g}uJ", "--json", *more)
    assert said.code == 0, said.err
    result = json.loads(said.out)
    run = Path(result["run"])
    best = Architecture.from_dict(result["best"]["architecture"])
    assert result["best"]["predicted"]["energy_mJ"] == pytest.approx(energy_of(best))
    for evaluation in read_journal(run / "evaluations.jsonl"):
        expected = energy_of(Architecture.from_dict(evaluation.architecture))
        assert evaluation.metrics["energy_mJ"] == pytest.approx(expected)
        assert expected <= limit * (1 + 1e-6)
    stored = json.loads((run / "result.json").read_text())
    assert stored["targets"]["energy_mJ"] == pytest.approx(limit, rel=1e-4)
    assert "energy_mJ" in {row["name"] for row in stored["ranking"]}
    table = front_table(read_result(run / "result.json"))
    assert table is not None
    assert "energy" in table["columns"]
    report = (run / "report.html").read_text()
    assert "below the limit of" in report.partition("Energy ")[2][:200]
    card = next((run / "export").glob("*/README.md")).read_text()
    assert "| energy | " in card
    again = nas("report", run)
    assert again.code == 0, again.err
    plain = searched("--max", f"energy={1e3 * limit:.6g}uJ", "--name", "plain", *more)
    head = next(line for line in plain.out.splitlines() if line.startswith("digest"))
    assert head.split().count("energy") == 1


@pytest.mark.usefixtures("light_exports")
def test_a_registered_metric_is_known_everywhere(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    register(Metric("energy_mJ", "energy", unit_of("mJ"), option="energy", cost=energy_mj))
    limit_and_check()
    said = searched("--name", "impossible", "--max", "energy=1nJ")
    assert said.code == INFEASIBLE
    assert "Either raise the limit of " in said.err
    assert "mJ or more" in said.err or "µJ or more" in said.err


@pytest.mark.usefixtures("light_exports")
def test_a_table_of_the_user_s_own_is_a_metric(job: Path) -> None:
    space = load_space("pebble.yaml")
    rows = {entry: energy_mj(*entry) for entry in entries(space, 10)}
    save_costs(Path("table.parquet"), "energy_mJ", rows)
    limit_and_check("--cost", "energy=table.parquet", "--minimize", "energy")
    refused = searched("--max", "energy=5mJ")
    assert refused.code == USAGE
    assert "unknown metric 'energy'" in refused.err
    assert "--cost NAME=FILE" in refused.err
    wrong = searched("--cost", "energy=table.parquet", "--max", "energy=5ms")
    assert wrong.code == USAGE
    assert "'5ms' is not in J" in wrong.err
    save_costs(Path("few.parquet"), "energy_mJ", dict(list(rows.items())[:3]))
    few = searched("--name", "few", "--cost", "energy=few.parquet", "--max", "energy=5mJ")
    assert few.code == FAILED
    assert "--cost energy: the table has no value for " in few.err
    assert "write one for every component of the space" in few.err


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"component": ["{}"], "size": [1]}, "its columns are component, size"),
        ({"component": ["{}"], "size": [1], "energy_x": [1.0]}, "unknown unit 'x'"),
        ({"component": ["{}"], "size": [1], "energy_mJ": [1.0]}, "no"),
        ({"component": [None], "size": [1], "energy_mJ": [1.0]}, "is missing"),
        ({"component": ["{}"], "size": [1], "energy_mJ": [-1.0]}, "negative"),
        ({"component": ["{}"], "size": [1], "energy_mJ": [float("nan")]}, "not finite"),
        ({"component": ["{}"], "size": ["many"], "energy_mJ": [1.0]}, "cannot be read"),
    ],
)
def test_a_damaged_cost_table_is_named(tmp_path: Path, columns: dict, problem: str) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(CorruptFileError, match=problem) as info:
        load_cost("energy", path)
    assert str(path) in str(info.value)


def test_a_cost_has_a_name_and_a_regular_file(tmp_path: Path) -> None:
    for option in ("latency", "Energy", "../energy", ""):
        with pytest.raises(UsageError, match="--cost"):
            load_cost(option, tmp_path / "none.parquet")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("energy")
    for path in (tmp_path / "none", tmp_path / "pipe", tmp_path / "text", Path("/dev/zero")):
        with pytest.raises(NasError):
            load_cost("energy", path)
