"""Parquet files that are damaged, or do not belong together."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search_space.errors import DataError
from supernet.data import open_data

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
        ({"label": LABELS + 0.5}, r"'label' of .*train-1\.parquet has type double, not integer"),
        ({"label": ["cat", "dog"] * 10}, r"'label' of .*train-1\.parquet has type string"),
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
