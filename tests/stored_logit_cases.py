"""A teacher that is a table, and logits of it that are written in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import Batch
from supernet.training.stored_logits import (
    ImageIdentity,
    StoredLogits,
    write_logits,
)


class Table:
    """A teacher whose logits are a table: the first pixel of an image says its row."""

    def __init__(self, logits: torch.Tensor, identity: dict[str, Any] | None = None) -> None:
        self.table, self.calls = logits, 0
        self.identity = identity or {"name": "table", "sha256": "0" * 64, "mean": (0.5, 0.5)}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.table[images[:, 0, 0, 0].long()]


def identity(num_images: int, num_classes: int, **changes: Any) -> ImageIdentity:
    values = {"data": "0123456789ab", "resolution": 4, "seed": 3, "augment": AugmentConfig()}
    return ImageIdentity(num_images=num_images, num_classes=num_classes, **(values | changes))


def numbered(num_images: int, batch_size: int, variant: int = 0, order=None) -> Iterator[Batch]:
    """Images whose first pixel is their position."""
    images = torch.randn(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(variant))
    images[:, 0, 0, 0] = torch.arange(num_images)
    positions = torch.arange(num_images) if order is None else torch.as_tensor(order)
    for part in positions.split(batch_size):
        yield Batch(images[part], torch.zeros(len(part), dtype=torch.int64), part, variant)


def stored(folder: Path, logits: torch.Tensor, top_k: int, **options: Any) -> StoredLogits:
    """One variant of logits (n, classes), written and opened."""
    images = identity(*logits.shape)
    write_logits(
        Table(logits),
        lambda variant: numbered(len(logits), 3, variant, **options),
        folder,
        images=images,
        top_k=top_k,
        variants=1,
    )
    return StoredLogits.open(folder, images)


LOGITS = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))
