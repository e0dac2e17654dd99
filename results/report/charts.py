"""Geometry of the report's charts: scales, ticks, number formats, label placement.

Only numbers and text are made here; the templates turn them into SVG, so that everything a run
contains is escaped in one place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_space.metrics import metric_named, title_of


def capitalised(text: str) -> str:
    """Text with a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def format_metric(name: str, value: float | None) -> str:
    """A metric's value with its unit, which stays on its line; a dash where unknown."""
    return _fixed(metric_named(name).format(value))


def tile(name: str, metric: str, number: float | None, note: str = "") -> dict[str, str]:
    """A figure with its name above it and a note below."""
    return {"name": name, "value": format_metric(metric, number), "note": note}


def thousands(count: int) -> str:
    """A count with narrow spaces between thousands."""
    return f"{count:,}".replace(",", "\u202f")


def signed(value: float, digits: int) -> str:
    """A number with its sign, a true minus where it is negative."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _fixed(text: str) -> str:
    return text.replace(" ", "\u00a0")


CURVE_BOX = (56.0, 16.0, 428.0, 214.0)  # left, top, right, bottom of a 520×262 picture
STEP = "step"
LABEL_GAP = 15.0
LINE_STYLES = {"network": "largest", "": "largest"}  # alone in their pictures
DRAWN = 1e100  # larger numbers, as of a damaged file, have no place on an axis


@dataclass(frozen=True)
class Tick:
    """A labelled position; ``minor`` ones are dropped on narrow screens."""

    at: float
    label: str
    minor: bool = False


@dataclass(frozen=True)
class Scale:
    """Maps ``low..high`` to ``start..end`` in SVG units, by value or by its logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return round(self.start + (x - low) / (high - low) * (self.end - self.start), 2)

    def tick_values(self, count: int = 6) -> list[float]:
        """Round values within the scale, at most about ``count``."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                values = [s * 10.0**d for d in decades for s in steps]
                values = [v for v in values if self.low <= v <= self.high]
                if len(values) <= count + 2:
                    break
            return values
        raw = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]

    def ticks(self, name: str, count: int = 6) -> list[Tick]:
        """Ticks labelled for metric ``name``; the axis title carries the unit of latencies."""
        values, unit = self.tick_values(count), metric_named(name).unit
        return [
            Tick(self(value), _fixed(unit.tick(value)), minor=i % 2 == 1)
            for i, value in enumerate(values)
        ]


def fit_scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    floor: float | None = None,
    ceiling: float | None = None,
    pad: float = 0.05,
    allow_log: bool = True,
) -> Scale:
    """Scale that holds all finite ``values`` with some air; logarithmic above a ratio of 25."""
    known = [v for v in values if abs(v) < DRAWN] or [0.0, 1.0]  # NaN is not less either
    low, high = min(known), max(known)
    if allow_log and low > 0 and high / low > 25:
        air = (high / low) ** pad
        return Scale(low / air, high * air, start, end, log=True)
    air = (high - low) * pad or abs(high) * 0.1 or 0.5
    low, high = low - air, high + air
    low = low if floor is None else max(floor, low)
    high = high if ceiling is None else min(ceiling, high)
    return Scale(low, high, start, end)


def axis_view(axis: str, scale: Scale, limit: float | None) -> dict[str, Any]:
    """One horizontal axis among several of a picture: its button, title, ticks and limit."""
    ticks = scale.ticks(axis, 7)
    return {
        "metric": axis,
        "button": capitalised(title_of(axis)),
        "title": f"{metric_named(axis).axis_title}{', logarithmic' if scale.log else ''}",
        "ticks": [tick for tick in ticks if axis != STEP or "." not in tick.label],
        "limit": limit and {"x": scale(limit), "text": f"limit {format_metric(axis, limit)}"},
    }


def line_chart(
    title: str,
    along: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    metric: str,
    **limits: Any,
) -> dict[str, Any] | None:
    """Named lines over whole steps; None where no point is finite.

    Args:
        title: Of the picture.
        along: What is counted along the horizontal axis: epochs, steps.
        lines: Points by name, ascending; what is not finite is left out.
        metric: Writes the values.
        limits: Options of ``fit_scale`` for the values.
    """
    known = {name: [p for p in points if math.isfinite(p[1])] for name, points in lines.items()}
    known = {name: points for name, points in known.items() if points}
    if not known:
        return None
    left, top, right, bottom = CURVE_BOX
    steps = [step for points in lines.values() for step, _ in points]
    values = [value for points in known.values() for _, value in points]
    x = Scale(min(steps), max(max(steps), min(steps) + 1), left, right)
    y = fit_scale(values, bottom, top, **limits)
    whole = all(float(value).is_integer() for value in values)
    drawn: list[dict[str, Any]] = [
        {
            "name": name,
            "style": LINE_STYLES.get(name, name.replace(" ", "-")),
            "path": path([(x(step), y(value)) for step, value in points]),
            "end": (x(points[-1][0]), y(points[-1][1])),
            "last": format_metric(metric, points[-1][1]),
        }
        for name, points in known.items()
    ]
    label_y = -math.inf
    for line in sorted(drawn, key=lambda line: float(line["end"][1])):
        label_y = max(label_y + LABEL_GAP, line["end"][1])
        line["label_y"] = label_y + 4
    return {
        "title": title,
        "along": along,
        "box": CURVE_BOX,
        "x_ticks": [tick for tick in x.ticks(STEP, 6) if "." not in tick.label],
        "y_ticks": [t for t in y.ticks(metric, 5) if not (whole and "." in t.label)],
        "lines": drawn,
        "marks": [],
        "scale": x,
    }


def path(points: Sequence[tuple[float, float]]) -> str:
    """SVG path data of a polyline."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points) if points else ""


def staircase(points: Sequence[tuple[float, float]], right: float) -> str:
    """SVG path of the region that points attain: a step at each, then level to ``right``.

    Points are in SVG units, so a smaller y is better; they are mutually non-dominated.
    """
    ordered = sorted(points)
    if not ordered:
        return ""
    data = f"M{ordered[0][0]:g} {ordered[0][1]:g}"
    for x, y in ordered[1:]:
        data += f"H{x:g}V{y:g}"
    return data + (f"H{right:g}" if ordered[-1][0] < right else "")


@dataclass(frozen=True)
class Label:
    """A text beside a marker."""

    text: str
    x: float
    y: float
    anchor: str


def place_labels(
    markers: Sequence[tuple[float, float, str]],
    obstacles: Sequence[tuple[float, float]],
    box: tuple[float, float, float, float],
    size: float = 12.0,
) -> list[Label | None]:
    """A free place beside each marker for its text, greedily; None where there is none.

    ``box`` is (left, top, right, bottom). A text's width is taken as 0.56 of its size a letter.
    """
    left, top, right, bottom = box
    taken: list[tuple[float, float, float, float]] = [
        (x - 5, y - 5, x + 5, y + 5) for x, y in [*obstacles, *((x, y) for x, y, _ in markers)]
    ]
    placed: list[Label | None] = []
    for x, y, text in markers:
        width = 0.56 * size * len(text)
        best: tuple[float, Label, tuple[float, float, float, float]] | None = None
        for dx, dy, anchor in (
            (9, 4, "start"),
            (-9, 4, "end"),
            (0, -10, "middle"),
            (0, 19, "middle"),
            (8, -8, "start"),
            (-8, -8, "end"),
            (8, 16, "start"),
            (-8, 16, "end"),
        ):
            begin = x + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
            area = (begin, y + dy - size * 0.85, begin + width, y + dy + size * 0.25)
            if area[0] < left or area[2] > right or area[1] < top or area[3] > bottom:
                continue
            clashes = sum(
                area[0] < other[2]
                and other[0] < area[2]
                and area[1] < other[3]
                and other[1] < area[3]
                for other in taken
            )
            if best is None or clashes < best[0]:
                best = (clashes, Label(text, x + dx, y + dy, anchor), area)
        if best is None or best[0] > 2:
            placed.append(None)
        else:
            placed.append(best[1])
            taken.append(best[2])
    return placed
