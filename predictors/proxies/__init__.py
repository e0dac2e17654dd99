"""Training-free proxies: what a network promises before it is trained."""

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
