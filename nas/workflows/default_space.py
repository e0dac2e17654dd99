"""The search space where none is named: the smallest preset for the images and the budget.

A space of 32 px throws away what a photograph shows, and one whose largest network is done in half
the budget leaves the other half unused. Few images are no reason for the largest networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nas.config import RunConfig, TrainedConfig, TrainingFreeConfig
from predictors.counts import count_architecture
from predictors.devices import Target, find_device, latency_table
from predictors.measuring.bench import Limits
from predictors.measuring.remeasure import measure_networks
from predictors.tables.latency_table import MissingLatencyError
from search_space import SearchSpace, load_space, space_names
from search_space.metrics import LATENCY, device_of, format_metric
from supernet.data.sources import open_source

SIDE = 224  # of images that nobody has shown yet
ALIKE = math.log(1.2)  # presets whose sides are about as far from the images' suit them alike
FEW_IMAGES = 10_000  # for the largest of several presets that suit
LOOKED_AT = 64
QUICK = Limits(min_rounds=3, max_rounds=3, min_seconds=0.0)


@dataclass(frozen=True)
class ImageFacts:
    """Median of the shorter sides in pixels, and how many images there are for training."""

    side: int
    count: int


def look_at(config: TrainedConfig) -> ImageFacts:
    """Facts of a run's images, from some that lie evenly among them.

    Raises:
        DataError: The images cannot be read.
    """
    images = open_source(config.data, **config.source_options()).train
    count = len(images.labels)
    picked = np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(int))
    return ImageFacts(int(np.median([min(images.image(i).size) for i in picked])), count)


def choose_space(
    facts: ImageFacts | None, shortfall: Callable[[SearchSpace], str | None]
) -> tuple[str, str]:
    """The name of the smallest preset that suits, and the reason as a sentence.

    Args:
        facts: Of the images; None where there are none.
        shortfall: Where the largest network of a space ends, in words; None where the space
            reaches the budget.
    """
    side = SIDE if facts is None else facts.side
    spaces = sorted(map(load_space, space_names()), key=_size)
    nearest = min(_distance(space, side) for space in spaces)
    suitable = [space for space in spaces if _distance(space, side) <= nearest + ALIKE]
    suits = "is for photographs" if facts is None else f"suits images of {side} px"
    if facts is not None and facts.count < FEW_IMAGES and len(suitable) > 1:
        suits += f", of which there are {facts.count:,} only"
        suitable = suitable[:1]
    if len(suitable) == 1:
        return suitable[0].name, f"It is the smallest preset that {suits}."
    ends: dict[str, str] = {}
    for space in suitable:
        end = shortfall(space)
        if end is None:
            break
        ends[space.name] = end
    listed = "; ".join(f"{name} ends at {end}" for name, end in ends.items())
    if space.name in ends:
        return (
            space.name,
            f"It is the largest preset that {suits}; none reaches the limits ({listed}).",
        )
    if ends:
        suits += f" and whose largest network reaches the limits ({listed})"
    return space.name, f"It is the smallest preset that {suits}."


def default_space(config: RunConfig) -> tuple[str, str]:
    """The space of a run that names none, and the reason as a sentence.

    Raises:
        DataError: The images cannot be read.
        UnknownNameError: The device is not known.
    """
    facts = look_at(config) if isinstance(config, TrainedConfig) else None
    return choose_space(facts, lambda space: shortfall(config, space))


def shortfall(config: RunConfig, space: SearchSpace) -> str | None:
    """Metrics of the largest network where no network of the space reaches the limits, as text."""
    target = find_device(config.device, **config.latency.conditions())
    batch_size = target.conditions.batch_size
    upper, lower = config.limits(batch_size), config.lower_limits()
    ends: dict[str, float] = {}
    for metric in {**upper, **lower}:
        other = device_of(metric)
        device = target if other is None else find_device(other, batch_size=batch_size)
        end = _end(config, space, metric, device)
        if end is not None:
            ends[metric] = end
    missed = [m for m in lower if ends.get(m, math.inf) < lower[m]]
    limited = [m for m in upper if m in ends]
    if limited and all(ends[m] < upper[m] for m in limited):
        missed += limited
    return ", ".join(format_metric(m, ends[m]) for m in dict.fromkeys(missed)) or None


def _end(config: RunConfig, space: SearchSpace, metric: str, device: Target) -> float | None:
    """The largest value of a metric; None where it is not known."""
    num_classes = config.num_classes if isinstance(config, TrainingFreeConfig) else 1000
    if metric.partition("@")[0] != LATENCY:
        value = count_architecture(space.largest, num_classes).get(metric)
        return None if value is None else float(value)
    if device.at_hand:
        (measured,) = measure_networks(
            [space.largest], num_classes, device.conditions, limits=QUICK
        )
        return measured.latency_ms
    try:
        latencies = latency_table(
            device, space, num_classes, interpolate=config.latency.interpolate, seed=config.seed
        )
    except MissingLatencyError:
        return None
    compiled = latencies.compile(space, num_classes)
    return float(compiled.predict(compiled.argmax()[None])[0])


def _size(space: SearchSpace) -> tuple[int, int]:
    return space.resolutions[-1], space.stages[-1].widths[-1]


def _distance(space: SearchSpace, side: int) -> float:
    """Ratio, as its logarithm, between the images' side and the nearest that the space has."""
    low, high = space.resolutions[0], space.resolutions[-1]
    return max(0.0, math.log(low / side), math.log(side / high))
