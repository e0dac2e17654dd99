"""An ensemble of regression trees (scikit-learn) with the spread of its members as uncertainty.

Unlike a sum over components it finds interactions by itself, and unlike a Gaussian process it
takes ten thousand evaluations in its stride. Each tree sees a bootstrap sample; predictions of
what it did not see are the cross-validation, at no cost (Breiman 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from predictors.surrogates.base import Prediction, Values, rank_quality
from predictors.surrogates.features import AdditiveFeatures
from search_space import Genes, SearchSpace
from search_space.errors import UnknownNameError, UsageError

Kind = Literal["extra_trees", "random_forest"]
MIN_LEAF = 2


class EnsembleSurrogate:
    """Accuracy model of trees over additive features and the costs.

    Args:
        space: whose rows it predicts.
        costs: predictions of cheap metrics, that accuracy may follow.
        kind: how trees split: ``extra_trees`` at random thresholds, ``random_forest`` at the best.
        trees: how many.
        seed: of the trees.

    Raises UnknownNameError for another kind.
    """

    def __init__(
        self,
        space: SearchSpace,
        costs: Sequence[Callable[[Genes], Values]] = (),
        *,
        kind: Kind = "extra_trees",
        trees: int = 100,
        seed: int = 0,
    ) -> None:
        from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

        kinds = {"extra_trees": ExtraTreesRegressor, "random_forest": RandomForestRegressor}
        if kind not in kinds:
            raise UnknownNameError("ensemble", kind, kinds)
        self.space = space
        self._features = AdditiveFeatures(space)
        self._costs = costs
        self._forest = kinds[kind](
            trees,
            bootstrap=True,
            min_samples_leaf=MIN_LEAF,
            max_features=0.5,
            oob_score=rank_quality,
            random_state=seed,
        )
        self._values = np.zeros(0)

    def _encode(self, genes: Genes) -> Values:
        costs = [cost(genes)[:, None] for cost in self._costs]
        return np.hstack([self._features.encode(genes), *costs])

    def fit(self, genes: Genes, values: Values) -> None:
        """Learn from rows (n, genes) and finite values (n,), n ≥ 2.

        Raises UsageError for fewer.
        """
        if len(genes) < 2:
            raise UsageError(f"{len(genes)} evaluations fit no accuracy model; give 2 or more.")
        self._values = np.asarray(values, dtype=np.float64)
        self._forest.fit(self._encode(genes), self._values)

    def predict(self, genes: Genes) -> Prediction:
        """Mean and standard deviation over the trees, rows of shape (n, genes)."""
        encoded = self._encode(genes).astype(np.float32)
        votes = np.stack([tree.predict(encoded) for tree in self._forest.estimators_])
        return Prediction(votes.mean(axis=0), votes.std(axis=0))

    @property
    def rank_quality(self) -> float | None:
        """Kendall τ of values and out-of-bag predictions; None where undefined."""
        return rank_quality(self._values, self._forest.oob_prediction_)
