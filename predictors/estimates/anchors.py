"""Published latencies of known designs, and what a device's own ones say about the model.

``anchors.csv`` holds figures of networks that our architectures express, in a number format that
is certain. The same nominal setting differs by 20 to 50 % between sources, so a device's figures
correct the model by one scalar, their median ratio, and a mixer kind by one more.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources

import numpy as np
from pydantic import TypeAdapter

from predictors.estimates.datasheets import Datasheet, datasheet
from predictors.estimates.kernels import Demand
from predictors.estimates.model import Constants, Range, batches, constants_of, fitted
from predictors.operators import operators
from search_space import Architecture, components, known

_LEAST_FIGURES = 3  # of a device, that say how fast it is
_BATCHES = ("1", "2-15", "16-")


@dataclass(frozen=True)
class Anchor:
    """One published figure: milliseconds of one batch of a network on a device with a datasheet.

    ``number_format`` is what products are computed in, ``runtime`` the one of ours that the figure
    stands for, ``implementation`` what the source calls it.
    """

    device: str
    network: str
    batch_size: int
    number_format: str
    runtime: str
    implementation: str
    latency_ms: float
    source: str
    note: str

    @property
    def mixer(self) -> str:
        return mixer_of(known(self.network))

    @cached_property
    def demand(self) -> Demand:
        """What the network asks of the device."""
        precision = "fp16" if self.number_format == "fp16" else "fp32"
        launched = [
            op
            for part in components(known(self.network))
            for op in operators(part.spec, part.in_size, self.batch_size, precision)
        ]
        return Demand.of(launched, datasheet(self.device), self.number_format)

    def ratio(self, constants: Constants) -> float:
        """Measured over predicted latency."""
        return self.latency_ms / constants.latency_ms(self.demand)


def mixer_of(architecture: Architecture) -> str:
    """Returns the label of the first block, by which families of networks are told apart."""
    return architecture.stages[0].blocks[0].label


@cache
def anchors() -> tuple[Anchor, ...]:
    """Reads all anchors of the package."""
    text = (resources.files("predictors.estimates") / "anchors.csv").read_text("utf-8")
    return TypeAdapter(tuple[Anchor, ...]).validate_python(list(csv.DictReader(text.splitlines())))


def tensor_format(number_format: str) -> str:
    """Returns the format whose figures count: tensor cores do bf16 as fast as fp16."""
    return "fp16" if number_format == "bf16" else number_format


@cache
def figures_of(
    sheet: Datasheet, runtime: str, number_format: str, batch_size: int
) -> tuple[Anchor, ...]:
    """Lists a device's figures under these conditions; none where they are too few."""
    found = tuple(
        a
        for a in anchors()
        if (a.runtime, a.number_format) == (runtime, tensor_format(number_format))
        and batches(a.batch_size) == batches(batch_size)
        and datasheet(a.device).computes_like(sheet)
    )
    return found if len(found) >= _LEAST_FIGURES else ()


@cache
def scalar(
    sheet: Datasheet, runtime: str, number_format: str, batch_size: int, mixer: str | None = None
) -> float:
    """Finds the device's factor, times that of a mixer kind that has figures there; 1 without."""
    if not expected_range(sheet, runtime, number_format, batch_size).known:
        return 1.0  # figures of too few families to find what error a scalar leaves
    figures = figures_of(sheet, runtime, number_format, batch_size)
    constants = constants_of(runtime)
    return median_ratio([a for a in figures if a.mixer == mixer] or figures, constants)


def median_ratio(figures: Iterable[Anchor], constants: Constants) -> float:
    """Returns the median of measured over predicted; 1 of no figures."""
    ratios = [a.ratio(constants) for a in figures]
    return float(np.median(ratios)) if ratios else 1.0


def expected_range(sheet: Datasheet, runtime: str, number_format: str, batch_size: int) -> Range:
    """Finds how measured latencies will lie around the estimates of a device."""
    ranges = {(r.runtime, r.batches, r.known): r for r in fitted().ranges}
    here = bool(figures_of(sheet, runtime, number_format, batch_size))
    runtime = runtime if (runtime, "16-", False) in ranges else "cudagraph"
    return (
        ranges.get((runtime, batches(batch_size), here))
        or ranges[runtime, batches(batch_size), False]
    )
