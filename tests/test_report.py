"""The report: complete, escaped, offline, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sample_report import TARGET_MS, Page, parse, sample_report
from space_kinds import NAMES, kind_of_space

from results.report.charts import Scale, fit_scale, format_metric, place_labels
from results.report.chosen import block_picture
from results.report.curves import latency_errors
from results.report.data import Chosen, LatencyCheck, LatencyPair, Phase, ProofRow, ReportData
from results.report.front import front_chart
from results.report.page import render_report, write_report
from results.report.tables import rank_rows
from search_space.architecture import Architecture
from search_space.components import components
from search_space.errors import CorruptFileError, NasError


@pytest.fixture(scope="module")
def data() -> ReportData:
    return sample_report()


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


def test_the_front_is_drawn_where_the_data_says(data: ReportData, page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    chart = [a for a in parsed.classed("point") if "data-i" in a]
    front = [a for a in parsed.classed("front-point") if "data-digest" in a]
    assert len(chart) == len(data.evaluated)
    assert "chosen-point" in str(front[-1]["class"])  # no other covers it
    front.sort(key=lambda a: float(a["cx"] or "nan"))
    assert [a["data-digest"] for a in front] == [
        m.digest for m in sorted(data.front, key=lambda m: m.measured["latency_ms"])
    ]
    ys = [float(a["cy"] or "nan") for a in front]
    accuracy = {m.digest: m.predicted["accuracy"] for m in data.front}
    values = [accuracy[str(a["data-digest"])] for a in front]
    slope = (ys[-1] - ys[0]) / (values[-1] - values[0])
    assert slope < 0
    assert np.allclose(ys, ys[0] + slope * (np.array(values) - values[0]), atol=0.02)
    assert len([a for a in parsed.classed("chosen-point") if "data-i" in a]) == 1
    assert [a.get("id") for _, a in parsed.elements].count("tooltip") == 1


def test_failures_do_not_flatten_the_front(data: ReportData) -> None:
    """The worst tenth of the dots is left out and counted, unless the front or a baseline is it."""
    front = {m.digest for m in data.front}
    dots = [p for p in data.evaluated if p.digest not in front]
    lost = {p.digest for p in dots[: len(dots) // 20]}
    failed = tuple(
        replace(p, predicted={**p.predicted, "accuracy": 0.1}) if p.digest in lost else p
        for p in data.evaluated
    )
    data = replace(data, evaluated=failed)
    chart = front_chart(data)
    assert chart is not None
    drawn = {detail["title"] for detail in chart["details"]}
    assert not drawn & lost
    assert front <= drawn
    hidden = len(data.evaluated) - chart["counts"]["shown"]
    assert len(lost) <= hidden <= len(dots) // 10
    assert "without those of the lowest accuracy" in render_report(replace(data, evaluated=failed))


def test_a_proof_that_was_stopped_without_a_bound_is_shown_as_that() -> None:
    stopped = ProofRow(digest="0" * 12, value=1.5, bound=None, gap=None, status="stopped")
    proven = ProofRow(digest="1" * 12, value=2.0, bound=2.5, gap=0.25, status="optimal")
    page = render_report(ReportData(run="x", proofs=(stopped, proven)))
    assert "<td>1.5</td><td>–</td><td>–</td><td>stopped</td>" in page
    assert "<td>2</td><td>2.5</td><td>25.000 %</td><td>optimal</td>" in page


def test_every_point_has_its_tooltip(data: ReportData, page: str) -> None:
    raw = re.search(r'id="chart-data">(.*?)</script>', page, re.S)
    assert raw is not None
    details = json.loads(raw[1])["details"]
    assert len(details) == len(data.evaluated) + len(data.baselines)
    by_title = {d["title"]: d for d in details}
    member = data.front[0]
    detail = by_title[member.digest]
    assert ["MACs", format_metric("macs", member.predicted["macs"])] in detail["rows"]
    assert len(detail["stages"]) == 4
    stage = Architecture.from_dict(member.architecture).stages[0]
    assert detail["stages"][0].startswith(f"{stage.width} × {stage.depth} at ")


def test_the_chosen_network_is_drawn_block_by_block(data: ReportData, page: str) -> None:
    assert data.chosen is not None
    arch = Architecture.from_dict(data.chosen.architecture)
    parsed = Page(page)
    assert len(parsed.classed("block")) == sum(arch.depths)
    assert len(parsed.classed("box")) == sum(arch.depths) + 5  # stem, 3 × downsampling, head
    heights = {
        str(a["title"]).split(":")[0]: int(re.findall(r"\d+", str(a["style"]))[0])
        for a in parsed.classed("box")
    }
    largest = max(
        data.chosen.component_latency_ms, key=data.chosen.component_latency_ms.__getitem__
    )
    assert heights[largest] == max(heights.values())


def test_the_page_loads_nothing(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|<link|<img|src=|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_what_the_run_contains_is_escaped(data: ReportData) -> None:
    evil = "<script>alert(1)</script>\"'&</style>"
    page = render_report(
        replace(
            data,
            run=evil,
            command=evil,
            notes=(evil, f"`{evil}`"),
            summary={evil: evil},
            config={"x": evil},
            baselines=(replace(data.baselines[0], name=evil),),
            phases=(Phase(name=evil, seconds=1.0),),
            evaluated=(replace(data.evaluated[0], digest=evil),),
        )
    )
    assert "alert(1)</script>" not in page
    parsed = Page(page)
    assert parsed.text.count("<script>alert(1)</script>") >= 6
    assert [tag for tag, _ in parsed.elements].count("script") == 2


def test_commands_in_notes_look_like_commands(data: ReportData) -> None:
    notes = ("Run `nas finetune 'a b'` or ` alone.",)
    page = render_report(replace(data, notes=notes))
    assert "<li>Run <code>nas finetune &#39;a b&#39;</code> or ` alone.</li>" in page


def test_result_json_rebuilds_the_same_report(data: ReportData, page: str, tmp_path: Path) -> None:
    text = json.dumps(data.to_dict(), allow_nan=False)
    again = parse({**json.loads(text), "another_key": 1})
    assert again == data
    written = write_report(tmp_path, again)
    assert written == tmp_path / "report.html"
    assert written.read_text() == page


def test_wrong_report_data_is_named() -> None:
    with pytest.raises(CorruptFileError, match=r"run=.*Field required"):
        parse({"front": []})
    with pytest.raises(CorruptFileError, match=r"training\.0\.epoch"):
        parse({"run": "x", "training": [{"epoch": "soon"}]})
    with pytest.raises(NasError, match="resolution"):
        render_report(ReportData(run="x", chosen=Chosen(digest="a", architecture={}, predicted={})))


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ReportData)][4:])
def test_any_part_may_be_missing(data: ReportData, field: str) -> None:
    default = ReportData(run="x")
    missing = replace(data, **{field: getattr(default, field)})
    parsed = Page(render_report(missing))
    assert not parsed.open
    assert not re.search(r"\b(None|nan|inf)\b", parsed.text)
    alone: dict[str, Any] = {"run": "x", field: getattr(data, field)}
    alone_text = Page(render_report(ReportData(**alone))).text
    assert not re.search(r"\b(None|nan|inf)\b", alone_text)


def test_missing_measurements_are_said(data: ReportData) -> None:
    assert data.chosen is not None
    unmeasured = replace(
        data,
        status="interrupted during export",
        chosen=replace(data.chosen, measured={}, test_accuracy=None, test_accuracy_before=None),
        front=tuple(replace(m, measured={}) for m in data.front),
        latency=LatencyCheck(),
    )
    text = " ".join(Page(render_report(unmeasured)).text.split())
    for words in (
        "This run is not complete: interrupted during export",
        "Latency, predicted",
        "not re-measured on the device",
        "inherited weights; not tested",
        "the predictions of this run are unchecked",
    ):
        assert words in text
    empty = " ".join(Page(render_report(ReportData(run="x"))).text.split())
    assert "No network was chosen" in empty
    assert "nothing to plot" in empty
    nan = {"accuracy": math.nan, "latency_ms": None}
    unknown = replace(data.evaluated[0], predicted=nan)
    assert "nothing to plot" in render_report(ReportData(run="x", evaluated=(unknown,)))


def test_the_verdict_follows_the_measurement(data: ReportData) -> None:
    assert data.chosen is not None
    for measured, words in ((1.2, "✓ met"), (2.0, "✗ missed")):
        chosen = replace(data.chosen, measured={"latency_ms": measured})
        text = Page(render_report(replace(data, chosen=chosen))).text
        assert words in text
        assert f"25.0\u00a0% {'below' if measured < TARGET_MS else 'above'} the limit" in text


def test_latency_errors_are_what_their_names_say() -> None:
    pairs = [(1.0, 1.0), (2.1, 2.0), (2.5, 4.0)]
    check = LatencyCheck(pairs=tuple(LatencyPair(predicted_ms=p, measured_ms=m) for p, m in pairs))
    errors = latency_errors(check)
    assert errors["mape"] == pytest.approx((0 + 0.05 + 0.375) / 3)
    assert errors["share_within_10"] == pytest.approx(2 / 3)
    assert errors["kendall_tau"] == 1.0


def test_rank_rows_leave_out_what_lacks_a_metric() -> None:
    rows = rank_rows(
        [{"accuracy": 0.1 * i, "macs": float(i)} for i in range(6)] + [{"accuracy": 0.0}], ["macs"]
    )
    assert (rows[0].tau, rows[0].n) == (pytest.approx(1.0), 6)


def test_scales_and_labels() -> None:
    scale = Scale(0.0, 10.0, 100.0, 200.0)
    assert (scale(0), scale(5), scale(10)) == (100, 150, 200)
    assert scale.tick_values(5) == [0, 2, 4, 6, 8, 10]
    wide = fit_scale([1e3, 1e6], 0.0, 100.0)
    assert wide.log
    assert wide.ticks("macs")[0].label == "1\u00a0k"
    assert fit_scale([2.0, 2.0], 0, 1).low < 2.0 < fit_scale([2.0, 2.0], 0, 1).high
    assert fit_scale([], 0, 1).high > fit_scale([], 0, 1).low
    labels = place_labels([(50, 50, "one"), (52, 52, "two")], [], (0, 0, 400, 400))
    assert labels[0] is not None
    assert labels[1] is not None
    assert abs(labels[0].y - labels[1].y) > 8 or abs(labels[0].x - labels[1].x) > 15
    assert place_labels([(50, 50, "wider than the box")], [], (0, 0, 60, 60)) == [None]


@pytest.mark.parametrize("name", NAMES)
def test_the_picture_shows_the_modules_of_any_network(name: str) -> None:
    space, data = kind_of_space(name), sample_report()
    for architecture in (space.smallest, space.largest):
        modules = [item.path for item in components(architecture)]
        chosen = replace(
            data.chosen,
            architecture=architecture.to_dict(),
            component_latency_ms=dict.fromkeys(modules, 1.0),
        )
        shown = replace(data, chosen=chosen)
        picture = block_picture(shown)
        boxes = [box for stage in picture["stages"] for box in stage["boxes"]]
        assert [box["path"] for box in boxes] == modules
        assert all(box["latency"] for box in boxes)
        assert sum(count for *_, count in picture["legend"]) == picture["blocks"]
        assert all(box["title"] in render_report(shown) for box in boxes)
