"""Training-free proxies: scores of networks that were not trained."""

from predictors.proxies.base import (
    Network,
    Proxy,
    Score,
    ScoreSettings,
    UndefinedProxyError,
    proxy,
    proxy_names,
    register_proxy,
)
from predictors.proxies.combined import Combined
from predictors.proxies.deepmad import DeepMAD, Effectiveness
from predictors.proxies.dss import DSS
from predictors.proxies.gradients import GradNorm, Snip
from predictors.proxies.length_distortion import LengthDistortion
from predictors.proxies.naswot import NASWOT
from predictors.proxies.ntk import TangentKernelCondition
from predictors.proxies.synflow import Synflow
from predictors.proxies.zico import ZiCo

__all__ = [
    "DSS",
    "NASWOT",
    "Combined",
    "DeepMAD",
    "Effectiveness",
    "GradNorm",
    "LengthDistortion",
    "Network",
    "Proxy",
    "Score",
    "ScoreSettings",
    "Snip",
    "Synflow",
    "TangentKernelCondition",
    "UndefinedProxyError",
    "ZiCo",
    "proxy",
    "proxy_names",
    "register_proxy",
]
