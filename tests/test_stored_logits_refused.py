"""Stored predictions that do not fit, were cut off or were changed: nothing wrong is ever read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from stored_logit_cases import LOGITS, Table, identity, numbered, stored

from search_space.errors import CorruptFileError, DataError, NasError, UsageError
from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import Batch
from supernet.training.stored_logits import (
    ImageIdentity,
    StoredLogits,
    check_unmixed,
    write_logits,
)

pytestmark = pytest.mark.usefixtures("one_thread")

# Everything must agree --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, r"images\.seed is 3 there, 4 here"),
        ({"resolution": 8}, r"images\.resolution is 4 there, 8 here"),
        ({"data": "ba9876543210"}, r"images\.data is '0123456789ab' there, 'ba9876543210' here"),
        ({"augment": AugmentConfig(hflip=0)}, r"images\.augment\.hflip is 0\.5 there, 0 here"),
        ({"augment": AugmentConfig(scale=(0.1, 1))}, r"images\.augment\.scale is \[0\.08, 1\.0\]"),
        ({"num_images": 9}, r"images\.num_images is 8 there, 9 here"),
        ({"num_classes": 7}, r"images\.num_classes is 6 there, 7 here"),
    ],
)
def test_logits_of_other_images_are_refused(tmp_path, changes, message):
    stored(tmp_path, LOGITS, 3)
    images = replace(identity(8, 6), **changes)
    with pytest.raises(DataError, match=rf"{message}.*must be the same: use those of the writing"):
        StoredLogits.open(tmp_path, images)
    with pytest.raises(DataError, match=message):
        write_logits(
            Table(LOGITS), lambda v: numbered(8, 3), tmp_path, images=images, top_k=3, variants=1
        )


def test_logits_of_other_settings_are_refused(tmp_path):
    opened = stored(tmp_path, LOGITS, 3)
    images = identity(8, 6)
    teacher = Table(LOGITS).identity
    assert opened.identity["teacher"]["sha256"] == teacher["sha256"]
    StoredLogits.open(tmp_path, images, teacher=teacher, top_k=3, variants=1)  # a tuple is a list
    with pytest.raises(DataError, match="top_k is 3 there, 2 here"):
        StoredLogits.open(tmp_path, images, top_k=2)
    with pytest.raises(DataError, match="variants is 1 there, 2 here"):
        StoredLogits.open(tmp_path, images, variants=2)
    other = teacher | {"sha256": "f" * 64}
    with pytest.raises(DataError, match=r"teacher\.sha256 is '0+' there, 'f+' here"):
        StoredLogits.open(tmp_path, images, teacher=other)
    with pytest.raises(DataError, match=r"teacher\.sha256"):
        write_logits(
            Table(LOGITS, other),
            lambda v: numbered(8, 3),
            tmp_path,
            images=images,
            top_k=3,
            variants=1,
        )


def test_files_of_two_writings_are_refused(tmp_path):
    images = identity(8, 6)
    for name, top_k in (("a", 3), ("b", 2)):
        write_logits(
            Table(LOGITS), lambda v: numbered(8, 3, v), tmp_path / name, images=images,
            top_k=top_k, variants=2,
        )  # fmt: skip
    shutil.copy(tmp_path / "b" / "variant-00001.parquet", tmp_path / "a")
    with pytest.raises(DataError, match="top_k is 2 there, 3 here"):
        StoredLogits.open(tmp_path / "a", images)
    shutil.copy(tmp_path / "a" / "variant-00000.parquet", tmp_path / "a" / "variant-00001.parquet")
    with pytest.raises(DataError, match="variant is 0 there, 1 here"):
        StoredLogits.open(tmp_path / "a", images)


def test_mixed_images_are_refused(tmp_path):
    stored(tmp_path, LOGITS, 3)
    check_unmixed(AugmentConfig())
    for augment in (AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)):
        images = identity(8, 6, augment=augment)
        with pytest.raises(UsageError, match=r"mixed pairs: set both to 0, or give the teacher"):
            check_unmixed(augment)
        with pytest.raises(UsageError, match="mixed pairs"):
            StoredLogits.open(tmp_path, images)
        with pytest.raises(UsageError, match="mixed pairs"):
            write_logits(
                Table(LOGITS),
                lambda v: numbered(8, 3),
                tmp_path,
                images=images,
                top_k=3,
                variants=1,
            )


# Writing that fails or stops ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is 0; between 1 and all 6 classes"),
        ({"top_k": 7}, "top_k is 7"),
        ({"variants": 0}, "variants is 0; at least one"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, options, message):
    settings = {"top_k": 3, "variants": 1} | options
    with pytest.raises(UsageError, match=message):
        write_logits(
            Table(LOGITS), lambda v: numbered(8, 3), tmp_path, images=identity(8, 6), **settings
        )


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.randn(8, 5), r"shape \(3, 5\); it must be finite logits of shape \(3, 6\)"),
        (torch.full((8, 6), float("nan")), r"values that are not finite.*check the teacher"),
        (torch.full((8, 6), float("inf")), "values that are not finite"),
    ],
)
def test_unusable_teachers_are_refused(tmp_path, logits, message):
    with pytest.raises(DataError, match=message):
        write_logits(
            Table(logits),
            lambda v: numbered(8, 3),
            tmp_path,
            images=identity(8, 6),
            top_k=3,
            variants=1,
        )
    assert not list(tmp_path.glob("variant-*"))


@pytest.mark.parametrize(
    ("order", "count"),
    [([0, 1, 2], 3), ([0, 1, 2, 3, 4, 5, 6, 6], 7), ([*range(8), 7], 8), ([], 0)],
)
def test_every_image_must_be_there_once(tmp_path, order, count):
    rows = len(order)
    order = torch.tensor(order, dtype=torch.int64)
    with pytest.raises(
        DataError, match=f"hold {count} different images in {rows} rows; each of the 8"
    ):
        write_logits(
            Table(LOGITS),
            lambda v: numbered(8, 3, order=order),
            tmp_path,
            images=identity(8, 6),
            top_k=3,
            variants=1,
        )
    with pytest.raises(DataError, match="holds no stored logits; write them first"):
        StoredLogits.open(tmp_path, identity(8, 6))


def test_interrupted_writing_goes_on_with_what_is_missing(tmp_path):
    images, settings = identity(8, 6), {"top_k": 3, "variants": 3}
    whole = tmp_path / "whole"
    write_logits(Table(LOGITS), lambda v: numbered(8, 3, v), whole, images=images, **settings)

    def stops(variant: int) -> Iterator[Batch]:
        for number, batch in enumerate(numbered(8, 3, variant)):
            if (variant, number) == (1, 2):
                raise KeyboardInterrupt
            yield batch

    part = tmp_path / "part"
    with pytest.raises(KeyboardInterrupt):
        write_logits(Table(LOGITS), stops, part, images=images, **settings)
    assert [file.name for file in part.glob("variant-*")] == ["variant-00000.parquet"]
    with pytest.raises(
        DataError, match=r"lacks 2 of 3 variants, the first is 1:.*only what is missing"
    ):
        StoredLogits.open(part, images)
    teacher, done = Table(LOGITS), []
    write_logits(
        teacher,
        lambda v: numbered(8, 3, v),
        part,
        images=images,
        **settings,
        progress=lambda *counts: done.append(counts),
    )
    assert teacher.calls == 6  # three batches of each of two variants
    assert done == [(count, 24) for count in (11, 14, 16, 19, 22, 24)]
    names = sorted(file.name for file in whole.iterdir())
    assert sorted(file.name for file in part.iterdir()) == names
    assert all((part / name).read_bytes() == (whole / name).read_bytes() for name in names)
    opened = StoredLogits.open(part, images)
    for variant in (2, 0, 1):
        torch.testing.assert_close(
            opened(variant, torch.arange(8)).topk(3).values,
            LOGITS.softmax(1).topk(3).values,
            atol=1e-3,
            rtol=1e-3,
        )


# Damage ------------------------------------------------------------------------------------


def outcome(folder: Path, images: ImageIdentity) -> torch.Tensor | str:
    try:
        return StoredLogits.open(folder, images)(0, torch.arange(8))
    except NasError as error:
        return str(error)


def test_files_that_were_cut_short_are_found(tmp_path):
    stored(tmp_path, LOGITS, 3)
    path = tmp_path / "variant-00000.parquet"
    data = path.read_bytes()
    for length in (0, 3, 8, len(data) // 2, len(data) - 9, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(
            CorruptFileError, match=r"not a whole file of stored logits .*delete it"
        ):
            StoredLogits.open(tmp_path, identity(8, 6))


def test_any_changed_byte_changes_nothing_or_is_found(tmp_path):
    """A file whose damage is not noticed would teach something else."""
    opened = stored(tmp_path, LOGITS, 3)
    images, expected = identity(8, 6), opened(0, torch.arange(8))
    path = tmp_path / "variant-00000.parquet"
    data = path.read_bytes()
    found = 0
    for position in np.random.default_rng(0).permutation(len(data))[:300]:
        changed = bytearray(data)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        result = outcome(tmp_path, images)
        if isinstance(result, str):
            assert "\n" not in result
            found += 1
        else:
            assert torch.equal(result, expected)
    assert found > 100  # the rest is in parts that nobody reads


def test_wrong_columns_and_foreign_files_are_found(tmp_path):
    stored(tmp_path, LOGITS, 3)
    path = tmp_path / "variant-00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["signature"]), path)
    with pytest.raises(CorruptFileError, match=r"its columns are .*index"):
        StoredLogits.open(tmp_path, identity(8, 6))
    pq.write_table(table.replace_schema_metadata(), path)
    with pytest.raises(CorruptFileError, match="not a whole file of stored logits"):
        StoredLogits.open(tmp_path, identity(8, 6))
    pq.write_table(table, path)  # the description is there, the checksum is not
    with pytest.raises(CorruptFileError, match="not a whole file of stored logits"):
        StoredLogits.open(tmp_path, identity(8, 6))(0, torch.arange(8))
