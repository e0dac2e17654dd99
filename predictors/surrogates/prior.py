"""A surrogate with a prior: it learns what a prediction that was there before it misses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from predictors.surrogates.base import Prediction, Surrogate, Values
from search_space import Genes


class WithPrior(Surrogate):
    """A model of what is left of the values after a multiple of a prior prediction.

    Level and slope come from least squares, so the prior may be in another unit, as a loss is to an
    error rate; a slope below 0 is taken for chance, and the prior then counts for nothing.

    Example:
        A process that is given the quality table's loss and learns what the sum misses::

            loss = table.compile(space).predict
            model = WithPrior(GaussianProcess(space, [loss]), loss)
            model.fit(genes, losses)

    Args:
        model: What learns the rest.
        prior: Predicts rows of genes (n, genes) as (n,), in the direction of the values.
    """

    def __init__(self, model: Surrogate, prior: Callable[[Genes], Values]) -> None:
        self.model, self.prior = model, prior
        self.slope = 0.0

    def _learn(self, genes: Genes, values: Values) -> None:
        expected = self.prior(genes)
        apart = expected - expected.mean()
        spread = float(apart @ apart)
        self.slope = max(0.0, float(apart @ values) / spread) if spread > 0 else 0.0
        self._expected = self.slope * expected
        self.model.fit(genes, values - self._expected)

    def predict(self, genes: Genes) -> Prediction:
        rest = self.model.predict(genes)
        return Prediction(self.slope * self.prior(genes) + rest.mean, rest.deviation)

    @property
    def left_out(self) -> Values:
        """Prediction of each value without it, but for the slope, which all of them gave."""
        return np.asarray(self._expected + self.model.left_out)
