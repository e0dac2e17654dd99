"""Where images come from: every source becomes ``RawImages`` with labels and stable keys.

A source knows its samples and, if it has them, its own splits; it neither resizes nor
augments nor cuts splits (``supernet.data.dataset`` does). Headers are checked when a source is
opened, so that a broken file is named before hours of training and not in the middle.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from search_space.errors import DataError
from supernet.data.image_modes import to_rgb
from supernet.data.parquet_images import open_parquet, parquet_files
from supernet.data.raw_images import (
    Source,
    check_classes,
    check_covered,
    check_header,
    decode,
    verify_each,
)
from supernet.data.split_folders import IMAGE_SUFFIXES, image_files, split_folders, subfolders


class ArrayImages:
    """Images held as one uint8 array (n, h, w, 3)."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, name: str) -> None:
        self.pixels = pixels
        self.labels = labels.astype(np.int64)
        self.keys: Sequence[str] = [f"{name}/{index}" for index in range(len(labels))]

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def verify(self) -> None:
        pass

    def content(self) -> bytes:
        return self.pixels.tobytes()


class FileImages:
    """One file an image; keys are paths relative to the folder of the split."""

    def __init__(self, root: Path, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.paths = list(paths)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.keys: Sequence[str] = [path.relative_to(root).as_posix() for path in self.paths]

    def image(self, index: int) -> Image.Image:
        return decode(self.paths[index], str(self.paths[index]))

    def verify(self) -> None:
        verify_each(
            lambda index: check_header(self.paths[index], str(self.paths[index])), len(self.paths)
        )

    def content(self) -> bytes:
        return np.array([path.stat().st_size for path in self.paths], dtype="<i8").tobytes()


class TimmImages:
    """A map-style data set that ``timm.data.create_dataset`` opened."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset = dataset
        self.name = name
        self.labels = _timm_labels(dataset, name)
        self.keys: Sequence[str] = [f"{name}/{index}" for index in range(len(self.labels))]

    def image(self, index: int) -> Image.Image:
        try:
            return to_rgb(self.dataset[index][0], f"image {index} of {self.name}")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"image {index} of {self.name} cannot be read ({error})") from error

    def verify(self) -> None:
        pass  # the library that made the data set checks its own files

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
    """Open ``digits``, a path, or a ``timm`` data set name. Raises ``DataError``."""
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
        if next(parquet_files(path), None) is not None:
            return open_parquet(path, image_column, label_column)
        return _image_folder(path)
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


def _image_folder(path: Path) -> Source:
    """A subfolder per class, or ``train/``, ``val/``, ``test/`` with subfolders per class."""
    splits = split_folders(path)
    class_names = tuple(folder.name for folder in subfolders(splits["train"]))
    if not class_names:
        raise DataError(
            f"no images in {splits['train']}: it needs one subfolder per class, with image files "
            f"({', '.join(sorted(IMAGE_SUFFIXES))}) in each"
        )
    images = {role: _read_split(folder, class_names, role) for role, folder in splits.items()}
    check_classes(class_names, images["train"], str(splits["train"]))
    return Source(
        kind="folder",
        train=images["train"],
        validation=images.get("validation"),
        test=images.get("test"),
        class_names=class_names,
    )


def _read_split(folder: Path, class_names: tuple[str, ...], role: str) -> FileImages:
    paths: list[Path] = []
    labels: list[int] = []
    for class_folder in subfolders(folder):
        files = sorted(image_files(class_folder))
        if class_folder.name not in class_names:
            raise DataError(
                f"class {class_folder.name!r} is in {folder} but has no training image; "
                "add training images of it or remove it"
            )
        if role == "train" and not files:
            raise DataError(f"class folder {class_folder} has no images; add some or remove it")
        paths += files
        labels += [class_names.index(class_folder.name)] * len(files)
    if not paths:
        raise DataError(f"the {role} split in {folder} is empty; add images or remove the folder")
    return FileImages(folder, paths, labels)


def _timm_labels(dataset: Any, name: str) -> np.ndarray:
    """(n,) int64, from wherever the data set keeps its labels, without decoding images."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(dataset, attribute, None)
        if values is not None:
            return np.asarray(values, dtype=np.int64)
    reader: Any = getattr(dataset, "reader", None)
    if hasattr(reader, "samples"):
        return np.asarray([sample[1] for sample in reader.samples], dtype=np.int64)
    if hasattr(reader, "dataset") and hasattr(reader, "label_key"):
        return np.asarray(reader.dataset[reader.label_key], dtype=np.int64)
    return np.asarray([dataset[index][1] for index in range(len(dataset))], dtype=np.int64)


def _timm_dataset(source: str, prefix: str, root: str | None, download: bool) -> Source:
    from timm.data import create_dataset

    if prefix in ("hfids", "tfds", "wds"):
        raise DataError(
            f"{source!r} is a stream, and validation and test splits need random access; use "
            "'hfds/…' or 'torch/…', or save the images as a folder or as Parquet files"
        )
    if source.lower() in ("torch/folder", "torch/image_folder"):
        raise DataError(f"{source!r} names a format; give the path of the image folder instead")

    def opened(split: str) -> Any:
        return create_dataset(
            source,
            root=root or ".",
            split=split,
            download=download,
            input_img_mode="",  # as it is stored: PIL's conversion cuts 16 bits off
        )

    try:
        train = opened("train")
    except (Exception, SystemExit) as error:  # timm and its readers raise whatever they like
        raise DataError(
            f"timm.data.create_dataset cannot open {source!r} (root {root or '.'!r}): "
            f"{error or type(error).__name__}; check the name, the root folder and whether the "
            "data has been downloaded"
        ) from error
    test = None
    for split in ("test", "validation"):
        try:
            test = TimmImages(opened(split), f"{source}/{split}")
            break
        except Exception:
            # Not every data set has both; with neither, the test split is cut from training data.
            continue
    images = TimmImages(train, f"{source}/train")
    names = getattr(train, "classes", None)
    count = int(images.labels.max()) + 1
    class_names = tuple(map(str, names)) if names else tuple(map(str, range(count)))
    check_classes(class_names, images, source)
    if test is not None:
        check_covered(class_names, images, test, "test")
    return Source(kind="timm", train=images, test=test, class_names=class_names)


def _missing(source: str, path: Path) -> str:
    """Name the nearest things that exist."""
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
