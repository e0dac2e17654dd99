"""Images: sources, splits, decoding, augmentation and batches."""

from importlib import import_module
from typing import Any

from search_space.preprocessing import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD"]

_PLACES = {
    "batches": ("Batch", "eval_batches", "train_loader"),
    "dataset": ("ImageData", "open_data", "survey"),
    "augmentation": ("AugmentConfig",),
}


def __getattr__(name: str) -> Any:
    # Modules that read only a configuration need no torch.
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"supernet.data.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
