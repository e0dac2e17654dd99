"""Models of accuracy, learnt from the evaluations so far, over rows of genes."""

from predictors.surrogates.additive import AdditiveAccuracy
from predictors.surrogates.base import Prediction, Surrogate
from predictors.surrogates.ensemble import EnsembleSurrogate
from predictors.surrogates.gaussian_process import GaussianProcess
from predictors.surrogates.prior import WithPrior

__all__ = [
    "AdditiveAccuracy",
    "EnsembleSurrogate",
    "GaussianProcess",
    "Prediction",
    "Surrogate",
    "WithPrior",
]
