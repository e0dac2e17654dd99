"""Batches without augmentation: decoded once, kept as bytes, and normalised where they are used."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from supernet.data import splits
from supernet.data.batches import cut, load
from supernet.data.splits import ImageSplit, normalise

_DISK_SHARE = 0.5  # of the free space, at most, for decoded images


class EvalBatches:
    """Batches of a split in order, iterable again and again.

    Pixels are kept as they are decoded, 1 byte each: in memory up to
    ``splits.MEMORY_LIMIT_BYTES``, else in a file without a name in ``folder``, which the system
    removes with this process, however that ends. Without a folder, or with too little space in it,
    larger ones are decoded in each pass.

    Args:
        split: Whose images they are.
        batch_size: Images of a batch; the last may have fewer.
        chosen: Positions in the split, in order.
        workers: Data-loading processes; with 0 this one loads.
        folder: For what is too large for memory.
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        chosen: Sequence[int],
        workers: int,
        folder: str | Path | None = None,
    ) -> None:
        self.split, self.batch_size, self.workers = split, batch_size, workers
        self.chosen, self.folder = list(chosen), folder
        self.num_images = len(chosen)
        self._kept: np.ndarray | None = None
        self._done = 0  # batches that are kept

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": None, "_done": 0}  # other processes decode for themselves

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self.on("cpu")

    def on(self, device: str | torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields batches on ``device``, to which pixels go as bytes; the same floats on each."""
        positions = cut(self.chosen, self.batch_size)
        for indices, pixels in zip(positions, self._pixels(positions), strict=True):
            labels = torch.from_numpy(self.split.labels[indices])
            images = normalise(pixels.to(device, non_blocking=True), self.split.preprocessing)
            yield images, labels.to(device, non_blocking=True)

    def _pixels(self, positions: list[list[int]]) -> Iterator[torch.Tensor]:
        """Yields the bytes of each batch, (n, 3, side, side), and keeps those that are new."""
        if self.split.in_memory:
            for indices in positions:
                yield torch.from_numpy(self.split.decoded[indices]).permute(0, 3, 1, 2)
            return
        if self._kept is None:
            self._kept = self._space()
        kept, size, done = self._kept, self.batch_size, self._done
        for k in range(done):
            assert kept is not None
            yield torch.from_numpy(kept[k * size : (k + 1) * size])
        fresh = load(_Pixels(self.split), positions[done:], self.workers, self.split.resolution)
        for k, (pixels,) in enumerate(fresh if done < len(positions) else (), done):
            if kept is not None:
                kept[k * size : k * size + len(pixels)] = pixels.numpy()
                self._done = max(self._done, k + 1)
            yield pixels

    def _space(self) -> np.ndarray | None:
        """Makes room for all pixels; None where there is none."""
        shape = (self.num_images, 3, self.split.resolution, self.split.resolution)
        needed = int(np.prod(shape))
        if needed <= splits.MEMORY_LIMIT_BYTES:
            return np.empty(shape, dtype=np.uint8)
        try:
            if self.folder is None or needed > _DISK_SHARE * shutil.disk_usage(self.folder).free:
                return None
            with tempfile.TemporaryFile(dir=self.folder) as file:  # the map holds it from here on
                return np.memmap(file, np.uint8, "w+", shape=shape)
        except OSError:
            return None


class _Pixels(Dataset[Any]):
    """The bytes of images, (n, 3, side, side), in a tuple of one."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor]:
        pixels = np.stack([self.split.pixels(index).transpose(2, 0, 1) for index in indices])
        return (torch.from_numpy(pixels),)


def moved(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]], device: str | torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields pairs of images and labels on ``device``, those of ``EvalBatches`` sent as bytes."""
    if isinstance(batches, EvalBatches):
        yield from batches.on(device)
        return
    for images, labels in batches:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def eval_batches(
    split: ImageSplit,
    batch_size: int = 256,
    *,
    limit: int | None = None,
    workers: int = 0,
    folder: str | Path | None = None,
) -> EvalBatches:
    """Makes batches without augmentation, which raise as ``train_loader`` does.

    Args:
        limit: Show at most this many images, evenly spaced over the split.
        workers: Data-loading processes; with 0 this one loads.
        folder: As of ``EvalBatches``.

    Returns:
        Batches of images (n, 3, side, side) float32, normalised, and labels (n,) int64.
    """
    # Evenly spaced, so that a split sorted by class keeps all its classes.
    count = len(split) if limit is None else min(limit, len(split))
    chosen = np.unique(np.linspace(0, len(split) - 1, count).round().astype(int)).tolist()
    return EvalBatches(split, batch_size, chosen, workers, folder)


def doubling_batches(
    split: ImageSplit,
    doublings: int,
    batch_size: int = 256,
    *,
    workers: int = 0,
    folder: str | Path | None = None,
) -> list[EvalBatches]:
    """Makes batches, as ``eval_batches`` does, of ``doublings + 1`` disjoint parts of a split.

    Each part but the first is as large as all before it, and is spread evenly over the split.
    """
    first = range(0, len(split), 2**doublings)
    offsets = [2**k for k in reversed(range(doublings))]
    parts = [first, *(range(offset, len(split), 2 * offset) for offset in offsets)]
    return [EvalBatches(split, batch_size, part, workers, folder) for part in parts]
