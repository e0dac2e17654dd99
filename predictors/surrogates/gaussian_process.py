"""Gaussian process over genes: an additive trend and whatever departs from it smoothly.

The covariance is a linear kernel over the additive features plus a squared exponential one over
the same features and the logarithms of the costs (Rasmussen and Williams 2006, ch. 2 and 5). Its
few parameters maximise the marginal likelihood over a grid: one eigendecomposition a kernel gives
the likelihood of every noise level, with the overall scale in closed form.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from predictors.surrogates.base import Prediction, Values, rank_quality
from predictors.surrogates.features import AdditiveFeatures
from search_space import Genes, SearchSpace
from search_space.errors import UsageError

TRENDS = (0.3, 0.6, 0.85, 0.97)
LENGTHS = (0.7, 1.2, 2.5)
NOISES = tuple(np.logspace(-4, 0.5, 10).tolist())
FIRST_TUNED, GROWTH = 16, 1.5
MOST_TO_TUNE = 400
COST_WEIGHT = 3.0


@dataclass(frozen=True)
class Tuning:
    """Parameters of the covariance.

    Args:
        trend: share of the linear kernel in the variance.
        length: of the other kernel, in root mean squared distances.
        noise: variance of the noise over that of the signal.
    """

    trend: float
    length: float
    noise: float


class GaussianProcess:
    """Accuracy model with uncertainty for up to a few thousand evaluations.

    Args:
        space: whose rows it predicts.
        costs: predictions of cheap metrics, that accuracy may follow.
        finer: scale of finer features.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Sequence[Callable[[Genes], Values]] = (),
        finer: float = 1.0,
    ) -> None:
        self.space = space
        self._features = AdditiveFeatures(space, finer)
        self._costs = costs
        self.tuning: Tuning | None = None
        self._tuned_for: tuple[bytes, Tuning] | None = None

    def fit(self, genes: Genes, values: Values) -> None:
        """Learn from rows (n, genes) and finite values (n,), n ≥ 2.

        Parameters are tuned on the first rows, half as many again each time, so that most fits
        only solve a linear system; the same rows always give the same parameters.

        Raises UsageError for fewer than two rows.
        """
        if len(genes) < 2:
            raise UsageError(f"{len(genes)} evaluations fit no accuracy model; give 2 or more.")
        values = np.asarray(values, dtype=np.float64)
        encoded = self._encode(genes)
        self.tuning = self._tuned(genes, encoded, values)
        self._frame = _Frame.of(encoded, values, len(self._costs))
        self._points = self._frame.points(encoded)
        rest = (values - self._frame.level) / self._frame.scale
        covariance = self._frame.kernel(self._points, self._points, self.tuning)
        covariance[np.diag_indices_from(covariance)] += self.tuning.noise
        self._factor = np.linalg.cholesky(covariance)
        inverse = cho_solve((self._factor, True), np.eye(len(rest)))
        self._weights = inverse @ rest
        self._amplitude = float(rest @ self._weights) / len(rest)
        self._values = values
        self._left_out = values - self._frame.scale * self._weights / np.diag(inverse)

    def _encode(self, genes: Genes) -> Values:
        # a logarithm that takes zero and negative costs too
        costs = [np.arcsinh(cost(genes))[:, None] for cost in self._costs]
        return np.hstack([self._features.encode(genes), *costs])

    def _tuned(self, genes: Genes, encoded: Values, values: Values) -> Tuning:
        first = float(FIRST_TUNED)
        while first * GROWTH <= len(genes):
            first *= GROWTH
        rows = np.arange(min(int(first), len(genes)))
        rows = rows[:: -(-len(rows) // MOST_TO_TUNE)]
        key = genes[rows].tobytes() + values[rows].tobytes()
        if self._tuned_for is None or self._tuned_for[0] != key:
            self._tuned_for = (key, _tune(encoded[rows], values[rows], len(self._costs)))
        return self._tuned_for[1]

    def predict(self, genes: Genes) -> Prediction:
        """Mean and standard deviation of the value without noise, rows of shape (n, genes)."""
        assert self.tuning is not None, "fit comes first"
        frame = self._frame
        points = frame.points(self._encode(genes))
        cross = frame.kernel(points, self._points, self.tuning)
        trend = self.tuning.trend
        own = trend * (points**2).sum(axis=1) / frame.size + 1 - trend
        half = solve_triangular(self._factor, cross.T, lower=True)
        variance = np.maximum(own - (half**2).sum(axis=0), 1e-12) * self._amplitude
        mean = frame.level + frame.scale * (cross @ self._weights)
        return Prediction(mean, frame.scale * np.sqrt(variance))

    @property
    def rank_quality(self) -> float | None:
        """Kendall τ of values and their leave-one-out predictions; None where undefined."""
        return rank_quality(self._values, self._left_out)


@dataclass(frozen=True)
class _Frame:
    """Origins and units of features and values."""

    mean: Values
    unit: Values
    size: float  # mean squared norm of the points
    level: float
    scale: float

    @classmethod
    def of(cls, encoded: Values, values: Values, num_costs: int) -> _Frame:
        mean, unit = encoded.mean(axis=0), np.ones(encoded.shape[1])
        if num_costs:
            spread = encoded[:, -num_costs:].std(axis=0)
            unit[-num_costs:] = COST_WEIGHT / np.maximum(spread, 1e-12)
        size = float((((encoded - mean) * unit) ** 2).sum(axis=1).mean())
        level, scale = float(values.mean()), float(values.std()) or 1.0
        return cls(mean, unit, max(size, 1e-300), level, scale)

    def points(self, encoded: Values) -> Values:
        return (encoded - self.mean) * self.unit

    def kernel(self, a: Values, b: Values, tuning: Tuning) -> Values:
        """Covariance of points, shapes (n, features) and (m, features) to (n, m)."""
        products = a @ b.T
        distances = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * products
        smooth = np.exp(-np.maximum(distances, 0.0) / (4 * self.size * tuning.length**2))
        return np.asarray(tuning.trend * products / self.size + (1 - tuning.trend) * smooth)


def _tune(encoded: Values, values: Values, num_costs: int) -> Tuning:
    """Parameters of the largest marginal likelihood over the grid."""
    frame = _Frame.of(encoded, values, num_costs)
    points, rest = frame.points(encoded), (values - frame.level) / frame.scale
    n, best, chosen = len(rest), -np.inf, Tuning(TRENDS[0], LENGTHS[0], NOISES[0])
    for trend, length in itertools.product(TRENDS, LENGTHS):
        kernel = frame.kernel(points, points, Tuning(trend, length, 0.0))
        eigenvalues, vectors = np.linalg.eigh(kernel)
        squares = (vectors.T @ rest) ** 2
        for noise in NOISES:
            variances = np.maximum(eigenvalues, 0.0) + noise
            amplitude = max(float((squares / variances).mean()), 1e-300)
            likelihood = -0.5 * (n * np.log(amplitude) + np.log(variances).sum())
            if likelihood > best:
                best, chosen = likelihood, Tuning(trend, length, noise)
    return chosen
