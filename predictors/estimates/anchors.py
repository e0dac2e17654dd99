"""Published latencies that the roofline's constants are fitted on, and what it misses them by.

``anchors.csv`` holds those figures of GPUs that belong to networks our architectures express, in a
number format that is certain. The same nominal setting differs by 20 to 50 % between sources, so
constants come from one source and implementation wherever there is one for the runtime. No source
measured two mixer kinds under one setting; a factor per kind would be the difference between
sources. So all kinds share the constants, and what differs by kind is the expected error.

Errors are those of figures that the fit did not see: single ones where the device has its own, all
of a device, of a family of networks or of an implementation where it has not.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import resources

import numpy as np
from pydantic import TypeAdapter

from predictors.estimates.datasheets import Datasheet, datasheet
from predictors.estimates.roofline import Constants, Demand, fit
from predictors.operators import operators
from search_space import Architecture, components, known
from search_space.architecture import Stage

_LEAST_FIGURES = 4  # that constants are fitted on
_LEAST_OF_DEVICE = 3
_BUSY_BATCH = 16  # from here on the device, not the host, limits a traced network


@dataclass(frozen=True)
class Anchor:
    """One published figure: milliseconds of one batch of a network on a device with a datasheet.

    ``number_format`` is what products are computed in, ``runtime`` the one of ours that the figure
    stands for, or ``fused`` for hand-fused kernels, ``implementation`` what the source calls it.
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
    def group(self) -> tuple[str, str, str]:
        """Source, implementation and number format: figures that may be compared share them."""
        return self.source, self.implementation, self.number_format

    @property
    def hosted(self) -> bool:
        return self.runtime == "eager"

    @property
    def half(self) -> bool:
        return self.number_format == "fp16"

    @property
    def kernels(self) -> tuple[str, bool]:
        """Library whose kernels run, and whether in half precision."""
        return "PyTorch" if self.hosted else "FasterTransformer", self.half

    @property
    def mixer(self) -> str:
        return anchor_network(self.network).stages[0].blocks[0].label

    @cached_property
    def demand(self) -> Demand:
        """What the network asks of the device."""
        batch_size, precision = self.batch_size, "fp16" if self.half else "fp32"
        chain = components(anchor_network(self.network))
        launched = [op for c in chain for op in operators(c.spec, c.in_size, batch_size, precision)]
        return Demand.of(launched, datasheet(self.device), self.number_format)


@cache
def anchor_network(name: str) -> Architecture:
    """Returns a known design, or Swin-L: Swin-B with 1.5 times its widths (Liu et al., 2021)."""
    if name != "swin_l":
        return known(name)
    base = known("swin_b")
    stages = tuple(Stage(stage.width * 3 // 2, stage.blocks) for stage in base.stages)
    return Architecture(base.macro, base.resolution, stages)


@cache
def anchors() -> tuple[Anchor, ...]:
    """Reads all anchors of the package."""
    text = (resources.files("predictors.estimates") / "anchors.csv").read_text("utf-8")
    return TypeAdapter(tuple[Anchor, ...]).validate_python(list(csv.DictReader(text.splitlines())))


# Fits ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Basis:
    """Figures that the constants of a runtime and number format are fitted on.

    ``exact`` ones belong to both and are of one source; where there are none, they are all that
    show how busy a device is. ``hosted`` is what ``Constants`` have.
    """

    figures: tuple[Anchor, ...]
    exact: bool
    hosted: bool


def tensor_format(number_format: str) -> str:
    """Returns the format whose figures count: tensor cores do bf16 as fast as fp16."""
    return "fp16" if number_format == "bf16" else number_format


@cache
def basis(runtime: str, number_format: str) -> Basis:
    """Selects the largest group of figures of this runtime and format, or all groups.

    All groups means without traced networks in small batches, whose latency is their host's.
    """
    wanted = runtime, tensor_format(number_format)
    fitting = [a for a in anchors() if (a.runtime, a.number_format) == wanted]
    group, size = max(
        Counter(a.group for a in fitting).items(), key=lambda x: x[1], default=("", 0)
    )
    if size < _LEAST_FIGURES:
        return Basis(_pool(), False, False)
    figures = tuple(a for a in fitting if a.group == group)
    return Basis(figures, True, figures[0].hosted)


def _pool() -> tuple[Anchor, ...]:
    return tuple(a for a in anchors() if not a.hosted or a.batch_size >= _BUSY_BATCH)


@cache
def constants(runtime: str, number_format: str) -> Constants:
    """Returns the constants of ``runtime`` with products in ``number_format``."""
    fitted = basis(runtime, number_format)
    return fit_anchors(fitted.figures, fitted.hosted)


@lru_cache(maxsize=1024)
def fit_anchors(figures: tuple[Anchor, ...], hosted: bool) -> Constants:
    """Fits constants on ``figures``.

    Every library of kernels counts the same in it, and so does every group within a library.
    """
    sizes = Counter(a.group for a in figures)
    groups = Counter(kernels for kernels, _ in {(a.kernels, a.group) for a in figures})
    share = len(figures) / len(groups)
    weights = [share / groups[a.kernels] / sizes[a.group] for a in figures]
    demands = [a.demand for a in figures]
    return fit(demands, [a.latency_ms for a in figures], hosted=hosted, weights=weights)


# Held out ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """A figure that was held out, and the relative error of its prediction."""

    anchor: Anchor
    error: float


def leave_out(
    figures: Iterable[Anchor], hosted: bool, by: Callable[[Anchor], Hashable]
) -> list[Held]:
    """Predicts every figure by a fit on those of other ``by``; none where there is no other."""
    figures = list(figures)
    result = []
    for a in figures:
        if rest := tuple(other for other in figures if by(other) != by(a)):
            predicted = a.demand.latency_ms(fit_anchors(rest, hosted))
            result.append(Held(a, predicted / a.latency_ms - 1))
    return result


def one_figure(figures: Iterable[Anchor], hosted: bool) -> list[Held]:
    """Predicts each figure from the others of its group."""
    return leave_out(figures, hosted, lambda a: a)


def one_device(figures: Iterable[Anchor], hosted: bool) -> list[Held]:
    """Predicts the figures of each device from those of the others."""
    return leave_out(figures, hosted, lambda a: a.device)


def one_family(runtime: str) -> list[Held]:
    """Predicts every mixer kind from the others, within the runtime where it has two kinds."""
    exact = [a for a in anchors() if a.runtime == runtime]
    if len({a.mixer for a in exact}) >= 2:
        return leave_out(exact, exact[0].hosted, lambda a: a.mixer)
    return leave_out(_pool(), False, lambda a: a.mixer)


def one_implementation() -> list[Held]:
    """Predicts every library of kernels, in half or in full precision, from the others."""
    return leave_out(_pool(), False, lambda a: a.kernels)


def mean_error(held: Iterable[Held], by: Callable[[Anchor], Hashable] = lambda a: 0) -> float:
    """Averages |error| over each value of ``by``, then over these."""
    parts: dict[Hashable, list[float]] = {}
    for h in held:
        parts.setdefault(by(h.anchor), []).append(abs(h.error))
    return float(np.mean([np.mean(part) for part in parts.values()]))


@dataclass(frozen=True)
class ExpectedError:
    """Mean relative error to expect of an estimate, and what was held out to find it."""

    error: float
    reason: str


@cache
def expected_error(
    sheet: Datasheet, runtime: str, number_format: str, mixer: str | None = None
) -> ExpectedError:
    """Finds the error to expect of estimates for a device with products in ``number_format``.

    A mixer kind without figures in the basis has at least the error of leaving whole kinds out;
    without ``mixer`` the error is that of all kinds.
    """
    fitted, half = basis(runtime, number_format), tensor_format(number_format) == "fp16"
    result = _device_error(sheet, runtime, fitted, half)
    if mixer in (None, *(a.mixer for a in fitted.figures if a.half == half)):
        return result
    held = one_family(runtime)
    other = mean_error([h for h in held if h.anchor.mixer == mixer] or held, lambda a: a.mixer)
    if other <= result.error:
        return result
    return ExpectedError(other, f"predicting a mixer kind from others, as {mixer} has no figures")


def _device_error(sheet: Datasheet, runtime: str, fitted: Basis, half: bool) -> ExpectedError:
    if not fitted.exact:
        held = [h for h in one_implementation() if h.anchor.half == half]
        return ExpectedError(
            mean_error(held, lambda a: a.kernels),
            f"predicting an implementation from others, as {runtime} has no figures",
        )
    single = one_figure(fitted.figures, fitted.hosted)
    here = [h for h in single if datasheet(h.anchor.device).computes_like(sheet)]
    if len(here) >= _LEAST_OF_DEVICE:
        return ExpectedError(mean_error(here), f"leaving out each of {len(here)} figures")
    held = one_device(fitted.figures, fitted.hosted)
    if not held:  # one device only in this number format: as in the runtime's other formats
        exact = [a for a in anchors() if a.runtime == runtime]
        for group in sorted({a.group for a in exact}):
            held += one_device([a for a in exact if a.group == group], fitted.hosted)
    return ExpectedError(
        mean_error(held, lambda a: (a.number_format, a.device)),
        f"predicting a device from others, as {sheet.name} has no figures",
    )
