"""Which folders of a data set are its splits and which its classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

from search_space.errors import DataError
from supernet.data.raw_images import SPLIT_FOLDERS

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}
)


def subfolders(folder: Path) -> list[Path]:
    """Those that are not hidden, by name."""
    return sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )


def image_files(folder: Path) -> Iterator[Path]:
    """All image files below a folder, as they come."""
    return (
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    )


def split_folders(path: Path) -> dict[str, Path]:
    """The folder of each split, with a subfolder per class; ``path`` is ``train`` if it has none.

    Raises DataError where folders could be splits as well as classes, or two are the same split.
    """
    folders = subfolders(path)
    splits: dict[str, list[Path]] = {}
    others = []
    for folder in folders:
        role = SPLIT_FOLDERS.get(folder.name.lower())
        if role is None:
            others.append(folder)
        else:
            splits.setdefault(role, []).append(folder)
    if not others and folders and "train" not in splits:
        names = ", ".join(folder.name for folder in folders)
        raise DataError(f"{path} holds {names} but no train/ folder to train on")
    if "train" not in splits or _are_classes(splits["train"], others):
        _check_classes([folder for members in splits.values() for folder in members], folders)
        return {"train": path}
    for role, (first, *rest) in splits.items():
        if rest:
            raise DataError(
                f"{first} and {rest[0]} are both the {role} split by their names; move the images "
                "of one into the other, or move one away"
            )
    train = splits["train"][0]
    _check_others(others, train)
    return {role: members[0] for role, members in splits.items()}


def _are_classes(trains: list[Path], others: list[Path]) -> bool:
    """Whether ``train/`` is a class, of images of trains: it holds images as its neighbours do."""
    flat = all(not subfolders(folder) and _has_images(folder) for folder in trains)
    return flat and any(map(_has_images, others))


def _check_classes(named_as_splits: list[Path], folders: list[Path]) -> None:
    for folder in named_as_splits:
        if _shares_names(folder, folders):
            raise DataError(
                f"{folder} has subfolders of the same names as the folders beside it, so it could "
                "be a split or a class; if it is a split, move the folders beside it into "
                f"{folder.parent / 'train'}; if it is a class, rename its subfolders"
            )


def _check_others(others: list[Path], train: Path) -> None:
    for folder in others:
        if _shares_names(folder, subfolders(train)):
            raise DataError(
                f"{folder} has subfolders of the same names as {train}, but its own name is that "
                f"of no split ({', '.join(SPLIT_FOLDERS)}); rename it if it is one, or move it away"
            )
        if _has_images(folder):
            warnings.warn(
                f"images in {folder} are left out, since there is {train}: move them into its "
                "subfolders if they are to be trained on",
                stacklevel=2,
            )


def _shares_names(folder: Path, others: list[Path]) -> bool:
    names = {other.name for other in others}
    return any(subfolder.name in names for subfolder in subfolders(folder))


def _has_images(folder: Path) -> bool:
    return next(image_files(folder), None) is not None
