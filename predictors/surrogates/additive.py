"""Additive accuracy: ridge regression whose fitted form is an additive table.

Regularisation and the prior's fineness are chosen by the leave-one-out error, which a linear
smoother has in closed form: ``e_i / (1 − h_ii)`` (Allen 1974; Golub, Heath and Wahba 1979). The
table goes wherever tables go, above all into the exact solver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.surrogates.base import Prediction, Values, rank_quality
from predictors.surrogates.features import AdditiveFeatures
from predictors.tables.additive import AdditiveTable
from search_space import Genes, SearchSpace
from search_space.errors import UsageError

FINER = (0.3, 0.6, 1.0, 1.5)
PENALTIES = tuple(np.logspace(-3, 4, 29).tolist())


@dataclass(frozen=True)
class _Fit:
    """Ridge in the basis of the right singular vectors of the centred features."""

    features: AdditiveFeatures
    mean: Values  # of the features
    basis: Values  # (features, k)
    weights: Values  # (k,)
    deviations: Values  # posterior standard deviation along each basis vector, (k,)
    unseen: float  # the same along whatever no evaluation has
    offset: float
    error: float
    left_out: Values  # prediction of each value by all others


class AdditiveAccuracy:
    """Accuracy as a sum over components, learnt from evaluations.

    Args:
        space: whose rows it predicts.
        finer: scales of finer groups of features to choose from.
        penalties: of ridge, to choose from.
    """

    def __init__(
        self,
        space: SearchSpace,
        finer: tuple[float, ...] = FINER,
        penalties: tuple[float, ...] = PENALTIES,
    ) -> None:
        self.space = space
        self._features = [AdditiveFeatures(space, value) for value in finer]
        self._penalties = penalties
        self._fit: _Fit | None = None
        self._values = np.zeros(0)

    def fit(self, genes: Genes, values: Values) -> None:
        """Learn from rows (n, genes) and their finite values (n,); at least two rows.

        Raises UsageError for fewer.
        """
        if len(genes) < 2:
            raise UsageError(f"{len(genes)} evaluations fit no accuracy model; give 2 or more.")
        self._values = np.asarray(values, dtype=np.float64)
        fits = [_fit(features, genes, self._values, self._penalties) for features in self._features]
        self._fit = min(fits, key=lambda fit: fit.error)

    @property
    def _fitted(self) -> _Fit:
        assert self._fit is not None, "fit comes first"
        return self._fit

    def predict(self, genes: Genes) -> Prediction:
        """Mean and standard deviation of the value without noise, rows of shape (n, genes)."""
        fit = self._fitted
        centred = fit.features.encode(genes) - fit.mean
        along = centred @ fit.basis
        outside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        variance = ((along * fit.deviations) ** 2).sum(axis=1) + outside * fit.unseen**2
        return Prediction(fit.offset + along @ fit.weights, np.sqrt(variance))

    def table(self) -> AdditiveTable:
        """The mean as an additive table over the whole space."""
        fit = self._fitted
        weights = fit.basis @ fit.weights
        return fit.features.table(weights, fit.offset - float(fit.mean @ weights))

    @property
    def rank_quality(self) -> float | None:
        """Kendall τ of values and their leave-one-out predictions; None where undefined."""
        return rank_quality(self._values, self._fitted.left_out)

    @property
    def left_out(self) -> Values:
        """Prediction of each value by a fit to all others, same penalty, shape (n,)."""
        return self._fitted.left_out


def _fit(
    features: AdditiveFeatures, genes: Genes, values: Values, penalties: tuple[float, ...]
) -> _Fit:
    encoded = features.encode(genes)
    mean, offset = encoded.mean(axis=0), float(values.mean())
    centred, rest = encoded - mean, values - offset
    n = len(values)
    left, singular, basis = _svd(centred)
    projected = left.T @ rest
    best: tuple[float, float, Values, Values, float] | None = None
    for penalty in penalties:
        shrink = singular**2 / (singular**2 + penalty)
        # the mean is fitted too, hence 1/n
        leverage = np.minimum(1 / n + (left**2) @ shrink, 1 - 1e-9)
        residual = (rest - left @ (shrink * projected)) / (1 - leverage)
        error = float(residual @ residual) / n
        if best is None or error < best[0]:
            # a left-out residual has the variance of the noise over 1 − leverage
            variance = float(residual**2 @ (1 - leverage)) / n
            best = (error, penalty, shrink, residual, variance)
    assert best is not None
    error, penalty, shrink, residual, variance = best
    noise = float(np.sqrt(variance))
    return _Fit(
        features=features,
        mean=mean,
        basis=basis.T,
        weights=shrink * projected / np.maximum(singular, 1e-300),
        deviations=noise / np.sqrt(singular**2 + penalty),
        unseen=noise / np.sqrt(penalty),
        offset=offset,
        error=error,
        left_out=values - residual,
    )


def _svd(matrix: Values) -> tuple[Values, Values, Values]:
    """Thin singular value decomposition without the null space, by the smaller Gram matrix."""
    n, width = matrix.shape
    gram = matrix @ matrix.T if n <= width else matrix.T @ matrix
    squares, vectors = np.linalg.eigh(gram)
    keep = squares > max(squares[-1], 0.0) * 1e-10
    squares, vectors = squares[keep], vectors[:, keep]
    singular = np.sqrt(squares)
    if n <= width:
        return vectors, singular, (matrix.T @ vectors / singular).T
    return matrix @ vectors / singular, singular, vectors.T
