"""Extremely randomised trees (scikit-learn) with the spread of the trees as uncertainty.

Unlike a sum over components it finds interactions by itself, and it takes ten thousand evaluations.
Predictions of what a tree's bootstrap did not see are the cross-validation (Breiman 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from predictors.surrogates.base import Prediction, Surrogate, Values, rank_quality
from predictors.surrogates.features import AdditiveFeatures
from search_space import Genes, SearchSpace

MIN_LEAF = 2


class EnsembleSurrogate(Surrogate):
    """Accuracy model of trees over additive features and predicted costs, which it may follow.

    Example:
        >>> model = EnsembleSurrogate(space, [latency.predict])
        >>> model.fit(genes, accuracies)
        >>> model.predict(others).mean
    """

    def __init__(
        self, space: SearchSpace, costs: Sequence[Callable[[Genes], Values]] = (), trees: int = 100
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

    def _learn(self, genes: Genes, values: Values) -> None:
        self._forest.fit(self._encode(genes), values)

    def predict(self, genes: Genes) -> Prediction:
        encoded = self._encode(genes).astype(np.float32)
        votes = np.stack([tree.predict(encoded) for tree in self._forest.estimators_])
        return Prediction(votes.mean(axis=0), votes.std(axis=0))

    @property
    def left_out(self) -> Values:
        return np.asarray(self._forest.oob_prediction_)
