"""What is known of the zoo's latencies, and which networks are worth a look next."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from predictors.devices import Target
from predictors.tables.folder import writable
from predictors.zoo.latencies import ZooLatency, cache_name
from predictors.zoo.published import PublishedModel
from results.files import atomic_write, to_json
from results.pareto import pareto_ranks
from search_space.boundary import read_model

_PLAUSIBLE = 1.5  # times the budget that a prediction or a sibling may be over
_TRIES = 3
_FAMILY = re.compile(r"(?:tf_)?([a-z]+?(?:v\d)?)(?=[_\d]|$)")


class KnownLatencies:
    """Latencies of published networks, kept in a file of the folder of latency tables.

    Raises:
        CorruptFileError: The file is damaged.
    """

    def __init__(self, target: Target, num_classes: int, int8: bool = False) -> None:
        self._path: Path = target.path.parent / cache_name(target, num_classes, int8)
        self._known = self._read()

    def __contains__(self, model: PublishedModel) -> bool:
        return model.key in self._known

    def __getitem__(self, model: PublishedModel) -> ZooLatency:
        return self._known[model.key]

    def timed(
        self, models: Iterable[PublishedModel], *, quickest: bool = False
    ) -> dict[PublishedModel, float]:
        """Returns milliseconds of those that have a latency, in the order given.

        Args:
            models: Of which.
            quickest: Of the quickest runs that were measured, which other work disturbs the least.
        """
        result = {}
        for model in models:
            known = self._known.get(model.key)
            if known is not None and known.latency_ms is not None:
                low = known.low_ms if quickest else None
                result[model] = known.latency_ms if low is None else low
        return result

    def add(self, models: Sequence[PublishedModel], found: Sequence[ZooLatency]) -> None:
        """Keeps what was found, beside what another process has found meanwhile."""
        self._known = self._read() | self._known
        for model, latency in zip(models, found, strict=True):
            before = self._known.get(model.key)
            self._known[model.key] = before.with_another(latency) if before else latency
        writable(self._path.parent)
        atomic_write(self._path, to_json(self._known))

    def _read(self) -> dict[str, ZooLatency]:
        try:
            return read_model(
                self._path, dict[str, ZooLatency], fix="Delete it and ask the zoo again."
            )
        except FileNotFoundError:
            return {}


def promising(
    candidates: Sequence[PublishedModel], known: KnownLatencies, budget: float
) -> list[PublishedModel]:
    """Lists those whose latency is to be found, since it may be within the budget, best first.

    Predictions by multiply-adds and family, from latencies that are known, say which; where a
    smaller member of a family is too slow, larger ones are. Without anything known, these are a
    few of all sizes; where nothing is within the budget, those that may be the fastest. Those of
    which some runs were within the budget and most were not are measured again.

    Args:
        candidates: What is selected from.
        known: What is known of some.
        budget: Milliseconds.
    """
    unknown = [model for model in candidates if model not in known]
    timed = list(known.timed(candidates, quickest=True).items())
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
    plausible = {
        model: ms
        for model, ms in predicted.items()
        if ms <= _PLAUSIBLE * budget and model.macs < over.get(_family(model), math.inf)
    }
    settled = known.timed(candidates)
    for model, ms in timed:
        if ms <= budget < settled[model] and known[model].tries < _TRIES:
            plausible[model] = ms
    rivals = [(ms, model.top1) for model, ms in settled.items() if ms <= budget]
    points = [(ms, model.top1) for model, ms in plausible.items()]
    ranks = pareto_ranks([*points, *rivals], maximise=(False, True)).tolist()
    rank = dict(zip(plausible, ranks[: len(points)], strict=True))
    return sorted(plausible, key=lambda model: (rank[model], -model.top1))


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
    """The name up to the size, whatever framework it was trained in."""
    found = _FAMILY.match(model.name)
    return found[1] if found else model.name
