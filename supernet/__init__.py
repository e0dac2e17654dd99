"""The network: mixers, blocks, backbone, weight sharing, training, data.

What it exports is loaded when first used, so that a training's configuration needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from supernet.network.backbone import Backbone, build
    from supernet.network.supernet import Supernet

__all__ = ["Backbone", "Supernet", "build"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'supernet' has no attribute {name!r}")
    module = "supernet" if name == "Supernet" else "backbone"
    return getattr(import_module(f"supernet.network.{module}"), name)
