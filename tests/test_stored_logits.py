"""Stored predictions: what is read is what the teacher said, of the images that training shows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import few_images, small_network

from search_space.errors import CorruptFileError, DataError, NasError, UsageError
from supernet import logit_files
from supernet.augmentation import AugmentConfig, default_augment
from supernet.data import Batch, ImageData, augmented_batches, train_loader
from supernet.stored_logits import (
    ImageIdentity,
    StoredLogits,
    check_unmixed,
    image_signature,
    write_logits,
)

pytestmark = pytest.mark.usefixtures("one_thread")


class Table:
    """A teacher whose logits are a table: the first pixel of an image says its row."""

    def __init__(self, logits: torch.Tensor, identity: dict[str, Any] | None = None) -> None:
        self.table, self.calls = logits, 0
        self.identity = identity or {"name": "table", "sha256": "0" * 64, "mean": (0.5, 0.5)}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.table[images[:, 0, 0, 0].long()]


def identity(num_images: int, num_classes: int, **changes: Any) -> ImageIdentity:
    values = {"data": "0123456789ab", "resolution": 4, "seed": 3, "augment": AugmentConfig()}
    return ImageIdentity(num_images=num_images, num_classes=num_classes, **(values | changes))


def numbered(num_images: int, batch_size: int, variant: int = 0, order=None) -> Iterator[Batch]:
    """Images whose first pixel is their position."""
    images = torch.randn(num_images, 3, 4, 4, generator=torch.Generator().manual_seed(variant))
    images[:, 0, 0, 0] = torch.arange(num_images)
    positions = torch.arange(num_images) if order is None else torch.as_tensor(order)
    for part in positions.split(batch_size):
        yield Batch(images[part], torch.zeros(len(part), dtype=torch.int64), part, variant)


def stored(folder: Path, logits: torch.Tensor, top_k: int, **options: Any) -> StoredLogits:
    """One variant of logits (n, classes), written and opened."""
    images = identity(*logits.shape)
    write_logits(
        Table(logits),
        lambda variant: numbered(len(logits), 3, variant, **options),
        folder,
        images=images,
        top_k=top_k,
        variants=1,
    )
    return StoredLogits.open(folder, images)


def restored(shares: np.ndarray, top_k: int) -> np.ndarray:
    """By hand, in float64: the largest are kept, the rest is spread evenly."""
    result = np.empty_like(shares)
    for row, values in enumerate(shares):
        kept = np.argsort(-values, kind="stable")[:top_k]
        others = np.setdiff1d(np.arange(len(values)), kept)
        result[row, kept] = values[kept]
        result[row, others] = (1 - values[kept].sum()) / max(1, len(others))
    return result


@settings(deadline=None, max_examples=40)
@given(
    num_images=st.integers(1, 10),
    num_classes=st.integers(1, 12),
    data=st.data(),
    scale=st.sampled_from([0.1, 1.0, 5.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_is_within_the_rounding_of_float16(num_images, num_classes, data, scale, seed):
    top_k = data.draw(st.integers(1, num_classes))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_images, num_classes, generator=generator) * scale
    order = torch.randperm(num_images, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        opened = stored(Path(folder) / "logits", logits, top_k, order=order)
        asked = torch.randint(num_images, (20,), generator=generator)
        found = opened(0, asked).double()
    assert found.shape == (20, num_classes)
    assert ((found.sum(1) - 1).abs() < 1e-6).all()
    assert (found >= 0).all()
    shares = logits[asked].double().softmax(1)
    expected = torch.from_numpy(restored(shares.numpy(), top_k))
    # kept: 2⁻¹¹ by float16 and as much again if the sum had to be brought back to 1; of the rest,
    # which is a difference to 1, the sum of these errors is shared
    kept = torch.zeros_like(shares, dtype=torch.bool)
    kept.scatter_(1, logits[asked].topk(top_k).indices, True)
    error = (found - expected).abs()
    assert (error[kept] <= expected[kept] * 2**-10 + 2**-24).all()
    assert (error[~kept] <= 2**-10 / max(1, num_classes - top_k) + 2**-24).all()


def test_the_rest_is_spread_over_the_classes_that_were_not_kept(tmp_path):
    shares = torch.tensor([[0.5, 0.25, 0.125, 0.125]])  # exact in float16
    assert stored(tmp_path, shares.log(), 2)(0, torch.tensor([0])).tolist() == [
        pytest.approx([0.5, 0.25, 0.125, 0.125])
    ]
    shares = torch.tensor([[0.125, 0.0625, 0.75, 0.0625]])
    assert stored(tmp_path / "one", shares.log(), 1)(0, torch.tensor([0])).tolist() == [
        pytest.approx([0.25 / 3, 0.25 / 3, 0.75, 0.25 / 3])
    ]


def test_many_classes_and_several_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(logit_files, "ROWS_PER_GROUP", 5)
    logits = torch.randn(23, 40000, generator=torch.Generator().manual_seed(0)) * 4
    opened = stored(tmp_path, logits, 7)
    path = tmp_path / "variant-00000.parquet"
    assert pq.ParquetFile(path).num_row_groups == 4
    assert pq.read_schema(path).field("classes").type == pa.list_(pa.int32(), 7)
    found = opened(0, torch.arange(23))
    top = logits.topk(7)
    assert torch.equal(found.topk(7).indices, top.indices)
    torch.testing.assert_close(
        found.topk(7).values, logits.softmax(1).topk(7).values, rtol=2e-3, atol=1e-7
    )


def test_any_parquet_reader_can_read_the_file(tmp_path):
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    stored(tmp_path, logits, 2)
    rows = pq.read_table(tmp_path / "variant-00000.parquet").to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["classes"] for row in rows] == logits.topk(2).indices.tolist()
    assert rows[2]["probabilities"] == pytest.approx(
        logits.softmax(1)[2].topk(2).values.tolist(), rel=1e-3
    )


# With real data: what is stored is what the teacher says of the images that training shows ----


@pytest.fixture(scope="module")
def data() -> ImageData:
    return few_images()


NET = {"name": "small", "sha256": "1" * 64}


class Net:
    def __init__(self) -> None:
        self.network, self.identity = small_network(), NET

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images) * 3


def write_real(data: ImageData, folder: Path, augment=None, seed: int = 5) -> ImageIdentity:
    images = ImageIdentity.of(data, seed, augment)
    write_logits(
        Net(),
        lambda variant: augmented_batches(data, 32, variant, seed, augment=augment),
        folder,
        images=images,
        top_k=10,
        variants=2,
    )
    return images


ERASING = AugmentConfig(crop="pad", padding=2, erase=0.5, auto_augment="rand-m5-n1")


@pytest.mark.parametrize("augment", [None, ERASING])
def test_training_gets_the_teachers_logits_of_its_own_images(data, tmp_path, augment):
    images = write_real(data, tmp_path, augment)
    opened = StoredLogits.open(tmp_path, images, teacher=NET, top_k=10, variants=2)
    for epoch in (0, 1, 2, 3):
        batches = list(train_loader(data, 16, epoch, 5, augment=augment, variants=opened.variants))
        assert {batch.variant for batch in batches} == {epoch % 2}
        for batch in batches:
            wanted = Net()(batch.images).softmax(1)
            found = opened.logits(batch)
            torch.testing.assert_close(found.softmax(1), wanted, atol=1e-3, rtol=2e-3)
            opened.check_images(batch)


def test_other_images_than_those_of_the_writing_are_noticed(data, tmp_path):
    images = write_real(data, tmp_path)
    opened = StoredLogits.open(tmp_path, images)
    shown = next(iter(train_loader(data, 16, 0, 5, variants=2)))
    opened.logits(shown)
    mirrored = shown._replace(images=shown.images.flip(3))
    shifted = shown._replace(images=shown.images.roll(1, 3))
    other_seed = next(iter(train_loader(data, 16, 0, 6, variants=2)))
    broken = shown._replace(images=shown.images * float("nan"))
    for batch in (mirrored, shifted, other_seed, broken):
        with pytest.raises(DataError, match=r"of 16 images of variant 0 are not those .* restore"):
            opened.check_images(batch)
    elsewhere = next(iter(train_loader(data, 16, 0, 5)))._replace(variant=1)
    with pytest.raises(DataError, match="images of variant 1"):
        opened.logits(elsewhere)  # the first batch of a variant is always compared


def test_signatures_are_about_standard_normal_and_tell_images_apart():
    images = torch.randn(2000, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    signature = image_signature(images)
    assert signature.dtype == torch.float32
    assert abs(float(signature.mean())) < 0.1
    assert abs(float(signature.std()) - 1) < 0.1
    for changed in (images.flip(3), images.flip(2), images.roll(1, 3), images.roll(1, 1)):
        correlation = float(
            torch.corrcoef(torch.stack([signature, image_signature(changed)]))[0, 1]
        )
        assert abs(correlation) < 0.15


def test_identity_of_a_training_is_that_of_its_default_augmentation(data):
    default = default_augment(data.kind, data.resolution)
    assert ImageIdentity.of(data, 1) == ImageIdentity.of(data, 1, default)
    found = ImageIdentity.of(data, 1).to_dict()
    assert (found["data"], found["num_images"]) == (data.fingerprint, len(data.train))


# Everything must agree --------------------------------------------------------------------

LOGITS = torch.randn(8, 6, generator=torch.Generator().manual_seed(4))


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
