"""Parquet files: their splits, labels and damage, and the memory that their rows take."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search_space.errors import DataError
from supernet.data.dataset import open_data
from supernet.data.memory import available_memory

LABELS = np.array([0, 1] * 10)
NAMED = {"classes": json.dumps(["cat", "dog"])}


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 12), (shade, shade, shade)).save(stream, format="PNG")
    return stream.getvalue()


def write(path: Path, metadata=NAMED, **columns) -> Path:
    """Twenty images of two classes; ``columns`` replace those of the good file."""
    good = {"image": [png(shade) for shade in range(len(LABELS))], "label": LABELS}
    kept = {name: values for name, values in {**good, **columns}.items() if values is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(kept).replace_schema_metadata(metadata), path)
    return path


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": LABELS + 0.5}, r"'label' of .*train-1\.parquet has type double; .*integers"),
        ({"label": ["cat", "dog"] * 10}, r"int64 in .*train-0\.parquet and string in .*train-1"),
        ({"label": None}, r"train-1\.parquet has no column 'label'; it has image"),
        ({"image": ["a.png"] * 20}, r"'image' of .*train-1\.parquet has type string"),
    ],
)
def test_every_shard_is_checked(tmp_path, columns, message):
    write(tmp_path / "train-0.parquet")
    write(tmp_path / "train-1.parquet", **columns)
    with pytest.raises(DataError, match=message):
        open_data(str(tmp_path), 12)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"image", b"\xf8mage"),
        lambda data: b"",
    ],
)
def test_a_damaged_shard_is_named(tmp_path, damage):
    write(tmp_path / "train-0.parquet")
    path = write(tmp_path / "train-1.parquet")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-1\.parquet is not a readable.*replace or remove"):
        open_data(str(tmp_path), 12)


@pytest.mark.parametrize(
    ("names", "difference"),
    [
        (["dog", "cat"], "label 0 is 'cat' in the first and 'dog' in the second"),
        (["cat", "dog", "emu"], "2 in the first and 3 in the second"),
    ],
)
def test_shards_that_name_other_classes_are_both_named(tmp_path, names, difference):
    write(tmp_path / "train-0.parquet")
    features = {"info": {"features": {"label": {"names": names}}}}
    write(tmp_path / "train-1.parquet", {"huggingface": json.dumps(features)})
    with pytest.raises(DataError, match=rf"train-0\.parquet and .*train-1\.parquet.*{difference}"):
        open_data(str(tmp_path), 12)


def test_a_shard_without_names_takes_those_of_the_others(tmp_path):
    write(tmp_path / "train-0.parquet", metadata=None)
    write(tmp_path / "train-1.parquet")
    assert open_data(str(tmp_path), 12).class_names == ("cat", "dog")


@pytest.mark.parametrize("column", ["image", "label"])
def test_damaged_pages_are_those_of_a_named_file(tmp_path, column):
    path = write(tmp_path / "train.parquet")
    metadata = pq.read_metadata(path).row_group(0)
    number = [metadata.column(i).path_in_schema for i in range(2)].index(column)
    chunk = metadata.column(number)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + 20 : start + chunk.total_compressed_size] = b"\xff" * (
        chunk.total_compressed_size - 20
    )
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train\.parquet is not a readable.*replace or remove"):
        open_data(str(path), 12)


def test_folders_may_be_called_as_parquet_files(tmp_path):
    write(tmp_path / "train.parquet" / "part-0.parquet")
    write(tmp_path / "test.parquet" / "part-0.parquet")
    data = open_data(str(tmp_path), 12)
    assert len(data.train) + len(data.validation) == len(data.test) == 20


@pytest.mark.parametrize("classes", [b"5", b"null", b'"cat"', b"caf\xe9,bar"])
def test_classes_that_are_no_list_are_refused(tmp_path, classes):
    write(tmp_path / "train.parquet", {b"classes": classes})
    with pytest.raises(DataError, match=r"'classes' of .*train\.parquet is b'.*JSON list"):
        open_data(str(tmp_path), 12)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="its file names are unicode")
def test_names_of_files_need_not_be_utf8(tmp_path):
    write(tmp_path / "train.parquet").rename(tmp_path / os.fsdecode(b"caf\xe9.parquet"))
    assert open_data(str(tmp_path), 12).class_names == ("cat", "dog")


def shard_files(data) -> set[str]:
    """The files that images of the training split are in."""
    return {data.train.raw.keys[index].rpartition(":")[0] for index in data.train.indices}


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("cifar10-train.parquet", "cifar10-test.parquet"),
        ("mnist_train.parquet", "mnist_test.parquet"),
        ("split=train/p.parquet", "split=test/p.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("train-00000-of-00001.parquet", "dev-00000-of-00001.parquet"),
        ("data-0.parquet", "data-eval.parquet"),
        ("imagesTrain.parquet", "imagesTest.parquet"),
        ("train1.parquet", "test1.parquet"),
        ("attest/latest.parquet", "validation/latest.parquet"),  # words, not parts of words
    ],
)
def test_held_out_files_are_never_trained_on(tmp_path, train, other):
    write(tmp_path / train)
    write(tmp_path / other)
    data = open_data(str(tmp_path), 12)
    assert shard_files(data) == {train}
    held_out = data.validation if data.test.raw is data.train.raw else data.test
    assert {key.rpartition(":")[0] for key in held_out.raw.keys} == {other}


def test_a_file_of_two_splits_is_refused(tmp_path):
    write(tmp_path / "train.parquet")
    write(tmp_path / "test" / "train-0.parquet")
    with pytest.raises(DataError, match=r"test/train-0\.parquet says test and train.*rename it"):
        open_data(str(tmp_path), 12)


def test_files_of_no_split_beside_training_files_are_left_out(tmp_path):
    write(tmp_path / "train.parquet")
    write(tmp_path / "more.parquet")
    with pytest.warns(UserWarning, match=r"1 Parquet files .* left out.*more\.parquet"):
        assert shard_files(open_data(str(tmp_path), 12)) == {"train.parquet"}


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["dog", "cat"] * 10),
        pa.array(["dog", "cat"] * 10).dictionary_encode(),
        pa.array(["dog", "cat"] * 10, pa.large_string()),
        pa.chunked_array(
            [
                pa.array(["dog"]).dictionary_encode(),
                pa.array(["cat", "dog"] * 9 + ["cat"]).dictionary_encode(),
            ]
        ),
    ],
)
def test_labels_may_be_text(tmp_path, labels):
    write(tmp_path / "a.parquet", metadata=None, label=labels)
    data = open_data(str(tmp_path), 12)
    assert data.class_names == ("cat", "dog")
    assert data.train.raw.labels.tolist() == [1, 0] * 10


def test_text_in_named_classes_has_their_order(tmp_path):
    write(tmp_path / "a.parquet", {"classes": '["dog", "cat"]'}, label=["dog", "cat"] * 10)
    assert open_data(str(tmp_path), 12).train.raw.labels.tolist() == [0, 1] * 10
    write(tmp_path / "a.parquet", {"classes": '["dog", "cat"]'}, label=["dog", "emu"] * 10)
    with pytest.raises(DataError, match="has the label 'emu', but 2 classes are named"):
        open_data(str(tmp_path), 12)


@pytest.mark.parametrize("hidden", [np.full(20, -1), pa.nulls(20, pa.int64())])
def test_a_test_split_without_labels_is_left_out_with_a_word(tmp_path, hidden):
    write(tmp_path / "train.parquet")
    write(tmp_path / "test.parquet", label=hidden)
    with pytest.warns(UserWarning, match=r"test split of .* is unlabelled \(every label is -1"):
        data = open_data(str(tmp_path), 12)
    assert data.test.raw is data.train.raw
    write(tmp_path / "train.parquet", metadata=None, label=[-1, 0, 1, 1] * 5)
    with pytest.raises(DataError, match="-1 means unlabelled: remove such rows"):
        open_data(str(tmp_path), 12)


def test_rows_are_kept_within_the_memory_that_is_free(tmp_path, monkeypatch):
    table = pa.table({"image": [png(shade) for shade in range(20)], "label": LABELS})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    raw = open_data(str(tmp_path), 12).train.raw
    for free, kept in ((10**9, 10), (0, 1)):
        monkeypatch.setattr("supernet.data.parquet.available_memory", lambda free=free: free)
        raw.__setstate__(raw.__getstate__())
        assert [np.asarray(raw.image(i))[0, 0, 0] for i in range(20)] == list(range(20))
        assert len(raw._kept) == kept


GROUPS = {
    "v1": ("4:memory:/docker/x\n", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    "v2": ("0::/box/inner\n", "box", "memory.max", "memory.current"),
}


@pytest.mark.parametrize("version", GROUPS)
def test_memory_within_a_control_group(tmp_path, version):
    """As containers show it: of version 1 at the mount, of version 2 at a parent, too."""
    line, folder, limit, usage = GROUPS[version]
    group = tmp_path / "sys/fs/cgroup" / folder
    group.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("9:cpu:/\n" + line)
    outside = available_memory(tmp_path)
    (group / limit).write_text("40000000\n")
    (group / usage).write_text("30000000\n")
    (group / "memory.stat").write_text("anon 1\nactive_file 1000000\ninactive_file 4000000\n")
    assert available_memory(tmp_path) == 15_000_000
    (group / limit).write_text("max\n" if version == "v2" else f"{2**63 - 4096}\n")
    assert available_memory(tmp_path) == pytest.approx(outside, rel=0.2)
