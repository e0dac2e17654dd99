"""Stored predictions: what is read is what the teacher said, of the images that training shows."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_logit_cases import LOGITS, Table, identity_of_table, numbered, stored
from tiny_training import few_images, small_network

from search_space.errors import CorruptFileError, DataError, NasError, UsageError
from supernet.data.augmentation import AugmentConfig, default_augment
from supernet.data.batches import Batch, augmented_batches, train_loader
from supernet.data.dataset import ImageData
from supernet.training import stored_logits
from supernet.training.config import TrainConfig
from supernet.training.stored_logits import StoredLogits, identity_of, store_logits

pytestmark = pytest.mark.usefixtures("one_thread")


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
        wanted = torch.randint(num_images, (20,), generator=generator)
        found = opened(0, wanted).double()
    assert found.shape == (20, num_classes)
    assert ((found.sum(1) - 1).abs() < 1e-6).all()
    assert (found >= 0).all()
    shares = logits[wanted].double().softmax(1)
    expected = torch.from_numpy(restored(shares.numpy(), top_k))
    # kept: 2⁻¹¹ by float16 and as much again if the sum had to be brought back to 1; of the rest,
    # which is a difference to 1, the sum of these errors is shared
    kept = torch.zeros_like(shares, dtype=torch.bool)
    kept.scatter_(1, logits[wanted].topk(top_k).indices, True)
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
    monkeypatch.setattr(stored_logits, "ROWS_PER_GROUP", 5)
    logits = torch.randn(23, 40000, generator=torch.Generator().manual_seed(0)) * 4
    opened = stored(tmp_path, logits, 7)
    path = opened.folder / "variant-00000.parquet"
    assert pq.ParquetFile(path).num_row_groups == 5
    assert pq.read_schema(path).field("classes").type == pa.list_(pa.int32(), 7)
    found = opened(0, torch.arange(23))
    top = logits.topk(7)
    assert torch.equal(found.topk(7).indices, top.indices)
    torch.testing.assert_close(
        found.topk(7).values, logits.softmax(1).topk(7).values, rtol=2e-3, atol=1e-7
    )


def test_any_parquet_reader_can_read_the_file(tmp_path):
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    folder = stored(tmp_path, logits, 2).folder
    rows = pq.read_table(folder / "variant-00000.parquet").to_pylist()
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row["classes"] for row in rows] == logits.topk(2).indices.tolist()
    assert rows[2]["probabilities"] == pytest.approx(
        logits.softmax(1)[2].topk(2).values.tolist(), rel=1e-3
    )


# With real data: what is stored is what the teacher says of the images that training shows ----


@pytest.fixture(scope="module")
def data() -> ImageData:
    return few_images()


class Net:
    def __init__(self) -> None:
        self.network, self.identity = small_network(), {"name": "small", "mean": (0.5, 0.5)}

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images) * 3


def asked(**options) -> TrainConfig:
    return TrainConfig(**{"teacher": "resnet18", "teacher_variants": 2} | options)


ERASING = AugmentConfig(crop="pad", padding=2, erase=0.5, auto_augment="rand-m5-n1")


@pytest.mark.parametrize("augment", [None, ERASING])
def test_training_gets_the_teachers_logits_of_its_own_images(data, tmp_path, augment):
    identity = identity_of(Net().identity, data, asked(seed=5, augment=augment))
    opened = store_logits(
        Net(),
        lambda variant: augmented_batches(data, 32, variant, 5, augment=augment),
        tmp_path,
        identity,
    )
    for epoch in (0, 1, 2, 3):
        batches = list(train_loader(data, 16, epoch, 5, augment=augment, variants=2))
        assert {batch.variant for batch in batches} == {epoch % 2}
        for batch in batches:
            wanted = Net()(batch.images).softmax(1)
            found = opened.logits(batch)
            torch.testing.assert_close(found.softmax(1), wanted, atol=1e-3, rtol=2e-3)


def test_whatever_predictions_depend_on_is_in_their_identity(data, monkeypatch):
    def of(**changes):
        values = {"teacher": {"name": "a"}, "data": data, "seed": 1} | changes
        return identity_of(values.pop("teacher"), values.pop("data"), asked(**values))

    default = default_augment(data.kind, data.resolution)
    assert of() == of(augment=default)
    others = [
        *(of(teacher={"name": "b"}), of(seed=2), of(teacher_variants=3)),
        *(of(augment=replace(default, scale=(0.5, 1.0))), of(augment=AugmentConfig(hflip=0))),
        of(data=few_images(validation_fraction=0.6)),
    ]
    monkeypatch.setattr(stored_logits.importlib.metadata, "version", lambda name: "0.1")
    others.append(of())
    assert len({stored_logits._digest(identity) for identity in (*others, of(seed=3))}) == 8


@pytest.mark.parametrize("augment", [AugmentConfig(mixup=0.8), AugmentConfig(cutmix=1.0)])
def test_mixed_images_are_refused(data, augment):
    with pytest.raises(UsageError, match=r"mixed pairs: set both to 0, or give the teacher"):
        identity_of({}, data, asked(augment=augment))


# Writing that fails or stops, and writers beside each other -------------------------------------


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
        store_logits(Table(logits), lambda v: numbered(8, 3), tmp_path, identity_of_table(8, 6, 3))
    assert not list(tmp_path.rglob("*variant-*.parquet*"))


def test_interrupted_writing_goes_on_with_what_is_missing(tmp_path):
    identity = identity_of_table(8, 6, 3, variants=3)
    whole = store_logits(Table(LOGITS), lambda v: numbered(8, 3, v), tmp_path / "a", identity)

    def stops(variant: int) -> Iterator[Batch]:
        for number, batch in enumerate(numbered(8, 3, variant)):
            if (variant, number) == (1, 2):
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        store_logits(Table(LOGITS), stops, tmp_path / "b", identity)
    part = StoredLogits(tmp_path / "b" / whole.folder.name, identity)
    assert [file.name for file in part.folder.glob("variant-*")] == ["variant-00000.parquet"]
    with pytest.raises(CorruptFileError, match="delete it, and what is missing is stored again"):
        part(1, torch.arange(8))
    teacher = Table(LOGITS)
    part = store_logits(teacher, lambda v: numbered(8, 3, v), tmp_path / "b", identity)
    assert teacher.calls == 6  # three batches of each of two variants
    names = [f"variant-{variant:05d}.parquet" for variant in range(3)]
    assert sorted(file.name for file in whole.folder.iterdir()) == names
    assert all((part.folder / n).read_bytes() == (whole.folder / n).read_bytes() for n in names)
    for variant in (2, 0, 1):
        assert torch.equal(part(variant, torch.arange(8)), whole(variant, torch.arange(8)))


def test_two_runs_store_in_one_folder_without_harm(tmp_path):
    """Each begins with the variant that the other is not at, and waits for what the other makes."""
    identity = identity_of_table(8, 6, 3, variants=2)
    both = threading.Barrier(2, timeout=20)
    teachers, opened = [Table(LOGITS), Table(LOGITS)], []

    def slow(variant: int) -> Iterator[Batch]:
        for number, batch in enumerate(numbered(8, 3, variant)):
            if number == 1:
                both.wait()  # both are in the middle of a file
            yield batch

    def run(teacher: Table) -> None:
        opened.append(store_logits(teacher, slow, tmp_path, identity))

    threads = [threading.Thread(target=run, args=(teacher,)) for teacher in teachers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [teacher.calls for teacher in teachers] == [3, 3]
    for one in opened:
        for variant in (0, 1):
            found = one(variant, torch.arange(8)).topk(3).values
            torch.testing.assert_close(
                found, LOGITS.softmax(1).topk(3).values, atol=1e-3, rtol=1e-3
            )


def test_only_what_a_killed_writer_left_long_ago_is_deleted(tmp_path):
    folder = tmp_path / stored_logits._digest(identity_of_table(8, 6, 3))
    folder.mkdir()
    old, new = folder / ".variant-00000.parquet.old", folder / ".variant-00000.parquet.new"
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 1e6,) * 2)
    stored(tmp_path, LOGITS, 3)
    assert not old.exists()
    assert new.exists()  # another node may be writing it, which locks do not always tell


# Damage ------------------------------------------------------------------------------------


def test_files_that_were_cut_short_or_are_of_other_settings_are_found(tmp_path):
    opened = stored(tmp_path, LOGITS, 3)
    path = opened.folder / "variant-00000.parquet"
    data = path.read_bytes()
    other = stored(tmp_path, LOGITS, 2).folder / path.name
    cut = [data[:length] for length in (0, 3, 8, len(data) // 2, len(data) - 9, len(data) - 1)]
    table = pq.read_table(path)
    for content in (*cut, other.read_bytes(), table.drop_columns(["index"]), table.slice(1)):
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path)
        with pytest.raises(CorruptFileError, match=r"not a whole file .*delete it"):
            StoredLogits(opened.folder, opened.identity)(0, torch.arange(8))


def test_rows_that_are_not_one_for_each_image_are_refused(tmp_path):
    opened = stored(tmp_path, LOGITS, 3)
    path = opened.folder / "variant-00000.parquet"
    table = pq.read_table(path)
    twice = pa.array([0, 1, 2, 3, 4, 5, 6, 6], pa.int32())
    pq.write_table(table.set_column(0, table.schema.field("index"), twice), path)
    with pytest.raises(CorruptFileError, match="it has not one row for each image"):
        StoredLogits(opened.folder, opened.identity)(0, torch.arange(8))


def test_any_changed_byte_changes_nothing_or_is_found(tmp_path):
    """A file whose damage is not noticed would teach something else."""
    opened = stored(tmp_path, LOGITS, 3)
    expected = opened(0, torch.arange(8))
    path = opened.folder / "variant-00000.parquet"
    data = path.read_bytes()
    found = 0
    for position in np.random.default_rng(0).permutation(len(data))[:300]:
        changed = bytearray(data)
        changed[position] ^= 0x55
        path.write_bytes(changed)
        try:
            result = StoredLogits(opened.folder, opened.identity)(0, torch.arange(8))
        except NasError:
            found += 1
        else:
            assert torch.equal(result, expected)
    assert found > 100  # the rest is in parts that nobody reads
