"""Stored predictions: what is read is what the teacher said, of the images that training shows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_logit_cases import stored
from tiny_training import few_images, small_network

from search_space.errors import DataError
from supernet.data.augmentation import AugmentConfig, default_augment
from supernet.data.batches import augmented_batches, train_loader
from supernet.data.dataset import ImageData
from supernet.training import logit_files
from supernet.training.stored_logits import (
    ImageIdentity,
    StoredLogits,
    image_signature,
    write_logits,
)

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
