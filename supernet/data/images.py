"""Reading of encoded images, which may hold anything, by the same rules for all sources.

Every source opens images here: from a stated list of formats, of a bounded number of pixels,
turned as their EXIF orientation says, with 16 bits scaled to 8 and transparency laid on white.
Whatever a decoder raises becomes a DataError that names the image.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
from PIL import Image, ImageOps

from search_space.errors import DataError

Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF")
    if name in Image.OPEN  # an older Pillow has no AVIF
)
"""Formats that are opened; Pillow's others include EPS, which starts Ghostscript."""

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp", ".avif", ".tif", ".tiff")
) | {".pbm", ".pgm", ".ppm", ".pnm"}
"""Endings of files that are taken for images."""

MAX_PIXELS = 100_000_000
MAX_RATIO = 100  # of the sides: beyond it, the scaled image would be many times its size
VERIFY_AT_MOST = 100_000  # headers, of some 50 µs each; beyond that an even selection is read
_WIDE_FORMATS = ("PNG", "PPM")  # their greyscale has at most 16 bits, which PIL may hold in 32


class RawImages(Protocol):
    """Undecoded labelled images of one split.

    Attributes:
        labels: (n,) int64.
        keys: n names, stable and unique.
    """

    labels: np.ndarray
    keys: Sequence[str]

    def image(self, index: int) -> Image.Image:
        """Decodes an image to RGB; raises DataError that names what cannot be decoded."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Reads width and height as stored, from the header; raises as ``image`` does."""
        ...

    def content(self) -> bytes:
        """Returns bytes that change when the images do, for the fingerprint."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set as it is stored: its splits (``None`` for those it lacks) and class names."""

    kind: str
    train: RawImages
    validation: RawImages | None = None
    test: RawImages | None = None
    class_names: tuple[str, ...]


def decode(stream: Any, name: str) -> Image.Image:
    """Decodes an image to 8-bit RGB.

    Args:
        stream: A path or an open file.
        name: The image, for errors.

    Raises:
        DataError: It cannot be decoded, is too large, or has pixels without a range.
    """
    return _read(stream, name, lambda image: to_rgb(image, name))


def read_size(stream: Any, name: str) -> tuple[int, int]:
    """Reads width and height in pixels from the header; raises as ``decode`` does."""
    return _read(stream, name, lambda image: image.size)


def _read(stream: str | os.PathLike[str] | IO[bytes], name: str, use: Callable[..., Any]) -> Any:
    what = f"{name} cannot be read as an image of one of the formats {', '.join(FORMATS)}"
    with reading(what), Image.open(stream, formats=FORMATS) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise DataError(
                f"{name} has {width} × {height} pixels; images of at most {MAX_PIXELS:,} are "
                "read: scale it down, or remove it"
            )
        if max(width, height) > MAX_RATIO * min(width, height):
            raise DataError(
                f"{name} has {width} × {height} pixels, sides of more than {MAX_RATIO} to 1: "
                "cut it into parts, or remove it"
            )
        check_mode(image, name)
        return use(image)


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns whatever reading foreign data raises into a DataError that begins with ``what``."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # decoders of damaged files raise whatever they like
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{what} ({reason}); replace or remove it") from error


def check_mode(image: Image.Image, name: str) -> None:
    """Raises DataError for pixels that no format gives a range from black to white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _WIDE_FORMATS):
        what = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise DataError(
            f"{name} has pixels of {what} (mode {image.mode}); images have integers of 8 bits a "
            "channel, or greyscale of 16, since it must be known which values are black and "
            "white: convert it to 8 bits"
        )


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Returns the image upright, in 8-bit RGB, laid on white where it is transparent.

    16-bit greyscale is scaled, where PIL's own conversion would cut values above 255 off. White
    keeps black drawings on a transparent ground visible, which are more common than white ones.
    """
    check_mode(image, name)
    image.load()
    with suppress(Exception):  # a damaged tag says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _scaled(np.asarray(image), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled(values: np.ndarray, name: str) -> Image.Image:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise DataError(
            f"{name} has pixels from {low} to {high}; 16-bit greyscale lies between 0 and 65535: "
            "convert it to 8 bits"
        )
    grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255, rounded
    return Image.fromarray(grey).convert("RGB")


def verify(images: RawImages) -> None:
    """Reads up to ``VERIFY_AT_MOST`` headers; raises DataError for the first unreadable one."""
    count = len(images.labels)
    indices = range(0, count, max(1, -(-count // VERIFY_AT_MOST)))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(images.size, indices, chunksize=64):
            pass


def key_bytes(key: str) -> bytes:
    """Returns a key as bytes to be hashed; names of files from old archives are no UTF-8."""
    return key.encode(errors="surrogateescape")


def printable(name: str) -> str:
    """Returns a name that every file and terminal takes: what is not UTF-8 is escaped."""
    return name.encode(errors="backslashreplace").decode()
