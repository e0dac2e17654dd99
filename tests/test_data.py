"""Splits, sources, augmentation and the messages for unusable data."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import os
import random
import struct
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from tiny_job import nas

from nas.config import TrainedConfig
from search_space.errors import DataError, RunError
from supernet.data import batches as loading
from supernet.data.augmentation import AugmentConfig, build_transform, default_augment, mix_seed
from supernet.data.batches import resize_images, train_loader
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return open_data("digits", 16)


def picture(shade: int, size: int = 12) -> Image.Image:
    return Image.fromarray(np.full((size, size, 3), shade, dtype=np.uint8))


def make_folder(root: Path, classes: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for index in range(count):
            picture(40 * number + index).save(root / name / f"{index}.png")
    return root


def encoded(shade: int) -> bytes:
    stream = io.BytesIO()
    picture(shade).save(stream, format="PNG")
    return stream.getvalue()


def make_parquet(path: Path, labels, *, struct_column: bool = True, metadata=None, **columns):
    images = [encoded(int(10 * index) % 250) for index in range(len(labels))]
    image = (
        pa.array(
            [{"bytes": data, "path": None} for data in images],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        if struct_column
        else pa.array(images, pa.binary())
    )
    table = pa.table({"image": image, "label": labels, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=7)
    return path


def keys(split) -> set[str]:
    return {split.raw.keys[index] for index in split.indices}


# Splits -------------------------------------------------------------------------------------


def test_digits_splits_are_disjoint_and_whole(digits):
    parts = [keys(digits.train), keys(digits.validation), keys(digits.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    assert digits.num_classes == 10
    assert digits.class_names == tuple("0123456789")
    for split in (digits.train, digits.validation, digits.test):
        assert set(split.labels) == set(range(10))
    assert abs(len(digits.test) - 0.2 * 1797) < 10
    assert abs(len(digits.validation) - 0.2 * 0.8 * 1797) < 10


def test_seed_moves_validation_but_never_test(digits):
    other = open_data("digits", 16, seed=1)
    assert keys(other.test) == keys(digits.test)
    assert keys(other.validation) != keys(digits.validation)
    assert other.fingerprint != digits.fingerprint
    assert open_data("digits", 16).fingerprint == digits.fingerprint


def test_pixels_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    data = open_data("digits", 8)
    grey = load_digits().images / 16.0
    images, labels = next(iter(eval_batches(data.validation, 32)))
    mean, std = map(torch.tensor, (data.preprocessing.mean, data.preprocessing.std))
    restored = images * std.view(1, 3, 1, 1) + mean.view(1, 3, 1, 1)
    wanted = torch.tensor(grey[data.validation.indices[:32]]).float()
    assert torch.allclose(restored[:, 0], wanted, atol=1 / 255)
    assert torch.equal(labels, torch.tensor(load_digits().target[data.validation.indices[:32]]))


def test_normalised_training_pixels_have_zero_mean_and_unit_variance(digits):
    images = torch.cat([images for images, _ in eval_batches(digits.train)])
    assert images.mean().abs() < 1e-3
    assert abs(images.std() - 1) < 1e-3


def test_folder_without_splits(tmp_path):
    data = open_data(str(make_folder(tmp_path, {"cat": 10, "dog": 10})), 12)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    assert not keys(data.test) & (keys(data.train) | keys(data.validation))


def test_a_new_image_leaves_the_other_keys_ranked_as_they_were(tmp_path):
    root = make_folder(tmp_path, {"cat": 40, "dog": 40})
    before = keys(open_data(str(root), 12).test)
    picture(9).save(root / "cat" / "new.png")
    after = keys(open_data(str(root), 12).test)
    assert len(before - after) <= 1


def test_folder_with_its_own_splits(tmp_path):
    make_folder(tmp_path / "train", {"cat": 10, "dog": 10})
    make_folder(tmp_path / "val", {"cat": 2, "dog": 3})
    make_folder(tmp_path / "test", {"cat": 4, "dog": 4})
    data = open_data(str(tmp_path), 12)
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 5, 8)
    assert data.test.raw is not data.train.raw


def test_large_images_are_read_when_needed(tmp_path):
    root = make_folder(tmp_path, {"cat": 6, "dog": 6})
    data = open_data(str(root), 96)
    assert not data.train.in_memory
    config = AugmentConfig(crop="resize", auto_augment="rand-m9-mstd0.5", erase=0.5, mixup=0.2)
    images, targets, *_ = next(train_loader(data, 4, 0, 0, augment=config))
    assert images.shape == (4, 3, 96, 96)
    assert images.dtype == torch.float32
    assert targets.shape == (4, 2)
    assert torch.allclose(targets.sum(1), torch.ones(4))


@pytest.mark.parametrize("struct_column", [True, False])
def test_parquet(tmp_path, struct_column):
    options = {"struct_column": struct_column, "metadata": {"classes": "no,yes"}}
    for split, count in (("train", 30), ("test", 10)):
        make_parquet(tmp_path / f"{split}.parquet", np.arange(count) % 2, **options)
    data = open_data(str(tmp_path), 12)
    assert data.class_names == ("no", "yes")
    assert (len(data.train), len(data.validation), len(data.test)) == (24, 6, 10)
    for position, index in enumerate(data.train.indices):
        shade = 10 * int(index) % 250
        assert np.array_equal(data.train.pixels(position), np.asarray(picture(shade)))


def test_single_parquet_with_gaps_in_labels_and_huggingface_names(tmp_path):
    path = make_parquet(tmp_path / "all.parquet", np.array([3, 7, 9] * 10))
    assert open_data(str(path), 12).class_names == ("3", "7", "9")
    features = {"info": {"features": {"label": {"names": ["a", "b"]}}}}
    path = make_parquet(
        tmp_path / "named" / "data-0.parquet",
        np.array([0, 1] * 10),
        metadata={"huggingface": json.dumps(features)},
    )
    assert open_data(str(path.parent), 12).class_names == ("a", "b")


def test_timm_names_open_torchvision_sets(tmp_path):
    """MNIST's own file format, written here: 8 training and 4 test images."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 4)):
        pixels = np.zeros((count, 28, 28), dtype=np.uint8) + np.arange(count)[:, None, None]
        labels = (np.arange(count) % 2).astype(np.uint8)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 2051, count, 28, 28) + pixels.astype(np.uint8).tobytes()
        )
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 2049, count) + labels.tobytes()
        )
        with gzip.open(folder / f"{prefix}.gz", "wb"):
            pass
    data = open_data("torch/mnist", 16, root=str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (16, 4, 4)
    assert data.class_names[0].startswith("0")


# Messages -------------------------------------------------------------------------------------


def test_missing_path_names_the_nearest(tmp_path):
    make_folder(tmp_path / "flowers", {"a": 2, "b": 2})
    with pytest.raises(DataError, match=r"flower'.*Nearest.*flowers"):
        open_data(str(tmp_path / "flower"), 12)
    with pytest.raises(DataError, match=r"Nearest that exist: .*digits"):
        open_data("digit", 12)


def test_one_class_is_named(tmp_path):
    with pytest.raises(DataError, match=r"one class only.*'cat'"):
        open_data(str(make_folder(tmp_path, {"cat": 5})), 12)


def test_unreadable_image_is_named_at_opening(tmp_path):
    root = make_folder(tmp_path, {"cat": 5, "dog": 5})
    (root / "dog" / "3.png").write_bytes(b"no image at all")
    for resolution in (12, 96):  # decoded at opening, or only its header read
        with pytest.raises(DataError, match=r"dog.3\.png cannot be read"):
            open_data(str(root), resolution)


def test_truncated_image_is_named_when_decoded(tmp_path):
    root = make_folder(tmp_path, {"cat": 5, "dog": 5})
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "dog" / "3.jpg")
    whole = (root / "dog" / "3.jpg").read_bytes()
    (root / "dog" / "3.jpg").write_bytes(whole[: len(whole) // 2])
    # Its header is whole: only decoding it shows the damage, when the split that holds it is used.
    data = open_data(str(root), 96)
    batches = train_loader(data, 12, 0, 0, augment=AugmentConfig(crop="none"))
    used = [batches, eval_batches(data.validation), eval_batches(data.test)]
    with pytest.raises(DataError, match=r"3\.jpg cannot be read"):
        [list(part) for part in used]


@pytest.mark.parametrize("split", ["train", "validation"])
def test_loading_processes_raise_the_same_error(tmp_path, split):
    root = make_folder(tmp_path, {"cat": 8, "dog": 8})
    data = open_data(str(root), 96)
    data.validation.in_memory = False
    first = getattr(data, split)
    (root / first.raw.keys[first.indices[0]]).write_bytes(b"no image any more")

    def message(workers: int) -> str:
        batches = eval_batches(data.validation, 4, workers=workers)
        if split == "train":
            batches = train_loader(data, 4, 0, 0, workers, augment=AugmentConfig(crop="none"))
        with pytest.raises(DataError) as caught:
            list(batches)
        return str(caught.value)

    assert message(1) == message(0)
    assert "cannot be read as an image" in message(1)


def test_empty_class_and_missing_train(tmp_path):
    root = make_folder(tmp_path / "a", {"cat": 5, "dog": 0})
    with pytest.raises(DataError, match="dog has no images"):
        open_data(str(root), 12)
    make_folder(tmp_path / "b" / "test", {"cat": 5, "dog": 5})
    with pytest.raises(DataError, match="no train/ folder"):
        open_data(str(tmp_path / "b"), 12)
    with pytest.raises(DataError, match="no images"):
        open_data(str(tmp_path / "b" / "test" / "cat"), 12)


@pytest.mark.parametrize("images", [1, 2])
def test_classes_without_an_image_to_spare(tmp_path, images):
    source = str(make_folder(tmp_path, {"cat": images, "dog": images}))
    for fraction in (0.2, 0.9):
        with pytest.raises(DataError, match=r"is empty.*whatever its fraction; .*three per class"):
            open_data(source, 12, validation_fraction=fraction, test_fraction=fraction)


def test_class_only_in_test(tmp_path):
    make_folder(tmp_path / "train", {"cat": 5, "dog": 5})
    make_folder(tmp_path / "test", {"cat": 2, "emu": 2})
    with pytest.raises(DataError, match=r"'emu'.*no training image"):
        open_data(str(tmp_path), 12)
    make_parquet(tmp_path / "p" / "train.parquet", np.array([0, 1] * 5))
    make_parquet(tmp_path / "p" / "test.parquet", np.array([0, 2] * 5))
    with pytest.raises(DataError, match=r"'2'.*no training image"):
        open_data(str(tmp_path / "p"), 12)


def test_other_parquet_faults(tmp_path):
    path = make_parquet(tmp_path / "t.parquet", np.array([0, 1] * 5))
    with pytest.raises(DataError, match="no column 'klass'; it has image, label"):
        open_data(str(path), 12, label_column="klass")
    with pytest.raises(DataError, match=r"image column 'label'.*type int64"):
        open_data(str(path), 12, image_column="label")
    with pytest.raises(DataError, match="1 empty rows"):
        open_data(str(make_parquet(tmp_path / "n.parquet", pa.array([0, 1, None]))), 12)
    names = {"classes": json.dumps(["a", "b"])}
    path = make_parquet(tmp_path / "r.parquet", np.array([0, 1, 5] * 3), metadata=names)
    with pytest.raises(DataError, match="has the label 5, but 2 classes are named"):
        open_data(str(path), 12)
    with pytest.raises(DataError, match="is empty"):
        open_data(str(make_parquet(tmp_path / "e.parquet", np.zeros(0, np.int64))), 12)
    (tmp_path / "x.parquet").write_bytes(b"not parquet")
    with pytest.raises(DataError, match=r"x\.parquet is not a readable Parquet file"):
        open_data(str(tmp_path / "x.parquet"), 12)


def test_timm_failures_are_data_errors(tmp_path):
    with pytest.raises(DataError, match=r"torch/cifar10.*--data-root, or .*--data-download"):
        open_data("torch/cifar10", 32, root=str(tmp_path))
    with pytest.raises(DataError, match="is a stream"):
        open_data("tfds/mnist", 32)


# Augmentation and loading ---------------------------------------------------------------------


def batches(data, **options):
    return list(train_loader(data, 32, 3, 5, **options))


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for x, y in zip(left, right, strict=True)
        for a, b in zip(x[:3], y[:3], strict=True)
    )


RICH = AugmentConfig(
    crop="resize", auto_augment="rand-m9-n2-mstd0.5", erase=0.5, mixup=0.5, cutmix=0.5
)


@pytest.mark.parametrize("augment", [None, RICH], ids=["default", "rich"])
def test_batches_depend_on_seed_epoch_and_step_only(digits, augment):
    reference = batches(digits, augment=augment)
    random.seed(1)
    torch.manual_seed(1)
    assert same(reference, batches(digits, augment=augment, workers=2))
    assert same(reference[20:], batches(digits, augment=augment, start=20))
    assert not same(reference, list(train_loader(digits, 32, 4, 5, augment=augment)))
    assert len(reference) == len(digits.train) // 32


def test_loading_leaves_global_generators_alone(digits):
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    wanted = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    batches(digits, augment=RICH)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == wanted


@pytest.mark.parametrize("crop", ["none", "pad"])
def test_large_images_are_scaled_before_they_are_cropped(tmp_path, crop):
    source = make_folder(tmp_path, {"cat": 4, "dog": 4})
    for file in source.rglob("*.png"):
        Image.open(file).resize((200, 150)).save(file)
    data = open_data(str(source), 96)
    augment = AugmentConfig(crop=crop, padding=0, hflip=0.0)
    images, _, indices, _ = next(train_loader(data, 4, 0, 0, augment=augment))
    wanted, _ = data.train.__getitems__(indices.tolist())
    assert torch.equal(images, wanted)


def test_digits_are_never_mirrored(digits):
    assert default_augment("digits", 32).hflip == 0
    # Without a crop nothing is left to change: the batch is the plain images, shuffled.
    plain = AugmentConfig(crop="none", hflip=0.0)
    order = np.random.default_rng([0, 0]).permutation(len(digits.train))
    images, labels, indices, variant = next(train_loader(digits, 8, 0, 0, augment=plain))
    assert (indices.tolist(), variant) == (order[:8].tolist(), 0)
    for image, label, index in zip(images, labels, order, strict=False):
        wanted, wanted_label = digits.train[int(index)]
        assert torch.equal(image, wanted)
        assert label == wanted_label


def test_a_run_passes_its_options_for_images_on(tmp_path):
    options = {"data_root": str(tmp_path), "data_download": True, "fit": "pad", "mirror": "never"}
    flags = ("--data-root", tmp_path, "--data-download", "--fit", "pad", "--mirror", "never")
    ran = nas("train", "--data", "torch/mnist", "--space", "digits", *flags, "--dry-run")
    assert yaml.safe_load(ran.out[ran.out.index("data:") :]).items() >= options.items()
    passed = TrainedConfig(data="torch/mnist", space="digits", target_latency=None, **options)
    options = {"root": str(tmp_path), "download": True, "fit": "pad", "mirror": False}
    assert passed.image_options().items() >= options.items()
    assert passed.image_options().keys() < inspect.signature(open_data).parameters.keys()


def test_posterising_keeps_a_bit():
    """timm's strongest posterising asks for none, which Pillow 13 refuses."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    for policy in ("rand-m10-n1-inc1", "augmix-m10", "original"):
        config = AugmentConfig(crop="none", auto_augment=policy)
        steps = build_transform(config, 96, (0.5, 0.5, 0.5)).transforms
        operations = [
            operation
            for step in steps
            for operation in getattr(step, "ops", None) or chain(*getattr(step, "policy", []))
            if operation.name.startswith("Posterize")
        ]
        assert operations
        for operation in operations:
            operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
            bits = max(1, operation.level_fn(10, operation.hparams)[0])
            assert np.array_equal(operation(noise), ImageOps.posterize(noise, bits))


def test_mirroring_can_be_switched_off(tmp_path):
    source = str(make_folder(tmp_path, {"cat": 6, "dog": 6}))
    for mirror, chance, said in ((True, 0.5, 3), (False, 0.0, 2)):
        data = open_data(source, 12, mirror=mirror)
        assert data.augmentation().hflip == chance
        assert data.augmentation(RICH) == replace(RICH, hflip=chance)
        assert len(data.description()) == said


def test_opening_says_what_images_are_and_become(tmp_path, digits):
    for file in make_folder(tmp_path, {"cat": 6, "dog": 6}).rglob("*.png"):
        Image.open(file).resize((40 + 2 * int(file.stem), 20)).save(file)
    data = open_data(str(tmp_path), 16)
    assert data.description()[:2] == (
        "12 images of 2 classes: 8 training, 2 validation, 2 test",
        "45 × 20 px (median of 12, sides from 20 to 50); scaled to 16 px: scale the shorter side "
        "to 16 px and cut out 16 × 16 px in the centre (--fit squeeze or --fit pad keeps the ends)",
    )
    assert (data.sizes.side, data.sizes.shortest, data.sizes.longest) == (20, 20, 50)
    assert digits.description()[1:] == ("8 × 8 px; scaled to 16 px",)
    with pytest.raises(DataError, match="fit is 'stretch'; it must be one of crop, squeeze, pad"):
        open_data("digits", 16, fit="stretch")


def test_batches_pass_through_pipes_where_shared_memory_is_small(tmp_path, monkeypatch):
    data = open_data(str(make_folder(tmp_path, {"cat": 8, "dog": 8})), 96)
    plain = AugmentConfig(crop="none")
    wanted = list(train_loader(data, 4, 0, 0, augment=plain))
    loading._warn_of_pipes.cache_clear()
    for free, shared in ((10**9, True), (64 * 2**10, False)):
        usage = SimpleNamespace(free=free)
        monkeypatch.setattr("supernet.data.batches.shutil.disk_usage", lambda _, u=usage: u)
        context = nullcontext() if shared else pytest.warns(UserWarning, match="--shm-size")
        with context:
            fetched = list(train_loader(data, 4, 0, 0, 1, augment=plain))
        assert same(fetched, wanted)
        assert all(batch.images.is_shared() == shared for batch in fetched)


def test_loader_processes_that_die_are_an_error(tmp_path, monkeypatch):
    data = open_data(str(make_folder(tmp_path, {"cat": 8, "dog": 8})), 96)
    monkeypatch.setattr(type(data.train), "picture", lambda *_, **__: os._exit(7))
    with pytest.raises(RunError, match=r"data-loading processes failed.*--loader-workers"):
        list(train_loader(data, 4, 0, 0, 1))


@pytest.mark.parametrize(
    ("text", "kind"), [("a bug", RuntimeError), ("No space left on device", RunError)]
)
def test_only_a_lack_of_memory_in_a_loader_process_is_a_users_error(
    tmp_path, monkeypatch, text, kind
):
    data = open_data(str(make_folder(tmp_path, {"cat": 8, "dog": 8})), 96)

    def picture(*_, **__):
        raise RuntimeError(text)

    monkeypatch.setattr(type(data.train), "picture", picture)
    with pytest.raises((RuntimeError, RunError), match=text) as caught:
        list(train_loader(data, 4, 0, 0, 1))
    assert caught.type is kind


def test_small_set_gives_one_batch_and_limit_keeps_every_class(tmp_path, digits):
    data = open_data(str(make_folder(tmp_path, {"cat": 5, "dog": 5})), 12)
    assert [len(batch.targets) for batch in train_loader(data, 64, 0, 0)] == [len(data.train)]
    some = eval_batches(data.validation, 64, limit=2)
    assert sum(len(labels) for _, labels in some) == 2
    limited = eval_batches(digits.validation, 50, limit=120)
    assert [len(labels) for _, labels in limited] == [50, 50, 20]
    assert [len(labels) for _, labels in limited] == [50, 50, 20]  # and again


def test_resize_images_is_exact_on_a_plane():
    """Antialiased bilinear resizing halves a linear ramp exactly, away from the border."""
    ramp = torch.arange(16.0).expand(1, 3, 16, 16)
    small = resize_images(ramp, 8)
    assert small.shape == (1, 3, 8, 8)
    assert torch.allclose(small[0, 0, 0, 1:-1], torch.arange(0.5, 16, 2.0)[1:-1])
    assert resize_images(ramp, 16) is ramp


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4), st.integers(0, 3))
def test_mix_seed_is_64_bit_and_tells_neighbours_apart(values, position):
    seed = mix_seed(*values)
    assert 0 <= seed < 2**64
    changed = list(values)
    changed[position % len(values)] += 1
    assert mix_seed(*changed) != seed


@pytest.mark.parametrize(
    "values", [{"crop": "zoom"}, {"hflip": 1.5}, {"mixup": -1.0}, {"scale": (0.9, 0.5)}]
)
def test_wrong_augmentation(values):
    with pytest.raises(DataError, match=f"{next(iter(values))} is"):
        AugmentConfig(**values)


def test_unknown_policy(digits):
    with pytest.raises(DataError, match="auto_augment must be a policy"):
        next(train_loader(digits, 8, 0, 0, augment=AugmentConfig(auto_augment="magic")))
