"""Additive accuracy: ridge regression whose fitted form is an additive table.

Regularisation and the prior's fineness are chosen by the leave-one-out error, which a linear
smoother has in closed form: ``e_i / (1 − h_ii)`` (Allen 1974; Golub, Heath and Wahba 1979). The
table goes wherever tables go, above all into the exact solver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from predictors.surrogates.base import Prediction, Surrogate, Values
from predictors.surrogates.features import AdditiveFeatures
from predictors.tables.additive import AdditiveTable
from search_space import Genes, SearchSpace

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


class AdditiveAccuracy(Surrogate):
    """Accuracy as a sum over components, learnt from evaluations.

    ``finer`` are scales of finer groups of features, ``penalties`` those of ridge to choose from.

    Example:
        >>> model = AdditiveAccuracy(space)
        >>> model.fit(genes, accuracies)
        >>> model.table().argmax()  # the genes that it expects most of
    """

    def __init__(
        self,
        space: SearchSpace,
        finer: tuple[float, ...] = FINER,
        penalties: tuple[float, ...] = PENALTIES,
    ) -> None:
        self._features = [AdditiveFeatures(space, value) for value in finer]
        self._penalties = penalties

    def _learn(self, genes: Genes, values: Values) -> None:
        fits = [_fit(features, genes, values, self._penalties) for features in self._features]
        self._fit = min(fits, key=lambda fit: fit.error)

    def predict(self, genes: Genes) -> Prediction:
        fit = self._fit
        centred = fit.features.encode(genes) - fit.mean
        along = centred @ fit.basis
        outside = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        variance = ((along * fit.deviations) ** 2).sum(axis=1) + outside * fit.unseen**2
        return Prediction(fit.offset + along @ fit.weights, np.sqrt(variance))

    def table(self) -> AdditiveTable:
        """Builds the additive table of the mean over the whole space."""
        fit = self._fit
        weights = fit.basis @ fit.weights
        return fit.features.table(weights, fit.offset - float(fit.mean @ weights))

    @property
    def left_out(self) -> Values:
        return self._fit.left_out


def _fit(
    features: AdditiveFeatures, genes: Genes, values: Values, penalties: tuple[float, ...]
) -> _Fit:
    encoded = features.encode(genes)
    mean, offset = encoded.mean(axis=0), float(values.mean())
    centred, rest = encoded - mean, values - offset
    n = len(values)
    left, singular, basis = _svd(centred)
    projected = left.T @ rest
    fits: list[tuple[float, float, Values, Values, float]] = []
    for penalty in penalties:
        shrink = singular**2 / (singular**2 + penalty)
        # the mean is fitted too, hence 1/n
        leverage = np.minimum(1 / n + (left**2) @ shrink, 1 - 1e-9)
        residual = (rest - left @ (shrink * projected)) / (1 - leverage)
        error = float(residual @ residual) / n
        # a left-out residual has the variance of the noise over 1 − leverage
        variance = float(residual**2 @ (1 - leverage)) / n
        fits.append((error, penalty, shrink, residual, variance))
    error, penalty, shrink, residual, variance = min(fits, key=lambda fit: fit[0])
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
