"""Latencies from what kernels ask of a GPU, with the constants of one runtime.

    t = Σ over kernels of  max(f · computing, moving / e) + a / clock

Each kind of kernel has its factor f and its share e of the bandwidth; kinds that a runtime fuses
into others have no floor a of their own. Where the host launches kernel by kernel, none takes less
than that. ``benchmarks/gpu_estimates.py`` fits the constants and writes ``constants.json``, with
the distribution of measured over predicted latencies of figures that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from pydantic import TypeAdapter
from scipy.optimize import least_squares

from predictors.estimates.kernels import KINDS, Demand
from predictors.tables.additive import Values

_USUAL_ERROR = 0.1  # of a figure that the model explains
_FUSED = ("elementwise", "copy")


@dataclass(frozen=True)
class Constants:
    """Fitted constants of one runtime, by ``KINDS``.

    ``compute`` are factors of the time of computing, ``memory`` shares of the bandwidth, which
    exceed 1 where kernels are fused that are counted one by one; ``floor`` is in µs · GHz, and
    ``host_us`` what the host takes for a launch, 0 where it launches nothing.
    """

    compute: tuple[float, ...]
    memory: tuple[float, ...]
    floor: float
    host_us: float = 0.0
    fused: bool = False

    def latency_ms(self, demand: Demand) -> float:
        """Predicts the milliseconds of kernels that run one after another."""
        each = self._times([demand.kind, demand.compute_ms, demand.memory_ms, demand.clock_ghz])
        return float(each.sum())

    def _times(self, columns: Sequence[Values | float]) -> Values:
        kind, compute, memory, clock = columns
        kind = np.asarray(kind, dtype=int)
        own = ~np.isin(kind, [KINDS.index(name) for name in _FUSED]) if self.fused else 1.0
        busy = np.maximum(
            compute * np.array(self.compute)[kind], memory / np.array(self.memory)[kind]
        )
        return np.maximum(busy + own * self.floor / 1e3 / clock, self.host_us / 1e3)


def fit(
    demands: Sequence[Demand],
    latencies_ms: Sequence[float],
    usual: Constants,
    *,
    weights: Sequence[float] | None = None,
    spread: float = 0.5,
) -> Constants:
    """Fits constants by robust least squares of log ratios, near the usual ones.

    Few figures cannot move the constants far from ``usual``; ``weights`` are factors of
    squares, ``spread`` is how far a constant lies from its usual value as a rule, as a log.
    """
    columns = [
        np.concatenate([d.kind for d in demands]),
        np.concatenate([d.compute_ms for d in demands]),
        np.concatenate([d.memory_ms for d in demands]),
        np.concatenate([np.full(len(d.kind), d.clock_ghz) for d in demands]),
    ]
    owners = np.repeat(np.arange(len(demands)), [len(d.kind) for d in demands])
    table = np.column_stack([owners, *columns])
    unique, count = np.unique(table, axis=0, return_counts=True)
    owners, columns = unique[:, 0].astype(int), list(unique[:, 1:].T)
    target, roots = np.log(latencies_ms), np.sqrt(1.0 if weights is None else np.asarray(weights))
    n, hosted = len(KINDS), usual.host_us > 0
    # the host hides the device's own floor: only what is known of it keeps the two apart
    spreads = np.array([spread] * (2 * n) + ([0.15, 0.15] if hosted else [spread]))
    centre = np.log([*usual.compute, *usual.memory, usual.floor, *([usual.host_us] * hosted)])

    def constants(logs: Values) -> Constants:
        compute, memory, rest = np.split(np.exp(logs), [n, 2 * n])
        host_us = float(rest[1]) if hosted else 0.0
        return Constants(
            tuple(compute.tolist()), tuple(memory.tolist()), float(rest[0]), host_us, usual.fused
        )

    def residuals(logs: Values) -> Values:
        total = np.bincount(owners, count * constants(logs)._times(columns), len(demands))
        data = roots * (np.log(total) - target) / _USUAL_ERROR
        return np.concatenate([data, (logs - centre) / spreads])

    return constants(least_squares(residuals, centre, loss="soft_l1", max_nfev=30).x)


# What was fitted ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """Quantiles of measured over predicted latency of ``n`` figures that a fit did not see.

    For a runtime, a range of batches (``1``, ``2-15``, ``16-``), and a device that has published
    figures (``known``) or has not. ``quantiles`` are at 5, 10, … 95 %.
    """

    runtime: str
    batches: str
    known: bool
    n: int
    quantiles: tuple[float, ...]
    reason: str
    promised: bool = True

    def quantile(self, share: float) -> float:
        """Returns the ratio that a share of figures stays below."""
        return float(np.interp(share, np.arange(1, 20) / 20, self.quantiles))

    @property
    def median(self) -> float:
        """The ratio in the middle, by which estimates are multiplied."""
        return self.quantile(0.5)

    @property
    def ratios(self) -> tuple[float, ...]:
        """Quantiles of measured over estimated latency, once estimates are medians."""
        return tuple(q / self.median for q in self.quantiles)

    @property
    def error(self) -> float:
        """The half width of the middle 80 %, as a share of the estimate."""
        return (self.quantile(0.9) - self.quantile(0.1)) / self.median / 2


@dataclass(frozen=True)
class Fitted:
    """Constants by runtime, and ranges; ``how`` says what they come from."""

    how: str
    constants: dict[str, Constants]
    ranges: tuple[Range, ...]


@cache
def fitted() -> Fitted:
    """Reads what is fitted from the package."""
    text = (resources.files("predictors.estimates") / "constants.json").read_text("utf-8")
    return TypeAdapter(Fitted).validate_json(text)


def constants_of(runtime: str) -> Constants:
    """Returns the constants of a runtime; those of CUDA graphs for runtimes without figures."""
    return fitted().constants.get(runtime, fitted().constants["cudagraph"])


def batches(batch_size: int) -> str:
    """Returns the range of batches that a batch belongs to."""
    return "1" if batch_size == 1 else "2-15" if batch_size < 16 else "16-"
