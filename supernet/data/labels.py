"""Labels as sources store them, numbers or names, and the classes that they make together."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from search_space.errors import DataError

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), TEST),
}
"""Words that name a split, as the Hugging Face hub reads them."""

_NEUTRAL = {"", "data", "dataset", "image", "images", "img", "imgs", "set", "split"}


def splits_named(name: str, *, alone: bool = False) -> set[str]:
    """Returns the splits that a name says between separators, digits and changes of case.

    Args:
        alone: Whether a name counts only if it says one split and nothing else (``test_images``).
    """
    words = re.split("[^a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower())
    splits = {SPLITS[word] for word in words if word in SPLITS}
    others = set(words) - set(SPLITS) - _NEUTRAL
    return set() if alone and (others or len(splits) > 1) else splits


@dataclass(frozen=True)
class Labels:
    """The labels of one split: that of image i is ``values[codes[i]]``.

    Attributes:
        codes: (n,) int64.
        values: Distinct labels, all numbers or all names.
    """

    codes: np.ndarray
    values: Sequence[Any]

    @classmethod
    def of_column(cls, column: pa.ChunkedArray, where: str) -> Labels:
        """Makes labels of a column of integers, booleans or text, or of a dictionary of these.

        Args:
            column: The labels; all empty where a split has none, which is -1 then.
            where: The column and its file, for errors.

        Raises:
            DataError: The column has another type, or is empty in places.
        """
        kind = label_type(column.type, where)
        if column.null_count == len(column):
            return cls(np.zeros(len(column), np.int64), [-1] if len(column) else [])
        if column.null_count:
            raise DataError(
                f"{where} has {column.null_count} empty rows; every image needs a label"
            )
        encoded: Any = column.cast(kind).combine_chunks().dictionary_encode()
        return cls(encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist())

    def of_rows(self, rows: Sequence[int] | slice = slice(None)) -> Labels:
        """Returns the labels of some images, without values that none of them has."""
        used, codes = np.unique(self.codes[rows], return_inverse=True)
        return Labels(codes, [self.values[code] for code in used])

    @property
    def is_missing(self) -> bool:
        """Says whether every label is the -1 by which published data sets hide them."""
        return list(self.values) == [-1]


def label_type(kind: pa.DataType, where: str) -> pa.DataType:
    """Returns the type, int64 or text, as which labels are read; raises DataError for others."""
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_integer(inner) or pa.types.is_null(inner):
        return pa.int64()
    if pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_boolean(inner):
        return pa.string()
    raise DataError(
        f"{where} has type {kind}; labels are integers or text: store class indices (0, 1, …) or "
        "names of classes, or name another column with --label-column"
    )


def join_labels(
    splits: Mapping[str, Labels], names: Sequence[str], where: object
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Makes classes of the labels of all splits.

    A split for validation or test whose labels are all -1 is left out, with a warning.

    Args:
        splits: Labels by split; ``train`` is among them.
        names: Names of the classes 0, 1, …; where there are none, the labels that occur are the
            classes, in order.
        where: The data set, for errors.

    Returns:
        Class names, and per split (n,) int64 indices into them.

    Raises:
        DataError: There is one class only, a label that no class has, or a class without a
            training image.
    """
    used = dict(splits)
    for split in (VALIDATION, TEST):
        if split in used and used[split].is_missing and not used[TRAIN].is_missing:
            del used[split]
            leave_out(f"the {split} split of {where}", split, "every label is -1 or empty")
    kinds = {type(value) for labels in used.values() for value in labels.values}
    if len(kinds) > 1:
        raise DataError(
            f"labels of {where} are numbers in one file and text in another; write them alike"
        )
    values: Sequence[Any] = sorted({value for labels in used.values() for value in labels.values})
    if {-1, 0} <= set(values):
        raise DataError(
            f"labels of {where} go from -1 on; -1 means unlabelled: remove such rows, or number "
            "the classes from 0"
        )
    if names:
        values = names if kinds == {str} else range(len(names))
    index = {value: number for number, value in enumerate(values)}
    for split, labels in used.items():
        unknown = [value for value in labels.values if value not in index]
        if unknown:
            raise DataError(
                f"the {split} split of {where} has the label {unknown[0]!r}, but {len(names)} "
                f"classes are named ({names[0]!r} to {names[-1]!r}, that is 0 to "
                f"{len(names) - 1}); correct the labels or the names"
            )
    classes = tuple(map(str, names or values))
    codes = {
        split: np.array([index[value] for value in labels.values], np.int64)[labels.codes]
        for split, labels in used.items()
    }
    present = np.unique(codes[TRAIN])
    if len(present) < 2:
        only = classes[int(present[0])] if len(present) else "none"
        raise DataError(
            f"{where} has one class only ({only!r}); classification needs at least two: "
            "one subfolder or label per class"
        )
    for split, indices in codes.items():
        extra = np.setdiff1d(indices, present)
        if len(extra):
            shown = ", ".join(repr(classes[int(label)]) for label in extra[:5])
            raise DataError(
                f"class {shown} is in the {split} split of {where} but has no training image; "
                "add training images of it or remove it"
            )
    return classes, codes


def leave_out(what: str, split: str, reason: str) -> None:
    """Warns that a split without labels is not used, and what is used instead."""
    warnings.warn(
        f"{what} is unlabelled ({reason}) and is left out; {split} images are cut from the "
        "training images instead, unless labels are added",
        stacklevel=3,
    )
