"""The roofline model: a latency from what operators compute and move, and a datasheet.

    t = Σ over operators of  max(FLOPs / (e_c · peak), bytes / (e_m · bandwidth)) + overhead

(Williams, Waterman & Patterson, Roofline, 2009, for each operator). The efficiencies e_c and
e_m and the overhead are fitted. In eager execution the host launches one operator while the device
still computes another, so there the overhead is a floor of each operator's time instead: on
published figures of traced networks that halves the error at small batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from predictors.estimates.datasheets import Datasheet
from predictors.operators import Operator, operators
from predictors.tables.additive import Entry, Values
from predictors.tables.conditions import Conditions

# Where too few figures tell the constants apart, they stay near what is usual: the centre of a
# log-normal prior and its spread. Half of the peak, most of the bandwidth; 20 µs for a launch by
# PyTorch's host code, 5 µs for one that the device itself goes on to.
_USUAL_EFFICIENCIES = ((0.5, 0.7), (0.7, 0.5))
_USUAL_OVERHEAD_MS = {True: (0.020, 0.7), False: (0.005, 0.7)}
_USUAL_ERROR = 0.1  # of a figure that the model explains


@dataclass(frozen=True)
class Constants:
    """Fitted constants of one runtime.

    ``compute`` and ``memory`` are the shares of peak and bandwidth that are reached; the latter may
    exceed 1 where a runtime fuses operators, which are counted one by one here. ``hosted`` says
    whether the overhead of an operator is the host's, hidden while the device is busy.
    """

    compute: float
    memory: float
    overhead_ms: float
    hosted: bool


@dataclass(frozen=True, eq=False)
class Demand:
    """Milliseconds that operators take at full peak and at full bandwidth, both shape (n,)."""

    compute_ms: Values
    memory_ms: Values

    @classmethod
    def of(cls, launched: Iterable[Operator], sheet: Datasheet, number_format: str) -> Demand:
        """Computes the demand on a device; products on tensor cores have ``number_format``.

        Depthwise convolutions are charged to the plain cores, in fp32.
        """
        launched = list(launched)
        peaks = {"matrix": sheet.peak(number_format), "vector": sheet.peak("fp32")}
        compute = [op.flops / (1e9 * peaks.get(op.kind, math.inf)) for op in launched]
        memory = [op.bytes / (1e6 * sheet.bandwidth_gb_s) for op in launched]
        return cls(np.array(compute), np.array(memory))

    @classmethod
    def of_entry(cls, entry: Entry, conditions: Conditions, sheet: Datasheet) -> Demand:
        """Computes the demand of an entry under ``conditions``, but on the device of ``sheet``."""
        launched = operators(*entry, conditions.batch_size, conditions.precision)
        return cls.of(
            launched, sheet, sheet.number_format(conditions.precision, conditions.runtime)
        )

    def latency_ms(self, constants: Constants) -> float:
        """Estimates the milliseconds of all operators."""
        busy = np.maximum(self.compute_ms / constants.compute, self.memory_ms / constants.memory)
        if constants.hosted:
            return float(np.maximum(busy, constants.overhead_ms).sum())
        return float(busy.sum() + constants.overhead_ms * len(busy))


def fit(
    demands: Sequence[Demand],
    latencies_ms: Sequence[float],
    *,
    hosted: bool,
    weights: Sequence[float] | None = None,
) -> Constants:
    """Fits constants with the least relative errors, by robust least squares of log ratios.

    Few figures cannot move the constants far from the usual ones (a prior, see above). ``weights``
    are factors of the squared residuals.
    """
    priors = (*_USUAL_EFFICIENCIES, _USUAL_OVERHEAD_MS[hosted])
    centre = np.log([usual for usual, _ in priors])
    spread = np.array([width for _, width in priors])
    roots = np.sqrt(np.ones(len(demands)) if weights is None else np.asarray(weights))
    # one flat array of operators instead of one array per network: the fit calls this often
    compute = np.concatenate([d.compute_ms for d in demands])
    memory = np.concatenate([d.memory_ms for d in demands])
    sizes = np.array([len(d.memory_ms) for d in demands])
    owners = np.repeat(np.arange(len(demands)), sizes)
    target = np.log(np.asarray(latencies_ms, dtype=np.float64))

    def residuals(logs: Values) -> Values:
        compute_share, memory_share, overhead = np.exp(logs)
        busy = np.maximum(compute / compute_share, memory / memory_share)
        each = np.maximum(busy, overhead) if hosted else busy + overhead
        total = np.bincount(owners, each, len(demands))
        data = roots * (np.log(total) - target) / _USUAL_ERROR
        return np.concatenate([data, (logs - centre) / spread])

    logs = least_squares(residuals, centre, loss="soft_l1").x
    compute_share, memory_share, overhead = (float(value) for value in np.exp(logs))
    return Constants(compute_share, memory_share, overhead, hosted)
