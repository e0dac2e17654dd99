"""The interface of accuracy models, and the quality of their ranking."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from search_space import Genes
from search_space.errors import UsageError

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Mean and standard deviation without noise of each row, shape (n,) both."""

    mean: Values
    deviation: Values


class Surrogate(ABC):
    """Model of a metric, from evaluations; the same sequence of fits gives the same model."""

    _values: Values

    def fit(self, genes: Genes, values: Values) -> None:
        """Learns from rows of shape (n, genes) and their finite values (n,), n ≥ 2.

        Raises:
            UsageError: There are fewer than two rows.
        """
        if len(genes) < 2:
            raise UsageError(f"{len(genes)} evaluations fit no accuracy model; give 2 or more.")
        self._values = np.asarray(values, dtype=np.float64)
        self._learn(genes, self._values)

    @abstractmethod
    def _learn(self, genes: Genes, values: Values) -> None: ...

    @abstractmethod
    def predict(self, genes: Genes) -> Prediction:
        """Predicts valid rows, shape (n, genes)."""

    @property
    @abstractmethod
    def left_out(self) -> Values:
        """Prediction of each value by a model that did not see it, shape (n,)."""

    @property
    def rank_quality(self) -> float | None:
        """Kendall τ of the values and ``left_out``; None if undefined."""
        return rank_quality(self._values, self.left_out)


def rank_quality(values: Values, predicted: Values) -> float | None:
    """Computes Kendall τ-b; None for fewer than two values or where a side is constant."""
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(predicted) == 0:
        return None
    return float(kendalltau(values, predicted).statistic)
