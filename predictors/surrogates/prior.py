"""A surrogate with a prior: it learns what a prediction that was there before it misses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from predictors.surrogates.base import Prediction, Surrogate, Values, rank_quality
from search_space import Genes

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


class WithPrior(Surrogate):
    """A model of what is left of the values after a multiple of a prior prediction.

    Level and slope come from least squares, so the prior may be in another unit, as a loss is to an
    error rate; a slope below 0 is taken for chance, and the prior then counts for nothing. Of what
    the model learnt, the share counts by which values that it did not see are ranked best: few
    evaluations may say less than the prior knows.

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
        self.slope = self.level = self.share = 0.0

    def _learn(self, genes: Genes, values: Values) -> None:
        expected = self.prior(genes)
        apart = expected - expected.mean()
        spread = float(apart @ apart)
        self.slope = max(0.0, float(apart @ values) / spread) if spread > 0 else 0.0
        rest = values - self.slope * expected
        self.level = float(rest.mean())
        self._expected = self.slope * expected + self.level
        self.model.fit(genes, rest - self.level)
        # the first of the best, so that what is learnt counts only where it helps
        self.share = max(SHARES, key=lambda share: rank_quality(values, self._left_out(share)) or 0)

    def predict(self, genes: Genes) -> Prediction:
        rest = self.model.predict(genes)
        mean = self.slope * self.prior(genes) + self.level + self.share * rest.mean
        return Prediction(mean, rest.deviation)

    @property
    def left_out(self) -> Values:
        """Prediction of each value without it, but for slope, level and share, which all gave."""
        return self._left_out(self.share)

    def _left_out(self, share: float) -> Values:
        return np.asarray(self._expected + share * self.model.left_out)
