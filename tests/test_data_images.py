"""What becomes of encoded images: depth, orientation, transparency, formats, damage."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from search_space.errors import DataError
from supernet.data.dataset import open_data
from supernet.data.images import FORMATS, decode, read_size, to_rgb

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


RED_LEFT = Image.new("RGB", (8, 4), "blue")
RED_LEFT.paste("red", (0, 0, 4, 4))


RED_IS = {1: "left", 2: "right", 3: "right", 4: "left"}
RED_IS |= {5: "top", 6: "top", 7: "bottom", 8: "bottom"}  # by EXIF's table


@pytest.mark.parametrize("orientation", RED_IS)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG"])
def test_images_are_turned_as_they_say(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    RED_LEFT.save(stream, kind, exif=exif)
    pixels = np.asarray(decode(stream, "a")).astype(int)
    height, width = (8, 4) if orientation > 4 else (4, 8)
    halves = {
        "left": pixels[:, : width // 2],
        "right": pixels[:, width // 2 :],
        "top": pixels[: height // 2],
        "bottom": pixels[height // 2 :],
    }
    assert pixels.shape == (height, width, 3)
    assert np.abs(halves[RED_IS[orientation]] - (255, 0, 0)).mean() < 20
    assert np.abs(pixels - (255, 0, 0)).mean() > 60  # and the other half is blue


def test_a_damaged_orientation_is_none():
    stream = io.BytesIO()
    RED_LEFT.save(stream, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(stream, "a").size == RED_LEFT.size


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "I;16 opaque"])
def test_drawings_on_a_transparent_ground_lie_on_white(mode):
    drawing = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    ImageDraw.Draw(drawing).rectangle((0, 0, 4, 9), fill=(0, 0, 0, 255))
    drawing.putpixel((9, 9), (0, 0, 0, 128))
    if mode == "P":  # a palette with one transparent colour
        drawing = Image.new("P", (10, 10), 1)
        drawing.putpalette([0, 0, 0, 9, 9, 9])
        drawing.paste(0, (0, 0, 5, 10))
        stream = io.BytesIO()
        drawing.save(stream, "PNG", transparency=1)
        drawing = Image.open(stream)
    elif mode == "PA":
        drawing = drawing.convert("PA")
    elif mode == "LA":
        drawing = drawing.convert("LA")
    elif mode == "I;16 opaque":
        drawing = Image.fromarray(np.where(np.arange(10) < 5, 0, 65535).astype(np.uint16)[None])
    pixels = np.asarray(to_rgb(drawing, "a"))
    assert (pixels[0, :5] == 0).all()
    assert (pixels[0, 5:] == 255).all()
    if mode in ("RGBA", "LA", "PA"):
        assert abs(int(pixels[9, 9, 0]) - 127) <= 1


def test_only_listed_formats_are_opened(tmp_path, monkeypatch):
    folder = folder_with(tmp_path, RED_LEFT, "a.png")
    (tmp_path / "cat" / "holiday.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 24 24\n%%EndComments\n(text) show\n%%EOF\n"
    )
    monkeypatch.setattr("subprocess.check_call", None)  # by which Pillow starts Ghostscript
    with pytest.raises(DataError, match=r"holiday\.png cannot be read as an image of .*JPEG"):
        open_data(folder, SIDE)
    assert not {"EPS", "WMF"} & set(FORMATS)


def test_sizes_are_bounded_before_pixels_are_read():
    stream = io.BytesIO()
    Image.new("1", (20_000, 5_001)).save(stream, "PNG")
    for read in (decode, read_size):
        with pytest.raises(DataError, match=r"a has 20000 × 5001 pixels; .*100,000,000"):
            read(stream, "a")
    stream = io.BytesIO()
    Image.new("1", (1010, 10)).save(stream, "PNG")
    with pytest.raises(DataError, match="more than 100 to 1"):
        decode(stream, "a")


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_are_data_errors(kind):
    stream, rng = io.BytesIO(), random.Random(0)
    noise = np.random.default_rng(0).integers(0, 255, (12, 17, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind)
    refused = 0
    for _ in range(100):
        data = bytearray(stream.getvalue())
        for _ in range(rng.choice((1, 4, 16))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randrange(len(data))] if rng.random() < 0.2 else data
        for read in (decode, read_size):
            try:
                read(io.BytesIO(data), "a")
            except DataError:
                refused += 1
    assert refused


def test_pipes_among_images_are_left_out(tmp_path):
    folder = folder_with(tmp_path, RED_LEFT, "a.png")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    (tmp_path / "dog" / "link.png").symlink_to(tmp_path / "cat" / "a.png")
    (tmp_path / "dog" / "broken.png").symlink_to(tmp_path / "nothing.png")
    with pytest.warns(UserWarning, match=r"2 hidden .*broken\.png, .*pipe\.png"):
        data = open_data(folder, SIDE)
    assert len(data.train) + len(data.validation) + len(data.test) == 11


@pytest.mark.parametrize("resolution", [SIDE, 96])
def test_images_that_are_all_the_same_are_called_that(tmp_path, resolution):
    source = folder_with(tmp_path, Image.new("RGBA", (8, 8)), "a.png")
    for file in tmp_path.rglob("*.png"):
        Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(file)
    with pytest.raises(DataError, match="are the same picture of one colour"):
        open_data(source, resolution)


def test_a_channel_that_never_changes_is_not_scaled(tmp_path):
    source = folder_with(tmp_path, Image.new("RGB", (8, 8), (255, 0, 0)), "a.png")
    for shade, file in enumerate(tmp_path.rglob("*.png")):
        Image.new("RGB", (8, 8), (20 * shade, 7, 7)).save(file)
    data = open_data(source, SIDE)
    assert data.preprocessing.std[1:] == (1.0, 1.0)
    assert 0 < data.preprocessing.std[0] < 1
