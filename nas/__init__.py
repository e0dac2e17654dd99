"""Hardware-aware neural architecture search of hierarchical vision backbones.

The public API, loaded when first used, so that importing costs nothing. ``import nas.timm`` makes
timm know the backbone, so that ``timm.create_model("local-dir:…", pretrained=True)`` loads exports.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_API = {
    "Architecture": "search_space",
    "Backbone": "supernet",
    "SearchSpace": "search_space",
    "Supernet": "supernet",
    "build": "supernet",
    "count_architecture": "predictors.counts",
    "known": "search_space",
    "known_names": "search_space",
    "load_architecture": "search_space",
    "load_space": "search_space",
    "load_timm_checkpoint": "supernet.network.timm_weights",
    "run_search": "nas.workflows.pipeline",
    "space_names": "search_space",
}

__all__ = list(_API)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module 'nas' has no attribute {name!r}")
    return getattr(import_module(_API[name]), name)


def __dir__() -> list[str]:
    return sorted([*_API, "__version__"])
