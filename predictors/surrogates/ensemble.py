"""Extremely randomised trees (scikit-learn) with the spread of the trees as uncertainty.

Unlike a sum over components it finds interactions by itself, and unlike a Gaussian process it
takes ten thousand evaluations in its stride. Each tree sees a bootstrap sample; predictions of
what it did not see are the cross-validation, at no cost (Breiman 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from predictors.surrogates.base import Prediction, Values, rank_quality
from predictors.surrogates.features import AdditiveFeatures
from search_space import Genes, SearchSpace
from search_space.errors import UsageError

MIN_LEAF = 2


class EnsembleSurrogate:
    """Accuracy model of trees over additive features and the costs.

    Args:
        space: The space whose rows it predicts.
        costs: Predictions of cheap metrics, that accuracy may follow.
        trees: Number of trees.

    Example:
        >>> model = EnsembleSurrogate(space, [latency.predict])
        >>> model.fit(genes, accuracies)
        >>> model.predict(others).mean
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Sequence[Callable[[Genes], Values]] = (),
        trees: int = 100,
    ) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self._features = AdditiveFeatures(space)
        self._costs = costs
        self._forest = ExtraTreesRegressor(
            trees,
            bootstrap=True,
            min_samples_leaf=MIN_LEAF,
            max_features=0.5,
            oob_score=rank_quality,
            random_state=0,
        )

    def _encode(self, genes: Genes) -> Values:
        costs = [cost(genes)[:, None] for cost in self._costs]
        return np.hstack([self._features.encode(genes), *costs])

    def fit(self, genes: Genes, values: Values) -> None:
        """Learns from rows and their values.

        Args:
            genes: Valid rows, shape (n, genes), n ≥ 2.
            values: Finite values, shape (n,).

        Raises:
            UsageError: There are fewer than two rows.
        """
        if len(genes) < 2:
            raise UsageError(f"{len(genes)} evaluations fit no accuracy model; give 2 or more.")
        self._values = np.asarray(values, dtype=np.float64)
        self._forest.fit(self._encode(genes), self._values)

    def predict(self, genes: Genes) -> Prediction:
        """Predicts mean and standard deviation over the trees of rows, shape (n, genes)."""
        encoded = self._encode(genes).astype(np.float32)
        votes = np.stack([tree.predict(encoded) for tree in self._forest.estimators_])
        return Prediction(votes.mean(axis=0), votes.std(axis=0))

    @property
    def rank_quality(self) -> float | None:
        """Kendall τ of values and out-of-bag predictions; None where undefined."""
        return rank_quality(self._values, self._forest.oob_prediction_)
