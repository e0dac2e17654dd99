"""Batches of a data set, from worker processes or from this one, with the same errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from search_space.errors import DataError


class _ErrorsAsValues(Dataset[Any]):
    # Of an error that a worker raises, torch makes one whose message is the worker's traceback.
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> Any:
        try:
            return self.dataset.__getitems__(indices)
        except DataError as error:
            return error


def load(
    dataset: Any, batches: list[list[int]], workers: int, *, pinned: bool = False
) -> Iterator[Any]:
    """``dataset.__getitems__`` of each of these lists of positions, in this order.

    workers: processes that fetch batches; with 0 it is this one. pinned: in pinned memory.

    Raises the DataError that fetching a batch raised.
    """
    loader: DataLoader[Any] = DataLoader(
        _ErrorsAsValues(dataset),
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=_as_it_is,
        pin_memory=pinned,
        generator=torch.Generator(),  # or it would draw from the global one
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def _as_it_is(batch: Any) -> Any:
    return batch
