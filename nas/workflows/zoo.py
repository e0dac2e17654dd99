"""The zoo as the baseline: which published networks are within a budget on a device.

Latencies are found for the most promising first (``zoo_latencies``), until all that could be within
the budget are known or the time is up. What is found is kept, so the same question costs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from nas.workflows.zoo_latencies import KnownLatencies, promising
from predictors.devices import Target
from predictors.zoo.latencies import check_int8, measured_together, source_of
from predictors.zoo.published import PublishedModel, named, published_models
from results.pareto import non_dominated
from search_space.errors import InfeasibleError, UsageError
from search_space.metrics import LATENCY, format_metric, metric_named, typed

COUNTS = ("num_params", "macs")
"""Metrics beside the latency that limits of the zoo may be of."""
_TOGETHER = 12
_AT_ONCE = {"local": 6, "datasheet": 16, "table": 1000}

Progress = Callable[[float, float, str], None]


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
        disturbed: How many of ``models`` were measured while other work ran on the machine.
    """

    models: tuple[ZooModel, ...]
    not_tried: tuple[str, ...] = ()
    problems: Mapping[str, str] = field(default_factory=dict)
    disturbed: int = 0

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
    int8: bool = False,
    models: Iterable[PublishedModel] | None = None,
    progress: Progress | None = None,
) -> Zoo:
    """Finds the published networks within ``limits`` on a device.

    Args:
        target: The device, from ``predictors.devices.find_device``; one that is at hand measures.
        limits: Upper limits by metric: ``latency_ms``, ``num_params`` and ``macs``.
        names: Patterns of names, as ``published.named`` takes them.
        seconds: No more latencies are begun after this time; what is on the front is still
            measured once more, interleaved. With 0 nothing is measured: what is known is told.
        num_classes: Classes of the head that is run.
        int8: Whether networks run in int8. Their accuracy is still that which was published, of
            float.
        models: What is selected from, by default all of ``published_models``.
        progress: Called with seconds done, seconds allowed and the models at work.

    Raises:
        UsageError: ``names`` match no model, a limit is of another metric, or nothing runs in
            int8 on the device.
        InfeasibleError: No model is within the limits; says which comes closest.
    """
    limits = dict(limits or {})
    for metric in limits:
        if metric not in (LATENCY, *COUNTS):
            option = metric_named(metric).option or metric
            raise UsageError(
                f"the zoo cannot be limited by {option!r}; limit latency, params or macs."
            )
    if int8:
        check_int8(target)
    candidates = named(names, published_models() if models is None else models)
    candidates = _counted(candidates, limits)
    budget = limits.get(LATENCY, math.inf)
    known = KnownLatencies(target, num_classes, int8)
    ask, begin = source_of(target, num_classes, int8), time.monotonic()
    while chunk := promising(candidates, known, budget)[: _AT_ONCE[target.kind]]:
        if (now := time.monotonic() - begin) >= seconds:
            break
        if progress is not None:
            progress(now, seconds, f"{chunk[0].full_name} and others")
        known.add(chunk, ask(chunk))
    for _ in range(2 if target.at_hand and seconds > 0 else 0):
        rivals = _front(known.timed(candidates), 1.05 * budget)[:_TOGETHER]
        if all(known[model].together for model in rivals):
            break
        if progress is not None:
            progress(seconds, seconds, f"{len(rivals)} of the front together")
        known.add(rivals, measured_together(rivals, target, num_classes, int8))
    return _zoo(candidates, known, budget, target)


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


def _zoo(
    candidates: Sequence[PublishedModel], known: KnownLatencies, budget: float, target: Target
) -> Zoo:
    tried = [model for model in candidates if model in known]
    problems = {m.full_name: known[m].problem for m in tried if known[m].problem}
    timed = known.timed(candidates)
    within = {model: ms for model, ms in timed.items() if ms <= budget}
    if not within:
        raise InfeasibleError(_unreachable(timed, budget, problems, target))
    front = set(_front(within, budget))
    found = (
        ZooModel(
            **asdict(model), latency_ms=ms, origin=known[model].origin, on_front=model in front
        )
        for model, ms in within.items()
    )
    return Zoo(
        tuple(sorted(found, key=lambda model: (-model.top1, model.latency_ms))),
        tuple(model.full_name for model in promising(candidates, known, budget)),
        problems,
        sum(known[model].disturbed for model in within),
    )


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


def _front(timed: Mapping[PublishedModel, float], budget: float) -> list[PublishedModel]:
    """Those within the budget that no other dominates, the most accurate first."""
    within = [(model, ms) for model, ms in timed.items() if ms <= budget]
    mask = non_dominated([(ms, model.top1) for model, ms in within], maximise=(False, True))
    front = [model for (model, _), kept in zip(within, mask, strict=True) if kept]
    return sorted(front, key=lambda model: -model.top1)
