"""The report of a search without data: judged by a score, which it never calls an accuracy."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from sample_report import Page, made_up_costs, parse, sample_report

from results.pareto import non_dominated
from results.report.charts import fit_scale, format_metric
from results.report.data import (
    Baseline,
    Chosen,
    Export,
    LatencyCheck,
    LatencyPair,
    Metrics,
    Network,
    Phase,
    ReportData,
)
from results.report.front import FRONT_BOX, front_chart
from results.report.page import render_report
from results.report.tables import baseline_table, front_table, rank_rows
from search_space import Architecture, Macro, Mixer, Stage, metaformer
from search_space.components import components
from search_space.files import load_space

TARGET_MS = 9.0
NOTE = (
    "The combined score is the mean of standardised log MACs, log activations and log depth over "
    "width. Over 55 published networks it ranked ImageNet accuracies with τ 0.71, within a band "
    "of equal MACs with 0.38."
)


def _design(mixer: Mixer, widths: Sequence[int], depths: Sequence[int]) -> Architecture:
    stages = tuple(
        Stage(width, (metaformer(mixer, 4),) * depth)
        for width, depth in zip(widths, depths, strict=True)
    )
    return Architecture(Macro(stem_kernel=4, stem_stride=4), 224, stages)


# Shapes of known designs; none is of the searched space.
KNOWN = {
    "Swin-T": _design(
        Mixer.of("window_attention", window=7, head_dim=32), (96, 192, 384, 768), (2, 2, 6, 2)
    ),
    "ConvNeXt-T": _design(Mixer.of("depthwise_conv", kernel=7), (96, 192, 384, 768), (3, 3, 9, 3)),
    "ConvNeXt-S": _design(Mixer.of("depthwise_conv", kernel=7), (96, 192, 384, 768), (3, 3, 27, 3)),
    "PoolFormer-S12": _design(Mixer.of("pooling"), (64, 128, 320, 512), (2, 2, 6, 2)),
    "PoolFormer-S36": _design(Mixer.of("pooling"), (64, 128, 320, 512), (6, 6, 18, 6)),
}


def scored(arch: Architecture, rng: np.random.Generator) -> dict[str, float]:
    """Figures of a plausible shape, for drawing only."""
    costs = made_up_costs(arch, rng)
    del costs["accuracy"]
    size = math.log(costs["macs"]) - 16.5
    depth = math.log(sum(arch.depths) / sum(arch.widths)) + 3.7
    return {**costs, "score": 0.66 * size + 0.5 * depth}


def score_report(n: int = 150, seed: int = 0) -> ReportData:
    """A complete report of a search without data on a device known from its datasheet."""
    space = load_space("base")
    rng = np.random.default_rng(seed)
    archs = list({a.digest: a for a in space.decode(space.sample(rng, n))}.values())
    points = tuple(
        Network(digest=a.digest, predicted=scored(a, rng), architecture=a.to_dict()) for a in archs
    )
    mask = non_dominated(
        [[p.predicted["score"], p.predicted["latency_ms"]] for p in points], [True, False]
    )
    front = tuple(
        Network(digest=p.digest, architecture=a.to_dict(), predicted=p.predicted)
        for p, a, keep in zip(points, archs, mask, strict=True)
        if keep
    )
    best = max(
        (m for m in front if m.predicted["latency_ms"] <= TARGET_MS),
        key=lambda m: m.predicted["score"],
    )
    parts = components(Architecture.from_dict(best.architecture), num_classes=1000)
    shares = rng.uniform(0.5, 2.0, len(parts))
    shares *= best.predicted["latency_ms"] / shares.sum()
    return ReportData(
        run="base-without-data",
        created="2025-03-01T10:20:30+00:00",
        targets={"latency_ms": TARGET_MS},
        summary={
            "data": "none",
            "space": f"base, {space.size:.2g} architectures",
            "device": "NVIDIA A100; cudagraph, fp16",
            "search": "training-free, NSGA-II",
        },
        quality="score",
        quality_note=NOTE,
        chosen=Chosen(
            digest=best.digest,
            architecture=best.architecture,
            predicted=best.predicted,
            reason="The highest score within the limit.",
            component_latency_ms={
                part.path: float(s) for part, s in zip(parts, shares, strict=True)
            },
            exports=(
                Export(
                    format="timm",
                    path=f"export/{best.digest}/",
                    load="import nas.timm\nimport timm",
                    max_difference=0.0,
                    tolerance=1e-5,
                ),
            ),
        ),
        evaluated=points,
        num_seen=120_000,
        front=front,
        baselines=tuple(
            Baseline(
                name=name,
                predicted=scored(arch, rng),
                architecture=arch.to_dict(),
                note="outside the searched space",
            )
            for name, arch in KNOWN.items()
        ),
        latency=LatencyCheck(
            provenance={
                "kind": "estimated from datasheet figures, not measured",
                "device": "NVIDIA A100-SXM4-80GB",
                "runtime": "cudagraph",
                "precision": "fp16",
                "batch_size": 1,
                "expected error": "60.2% (leave-one-out)",
            }
        ),
        ranking=rank_rows(
            [p.predicted for p in points],
            ["latency_ms", "macs", "num_params", "activations"],
            against="score",
        ),
        phases=(Phase(name="search", seconds=31.4), Phase(name="export", seconds=4.9)),
        config={"space": "base", "search": {"population": 200}},
        versions={"nas": "0.1.0", "torch": "2.9.0"},
        device={"model": "NVIDIA A100-SXM4-80GB"},
        seed=0,
        command="nas search --space base --device a100 --target-latency 9ms",
        notes=("Nothing was trained: the network is exported with fresh weights.",),
    )


@pytest.fixture(scope="module")
def data() -> ReportData:
    return score_report()


@pytest.fixture(scope="module")
def few() -> ReportData:
    return score_report(n=40)


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


def words(page: str) -> str:
    return " ".join(Page(page).text.split())


def test_a_score_is_never_called_an_accuracy(data: ReportData, page: str) -> None:
    assert NOTE in words(page)
    assert "accura" not in page.replace(NOTE, "").lower()
    assert "supernet" not in page.lower()
    assert "evaluated" not in words(page)
    # Nor where parts of the run are missing.
    for missing in (
        {"chosen": None},
        {"chosen": None, "evaluated": ()},
        {"front": (), "baselines": ()},
        {"evaluated": (), "front": (), "baselines": (), "num_seen": None},
        {"num_seen": None, "latency": LatencyCheck()},
    ):
        part = replace(data, quality_note="", **missing)
        assert "accura" not in render_report(part).lower()


def test_the_same_holds_of_any_other_metric() -> None:
    data = ReportData(run="x", quality="entropy")
    assert "No architecture has a known entropy and a known cost" in words(render_report(data))


def test_the_axis_says_what_is_drawn(data: ReportData, page: str) -> None:
    title = r'<text class="axis-title"[^>]*y="12">(.*?)</text>'
    assert re.findall(title, page) == ["score"]
    accuracy = render_report(sample_report())
    assert re.findall(title, accuracy) == ["validation accuracy, inherited weights"]
    chart, other = front_chart(data), front_chart(sample_report())
    assert chart is not None
    assert other is not None
    assert not any("%" in tick.label for tick in chart["y_ticks"])
    assert all("%" in tick.label for tick in other["y_ticks"])
    assert {d["role"] for d in chart["details"]} == {
        "scored",
        "on the front",
        "chosen, on the front",
        "baseline, outside the searched space",
    }


@pytest.mark.parametrize("low", [-40.0, -0.2, 0.4, 17_000.0])
@pytest.mark.parametrize("extent", [0.001, 3.0, 5_000.0])
def test_every_value_is_drawn_inside_the_plot(few: ReportData, low: float, extent: float) -> None:
    """Also far from 0..1, in the order of the scores, front and baselines included."""
    data = few
    known = [m.predicted["score"] or 0.0 for m in (*data.evaluated, *data.baselines)]
    least, most = min(known), max(known)

    def moved(metrics: Metrics) -> Metrics:
        share = ((metrics["score"] or 0.0) - least) / (most - least)
        return {**metrics, "score": low + extent * share}

    data = replace(
        data,
        evaluated=tuple(replace(p, predicted=moved(p.predicted)) for p in data.evaluated),
        front=tuple(replace(m, predicted=moved(m.predicted)) for m in data.front),
        baselines=tuple(replace(b, predicted=moved(b.predicted)) for b in data.baselines),
    )
    chart = front_chart(data)
    assert chart is not None
    left, top, right, bottom = FRONT_BOX
    at = {d["title"]: p["y"] for d, p in zip(chart["details"], chart["points"], strict=False)}
    drawn = [p for p in data.evaluated if p.digest in at]
    by_score = sorted(drawn, key=lambda p: p.predicted["score"] or 0.0)
    heights = [at[p.digest] for p in by_score]
    assert heights == sorted(heights, reverse=True)
    assert heights[0] - heights[-1] > 0.3 * (bottom - top)
    assert all(top < y < bottom for y in heights)
    for view in chart["views"]:
        markers = view["baselines"]
        assert len(markers) == len(data.baselines)
        assert all(left <= b["x"] <= right and top < b["y"] < bottom for b in markers)
    labels = [tick.label for tick in chart["y_ticks"]]
    assert len(set(labels)) == len(labels) >= 3


def test_headline_and_verdict_of_a_score(data: ReportData, page: str) -> None:
    assert data.chosen is not None
    text = words(page)
    assert f"Score{format_metric('score', data.chosen.predicted['score'])}untrained network" in text
    assert "✓ met" in text
    assert "Latency, predicted" in text
    assert "differs from this network by at most 0.0e+00" in text
    # One that was trained and tested afterwards shows both figures.
    trained = replace(data.chosen, test_accuracy=0.8123)
    both = words(render_report(replace(data, chosen=trained)))
    assert "Test accuracy81.23" in both
    assert "untrained network" in both


def test_how_many_were_scored_and_shown(data: ReportData, page: str) -> None:
    chart = front_chart(data)
    assert chart is not None
    shown = chart["counts"]["shown"]
    assert shown == len(chart["points"]) < len(data.evaluated)
    lead = (
        f"120\u202f000 architectures were scored, {shown} of them are shown; none of them beats "
        f"one of the {len(data.front)} on the front in both score and predicted latency. They are "
        "shown without those of the lowest score, which would flatten the rest."
    )
    assert chart["lead"] == lead
    lone = front_chart(replace(data, evaluated=(), num_seen=None))
    assert lone is not None
    assert lone["lead"].startswith(f"{len(data.front)} architectures were scored; none of them")


def test_columns_without_a_value_are_left_out(data: ReportData) -> None:
    front, baselines = front_table(data), baseline_table(data)
    assert front is not None
    assert baselines is not None
    shared = ["latency, predicted", "score", "parameters", "MACs", "activations"]
    assert front["columns"] == ["digest", *shared]
    assert baselines["columns"] == ["network", *shared]
    for table in (front, baselines):
        assert all(len(row["cells"]) == len(shared) for row in table["rows"])
        assert "measurement" not in table["caption"]
    # A value in a single row brings its column back, in its place, with dashes elsewhere.
    member = replace(data.front[0], measured={"latency_ms": 3.0})
    again = front_table(replace(data, front=(member, *data.front[1:])))
    assert again is not None
    assert again["columns"][2:4] == ["latency, measured", "error"]
    assert [row["cells"][1].text for row in again["rows"]].count("–") == len(data.front) - 1
    assert "the error is the prediction's against the measurement" in again["caption"]


def test_tables_of_accuracies_have_a_loss_where_there_is_one() -> None:
    data = sample_report()
    without = front_table(data)
    losses = tuple(replace(m, predicted={**m.predicted, "loss": 0.2}) for m in data.front)
    with_loss = front_table(replace(data, front=losses))
    assert without is not None
    assert with_loss is not None
    assert "loss" not in without["columns"]
    assert "loss" not in without["caption"]
    assert with_loss["columns"] == [
        *("digest", "latency, predicted", "latency, measured", "error"),
        *("accuracy", "loss", "parameters", "MACs", "activations"),
    ]
    assert "Accuracy and loss are on the validation split" in with_loss["caption"]
    baselines = baseline_table(data)
    assert baselines is not None
    assert baselines["columns"] == [
        *("network", "latency, predicted", "latency, measured", "validation accuracy"),
        *("test accuracy", "parameters", "MACs", "activations"),
    ]


def test_baselines_outside_the_space_are_markers(data: ReportData, page: str) -> None:
    markers = [a for a in Page(page).classed("baseline-point") if "data-i" in a]
    chart = front_chart(data)
    assert chart is not None
    assert len(markers) == len(data.baselines) * len(chart["views"])
    details = {d["title"]: d for d in chart["details"]}
    for b in data.baselines:
        detail = details[b.name]
        assert ["score", format_metric("score", b.predicted["score"])] in map(list, detail["rows"])
        assert len(detail["stages"]) == 4


def test_the_source_of_latencies_is_told_without_pairs(data: ReportData, page: str) -> None:
    text = words(page)
    for part in (
        "Where the latencies come from",
        "estimated from datasheet figures, not measured",
        "NVIDIA A100-SXM4-80GB",
        "60.2% (leave-one-out)",
    ):
        assert part in text
    assert "Predicted against measured latency" not in text
    assert "Supernet training" not in text
    pair = LatencyPair(predicted_ms=3.0, measured_ms=3.3)
    assert data.latency is not None
    measured = replace(data, latency=replace(data.latency, pairs=(pair,)))
    assert "Predicted against measured latency" in words(render_report(measured))


def test_ranks_are_against_the_score(data: ReportData, page: str) -> None:
    assert "How the score ranks against each cheap metric" in words(page)
    assert "cheap metric" not in words(render_report(replace(data, ranking=())))


def test_what_was_written_before_is_an_accuracy_report(data: ReportData) -> None:
    stored = sample_report().to_dict()
    for name in ("quality", "quality_note"):
        del stored[name]
    assert parse(json.loads(json.dumps(stored))) == sample_report()
    again = parse(json.loads(json.dumps(data.to_dict())))
    assert (again.quality, again.quality_note) == ("score", NOTE)
    assert render_report(again) == render_report(data)


def test_an_undefined_score_is_not_drawn(data: ReportData) -> None:
    lost = data.evaluated[0].digest
    points = tuple(
        replace(p, predicted={**p.predicted, "score": -math.inf}) if p.digest == lost else p
        for p in data.evaluated
    )
    front = tuple(m for m in data.front if m.digest != lost)
    changed = replace(data, evaluated=points, front=front)
    chart = front_chart(changed)
    assert chart is not None
    assert lost not in {d["title"] for d in chart["details"]}
    assert not re.search(r"\b(nan|inf)\b", words(render_report(changed)))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.41238, "0.412"),
        (-0.5, "−0.500"),
        (-0.0, "0.000"),
        (1.0, "1.000"),
        (12.3456, "12.346"),
        (123.456, "123.46"),
        (17_234.56, "17\u202f235"),
        (0.00001234, "1.23e-05"),
        (1.5e30, "1.5e+30"),
        (None, "–"),
    ],
)
def test_scores_are_plain_numbers(number: float | None, text: str) -> None:
    assert format_metric("score", number) == text
    assert format_metric("combined_score", number) == text


def test_score_axis_labels_tell_large_values_apart() -> None:
    ticks = fit_scale([17_010.0, 17_045.0], 100.0, 0.0, allow_log=False).ticks("score", 5)
    assert [t.label for t in ticks] == [f"17\u202f0{n}0" for n in (1, 2, 3, 4)]
    ticks = fit_scale([-1.2, 1.2], 100.0, 0.0, allow_log=False).ticks("score", 6)
    assert [t.label for t in ticks] == ["−1", "−0.5", "0", "0.5", "1"]
