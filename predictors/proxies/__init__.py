"""Training-free proxies: scores of networks that were not trained; each file registers its own."""

from predictors.proxies import as_vit, combined, deepmad, dss, gradients, naswot, synflow  # noqa: F401
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

__all__ = [
    "Network",
    "Proxy",
    "Score",
    "ScoreSettings",
    "UndefinedProxyError",
    "proxy",
    "proxy_names",
    "register_proxy",
]
