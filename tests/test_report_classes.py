"""What the report says first: lost classes, and known designs that beat the front."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from sample_report import CONFUSED, TARGET_MS, Page, parse, sample_report
from sklearn import metrics

from nas.cli.options import print_json
from nas.cli.printing import result_lines
from nas.workflows.reporting import summary
from results.report.chosen import beaten_by, beaten_note
from results.report.classes import class_view, unbalanced_note
from results.report.data import Baseline, ReportData
from results.report.page import render_report
from search_space.errors import CorruptFileError
from supernet.training.evaluation import Quality


@pytest.fixture(scope="module")
def data() -> ReportData:
    return sample_report()


def with_confusion(data: ReportData, matrix: list[list[int]]) -> ReportData:
    assert data.chosen is not None
    quality = Quality(np.array(matrix), loss=0.1, auc=0.75 if len(matrix) == 2 else None)
    chosen = dataclasses.replace(data.chosen, quality={"test": quality.to_dict()})
    return dataclasses.replace(data, chosen=chosen)


def test_a_lost_class_is_seen_in_the_report(data: ReportData) -> None:
    view = class_view(data)
    assert view is not None
    assert [row["name"] for row in view["table"]["rows"]] == ["rare", "usual", "common"]
    rare = [cell.text for cell in view["table"]["rows"][0]["cells"]]
    assert rare == ["20", "25.00 %", "common (12)"]
    truth = np.repeat([0, 0, 0, 1, 1, 1, 2, 2, 2], CONFUSED.confusion.reshape(-1))
    predicted = np.repeat([0, 1, 2] * 3, CONFUSED.confusion.reshape(-1))
    texts = [cell.text for cell in view["figures"]["rows"][0]["cells"]]
    assert texts[:4] == [
        "1\u202f020",
        f"{100 * metrics.accuracy_score(truth, predicted):.2f} %",
        f"{100 * metrics.balanced_accuracy_score(truth, predicted):.2f} %",
        f"{metrics.f1_score(truth, predicted, average='macro'):.4g}",
    ]
    page = Page(render_report(data))
    assert not page.open
    assert len(page.classed("right")) == 3
    assert [cell["style"] for cell in page.classed("wrong")][4:] == ["--share:60%", "--share:15%"]
    assert "rare has 20 of 1\u202f020 test images, common has 900" in page.text


def test_balanced_classes_are_called_nothing(data: ReportData) -> None:
    even = with_confusion(data, [[50, 5], [3, 60]])
    assert unbalanced_note(even) is None
    view = class_view(even)
    assert view is not None
    assert "AUC" in view["figures"]["columns"]
    assert view["note"] is None
    many = class_view(with_confusion(data, np.eye(30, dtype=int).tolist()))
    assert many is not None
    assert many["confusion"] is None
    assert len(many["table"]["rows"]) == 30


def test_a_matrix_of_another_shape_is_refused(data: ReportData) -> None:
    stored = json.loads(json.dumps(data.to_dict()))
    assert parse(stored).chosen == data.chosen
    stored["chosen"]["quality"]["test"]["confusion"].pop()
    with pytest.raises(CorruptFileError, match="a row and a column a class"):
        parse(stored)
    stored["chosen"]["quality"]["test"] = {"recalls": 5}
    with pytest.raises(CorruptFileError, match="chosen"):
        parse(stored)


def design(name: str, accuracy: float, latency: float, measured: float | None = None) -> Baseline:
    return Baseline(
        name=name,
        predicted={"accuracy": accuracy, "latency_ms": latency, "num_params": 1e6},
        measured={} if measured is None else {"latency_ms": measured},
    )


def test_known_designs_that_beat_the_front_are_said_first(data: ReportData) -> None:
    best = max(member.predicted["accuracy"] or 0.0 for member in data.front)
    assert best < 0.997
    assert beaten_note(dataclasses.replace(data, baselines=())) is None
    designs = (
        design("within", 0.997, TARGET_MS),
        design("better", 0.999, TARGET_MS / 2),
        design("too slow", 0.999, TARGET_MS * 1.01),
        design("slow when measured", 0.999, TARGET_MS / 2, TARGET_MS * 1.01),
        design("worse", best, TARGET_MS / 2),
    )
    beaten = dataclasses.replace(data, baselines=designs)
    assert [baseline.name for baseline in beaten_by(beaten)] == ["better", "within"]
    note = beaten_note(beaten)
    assert note is not None
    assert note.startswith(
        "2 known designs within the limits have a better accuracy than every network of the "
        "front: better (99.90 %, 800 µs), within (99.70 %, 1.60 ms)."
    )
    page = render_report(beaten)
    assert page.index("Known designs beat this front") < page.index('id="chosen"')
    assert "Known designs beat" not in render_report(dataclasses.replace(data, baselines=()))
    text = "\n".join(result_lines(beaten, Path("runs/demo")))
    assert "note: 2 known designs within the limits" in text
    assert summary(beaten, Path("runs/demo"))["beaten_by"] == ["better", "within"]
    least = dataclasses.replace(beaten, minima={"num_params": 2e6})
    assert beaten_by(least) == []


def test_designs_are_compared_by_what_the_search_was_for(data: ReportData) -> None:
    front = tuple(
        dataclasses.replace(m, predicted={**m.predicted, "loss": 0.5}) for m in data.front
    )
    less_loss = design("less loss", 0.1, 1.0)
    less_loss = dataclasses.replace(less_loss, predicted={**less_loss.predicted, "loss": 0.4})
    config = {**data.config, "search": {"objective": "loss"}}
    by_loss = dataclasses.replace(
        data, front=front, config=config, baselines=(less_loss, design("unknown", 0.999, 1.0))
    )
    assert [baseline.name for baseline in beaten_by(by_loss)] == ["less loss"]


def test_unknown_numbers_are_null_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"kendall_tau": float("nan"), "limits": (1.0, float("inf"))})
    assert json.loads(capsys.readouterr().out) == {"kendall_tau": None, "limits": [1.0, None]}
