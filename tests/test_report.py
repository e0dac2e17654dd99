"""The report: complete, escaped, offline, and honest about what is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from results.charts import Scale, fit_scale, format_metric, place_labels
from results.pareto import non_dominated
from results.report import (
    Baseline,
    Chosen,
    Epoch,
    Export,
    FrontMember,
    LatencyCheck,
    LatencyPair,
    Phase,
    Point,
    RankRow,
    ReportData,
    rank_rows,
    render_report,
    write_report,
)
from results.report_front import front_chart
from results.report_views import latency_errors
from search_space.architecture import Architecture
from search_space.components import components
from search_space.errors import CorruptFileError, NasError
from search_space.files import load_space

TARGET_MS = 1.6


def made_up_costs(arch: Architecture, rng: np.random.Generator) -> dict[str, float]:
    """Figures of a plausible shape, for drawing only."""
    params = sum(12 * s.width**2 * s.depth for s in arch.stages)
    macs = sum(9.0 * s.width**2 * s.depth * (8 / 2**i) ** 2 for i, s in enumerate(arch.stages))
    latency = 0.35 + 0.11 * sum(arch.depths) + macs / 9e6
    quality = 0.975 - 0.09 * math.exp(-macs / 4e5) - 0.03 / sum(arch.depths)
    return {
        "accuracy": min(0.995, quality + rng.normal(0, 0.006)),
        "latency_ms": latency,
        "num_params": float(params),
        "macs": macs,
        "activations": macs / 40,
    }


def sample_report(n: int = 240, seed: int = 0) -> ReportData:
    """A complete report about random architectures of the digits space."""
    space = load_space("digits")
    rng = np.random.default_rng(seed)
    archs = list({a.digest: a for a in space.decode(space.sample(rng, n))}.values())
    points = tuple(
        Point(digest=a.digest, metrics=made_up_costs(a, rng), architecture=a.to_dict())
        for a in archs
    )
    mask = non_dominated(
        [[p.metrics["accuracy"], p.metrics["latency_ms"]] for p in points], [True, False]
    )
    front, pairs = [], []
    for point, arch, keep in zip(points, archs, mask, strict=True):
        if not keep:
            continue
        measured = point.metrics["latency_ms"] * rng.normal(1.0, 0.05)
        spread = {"latency_low_ms": measured * 0.98, "latency_high_ms": measured * 1.03}
        front.append(
            FrontMember(
                digest=point.digest,
                architecture=arch.to_dict(),
                predicted=point.metrics,
                measured={"latency_ms": measured, **spread},
            )
        )
    for point in points[:30]:
        latency = point.metrics["latency_ms"]
        pairs.append(
            LatencyPair(
                digest=point.digest,
                predicted_ms=latency,
                measured_ms=latency * rng.normal(1.01, 0.06),
            )
        )
    inside = [m for m in front if m.measured["latency_ms"] <= TARGET_MS]
    best = max(inside, key=lambda m: m.predicted["accuracy"])
    parts = components(Architecture.from_dict(best.architecture), num_classes=10)
    shares = rng.uniform(0.5, 2.0, len(parts))
    shares *= best.predicted["latency_ms"] / shares.sum()
    rows = [p.metrics for p in points]
    return ReportData(
        run="digits-demo",
        created="2025-03-01T10:20:30+00:00",
        targets={"latency_ms": TARGET_MS},
        summary={
            "data": "digits, 10 classes",
            "space": f"digits, {space.size:.2g} architectures",
            "device": "cpu, 2 threads",
            "search": "NSGA-II, 12 generations of 20",
        },
        chosen=Chosen(
            digest=best.digest,
            architecture=best.architecture,
            predicted=best.predicted,
            measured=best.measured,
            test_accuracy_before=0.9512,
            test_accuracy=0.9731,
            reason="The most accurate member of the front whose re-measured latency is within "
            "the limit.",
            component_latency_ms={
                part.path: float(s) for part, s in zip(parts, shares, strict=True)
            },
            exports=(
                Export(
                    format="timm",
                    path=f"export/{best.digest}/",
                    load="import nas\nimport timm\n\nmodel = timm.create_model("
                    f'"local-dir:runs/digits-demo/export/{best.digest}", pretrained=True)',
                    max_difference=2.4e-7,
                    tolerance=1e-5,
                ),
                Export(
                    format="ONNX",
                    path=f"export/{best.digest}/model.onnx",
                    load='import onnxruntime\n\nonnxruntime.InferenceSession("model.onnx")',
                    max_difference=8.1e-6,
                    tolerance=1e-4,
                ),
            ),
        ),
        evaluated=points,
        num_seen=12_480,
        front=tuple(front),
        baselines=(
            Baseline(
                name="largest",
                metrics=made_up_costs(space.largest, rng),
                note="largest subnet of the space, inherited weights",
                architecture=space.largest.to_dict(),
            ),
            Baseline(
                name="smallest",
                metrics=made_up_costs(space.smallest, rng),
                note="smallest subnet of the space, inherited weights",
                architecture=space.smallest.to_dict(),
            ),
            Baseline(
                name="random feasible",
                metrics=points[3].metrics,
                measured={"latency_ms": points[3].metrics["latency_ms"] * 1.02},
                test_accuracy=0.9611,
                note="best of 20 random feasible subnets, fine-tuned alike",
            ),
        ),
        latency=LatencyCheck(
            pairs=tuple(pairs),
            provenance={
                "kind": "block-wise table, end-to-end correction",
                "device": "8-core CPU",
                "runtime": "PyTorch eager 2.9",
                "precision": "float32",
                "batch size": 1,
                "threads": 2,
            },
            repeatability={"mape": 0.031, "share_within_10": 0.98, "kendall_tau": 0.97},
        ),
        ranking=(
            *rank_rows(rows, ["latency_ms", "macs", "num_params", "activations"]),
            RankRow(
                name="latency table",
                against="latency_ms",
                tau=0.94,
                low=0.9,
                high=0.97,
                n=30,
                kind="predictor",
            ),
            RankRow(
                name="inherited weights",
                against="fine-tuned accuracy",
                tau=0.55,
                low=-0.1,
                high=0.9,
                n=8,
                kind="predictor",
            ),
        ),
        training=tuple(
            Epoch(
                epoch=e,
                loss_largest=2.3 * math.exp(-e / 8) + 0.12,
                loss_smallest=2.3 * math.exp(-e / 10) + 0.25,
                accuracy_largest=0.97 - 0.85 * math.exp(-e / 5),
                accuracy_smallest=0.93 - 0.83 * math.exp(-e / 6),
            )
            for e in range(1, 31)
        ),
        phases=(
            Phase(name="profile", seconds=41.2, note="latency table of 212 components"),
            Phase(name="train", seconds=171.0, note="30 epochs"),
            Phase(name="search", seconds=46.8),
            Phase(name="fine-tune", seconds=22.1),
            Phase(name="export", seconds=14.9),
        ),
        config={"data": "digits", "space": "digits", "search": {"population": 20, "rate": 0.1}},
        versions={"nas": "0.1.0", "python": "3.11", "torch": "2.9.0", "timm": "1.0.20"},
        device={"name": "8-core CPU", "threads": 2, "memory": "16 GiB"},
        seed=0,
        command="nas search --data digits --target-latency 1.6ms --device cpu",
        notes=("Latencies are for batches of one image; larger batches rank differently.",),
    )


@pytest.fixture(scope="module")
def data() -> ReportData:
    return sample_report()


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


class Page(HTMLParser):
    """Elements of a page, checking on the way that they nest."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def classed(self, name: str) -> list[dict[str, str | None]]:
        return [a for _, a in self.elements if name in (a.get("class") or "").split()]


def test_the_front_is_drawn_where_the_data_says(data: ReportData, page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    chart = [a for a in parsed.classed("point") if "data-i" in a]
    front = [a for a in parsed.classed("front-point") if "data-digest" in a]
    assert len(chart) == len(data.evaluated)
    assert [a["data-digest"] for a in front] == [
        m.digest for m in sorted(data.front, key=lambda m: m.measured["latency_ms"])
    ]
    xs = [float(a["cx"] or "nan") for a in front]
    ys = [float(a["cy"] or "nan") for a in front]
    assert xs == sorted(xs)
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
        dataclasses.replace(p, metrics={**p.metrics, "accuracy": 0.1}) if p.digest in lost else p
        for p in data.evaluated
    )
    data = dataclasses.replace(data, evaluated=failed)
    chart = front_chart(data)
    assert chart is not None
    drawn = {detail["title"] for detail in chart["details"]}
    assert not drawn & lost
    assert front <= drawn
    hidden = len(data.evaluated) - chart["counts"]["shown"]
    assert len(lost) <= hidden <= len(dots) // 10
    assert "without the least accurate" in render_report(
        dataclasses.replace(data, evaluated=failed)
    )


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
        dataclasses.replace(
            data,
            run=evil,
            command=evil,
            notes=(evil,),
            summary={evil: evil},
            config={"x": evil},
            baselines=(dataclasses.replace(data.baselines[0], name=evil),),
            phases=(Phase(name=evil, seconds=1.0, note=evil),),
            evaluated=(dataclasses.replace(data.evaluated[0], digest=evil),),
        )
    )
    assert "alert(1)</script>" not in page
    parsed = Page(page)
    assert parsed.text.count("<script>alert(1)</script>") >= 6
    assert [tag for tag, _ in parsed.elements].count("script") == 2


def test_result_json_rebuilds_the_same_report(data: ReportData, page: str, tmp_path: Path) -> None:
    text = json.dumps(data.to_dict(), allow_nan=False)
    again = ReportData.from_dict({**json.loads(text), "another_key": 1})
    assert again == data
    written = write_report(tmp_path, again)
    assert written == tmp_path / "report.html"
    assert written.read_text() == page


def test_wrong_report_data_is_named() -> None:
    with pytest.raises(CorruptFileError, match=r"run: Field required.*--resume"):
        ReportData.from_dict({"front": []})
    with pytest.raises(CorruptFileError, match=r"training\.0\.epoch"):
        ReportData.from_dict({"run": "x", "training": [{"epoch": "soon"}]})
    with pytest.raises(NasError, match="resolution"):
        render_report(ReportData(run="x", chosen=Chosen(digest="a", architecture={}, predicted={})))


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ReportData)][4:])
def test_any_part_may_be_missing(data: ReportData, field: str) -> None:
    default = ReportData(run="x")
    missing = dataclasses.replace(data, **{field: getattr(default, field)})
    parsed = Page(render_report(missing))
    assert not parsed.open
    assert not re.search(r"\b(None|nan|inf)\b", parsed.text)
    alone: dict[str, Any] = {"run": "x", field: getattr(data, field)}
    alone_text = Page(render_report(ReportData(**alone))).text
    assert not re.search(r"\b(None|nan|inf)\b", alone_text)


def test_missing_measurements_are_said(data: ReportData) -> None:
    assert data.chosen is not None
    unmeasured = dataclasses.replace(
        data,
        status="interrupted during export",
        chosen=dataclasses.replace(data.chosen, measured={}, test_accuracy=None),
        front=tuple(dataclasses.replace(m, measured={}) for m in data.front),
        latency=LatencyCheck(),
    )
    text = " ".join(Page(render_report(unmeasured)).text.split())
    for words in (
        "This run is not complete: interrupted during export",
        "Latency, predicted",
        "not re-measured on the device",
        "not fine-tuned",
        "the predictions of this run are unchecked",
    ):
        assert words in text
    empty = " ".join(Page(render_report(ReportData(run="x"))).text.split())
    assert "No network was chosen" in empty
    assert "nothing to plot" in empty
    nan = {"accuracy": math.nan, "latency_ms": None}
    unknown = dataclasses.replace(data.evaluated[0], metrics=nan)
    assert "nothing to plot" in render_report(ReportData(run="x", evaluated=(unknown,)))


def test_the_verdict_follows_the_measurement(data: ReportData) -> None:
    assert data.chosen is not None
    for measured, words in ((1.2, "✓ met"), (2.0, "✗ missed")):
        chosen = dataclasses.replace(data.chosen, measured={"latency_ms": measured})
        text = Page(render_report(dataclasses.replace(data, chosen=chosen))).text
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


PROBE = """
<script>
  window.problems = [];
  window.onerror = (m) => window.problems.push(m);
  const error = console.error; console.error = (...m) => { window.problems.push(m); error(...m); };
</script>
"""
ACT = """
<script>
  const $ = (s) => document.querySelector(s);
  const tip = $("#tooltip"), out = {};
  const point = $(".front-point[data-i]");
  point.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  const text = tip.textContent;
  out.hover = [tip.hidden, text.includes(point.dataset.digest), text.includes(" at ")];
  point.dispatchEvent(new PointerEvent("pointerout", {bubbles: true}));
  out.left = tip.hidden;
  point.dispatchEvent(new MouseEvent("click", {bubbles: true}));
  point.dispatchEvent(new PointerEvent("pointerout", {bubbles: true}));
  out.pinned = [tip.hidden, tip.className];
  document.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape"}));
  out.escaped = tip.hidden;
  const before = point.getAttribute("cx");
  $('.switch [data-axis="macs"]').click();
  out.moved = before !== point.getAttribute("cx");
  out.views = Array.from(document.querySelectorAll(".view:not(.off)"), (v) => v.dataset.axis);
  const head = document.querySelectorAll("#front thead th")[4];
  head.querySelector("button").click();
  const rows = document.querySelectorAll("#front tbody tr");
  out.sorted = Array.from(rows, (r) => Number(r.cells[4].dataset.v));
  $(".chosen-point[data-i]").focus();
  out.focus = !tip.hidden;
  const left = new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true});
  document.activeElement.dispatchEvent(left);
  out.walked = !document.activeElement.classList.contains("chosen-point");
  out.problems = window.problems;
  const output = document.createElement("output");
  output.textContent = JSON.stringify(out);
  document.body.replaceChildren(output);
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_in_a_browser_the_page_reacts_and_reports_no_error(page: str, tmp_path: Path) -> None:
    html = page.replace("<head>", "<head>" + PROBE).replace("</body>", ACT + "</body>")
    (tmp_path / "report.html").write_text(html)
    result = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r"<output>(.*?)</output>", result.stdout, re.S)
    assert found, result.stderr[-2000:]
    out = json.loads(found[1])
    accuracy = out.pop("sorted")
    assert accuracy == sorted(accuracy)
    assert out == {
        "hover": [False, True, True],
        "left": True,
        "pinned": [False, "pinned"],
        "escaped": True,
        "moved": True,
        "views": ["macs", "macs"],
        "focus": True,
        "walked": True,
        "problems": [],
    }
    assert "CONSOLE" not in result.stderr
