"""A teacher that is a table, and logits of it that are stored in one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from supernet.data.batches import Batch
from supernet.training.stored_logits import StoredLogits, store_logits

LOGITS = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))


class Table:
    """A teacher whose logits are a table: the first pixel of an image says its row."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.table, self.calls = logits, 0
        self.identity: dict[str, Any] = {"name": "table"}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.table[images[:, 0, 0, 0].long()]


def identity_of_table(
    num_images: int, num_classes: int, top_k: int, variants: int = 1
) -> dict[str, Any]:
    counts = {"num_images": num_images, "num_classes": num_classes}
    return {"teacher": {"name": "table"}, **counts, "top_k": top_k, "variants": variants}


def numbered(num_images: int, batch_size: int, variant: int = 0, order=None) -> Iterator[Batch]:
    """Images whose first pixel is their position."""
    images = torch.randn(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(variant))
    images[:, 0, 0, 0] = torch.arange(num_images)
    positions = torch.arange(num_images) if order is None else torch.as_tensor(order)
    for part in positions.split(batch_size):
        yield Batch(images[part], torch.zeros(len(part), dtype=torch.int64), part, variant)


def stored(folder: Path, logits: torch.Tensor, top_k: int, **options: Any) -> StoredLogits:
    """One variant of logits (n, classes), stored and opened."""
    return store_logits(
        Table(logits),
        lambda variant: numbered(len(logits), 3, variant, **options),
        folder,
        identity_of_table(*logits.shape, top_k),
    )
