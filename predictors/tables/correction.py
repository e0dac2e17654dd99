"""From sums of entries to latencies of whole networks: corrections and the calibration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from search_space.names import Digest

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Values = npt.NDArray[np.float64]
_LEAST_FOR_LINE = 4  # distinct networks
_CLEARLY = 0.75  # of the ratio's error left out
_EXPECTED_ERROR_LIMIT = 0.1


@dataclass(frozen=True)
class CheckNetwork:
    """A whole network's measured latency beside the uncorrected sum of its entries."""

    digest: Digest
    sum_ms: Positive
    measured_ms: Positive
    runs: int


@dataclass(frozen=True, kw_only=True)
class Correction:
    """``latency = offset_ms + scale × sum of entries``, for one space, and how it was found.

    Args:
        space: Name of the space it was fitted on.
        scale: Factor of the sum.
        offset_ms: Milliseconds that are added.
        expected_error: Mean relative error of predicting each check network from the others; of
            a single one, which has no others, that of the sum.
        checks: What it was fitted on.
        rounds: Visits of every subject.
        seconds: Measuring time.
        stopped: ``converged``, ``rounds`` (the cap), or how else it came about.
        warnings: What may have spoilt the measurement.
        ratios: Of estimates, quantiles of measured over estimated latency at 5, 10, … 95 %.
    """

    space: str
    scale: Positive
    offset_ms: Finite
    expected_error: NotNegative
    checks: tuple[CheckNetwork, ...] = ()
    rounds: int = 0
    seconds: Finite = 0.0
    stopped: str
    warnings: tuple[str, ...] = ()
    ratios: tuple[Positive, ...] = ()

    @classmethod
    def estimated(
        cls,
        space: str,
        error: float,
        how: str,
        *,
        scale: float = 1.0,
        offset_ms: float = 0.0,
        ratios: tuple[float, ...] = (),
    ) -> Correction:
        """Makes the correction of a table of estimates, which says so."""
        return cls(
            space=space,
            scale=scale,
            offset_ms=offset_ms,
            expected_error=error,
            stopped="estimated",
            warnings=(f"estimated, not measured: {how}",),
            ratios=ratios,
        )

    def slowdown(self, share: float, error: float) -> float:
        """Returns the measured over predicted latency that a ``share`` of networks stays below.

        By the stated distribution, narrowed to the mean relative ``error`` that a calibration left;
        without one by a normal distribution of that mean error.
        """
        if not self.ratios:
            return 1 + NormalDist().inv_cdf(share) * error * math.sqrt(math.pi / 2)
        levels = np.linspace(0.05, 0.95, len(self.ratios))
        narrowed = min(1.0, error / self.expected_error) if self.expected_error else 1.0
        return float(np.interp(share, levels, self.ratios)) ** narrowed


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """``latency = offset_ms + scale × sum of entries``, from whole networks the user measured.

    It stands in place of the corrections of all spaces. ``error_before`` is the mean relative error
    on those networks without it, ``error_after`` with one that was fitted on the others (leave one
    out); a single network, which leaves no others, has the error before. ``created`` is UTC, ISO
    8601.
    """

    scale: Positive
    offset_ms: NotNegative
    error_before: NotNegative
    error_after: NotNegative
    networks: tuple[str, ...]
    created: str

    def expected_error(self, before: float) -> float:
        """Computes the mean relative error to expect of other networks than those measured.

        As if to the n networks one came that is as wrong as the table was expected to be
        ``before``: a handful of networks says little about mixers and sizes unlike theirs. A single
        one says nothing.
        """
        n = len(self.networks)
        return before if n < 2 else (n * self.error_after + before) / (n + 1)


def fit_correction(sums: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """Fits scale and offset that turn sums of entries into latencies of whole networks.

    The median ratio, unless a line predicts networks that it was not fitted on clearly better: an
    offset is paid for by every network outside the range of the check networks.
    """
    x, y = np.asarray(sums, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    if len(np.unique(x)) < _LEAST_FOR_LINE:
        return _ratio(x, y)
    by_line, by_ratio = (_left_out(x, y, fit) for fit in (_line, _ratio))
    return _line(x, y) if by_line < _CLEARLY * by_ratio else _ratio(x, y)


def leave_one_out_error(sums: Sequence[float], measured: Sequence[float]) -> float:
    """Computes the mean relative error of predicting each network by a fit on the others."""
    x, y = np.asarray(sums, dtype=np.float64), np.asarray(measured, dtype=np.float64)
    return _left_out(x, y, lambda a, b: fit_correction(a.tolist(), b.tolist()))


def correction_of(
    space: str,
    checks: Sequence[CheckNetwork],
    *,
    halves: float,
    rounds: int,
    seconds: float,
    stopped: str,
    warnings: Sequence[str] = (),
) -> Correction:
    """Fits a correction on check networks, with warnings where it is not to be relied on.

    ``halves`` is the largest relative difference between the figures of the first and the second
    half of a check network's runs.
    """
    sums, times = [c.sum_ms for c in checks], [c.measured_ms for c in checks]
    scale, offset = fit_correction(sums, times)
    error = leave_one_out_error(sums, times)
    warnings = list(warnings)
    if stopped != "converged":
        warnings.append(
            f"the measurement ended at its limit of {stopped} before the figures stood still: "
            f"halves of a check network differ by up to {halves:.0%}."
        )
    if error > _EXPECTED_ERROR_LIMIT:
        warnings.append(
            f"predictions are off by {error:.0%} on average on check networks; measure again on "
            "an idle device."
        )
    return Correction(
        space=space,
        scale=scale,
        offset_ms=offset,
        expected_error=error,
        checks=tuple(checks),
        rounds=rounds,
        seconds=seconds,
        stopped=stopped,
        warnings=tuple(warnings),
    )


def _left_out(x: Values, y: Values, fit: Callable[[Values, Values], tuple[float, float]]) -> float:
    errors = []
    for i in range(len(x)):
        scale, offset = fit(np.delete(x, i), np.delete(y, i))
        errors.append(abs(offset + scale * x[i] - y[i]) / y[i])
    return float(np.mean(errors))


def _ratio(x: Values, y: Values) -> tuple[float, float]:
    """The median ratio; of no networks at all, sums as they are."""
    return (float(np.median(y / x)) if len(x) else 1.0), 0.0


def _line(x: Values, y: Values) -> tuple[float, float]:
    """Fits Huber's regression of relative errors (Huber, 1964; k = 1.345), or the ratio.

    The ratio where the line would fall, or have a negative offset, which gives small networks
    negative latencies. By iteratively reweighted least squares.
    """
    line = np.array(_ratio(x, y))
    design = np.stack([x / y, 1 / y], axis=1)
    for _ in range(50):
        residuals = np.abs(design @ line - 1)
        limit = 1.345 * max(float(np.median(residuals)) / 0.6745, 1e-9)
        root = np.sqrt(np.minimum(1.0, limit / np.maximum(residuals, limit)))
        before, line = line, np.linalg.lstsq(design * root[:, None], root, rcond=None)[0]
        if line[0] <= 0 or line[1] < 0:
            return _ratio(x, y)
        if np.allclose(before, line, rtol=1e-9, atol=1e-12):
            break
    return float(line[0]), float(line[1])
