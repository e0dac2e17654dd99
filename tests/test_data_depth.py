"""Pixels of 16 bits and more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_space.errors import DataError
from supernet.data.dataset import open_data
from supernet.data.images import to_rgb

SIDE = 16
WIDE = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)


def folder_with(root: Path, image: Image.Image, name: str) -> str:
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (SIDE, SIDE)).save(root / label / f"{index}.png")
    (root / "cat" / "0.png").unlink()
    image.save(root / "cat" / name)
    return str(root)


def pixels_of(data, name: str) -> np.ndarray:
    for split in (data.train, data.validation, data.test):
        for position, index in enumerate(split.indices):
            if split.raw.keys[index] == f"cat/{name}":
                return split.pixels(position)
    raise AssertionError(name)


@pytest.mark.parametrize("name", ["wide.png", "wide.tiff", "wide.pgm"])
def test_16_bit_greyscale_is_scaled(tmp_path, name):
    data = open_data(folder_with(tmp_path, Image.fromarray(WIDE), name), SIDE)
    wanted = np.rint(WIDE.astype(float) / 65535 * 255).astype(np.uint8)
    assert np.array_equal(pixels_of(data, name), np.repeat(wanted[..., None], 3, axis=2))


def test_big_endian_and_32_bit_holders_of_16_bits_are_scaled_alike():
    wanted = np.asarray(to_rgb(Image.fromarray(WIDE), "a"))
    big = Image.frombytes("I;16B", (SIDE, SIDE), WIDE.astype(">u2").tobytes())
    held = Image.fromarray(WIDE.astype(np.int32))
    held.format = "PNG"  # as older Pillow opens them
    for image in (big, held):
        assert np.array_equal(np.asarray(to_rgb(image, "a")), wanted)
    held = Image.fromarray(WIDE.astype(np.int32) + 1)
    held.format = "PNG"
    with pytest.raises(DataError, match=r"a has pixels from 1 to 65536.*convert it to 8 bits"):
        to_rgb(held, "a")


@pytest.mark.parametrize(
    ("kind", "what"), [(np.float32, "floating-point numbers"), (np.int32, "32-bit integers")]
)
@pytest.mark.parametrize("resolution", [SIDE, 96])  # decoded at opening, or only its header read
def test_pixels_without_a_range_are_refused_at_opening(tmp_path, kind, what, resolution):
    source = folder_with(tmp_path, Image.fromarray(WIDE.astype(kind)), "odd.tiff")
    with pytest.raises(DataError, match=rf"odd\.tiff has pixels of {what}.*convert it to 8 bits"):
        open_data(source, resolution)
