"""Images: sources, splits, decoding, augmentation and batches."""

from search_space.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import Batch, eval_batches, train_loader
from supernet.data.dataset import ImageData, open_data, survey

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "AugmentConfig",
    "Batch",
    "ImageData",
    "Preprocessing",
    "eval_batches",
    "open_data",
    "survey",
    "train_loader",
]
