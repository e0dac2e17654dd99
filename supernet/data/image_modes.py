"""Pixels of any depth as 8-bit RGB; PIL's own conversion cuts values above 255 off, to white."""

from __future__ import annotations

import numpy as np
from PIL import Image

from search_space.errors import DataError

_WIDE_FORMATS = ("PNG", "PPM")  # their greyscale has at most 16 bits, which PIL may hold in 32


def check_mode(image: Image.Image, name: str) -> None:
    """Raise DataError for pixels that no format gives a range from black to white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _WIDE_FORMATS):
        what = "floating-point numbers" if image.mode == "F" else "32-bit integers"
        raise DataError(
            f"{name} has pixels of {what} (mode {image.mode}); images have integers of 8 bits a "
            "channel, or greyscale of 16, since it must be known which values are black and "
            "white: convert it to 8 bits"
        )


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB; 16-bit greyscale is scaled. Transparent images are laid on black, as PIL does."""
    check_mode(image, name)
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 0xFFFF:
        raise DataError(
            f"{name} has pixels from {low} to {high}; 16-bit greyscale lies between 0 and 65535: "
            "convert it to 8 bits"
        )
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 / 257 = 255, rounded
    return Image.fromarray(grey).convert("RGB")
