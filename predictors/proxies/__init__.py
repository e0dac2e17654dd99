"""Training-free proxies: scores of networks that were not trained; each file registers its own."""

from predictors.proxies import (  # noqa: F401
    as_vit,
    combined,
    deepmad,
    dss,
    gradients,
    naswot,
    synflow,
)
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
