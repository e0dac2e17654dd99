"""The zoo as the baseline: which published networks are within a budget on a device.

Latencies are found for the most promising first, until all that could be within the budget are
known or the time is up: predictions by multiply-adds and family, from those that are known, say
which. What is found is kept in the folder of latency tables, so the same question costs nothing.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import timm

from predictors.devices import Target
from predictors.tables.folder import writable
from predictors.zoo.latencies import ZooLatency, cache_name, measured_together, source_of
from predictors.zoo.published import PublishedModel, named, published_models
from results.files import atomic_write, to_json
from results.pareto import non_dominated, pareto_ranks
from search_space.boundary import read_model
from search_space.errors import InfeasibleError, UsageError
from search_space.metrics import LATENCY, format_metric, metric_named, typed

COUNTS = ("num_params", "macs")
"""Metrics beside the latency that limits of the zoo may be of."""
_PLAUSIBLE = 1.5  # times the budget that a prediction or a sibling may be over
_TOGETHER = 12
_AT_ONCE = {"local": 6, "datasheet": 16, "table": 1000}

Progress = Callable[[float, float, str], None]
Known = Mapping[str, ZooLatency]


@dataclass(frozen=True, kw_only=True)
class ZooModel(PublishedModel):
    """A published network on a device.

    Args:
        latency_ms: Of one batch, milliseconds.
        origin: How that is known: ``measured``, ``estimated`` from a datasheet or ``predicted`` by
            a table of another machine.
        on_front: Whether no model within the limits is faster and at least as accurate, or more
            accurate and at least as fast.
    """

    latency_ms: float
    origin: str
    on_front: bool = False


@dataclass(frozen=True)
class Zoo:
    """What the zoo offers within limits.

    Args:
        models: Those within all limits, the most accurate first.
        not_tried: Names of those that may be within them and for which there was no time.
        problems: Why others have no latency, by name.
    """

    models: tuple[ZooModel, ...]
    not_tried: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def front(self) -> list[ZooModel]:
        """Those that no other dominates, the most accurate first."""
        return [model for model in self.models if model.on_front]

    def points(self) -> list[ZooModel]:
        """Those that are points of a space of ours, of one network the best, front first."""
        best: dict[str, ZooModel] = {}
        for model in sorted(self.models, key=lambda m: (not m.on_front, -m.top1)):
            if model.design is not None:
                best.setdefault(model.design, model)
        return list(best.values())


def zoo_frontier(
    target: Target, limits: Mapping[str, float] | None = None, *, seconds: float = 120.0
) -> list[ZooModel]:
    """Finds the published networks within ``limits`` that no other dominates; see ``find_zoo``."""
    return find_zoo(target, limits, seconds=seconds).front


def find_zoo(
    target: Target,
    limits: Mapping[str, float] | None = None,
    *,
    names: str = "*",
    seconds: float = 120.0,
    num_classes: int = 1000,
    models: Iterable[PublishedModel] | None = None,
    progress: Progress | None = None,
) -> Zoo:
    """Finds the published networks within ``limits`` on a device.

    Args:
        target: The device, from ``predictors.devices.find_device``; one that is at hand measures.
        limits: Upper limits by metric: ``latency_ms``, ``num_params`` and ``macs``.
        names: Patterns of names, as ``published.named`` takes them.
        seconds: No more latencies are begun after this time; what is on the front is still
            measured once more, interleaved.
        num_classes: Classes of the head that is run.
        models: What is selected from, by default all of ``published_models``.
        progress: Called with seconds done, seconds allowed and the models at work.

    Raises:
        UsageError: ``names`` match no model, or a limit is of another metric.
        InfeasibleError: No model is within the limits; says which comes closest.
    """
    limits = dict(limits or {})
    for metric in limits:
        if metric not in (LATENCY, *COUNTS):
            option = metric_named(metric).option or metric
            raise UsageError(
                f"the zoo cannot be limited by {option!r}; limit latency, params or macs."
            )
    candidates = named(names, published_models() if models is None else models)
    candidates = _counted(candidates, limits)
    budget = limits.get(LATENCY, math.inf)
    cache = _Cache(target, num_classes)
    ask, begin = source_of(target, num_classes), time.monotonic()
    while (chunk := _next(candidates, cache.known, budget)[: _AT_ONCE[target.kind]]) and (
        (now := time.monotonic() - begin) < seconds
    ):
        if progress is not None:
            progress(now, seconds, f"{chunk[0].full_name} and others")
        cache.add(chunk, ask(chunk))
    for _ in range(2 if target.at_hand else 0):
        rivals = _front(candidates, cache.known, 1.05 * budget)[:_TOGETHER]
        if all(cache.known[model.key].together for model in rivals):
            break
        if progress is not None:
            progress(seconds, seconds, f"{len(rivals)} of the front together")
        cache.add(rivals, measured_together(rivals, target, num_classes))
    return _zoo(candidates, cache.known, budget, target)


def _counted(
    candidates: Sequence[PublishedModel], limits: Mapping[str, float]
) -> list[PublishedModel]:
    """Those within the limits of counts."""
    result = list(candidates)
    for metric in COUNTS:
        if metric not in limits:
            continue
        least = min(result, key=lambda model: getattr(model, metric))
        result = [model for model in result if getattr(model, metric) <= limits[metric]]
        if not result:
            raise InfeasibleError(
                f"no model of the zoo has {metric_named(metric).option} ≤ "
                f"{typed(metric, limits[metric])}; the least has {least.full_name} with "
                f"{format_metric(metric, getattr(least, metric))}. Raise the limit or choose other "
                "--names."
            )
    return result


def _zoo(candidates: Sequence[PublishedModel], known: Known, budget: float, target: Target) -> Zoo:
    tried = [model for model in candidates if model.key in known]
    problems = {m.full_name: known[m.key].problem for m in tried if known[m.key].problem}
    timed = {m: ms for m in tried if (ms := known[m.key].latency_ms) is not None}
    within = [model for model in timed if timed[model] <= budget]
    if not within:
        raise InfeasibleError(_unreachable(timed, budget, problems, target))
    front = set(_front(within, known, budget))
    found = (
        ZooModel(
            **asdict(model),
            latency_ms=timed[model],
            origin=known[model.key].origin,
            on_front=model in front,
        )
        for model in within
    )
    left = [model.full_name for model in _next(candidates, known, budget)]
    ordered = sorted(found, key=lambda model: (-model.top1, model.latency_ms))
    return Zoo(tuple(ordered), tuple(left), problems)


def _unreachable(
    timed: Mapping[PublishedModel, float],
    budget: float,
    problems: Mapping[str, str],
    target: Target,
) -> str:
    if not timed:
        reasons = "; ".join(sorted(set(problems.values()))) or "there was no time for any"
        return (
            f"no model of the zoo has a latency on {target.name}: {reasons}. Give more --seconds, "
            "other --names or another --device."
        )
    fastest = min(timed, key=lambda model: timed[model])
    return (
        f"no model of the zoo is within {format_metric(LATENCY, budget)} on {target.name}; the "
        f"fastest is {fastest.full_name} at {fastest.image_size} px with "
        f"{format_metric(LATENCY, timed[fastest])}. Raise --target-latency, or search for a "
        "smaller network: nas search."
    )


def _front(
    candidates: Sequence[PublishedModel], known: Known, budget: float
) -> list[PublishedModel]:
    """Those within the budget that no other dominates, the most accurate first."""
    timed = [
        (model, latency)
        for model in candidates
        if model.key in known
        and (latency := known[model.key].latency_ms) is not None
        and latency <= budget
    ]
    mask = non_dominated([(ms, model.top1) for model, ms in timed], maximise=(False, True))
    front = [model for (model, _), kept in zip(timed, mask, strict=True) if kept]
    return sorted(front, key=lambda model: -model.top1)


def _next(
    candidates: Sequence[PublishedModel], known: Known, budget: float
) -> list[PublishedModel]:
    """Those whose latency is unknown and may be within the budget, the most promising first.

    Without anything known, a few of all sizes. Where nothing is within the budget, those that may
    be the fastest.
    """
    unknown = [model for model in candidates if model.key not in known]
    timed = [
        (model, ms)
        for model in candidates
        if model.key in known and (ms := known[model.key].latency_ms) is not None
    ]
    if not timed:
        by_size = sorted(unknown, key=lambda model: model.macs)
        shares = (0.0, 0.05, 0.15, 0.3, 0.5)  # the largest teach little and take long
        return list(
            dict.fromkeys(by_size[int(share * len(by_size))] for share in shares if by_size)
        )
    predicted = dict(zip(unknown, _predict(unknown, timed), strict=True))
    fastest = min(ms for _, ms in timed)
    if fastest > budget:
        faster = [model for model in unknown if predicted[model] < _PLAUSIBLE * fastest]
        return sorted(faster, key=lambda model: predicted[model])
    over: dict[str, float] = {}  # multiply-adds at which a family is too slow
    for model, ms in timed:
        if ms > _PLAUSIBLE * budget:
            family = _family(model)
            over[family] = min(model.macs, over.get(family, math.inf))
    plausible = [
        model
        for model in unknown
        if predicted[model] <= _PLAUSIBLE * budget
        and model.macs < over.get(_family(model), math.inf)
    ]
    all_points = [(predicted[model], model.top1) for model in plausible]
    all_points += [(ms, model.top1) for model, ms in timed if ms <= budget]
    ranks = pareto_ranks(all_points, maximise=(False, True))[: len(plausible)]
    order = sorted(
        zip(ranks.tolist(), plausible, strict=True), key=lambda item: (item[0], -item[1].top1)
    )
    return [model for _, model in order]


def _predict(
    models: Sequence[PublishedModel], timed: Sequence[tuple[PublishedModel, float]]
) -> list[float]:
    """Milliseconds by multiply-adds, on a line of logarithms, corrected by family."""
    sizes = np.log([model.macs for model, _ in timed])
    times = np.log([ms for _, ms in timed])
    slope = float(np.polyfit(sizes, times, 1)[0]) if np.ptp(sizes) > 0 else 1.0
    slope = min(max(slope, 0.3), 1.2)
    level = float(np.median(times - slope * sizes))
    residuals: dict[str, list[float]] = defaultdict(list)
    for (model, _), size, ms in zip(timed, sizes, times, strict=True):
        residuals[_family(model)].append(float(ms - slope * size - level))
    own = {family: sum(values) / (len(values) + 0.5) for family, values in residuals.items()}
    return [
        math.exp(level + slope * math.log(model.macs) + own.get(_family(model), 0.0))
        for model in models
    ]


def _family(model: PublishedModel) -> str:
    """The module of timm that makes it."""
    return str(timm.model_entrypoint(model.name).__module__)


class _Cache:
    """Latencies that are known, by key, in a file of the folder of tables."""

    def __init__(self, target: Target, num_classes: int) -> None:
        self._path: Path = target.path.parent / cache_name(target, num_classes)
        self.known = self._read()

    def _read(self) -> dict[str, ZooLatency]:
        try:
            return read_model(
                self._path, dict[str, ZooLatency], fix="Delete it and ask the zoo again."
            )
        except FileNotFoundError:
            return {}

    def add(self, models: Sequence[PublishedModel], found: Sequence[ZooLatency]) -> None:
        """Keeps what was found, beside what another process has found meanwhile."""
        new = {model.key: latency for model, latency in zip(models, found, strict=True)}
        self.known = self._read() | self.known | new
        writable(self._path.parent)
        atomic_write(self._path, to_json(self.known))
