"""Gaussian process over genes: what adds up, what departs from it smoothly, and what genes do.

The covariance is the sum of four: linear over the additive features, squared exponential over the
same and the costs, linear over single genes, and exponential in the weighted number of genes that
differ, with a weight for each gene (automatic relevance determination; Rasmussen and Williams
2006, ch. 4 and 5). Like blocks do alike wherever they stand by the first two; the others learn what
one position does. Amplitudes, lengths, noise and weights are the most probable ones under
log-normal priors, found by L-BFGS with exact gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

from predictors.surrogates.base import Prediction, Surrogate, Values
from predictors.surrogates.features import AdditiveFeatures, GeneFeatures
from search_space import Genes, SearchSpace

COST_WEIGHT = 3.0
GROWTH = 1.3  # parameters are tuned again when there is so much more to learn from
MOST_TO_TUNE, STEPS = 300, 60
JITTER = 1e-8
# of the logarithms: four amplitudes, length, noise; then of each gene's weight
PRIOR_MEAN = np.log([0.3, 0.3, 0.1, 0.3, 1.2, 1e-3])
PRIOR_DEVIATION = np.array([1.5, 1.5, 1.5, 1.5, 0.7, 2.0])
TOTAL_WEIGHT, WEIGHT_DEVIATION = 3.0, 1.0
LOWEST, HIGHEST = -9.0, 4.0  # of logarithms


@dataclass(frozen=True)
class Tuning:
    """Parameters of the covariance, all positive, in units of the values' variance.

    ``amplitudes`` are variances of the linear trend, the smooth part, the sum over genes and the
    joint part of all genes, shape (4,); ``length`` is that of the smooth part, in root mean squared
    distances; ``weights`` are those of the genes in the joint part, shape (genes,).
    """

    amplitudes: Values
    length: float
    noise: float
    weights: Values

    @classmethod
    def of(cls, logarithms: Values) -> Tuning:
        """The parameters whose logarithms stand in one vector, shape (6 + genes,)."""
        values = np.exp(logarithms)
        return cls(values[:4], float(values[4]), float(values[5]), values[6:])


class GaussianProcess(Surrogate):
    """Accuracy model with uncertainty for up to a few thousand evaluations.

    Accuracy may follow ``costs``, predictions of cheap metrics; ``finer`` scales finer features.
    Parameters are tuned only when there are some more rows than at the last tuning, from where
    that ended; most fits only solve a linear system.

    Example:
        >>> model = GaussianProcess(space, [latency.predict])
        >>> model.fit(genes, accuracies)
        >>> prediction = model.predict(others)  # with ``mean`` and ``deviation``
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Sequence[Callable[[Genes], Values]] = (),
        finer: float = 1.0,
    ) -> None:
        self.space = space
        self._features = AdditiveFeatures(space, finer)
        self._genes = GeneFeatures(space)
        self._costs = costs
        self._logarithms = np.concatenate(_prior(space.num_genes)[:1])
        self._tuned = 0

    @property
    def tuning(self) -> Tuning:
        """The parameters of the latest fit."""
        return Tuning.of(self._logarithms)

    def _learn(self, genes: Genes, values: Values) -> None:
        encoded, single = self._encode(genes), self._genes.encode(genes)
        self._frame = _Frame.of(encoded, values, len(self._costs))
        points = self._frame.points(encoded)
        rest = (values - self._frame.level) / self._frame.scale
        if self._tuned == 0 or len(genes) >= GROWTH * self._tuned:
            self._tuned = len(genes)
            rows = np.arange(len(genes))[:: -(-len(genes) // MOST_TO_TUNE)]
            fitted = _Posterior(points[rows], single[rows], self._genes.group, rest[rows])
            self._logarithms = fitted.mode(self._logarithms)
        self._points, self._single = points, single
        covariance = self.covariance(points, points, single, single)
        covariance[np.diag_indices_from(covariance)] += self.tuning.noise + JITTER
        self._factor = np.linalg.cholesky(covariance)
        inverse = cho_solve((self._factor, True), np.eye(len(rest)))
        self._weights = inverse @ rest
        self._left_out = values - self._frame.scale * self._weights / np.diag(inverse)

    def _encode(self, genes: Genes) -> Values:
        # a logarithm that takes zero and negative costs too
        costs = [np.arcsinh(cost(genes))[:, None] for cost in self._costs]
        return np.hstack([self._features.encode(genes), *costs])

    def covariance(self, a: Values, b: Values, c: Values, d: Values) -> Values:
        """Computes covariances without noise of points ``a`` and ``b``, shape (n, m).

        Points have shape (n, features) and (m, features), their encoded genes ``c`` and ``d``
        (n, columns) and (m, columns).
        """
        tuning = self.tuning
        trend, smooth, sums, joint = tuning.amplitudes
        weights = np.sqrt(tuning.weights)[self._genes.group]
        result = trend * (a @ b.T) + sums * (c @ d.T) * (2 / self.space.num_genes)
        result += smooth * np.exp(-_distances(a, b) / (4 * tuning.length**2))
        result += joint * np.exp(-_distances(c * weights, d * weights))
        return np.asarray(result)

    def predict(self, genes: Genes) -> Prediction:
        points, single = self._frame.points(self._encode(genes)), self._genes.encode(genes)
        cross = self.covariance(points, self._points, single, self._single)
        trend, smooth, sums, joint = self.tuning.amplitudes
        prior = trend * (points**2).sum(axis=1) + smooth + joint
        prior += sums * (single**2).sum(axis=1) * (2 / self.space.num_genes)
        half = solve_triangular(self._factor, cross.T, lower=True)
        variance = np.maximum(prior - (half**2).sum(axis=0), 1e-12)
        mean = self._frame.level + self._frame.scale * (cross @ self._weights)
        return Prediction(mean, self._frame.scale * np.sqrt(variance))

    @property
    def left_out(self) -> Values:
        return self._left_out


def _prior(num_genes: int) -> tuple[Values, Values]:
    """Means and deviations of the logarithms of all parameters, shape (6 + genes,) both."""
    weights = np.full(num_genes, np.log(TOTAL_WEIGHT / num_genes))
    return (
        np.concatenate([PRIOR_MEAN, weights]),
        np.concatenate([PRIOR_DEVIATION, np.full(num_genes, WEIGHT_DEVIATION)]),
    )


def _distances(a: Values, b: Values) -> Values:
    """Squared distances of points, shapes (n, k) and (m, k) to (n, m)."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)
    return np.maximum(squares, 0.0)


class _Posterior:
    """Minus the log probability of parameters, of rows with points, genes and scaled values."""

    def __init__(self, points: Values, single: Values, group: npt.NDArray[np.int64], rest: Values):
        num_genes = int(group.max()) + 1
        self.rest = rest
        self.linear = points @ points.T
        self.smooth = _distances(points, points) / 4
        self.sums = single @ single.T * (2 / num_genes)
        columns = [single[:, group == gene] for gene in range(num_genes)]
        self.genes = np.stack([_distances(part, part).ravel() for part in columns])
        self.mean, self.deviation = _prior(num_genes)

    def __call__(self, logarithms: Values) -> tuple[float, Values]:
        """The value and its gradient, shape (6 + genes,)."""
        tuning, n = Tuning.of(logarithms), len(self.rest)
        parts = (
            self.linear,
            np.exp(-self.smooth / tuning.length**2),
            self.sums,
            np.exp(-(tuning.weights @ self.genes).reshape(n, n)),
        )
        covariance = sum(a * part for a, part in zip(tuning.amplitudes, parts, strict=True))
        covariance[np.diag_indices(n)] += tuning.noise + JITTER
        factor = np.linalg.cholesky(covariance)
        inverse = cho_solve((factor, True), np.eye(n))
        weights = inverse @ self.rest
        # half the derivative of the likelihood by each entry of the covariance
        slope = 0.5 * (inverse - np.outer(weights, weights))
        by_part = [float((slope * part).sum()) for part in parts]
        bend = tuning.amplitudes[1] * 2 / tuning.length**2
        gradient = np.concatenate(
            [
                tuning.amplitudes * by_part,
                [bend * float((slope * parts[1] * self.smooth).sum())],
                [tuning.noise * float(np.trace(slope))],
                -tuning.amplitudes[3] * tuning.weights * (self.genes @ (slope * parts[3]).ravel()),
            ]
        )
        apart = (logarithms - self.mean) / self.deviation
        value = 0.5 * float(self.rest @ weights) + float(np.log(np.diag(factor)).sum())
        return value + 0.5 * float(apart @ apart), gradient + apart / self.deviation

    def mode(self, start: Values) -> Values:
        """The most probable logarithms that L-BFGS finds from ``start``."""
        bounds = [(LOWEST, HIGHEST)] * len(start)
        optimum = minimize(
            self, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": STEPS}
        )
        return np.asarray(optimum.x, dtype=np.float64)


@dataclass(frozen=True)
class _Frame:
    """Origins and units of features and values; the mean squared norm of the points is 1."""

    mean: Values
    unit: Values
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
        return cls(mean, unit / np.sqrt(max(size, 1e-300)), level, scale)

    def points(self, encoded: Values) -> Values:
        return (encoded - self.mean) * self.unit
