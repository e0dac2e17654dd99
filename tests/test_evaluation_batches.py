"""Batches to judge networks by: decoded once, wherever they are kept, and always the same."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from test_data import make_folder

from supernet.data import splits
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import EvalBatches, doubling_batches, eval_batches, moved
from supernet.data.splits import ImageSplit


@pytest.fixture
def split(tmp_path) -> ImageSplit:
    """Sixteen images that are decoded at each access."""
    data = open_data(str(make_folder(tmp_path / "images", {"cat": 20, "dog": 20})), 24)
    data.validation.in_memory = False
    return data.validation


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Positions of the images that were decoded."""
    positions, real = [], ImageSplit._fitted

    def fitted(self: ImageSplit, index: int) -> np.ndarray:
        positions.append(index)
        return real(self, index)

    monkeypatch.setattr(ImageSplit, "_fitted", fitted)
    return positions


def kept_in(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path, split: ImageSplit
) -> EvalBatches:
    if place != "memory":
        monkeypatch.setattr(splits, "MEMORY_LIMIT_BYTES", 0)
    return eval_batches(split, 3, folder=tmp_path if place == "file" else None)


@pytest.mark.parametrize("place", ["memory", "file", "nowhere"])
def test_images_are_decoded_once_and_stay_the_same(place, monkeypatch, tmp_path, split, decoded):
    before = sorted(os.listdir(tmp_path))
    wanted = [split[index][0] for index in range(len(split))]
    decoded.clear()
    batches = kept_in(place, monkeypatch, tmp_path, split)
    next(iter(batches))  # a pass that is broken off keeps what it saw
    for _ in range(3):
        images = torch.cat([images for images, _ in batches])
        assert images.dtype == torch.float32
        assert images.is_contiguous()
        assert torch.equal(images, torch.stack(wanted))
    assert np.array_equal(np.concatenate([labels for _, labels in batches]), split.labels)
    n = len(split)
    assert len(decoded) == (3 + 4 * n if place == "nowhere" else n)
    assert sorted(os.listdir(tmp_path)) == before  # nothing is left to remove


def test_too_little_space_on_disk_decodes_again(monkeypatch, tmp_path, split):
    batches = kept_in("file", monkeypatch, tmp_path, split)
    monkeypatch.setattr("supernet.data.evaluation_batches._DISK_SHARE", 0.0)
    assert sum(len(images) for _ in range(2) for images, _ in batches) == 2 * len(split)
    assert batches._kept is None


def test_another_process_decodes_for_itself(split):
    batches = doubling_batches(split, 1, 4)[0]
    wanted = list(batches)
    sent = pickle.loads(pickle.dumps(batches))
    assert sent._kept is None
    for (left, _), (right, _) in zip(wanted, sent, strict=True):
        assert torch.equal(left, right)


def test_bytes_cross_to_the_device(split):
    """The meta device stands for one: what is sent there is of its type before it is a float."""
    sent = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            moves = isinstance(result, torch.Tensor) and result.device.type == "meta"
            if moves and args and isinstance(args[0], torch.Tensor) and args[0].is_cpu:
                sent.append((args[0].dtype, args[0].ndim))
            return result

    with Watch():
        images, labels = next(moved(eval_batches(split, 3), "meta"))
    assert images.device.type == labels.device.type == "meta"
    assert images.dtype == torch.float32
    assert (torch.uint8, 4) in sent
    assert (torch.float32, 4) not in sent
