"""The interface of accuracy models, and the quality of their ranking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from search_space import Genes

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Mean and standard deviation of each row, shape (n,) both."""

    mean: Values
    deviation: Values


class Surrogate(Protocol):
    """Model of a metric, from evaluations; the same sequence of fits gives the same model."""

    def fit(self, genes: Genes, values: Values) -> None:
        """Learns from rows of shape (n, genes) and their finite values (n,), n ≥ 2."""
        ...

    def predict(self, genes: Genes) -> Prediction:
        """Predicts rows of shape (n, genes)."""
        ...

    @property
    def rank_quality(self) -> float | None:
        """Kendall τ of the values and their cross-validated predictions; None if undefined."""
        ...


def rank_quality(values: Values, predicted: Values) -> float | None:
    """Computes Kendall τ-b; None for fewer than two values or where a side is constant."""
    if len(values) < 2 or np.ptp(values) == 0 or np.ptp(predicted) == 0:
        return None
    return float(kendalltau(values, predicted).statistic)
