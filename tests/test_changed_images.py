"""Which images a run may be continued with: those it trains and searches on must be the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_job import nas

from search_space.errors import DataError
from supernet.data.dataset import open_data

SIDE = 32


def noise(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with ``train/`` and ``test/`` of two classes."""
    for split, count in (("train", 20), ("test", 4)):
        for number, label in enumerate(("cat", "dog")):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                noise(100 * number + index).save(folder / f"{index}.jpg")
    return tmp_path / "images"


def test_test_images_of_their_own_do_not_count(images):
    before = open_data(str(images), 16)
    halve(images / "test" / "dog" / "3.jpg")
    with pytest.raises(DataError, match=r"3\.jpg cannot be read"):  # before anything is trained
        open_data(str(images), 16)
    (images / "test" / "dog" / "3.jpg").unlink()
    after = open_data(str(images), 16)
    assert after.fingerprint == before.fingerprint
    assert after.test_fingerprint != before.test_fingerprint
    (images / "train" / "dog" / "3.jpg").unlink()
    assert open_data(str(images), 16).fingerprint != before.fingerprint


def test_test_images_that_are_cut_from_the_training_images_count():
    shares = [open_data("digits", 8, test_fraction=share).fingerprint for share in (0.2, 0.3)]
    assert shares[0] != shares[1]


def test_large_test_images_are_not_decoded_at_opening(images):
    halve(images / "test" / "dog" / "3.jpg")
    assert len(open_data(str(images), 96).test) == 8


def test_a_run_goes_on_with_other_test_images(job, images):
    train = ("train", "--data", images, "--space", "pebble.yaml", "--name", "one", "--epochs", 1)
    options = (*train, "--train-batch-size", 8)
    ran = nas(*options)
    assert ran.code == 0, ran.err
    manifest = job / "runs" / "one" / "manifest.json"
    before = json.loads(manifest.read_text())
    noise(999).save(images / "test" / "dog" / "3.jpg", quality=20)
    ran = nas(*options, "--resume")
    assert ran.code == 0, ran.err
    assert f"warning: the test images of '{images}' changed since this run began" in ran.err
    after = json.loads(manifest.read_text())
    assert after["data"] == before["data"]
    assert after["test_data"] != before["test_data"]
    assert "warning" not in nas(*options, "--resume").err
    noise(999).save(images / "train" / "dog" / "3.jpg", quality=20)
    ran = nas(*options, "--resume")
    assert ran.code == 1
    assert f"the images of '{images}' changed since this run began" in ran.err
