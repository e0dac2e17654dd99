"""Folders of image files: their splits, their classes, and files of labels beside the images.

The labels of a split are the names of its subfolders, or stand in a file beside the images:
``labels`` or ``metadata`` as .csv, .jsonl or .parquet with the columns ``file_name`` and
``label``, or Tiny ImageNet's ``val_annotations.txt``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from PIL import Image

from search_space.boundary import read_bytes
from search_space.errors import DataError
from supernet.data.images import SUFFIXES, Source, decode, read_size, reading
from supernet.data.labels import SPLITS, TRAIN, Labels, join_labels, leave_out, splits_named

Labelled = tuple[list[Path], Labels]
FILE_NAME = "file_name"
LABEL_FILES = tuple(
    f"{stem}.{ending}" for stem in ("labels", "metadata") for ending in ("csv", "jsonl", "parquet")
)
MAX_LABEL_BYTES = 2**29
_SYSTEM = frozenset(
    ("@eadir", "__macosx", "@__thumb", "#recycle", "$recycle.bin", "lost+found")
)  # of network storages, archives and file systems
_ANNOTATIONS = "*_annotations.txt"
_SHOWN = 3  # paths that a warning names


class FileImages:
    """One file an image; keys are paths relative to the folder of the split."""

    def __init__(self, root: Path, paths: Sequence[Path], labels: np.ndarray) -> None:
        self.paths = list(paths)
        self.labels = labels
        self.keys: Sequence[str] = [path.relative_to(root).as_posix() for path in self.paths]

    def image(self, index: int) -> Image.Image:
        return decode(self.paths[index], str(self.paths[index]))

    def size(self, index: int) -> tuple[int, int]:
        return read_size(self.paths[index], str(self.paths[index]))

    def content(self) -> bytes:
        return np.array([path.stat().st_size for path in self.paths], dtype="<i8").tobytes()


def open_folder(path: Path, label_column: str) -> Source:
    """Opens the images below ``path``.

    Args:
        path: Holds a subfolder per class or a file of labels, or ``train/``, ``val/`` and
            ``test/`` that do.
        label_column: In a file of labels.

    Raises:
        DataError: There are no images, or it is unclear which split or class they are.
    """
    folders = split_folders(path)
    files, labels = {}, {}
    names = [folder.name for folder in subfolders(folders[TRAIN])]
    together = _listed(path, label_column) if folders[TRAIN] != path else None
    for split, folder in folders.items():
        listed = _part(together, folder) or _listed(folder, label_column)
        if listed is None and split != TRAIN and _has_no_classes(folder, names):
            leave_out(f"{folder}", split, "it has neither class folders nor a file of labels")
            continue
        files[split], labels[split] = listed or _by_subfolder(folder, split)
        if folder == path:
            _check_held_out(path, files[split])
    classes, codes = join_labels(labels, (), path)
    images = {split: FileImages(folders[split], files[split], codes[split]) for split in codes}
    return Source(kind="folder", class_names=classes, **images)


def subfolders(folder: Path) -> list[Path]:
    """Returns the folders in ``folder`` by name, without hidden ones and those of systems."""
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not _is_ignored(entry.name)
    )


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def files_below(
    folder: Path, suffixes: Collection[str], ignored: list[Path] | None = None
) -> Iterator[Path]:
    """Yields regular files with such endings below a folder, sorted; links to files count, too.

    Args:
        folder: Where to begin; hidden folders and those of systems are not entered.
        suffixes: In lower case, with the dot.
        ignored: Collects the folders that were not entered, and pipes, devices and broken links.
    """
    ignored = [] if ignored is None else ignored
    for place, names, files in os.walk(folder):
        ignored += [Path(place, name) for name in sorted(names) if _is_ignored(name)]
        names[:] = sorted(name for name in names if not _is_ignored(name))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() not in suffixes or name.startswith("."):
                continue
            path = Path(place, name)
            if os.path.isfile(path):  # no pipe, which would be waited for
                yield path
            else:
                ignored.append(path)


def _images_below(folder: Path) -> list[Path]:
    """Lists image files below a folder; warns of what else looks like some and is ignored."""
    ignored: list[Path] = []
    images = list(files_below(folder, SUFFIXES, ignored))
    if ignored:
        shown = ", ".join(map(str, ignored[:_SHOWN])) + (", …" if len(ignored) > _SHOWN else "")
        warnings.warn(
            f"{len(ignored)} hidden or system folders, pipes, devices or broken links in {folder} "
            f"are ignored: {shown}",
            stacklevel=2,
        )
    return images


def _by_subfolder(folder: Path, split: str) -> Labelled:
    """Returns images and their classes where these are subfolders."""
    classes = subfolders(folder)
    if split == TRAIN and not classes:
        raise DataError(
            f"no images in {folder}: it needs one subfolder per class, with image files "
            f"({', '.join(sorted(SUFFIXES))}) in each, or a file of labels "
            f"({', '.join(LABEL_FILES)}) with the columns {FILE_NAME!r} and 'label'"
        )
    paths: list[Path] = []
    codes: list[int] = []
    for number, place in enumerate(classes):
        images = _images_below(place)
        if split == TRAIN and not images:
            raise DataError(f"class folder {place} has no images; add some or remove it")
        paths += images
        codes += [number] * len(images)
    if not paths:
        raise DataError(f"the {split} split in {folder} is empty; add images or remove the folder")
    return paths, Labels(np.array(codes), [place.name for place in classes]).of_rows()


def _has_no_classes(folder: Path, classes: Collection[str]) -> bool:
    """Says whether images lie in ``folder`` itself, or in one subfolder that is no class."""
    names = [entry.name for entry in subfolders(folder)]
    return len(names) <= 1 and not set(names) & set(classes) and _has_images(folder)


def _has_images(folder: Path) -> bool:
    return next(files_below(folder, SUFFIXES), None) is not None


# Files of labels


def _listed(folder: Path, label_column: str) -> Labelled | None:
    """Returns images and labels by a file of labels in ``folder``; None where there is none."""
    without: DataError | None = None
    for file in (*(folder / name for name in LABEL_FILES), *sorted(folder.glob(_ANNOTATIONS))):
        if not file.is_file():
            continue
        with reading(f"{file} is no readable file of labels"):
            table = _table(file)
            table.validate(full=True)
            missing = {FILE_NAME, label_column} - set(table.column_names)
            if missing:  # captions, say
                without = DataError(
                    f"{file} has no column {', '.join(map(repr, sorted(missing)))}; it has "
                    f"{', '.join(table.column_names)}. Rename one, or name the labels with "
                    "--label-column"
                )
                continue
            names = table.column(FILE_NAME).cast(pa.string()).to_pylist()
            where = f"column {label_column!r} of {file}"
            labels = Labels.of_column(table.column(label_column), where)
        below = folder / "images" if file.match(_ANNOTATIONS) else folder
        paths = [_image_file(below, name, file) for name in names]
        if len(set(paths)) < len(paths):
            raise DataError(f"{file} names an image more than once; keep one row of each")
        others = len(_images_below(folder)) - len(paths)
        if others > 0:
            warnings.warn(
                f"{others} images in {folder} have no row in {file.name} and are left out",
                stacklevel=2,
            )
        return paths, labels
    if without is not None and not subfolders(folder):
        raise without
    return None


def _part(listed: Labelled | None, folder: Path) -> Labelled | None:
    """Returns what of a file of labels for all splits lies in the folder of one, or None."""
    if listed is None:
        return None
    paths, labels = listed
    rows = [row for row, path in enumerate(paths) if path.is_relative_to(folder)]
    return ([paths[row] for row in rows], labels.of_rows(rows)) if rows else None


def _table(file: Path) -> pa.Table:
    content = pa.BufferReader(read_bytes(file, MAX_LABEL_BYTES))
    if file.suffix == ".parquet":
        return pyarrow.parquet.read_table(content)
    if file.suffix == ".jsonl":
        return pyarrow.json.read_json(content)
    text = pyarrow.csv.ConvertOptions(
        column_types={FILE_NAME: pa.string()}, null_values=[""], strings_can_be_null=True
    )
    if file.suffix == ".csv":
        return pyarrow.csv.read_csv(content, convert_options=text)
    names = pyarrow.csv.ReadOptions(column_names=[FILE_NAME, "label", "x0", "y0", "x1", "y1"])
    tabs = pyarrow.csv.ParseOptions(delimiter="\t")
    return pyarrow.csv.read_csv(content, names, tabs, text)


def _image_file(folder: Path, name: str | None, listed_in: Path) -> Path:
    """Returns the file of a row, whose name must not lead out of the folder."""
    parts = PurePosixPath(name or "").parts
    path = folder.joinpath(*parts)
    if not parts or parts[0] == "/" or ".." in parts or not os.path.isfile(path):
        raise DataError(
            f"{listed_in} names the image {name!r}, which is no file below {folder}; correct the "
            "name (relative, with its ending), or remove the row"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(
            f"{listed_in} names {name!r}, which has not the ending of an image "
            f"({', '.join(sorted(SUFFIXES))}); rename the file, or remove the row"
        )
    return path


# Folders of splits


def split_folders(path: Path) -> dict[str, Path]:
    """Returns the folder of each split; ``path`` is that of training where it has none.

    Raises:
        DataError: There is no folder of training images among splits, or two are the same split.
    """
    folders = subfolders(path)
    said = {folder: splits_named(folder.name) for folder in folders}
    trains = [folder for folder in folders if said[folder] == {TRAIN}]
    if any(len(splits) != 1 for splits in said.values()) or not any(map(subfolders, trains)):
        # ``test_tube`` may be a class, where not all folders are named like ``my_train_2``.
        said = {folder: splits_named(folder.name, alone=True) for folder in folders}
    splits: dict[str, list[Path]] = {}
    for folder in folders:
        for split in said[folder]:
            splits.setdefault(split, []).append(folder)
    others = [folder for folder in folders if not said[folder]]
    if not others and folders and TRAIN not in splits:
        names = ", ".join(folder.name for folder in folders)
        raise DataError(f"{path} holds {names} but no train/ folder to train on")
    if TRAIN not in splits or _are_classes(splits[TRAIN], others):
        return {TRAIN: path}
    for split, (first, *rest) in splits.items():
        if rest:
            raise DataError(
                f"{first} and {rest[0]} are both the {split} split by their names; move the images "
                "of one into the other, or move one away"
            )
    train = splits[TRAIN][0]
    classes = {folder.name for folder in subfolders(train)}
    for folder in others:
        if any(subfolder.name in classes for subfolder in subfolders(folder)):
            raise DataError(
                f"{folder} has subfolders of the same names as {train}, but its own name is that "
                f"of no split ({', '.join(SPLITS)}); rename it if it is one, or move it away"
            )
        if _has_images(folder):
            warnings.warn(
                f"images in {folder} are left out, since there is {train}: move them into its "
                "subfolders if they are to be trained on",
                stacklevel=2,
            )
    return {split: members[0] for split, members in splits.items()}


def _check_held_out(path: Path, images: Sequence[Path]) -> None:
    """Raises DataError where images to train on lie in a folder that is named as another split."""
    for folder in subfolders(path):
        for split in splits_named(folder.name, alone=True) - {TRAIN}:
            if any(image.is_relative_to(folder) for image in images):
                raise DataError(
                    f"{folder} is named as the {split} split, but would be trained on as a class, "
                    f"since {path} has no folder of training images; if it is a split, move the "
                    f"folders beside it into {path / TRAIN}; if it is a class, rename it"
                )


def _are_classes(trains: Sequence[Path], others: Sequence[Path]) -> bool:
    """Says whether ``train/`` is a class, of trains: it holds images as its neighbours do."""
    flat = all(not subfolders(folder) and _has_images(folder) for folder in trains)
    return flat and any(map(_has_images, others))
