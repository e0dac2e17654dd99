"""What each section of the report draws, worked out from the data: positions, rows, wording.

One function a section; each returns plain values for its template, or None where the run has
nothing to show there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from results.pareto import kendall_tau
from results.report.charts import (
    Scale,
    capitalised,
    fit_scale,
    format_metric,
    path,
    signed,
)
from results.report.data import LatencyCheck, Metrics, ReportData
from results.report.quality import quality_of
from search_space.architecture import Architecture, feature_sizes
from search_space.metrics import (
    ACCURACY,
    IMAGES,
    LATENCY,
    MACS,
    PARAMS,
    TABLE,
    metric_named,
    title_of,
)
from search_space.metrics import metrics as registered
from search_space.units import format_duration

# Colours (--mixer-N in the style sheet) are Okabe and Ito's, told apart with any colour vision.
MIXERS = {
    "window_attention": ("Window attention", 0),
    "focal_modulation": ("Focal modulation", 1),
    "gnconv": ("gnConv", 2),
    "pooling": ("Pooling", 3),
    "depthwise_conv": ("Depthwise conv", 4),
}
SAME_FOR_ALL = (IMAGES,)  # of whatever is shown: nothing to tell networks apart by
# Plots within their pictures: left, top, right, bottom.
CURVE_BOX = (56.0, 16.0, 428.0, 214.0)
SCATTER_BOX = (60.0, 16.0, 424.0, 380.0)


def value(metrics: Metrics, name: str) -> float | None:
    """A metric, or None where it is missing or not finite."""
    found = metrics.get(name)
    return found if found is not None and math.isfinite(found) else None


def cheap_metrics(everything: Iterable[Metrics]) -> list[str]:
    """Names of what was known beforehand of any of the networks, registered metrics first."""
    known = {name for metrics in everything for name in metrics if value(metrics, name) is not None}
    costs = [m.name for m in registered(TABLE)]
    others = known.difference(costs)
    names = [*costs, *sorted(n for n in others if metric_named(n).source == TABLE)]
    names.sort(key=lambda name: name.partition("@")[0] != LATENCY)
    return [name for name in names if name in known]


def moment(created: str) -> str:
    """An ISO 8601 time as people read it, in UTC where it names a zone; other text unchanged."""
    try:
        time = datetime.fromisoformat(created)
    except ValueError:
        return created
    if time.tzinfo is None:
        return f"{time:%Y-%m-%d %H:%M}"
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def mixer_style(name: str) -> tuple[str, int]:
    """Readable name and colour number of a mixer; mixers beyond the known share two colours."""
    return MIXERS.get(name, (name.replace("_", " ").capitalize(), 5 + sum(name.encode()) % 2))


def summarise(architecture: Mapping[str, Any] | None) -> list[str]:
    """One line a stage: width × depth, side of its feature map, and its mixers."""
    if architecture is None:
        return []
    arch = Architecture.from_dict(architecture)
    lines = []
    for stage, size in zip(arch.stages, feature_sizes(arch.macro, arch.resolution), strict=True):
        names = [block.mixer.name for block in stage.blocks]
        mixers = ", ".join(
            f"{names.count(name)} {mixer_style(name)[0].lower()}" for name in dict.fromkeys(names)
        )
        lines.append(f"{stage.width} × {stage.depth} at {size}²: {mixers}")
    return lines


def metric_rows(metrics: Metrics, measured: Metrics | None = None) -> list[tuple[str, str]]:
    """Names and formatted values, the usual metrics first; a measured latency beside its own."""
    names = [m.name for m in registered() if m.name in metrics]
    names += [n for n in metrics if n not in (*names, *SAME_FOR_ALL)]
    rows = []
    for name in names:
        if value(metrics, name) is None:
            continue
        title = title_of(name)
        if name == LATENCY and measured and value(measured, name) is not None:
            rows.append(("latency, measured", format_metric(name, measured[name])))
            title = "latency, predicted"
        rows.append((title, format_metric(name, metrics[name])))
    return rows


def headline(data: ReportData) -> dict[str, Any] | None:
    """The chosen network in figures, and whether it meets what was asked."""
    chosen, quality = data.chosen, quality_of(data)
    if chosen is None:
        return None
    verdicts = []
    for name, limit in data.targets.items():
        got, how = value(chosen.measured, name), "measured"
        if got is None:
            got, how = value(chosen.predicted, name), "predicted"
        if got is None:
            continue
        counted = how if name.partition("@")[0] == LATENCY else ""
        margin = abs(got / limit - 1)
        side = "below" if got <= limit else "above"
        text = (
            f"{capitalised(title_of(name))} {format_metric(name, got)}"
            f"{f' ({counted})' if counted else ''}, {100 * margin:.1f}\u00a0% {side} the limit of "
            f"{format_metric(name, limit)}"
        )
        verdicts.append({"met": got <= limit, "text": text})
    latency = value(chosen.measured, LATENCY)
    tiles = [
        {
            "name": "Latency" + (", measured" if latency is not None else ", predicted"),
            "value": format_metric(LATENCY, latency or value(chosen.predicted, LATENCY)),
            "note": _latency_note(chosen.measured, chosen.predicted),
        }
    ]
    if chosen.test_accuracy is not None:
        before = chosen.test_accuracy_before
        gain = f", {signed(100 * (chosen.test_accuracy - before), 2)} points" if before else ""
        tiles.append(
            {
                "name": "Test accuracy, fine-tuned" if before is not None else "Test accuracy",
                "value": format_metric(ACCURACY, chosen.test_accuracy),
                "note": f"{format_metric(ACCURACY, before)} with inherited weights{gain}"
                if before is not None
                else "",
            }
        )
    elif chosen.test_accuracy_before is not None:
        tiles.append(
            {
                "name": "Test accuracy, inherited weights",
                "value": format_metric(ACCURACY, chosen.test_accuracy_before),
                "note": "not fine-tuned",
            }
        )
    if quality.metric != ACCURACY or (
        chosen.test_accuracy is None and chosen.test_accuracy_before is None
    ):
        reached = value(chosen.predicted, quality.metric)
        if reached is not None:
            tiles.append(
                {
                    "name": capitalised(quality.full_name),
                    "value": format_metric(quality.metric, reached),
                    "note": quality.tile_note,
                }
            )
    for name, title in ((PARAMS, "Parameters"), (MACS, "MACs")):
        if value(chosen.predicted, name) is not None:
            note = "multiply-adds an image" if name == MACS else ""
            tiles.append(
                {"name": title, "value": format_metric(name, chosen.predicted[name]), "note": note}
            )
    return {"tiles": tiles, "verdicts": verdicts, "stages": summarise(chosen.architecture)}


def _latency_note(measured: Metrics, predicted: Metrics) -> str:
    parts = []
    low, high = value(measured, "latency_low_ms"), value(measured, "latency_high_ms")
    if low is not None and high is not None:
        parts.append(f"{format_metric(LATENCY, low)} to {format_metric(LATENCY, high)}")
    if value(measured, LATENCY) is None:
        parts.append("not re-measured on the device")
    elif value(predicted, LATENCY) is not None:
        parts.append(f"predicted {format_metric(LATENCY, predicted[LATENCY])}")
    return "; ".join(parts)


def block_picture(data: ReportData) -> dict[str, Any] | None:
    """The chosen network stage by stage; a box's extra height is its share of the latency."""
    if data.chosen is None:
        return None
    arch = Architecture.from_dict(data.chosen.architecture)
    latency = data.chosen.component_latency_ms
    total = sum(latency.values())
    largest = max(latency.values(), default=0.0)

    def box(at: str, kind: str, title: str, lines: list[str], colour: int | None) -> dict[str, Any]:
        own = latency.get(at)
        return {
            "path": at,
            "kind": kind,
            "title": title,
            "lines": lines,
            "colour": colour,
            "share": f"{100 * own / total:.1f}\u00a0%" if own is not None and total > 0 else "",
            "latency": format_metric(LATENCY, own) if own is not None else "",
            "extra": round(72 * own / largest) if own is not None and largest > 0 else 0,
        }

    macro = arch.macro
    sizes = feature_sizes(macro, arch.resolution)
    stages = []
    for i, (stage, size) in enumerate(zip(arch.stages, sizes, strict=True)):
        if i == 0:
            lines = [f"conv {macro.stem_kernel}×{macro.stem_kernel}", f"stride {macro.stem_stride}"]
            boxes = [box("stem", "edge", "Stem", lines, None)]
        else:
            lines = [
                macro.downsample.replace("_", " "),
                f"{arch.stages[i - 1].width} → {stage.width}",
            ]
            boxes = [box(f"stages.{i}.downsample", "edge", "Down 2×", lines, None)]
        for j, block in enumerate(stage.blocks):
            name, colour = mixer_style(block.mixer.name)
            lines = [
                key.replace("_", " ") if val is True else f"{key.replace('_', ' ')} {val}"
                for key, val in block.mixer.params
                if val is not False
            ]
            lines.append(f"MLP ×{block.mlp_ratio:g}")
            boxes.append(box(f"stages.{i}.blocks.{j}", "block", name, lines, colour))
        if i == len(arch.stages) - 1:
            boxes.append(box("head", "edge", "Head", ["pool", "linear"], None))
        own = sum(latency.get(b["path"], 0.0) for b in boxes)
        stages.append(
            {
                "number": i + 1,
                "width": stage.width,
                "size": size,
                "depth": stage.depth,
                "boxes": boxes,
                "share": f"{100 * own / total:.0f}\u00a0%" if total > 0 else "",
                # A drawing of the tensor: side by the map's size, thickness by the width.
                "side": round(14 + 22 * math.sqrt(size / sizes[0]), 1),
                "depth_px": round(4 + 22 * stage.width / max(arch.widths), 1),
            }
        )
    names = [b.mixer.name for s in arch.stages for b in s.blocks]
    legend = [(*mixer_style(name), names.count(name)) for name in dict.fromkeys(names)]
    return {
        "resolution": arch.resolution,
        "stages": stages,
        "legend": legend,
        "blocks": len(names),
        "has_latency": total > 0,
    }


def latency_errors(check: LatencyCheck) -> dict[str, float | None]:
    """Mean absolute percentage error, share within ±10 % and Kendall's tau of the pairs."""
    pairs = [(p.predicted_ms, p.measured_ms) for p in check.pairs if p.measured_ms > 0]
    if not pairs:
        return {"mape": None, "share_within_10": None, "kendall_tau": None}
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
    tau = kendall_tau([p for p, _ in pairs], [m for _, m in pairs], resamples=2)
    return {
        "mape": sum(errors) / len(errors),
        "share_within_10": sum(e <= 0.1 for e in errors) / len(errors),
        "kendall_tau": tau.tau,
    }


def latency_chart(data: ReportData) -> dict[str, Any] | None:
    """Predicted against measured latency, with diagonal and band, and the errors in figures."""
    check = data.latency
    if check is None:
        return None
    errors = latency_errors(check)
    names = {
        "mape": ("mean abs. error", "{:.2%}"),
        "share_within_10": ("within ±10 %", "{:.2%}"),
        "kendall_tau": ("Kendall τ", "{:.2f}"),
    }
    tiles = []
    for key, (name, form) in names.items():
        floor, error = value(check.repeatability, key), errors[key]
        if error is not None:
            note = f"repeating itself: {_figure(form, floor)}" if floor is not None else ""
            tiles.append({"name": name, "value": _figure(form, error), "note": note})
    view: dict[str, Any] = {"tiles": tiles, "provenance": check.provenance, "plot": None}
    if not check.pairs:
        return view
    left, top, right, bottom = SCATTER_BOX
    values = [v for p in check.pairs for v in (p.predicted_ms, p.measured_ms)]
    x = fit_scale(values, left, right, floor=0.0)
    y = Scale(x.low, x.high, bottom, top, x.log)
    along = [x.low + (x.high - x.low) * i / 40 for i in range(41)]
    if x.log:
        along = [x.low * (x.high / x.low) ** (i / 40) for i in range(41)]
    along = [v for v in along if v > 0]
    band = [(x(v), y(1.1 * v)) for v in along] + [(x(v), y(0.9 * v)) for v in reversed(along)]
    view["plot"] = {
        "box": SCATTER_BOX,
        "x_ticks": x.ticks(LATENCY, 5),
        "y_ticks": y.ticks(LATENCY, 5),
        "band": path(band) + "Z",
        "log": x.log,
        "points": [
            {
                "x": x(p.measured_ms),
                "y": y(p.predicted_ms),
                "text": f"{p.digest} measured {format_metric(LATENCY, p.measured_ms)}, "
                f"predicted {format_metric(LATENCY, p.predicted_ms)}".strip(),
            }
            for p in check.pairs
        ],
    }
    return view


def _figure(form: str, number: float) -> str:
    return form.format(number).replace("%", "\u00a0%").replace("-", "−")


def training_charts(data: ReportData) -> list[dict[str, Any]]:
    """Validation loss and accuracy of the largest and the smallest subnet over the epochs."""
    left, top, right, bottom = CURVE_BOX
    charts = []
    for what, title in (("loss", "Validation loss"), ("accuracy", "Validation accuracy")):
        fields = {"network": what, "largest": f"{what}_largest", "smallest": f"{what}_smallest"}
        series = {
            size: [
                (e.epoch, v)
                for e in data.training
                if (v := getattr(e, field)) is not None and math.isfinite(v)
            ]
            for size, field in fields.items()
        }
        series = {size: values for size, values in series.items() if values}
        if not series:
            continue
        every = list(itertools.chain(*series.values()))
        epochs = [e for e, _ in every]
        x = Scale(min(epochs), max(max(epochs), min(epochs) + 1), left, right)
        limits: dict[str, float] = (
            {"floor": 0.0} if what == "loss" else {"floor": 0.0, "ceiling": 1.0}
        )
        y = fit_scale([v for _, v in every], bottom, top, allow_log=False, **limits)
        ends = {size: y(values[-1][1]) for size, values in series.items()}
        labels = dict(ends)
        if len(ends) == 2 and abs(ends["largest"] - ends["smallest"]) < 18:
            middle = sum(ends.values()) / 2
            upper = min(ends, key=lambda size: ends[size])
            labels = {size: middle + (-9 if size == upper else 9) for size in ends}
        charts.append(
            {
                "title": title,
                "box": CURVE_BOX,
                "x_ticks": [t for t in x.ticks("epoch", 6) if "." not in t.label],
                "y_ticks": y.ticks(what, 5),
                "lines": [
                    {
                        "name": size,
                        "style": "largest" if size == "network" else size,
                        "path": path([(x(e), y(v)) for e, v in values]),
                        "end": (x(values[-1][0]), y(values[-1][1])),
                        "label_y": labels[size] + 4,
                        "last": format_metric(what, values[-1][1]),
                    }
                    for size, values in series.items()
                ],
            }
        )
    return charts


def phase_bars(data: ReportData) -> dict[str, Any] | None:
    """Wall time a phase, repeats of a phase (after a resume) added up."""
    seconds: dict[str, float] = {}
    notes: dict[str, str] = {}
    for phase in data.phases:
        seconds[phase.name] = seconds.get(phase.name, 0.0) + phase.seconds
        notes[phase.name] = phase.note or notes.get(phase.name, "")
    total = sum(seconds.values())
    if not seconds:
        return None
    return {
        "total": format_duration(total),
        "rows": [
            {
                "name": name,
                "note": notes[name],
                "time": format_duration(s),
                "percent": round(100 * s / total, 1) if total > 0 else 0.0,
            }
            for name, s in seconds.items()
        ],
    }
