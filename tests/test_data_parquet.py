"""Parquet files that are damaged, or do not belong together."""

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
        (
            {"label": LABELS + 0.5},
            r"'label' of .*train-1\.parquet has type double; .*integers",
        ),
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


def test_a_shard_that_was_cut_short_is_named(tmp_path):
    write(tmp_path / "train-0.parquet")
    whole = write(tmp_path / "train-1.parquet").read_bytes()
    (tmp_path / "train-1.parquet").write_bytes(whole[: len(whole) // 2])
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


def test_an_empty_file_is_named(tmp_path):
    write(tmp_path / "train-0.parquet")
    (tmp_path / "train-1.parquet").touch()
    with pytest.raises(DataError, match=r"train-1\.parquet is not a readable.*replace or remove"):
        open_data(str(tmp_path), 12)
