"""Sources of images: each becomes ``RawImages`` with labels and stable keys.

A source knows its samples and, if it has them, its own splits; it neither resizes nor
augments nor cuts splits (``supernet.data.dataset`` does).
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search_space.errors import DataError
from supernet.data.folder import open_folder
from supernet.data.images import Source, reading, to_rgb
from supernet.data.labels import TEST, TRAIN, Labels, join_labels
from supernet.data.parquet import holds_parquet_images, open_parquet


class ArrayImages:
    """Images held as one uint8 array (n, h, w, 3)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, name: str) -> None:
        self.pixels = pixels
        self.labels = labels.astype(np.int64)
        self.keys: Sequence[str] = [f"{name}/{index}" for index in range(len(labels))]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def size(self, index: int) -> tuple[int, int]:
        return self.pixels.shape[2], self.pixels.shape[1]

    def content(self) -> bytes:
        return self.pixels.tobytes()


class TimmImages:
    """A map-style data set that ``timm.data.create_dataset`` opened."""

    def __init__(self, dataset: Any, labels: np.ndarray, name: str) -> None:
        self.dataset = dataset
        self.labels = labels
        self.name = name
        self.keys: Sequence[str] = [f"{name}/{index}" for index in range(len(labels))]

    def image(self, index: int) -> Image.Image:
        name = f"image {index} of {self.name}"
        with reading(f"{name} cannot be read"):
            return to_rgb(self.dataset[index][0], name)

    def size(self, index: int) -> tuple[int, int]:
        return self.image(index).size

    def content(self) -> bytes:
        return self.labels.tobytes()


def open_source(
    source: str,
    *,
    image_column: str = "image",
    label_column: str = "label",
    root: str | None = None,
    download: bool = False,
) -> Source:
    """Opens ``digits``, a path, or a ``timm`` data set name.

    Args:
        source: As for ``open_data``, and so are the others.

    Raises:
        DataError: There is nothing, it cannot be read, or its labels do not make classes.
    """
    if source == "digits":
        return _digits()
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".parquet":
            raise DataError(
                f"{source!r} is a single file; images are a folder with one subfolder per class, "
                "or .parquet files"
            )
        return open_parquet(path, image_column, label_column)
    if path.is_dir():
        if holds_parquet_images(path, image_column):
            return open_parquet(path, image_column, label_column)
        return open_folder(path, label_column)
    prefix = source.partition("/")[0].lower()
    if prefix in ("torch", "hfds", "hfids", "tfds", "wds") and "/" in source:
        return _timm_dataset(source, prefix, root, download)
    raise DataError(_missing(source, path))


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 × 8 pixels (UCI, test part)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255.0 / 16.0)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    return Source(
        kind="digits",
        train=ArrayImages(pixels, bunch.target, "digits"),
        class_names=tuple(str(name) for name in bunch.target_names),
    )


def _timm_labels(dataset: Any) -> Labels:
    """Reads labels from wherever the data set keeps them, if possible without decoding images."""
    reader: Any = getattr(dataset, "reader", None)
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            break
    else:
        if hasattr(reader, "samples"):
            values = [sample[1] for sample in reader.samples]
        elif hasattr(reader, "dataset") and hasattr(reader, "label_key"):
            values = reader.dataset[reader.label_key]
        else:
            values = [dataset[index][1] for index in range(len(dataset))]
    distinct, codes = np.unique(np.asarray(values, dtype=np.int64), return_inverse=True)
    return Labels(codes.astype(np.int64), distinct.tolist())


def _timm_dataset(source: str, prefix: str, root: str | None, download: bool) -> Source:
    from timm.data import create_dataset

    if prefix in ("hfids", "tfds", "wds"):
        raise DataError(
            f"{source!r} is a stream, and validation and test splits need random access; use "
            "'hfds/…' or 'torch/…', or save the images as a folder or as Parquet files"
        )
    if source.lower() in ("torch/folder", "torch/image_folder"):
        raise DataError(f"{source!r} names a format; give the path of the image folder instead")

    def load(split: str) -> Any:
        return create_dataset(
            source,
            root=root or ".",
            split=split,
            download=download,
            input_img_mode="",  # as it is stored: PIL's conversion cuts 16 bits off
        )

    try:
        datasets = {TRAIN: load(TRAIN)}
    except (Exception, SystemExit) as error:  # timm and its readers raise whatever they like
        raise DataError(
            f"timm.data.create_dataset cannot open {source!r} in the folder {root or '.'!r} "
            f"({error or type(error).__name__}); check the name, name the folder with --data-root, "
            "or fetch the images with --data-download"
        ) from error
    for split in ("test", "validation"):
        try:
            datasets[TEST] = load(split)
            break
        except (Exception, SystemExit):
            # Not every data set has both; with neither, the test split is cut from training data.
            continue
    labels = {split: _timm_labels(dataset) for split, dataset in datasets.items()}
    count = 1 + max(map(int, labels[TRAIN].values))
    names = getattr(datasets[TRAIN], "classes", None) or range(count)
    classes, codes = join_labels(labels, tuple(map(str, names)), source)
    images = {
        split: TimmImages(datasets[split], codes[split], f"{source}/{split}") for split in codes
    }
    return Source(kind="timm", class_names=classes, **images)


def _missing(source: str, path: Path) -> str:
    """Says that there is no such data, and names the nearest things that exist."""
    ancestor = path
    while not ancestor.exists() and ancestor != ancestor.parent:
        ancestor = ancestor.parent
    missing_part = path.relative_to(ancestor).parts[0] if path != ancestor else path.name
    entries = [entry.name for entry in ancestor.iterdir()] if ancestor.is_dir() else []
    near = [
        str(ancestor / name) for name in difflib.get_close_matches(missing_part, entries, 3, 0.5)
    ]
    near += difflib.get_close_matches(source, ["digits"], 1, 0.5)
    hint = f" Nearest that exist: {', '.join(near)}." if near else ""
    return (
        f"no data at {source!r}: neither a path nor a known name.{hint} Give 'digits', an image "
        "folder (one subfolder per class), a Parquet file or folder, or a name that "
        "timm.data.create_dataset opens, such as 'torch/cifar10'."
    )
