"""Which images are of which split and class, and what is said where it is unclear."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search_space.errors import DataError
from supernet.data.dataset import open_data


def fill(root: Path, *folders: str) -> str:
    for shade, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(6):
            Image.new("RGB", (12, 12), (shade, index, 0)).save(root / folder / f"{index}.png")
    return str(root)


def test_a_class_of_trains(tmp_path):
    data = open_data(fill(tmp_path, "bus", "car", "train"), 12)
    assert data.class_names == ("bus", "car", "train")
    assert len(data.train) + len(data.validation) + len(data.test) == 18


@pytest.mark.parametrize("pair", [("train", "training"), ("val", "valid")])
def test_two_folders_for_one_split_are_both_named(tmp_path, pair):
    splits = dict.fromkeys(["train", *pair])
    source = fill(tmp_path, *(f"{split}/{label}" for split in splits for label in ("cat", "dog")))
    with pytest.raises(DataError, match=rf"{pair[0]} and .*{pair[1]} are both the .* split"):
        open_data(source, 12)


def test_a_split_of_another_name_is_refused(tmp_path):
    source = fill(tmp_path, "train/cat", "train/dog", "more/cat", "more/dog")
    with pytest.raises(DataError, match=r"more has subfolders .*no split \(train, .*rename it"):
        open_data(source, 12)


def test_other_images_beside_training_images_are_left_out_with_a_warning(tmp_path):
    source = fill(tmp_path, "train/cat", "train/dog", "unlabelled")
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match="unlabelled are left out") as warned:
        data = open_data(source, 12)
    assert len(warned) == 1
    assert len(data.train) + len(data.validation) + len(data.test) == 12


@pytest.mark.parametrize(
    "folders",
    [
        *(["test"], ["val"], ["test_images"], ["Test2"], ["test/images"], ["train", "test"]),
        *(["test/cat", "test/dog"], ["test_images/cat"], ["test/a", "test/b"]),
    ],
)
def test_a_split_beside_classes_is_refused(tmp_path, folders):
    source = fill(tmp_path, "cat", "dog", *folders)
    with pytest.raises(DataError, match=r"trained on as a class.* move the folders .*/train; if"):
        open_data(source, 12)


def test_listed_images_of_a_test_split_are_not_trained_on(tmp_path):
    source = fill(tmp_path, "images", "test")
    rows = [
        {"file_name": f"{f}/{i}.png", "label": i % 2} for f in ("images", "test") for i in (1, 2)
    ]
    write_labels(tmp_path / "labels.csv", rows)
    with pytest.raises(DataError, match="test is named as the test split"):
        open_data(source, 12)


def test_flat_folders_of_splits_are_no_classes(tmp_path):
    with pytest.raises(DataError, match="train_images: it needs one subfolder per class"):
        open_data(fill(tmp_path, "train_images", "test_images"), 12)


def test_what_lies_beside_folders_of_splits_does_not_make_them_classes(tmp_path):
    pairs = [f"{split}_images/{label}" for split in ("train", "test") for label in ("cat", "dog")]
    source = fill(tmp_path, *pairs)
    (tmp_path / "notes").mkdir()
    assert open_data(source, 12).class_names == ("cat", "dog")


def test_unlabelled_test_images_beside_listed_ones_are_left_out(tmp_path):
    source = fill(tmp_path, "images", "test")
    rows = [{"file_name": f"images/{i}.png", "label": i % 2} for i in range(6)]
    write_labels(tmp_path / "labels.csv", rows)
    with pytest.warns(UserWarning, match="6 images in .* have no row"):
        assert sum(counts(open_data(source, 12))) == 6


def test_images_without_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train: it needs one subfolder per class"):
        open_data(fill(tmp_path, "train", "test"), 12)


def counts(data) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


@pytest.mark.parametrize("name", ["@eaDir", "__MACOSX", ".thumbnails"])
def test_folders_of_systems_hold_no_images(tmp_path, name):
    source = fill(tmp_path, "cat", "dog", f"cat/{name}/0.png")
    with pytest.warns(UserWarning, match=f"1 hidden or system folders.*{name}"):
        data = open_data(source, 12)
    assert sum(counts(data)) == 12
    assert data.class_names == ("cat", "dog")


def test_folders_are_no_images_whatever_their_names(tmp_path):
    source = fill(tmp_path, "cat", "dog", "dog/0000.png")
    assert sum(counts(open_data(source, 12))) == 18


def test_tiny_image_net(tmp_path):
    source = fill(tmp_path, "train/n1/images", "train/n2/images", "val/images", "test/images")
    rows = (f"{index}.png\tn{1 + index % 2}\t0\t0\t9\t9" for index in range(6))
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(rows))
    with pytest.warns(UserWarning, match=r"test is unlabelled .*test images are cut from"):
        data = open_data(source, 12)
    assert counts(data) == (10, 6, 2)
    assert data.class_names == ("n1", "n2")
    assert data.validation.labels.tolist() == [0, 1] * 3


@pytest.mark.parametrize(
    ("train", "dev", "test"),
    [("train", "dev", "eval"), ("train_images", "val_images", "test_images")],
)
def test_other_names_of_splits(tmp_path, train, dev, test):
    pairs = (f"{split}/{label}" for split in (train, dev, test) for label in ("cat", "dog"))
    assert counts(open_data(fill(tmp_path, *pairs), 12)) == (12, 12, 12)


def test_classes_may_have_words_for_splits_in_their_names(tmp_path):
    data = open_data(fill(tmp_path, "test_tube", "train_station"), 12)
    assert data.class_names == ("test_tube", "train_station")


def write_labels(file: Path, rows: list[dict[str, object]]) -> None:
    if file.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        file.write_text("\n".join(lines))
    elif file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)


@pytest.mark.parametrize("name", ["labels.csv", "metadata.jsonl", "metadata.parquet"])
@pytest.mark.parametrize("labels", [("cat", "dog"), (3, 7)])
def test_a_file_of_labels(tmp_path, name, labels):
    source = fill(tmp_path, "images")
    rows = [{"file_name": f"images/{i}.png", "breed": labels[i % 2]} for i in range(6)]
    write_labels(tmp_path / name, rows)
    data = open_data(source, 12, label_column="breed")
    assert counts(data) == (2, 2, 2)
    assert data.class_names == tuple(map(str, labels))
    raw = data.train.raw
    assert {key: int(raw.labels[i]) for i, key in enumerate(raw.keys)} == {
        f"images/{i}.png": i % 2 for i in range(6)
    }


def test_a_file_of_labels_for_all_splits(tmp_path):
    source = fill(tmp_path, "train", "test")
    rows = [
        {"file_name": f"{split}/{i}.png", "label": i % 2}
        for split in ("train", "test")
        for i in range(6)
    ]
    write_labels(tmp_path / "metadata.csv", rows)
    data = open_data(source, 12)
    assert counts(data) == (4, 2, 6)
    assert data.test.labels.tolist() == [0, 1] * 3


def test_a_damaged_parquet_file_beside_images_changes_nothing(tmp_path):
    source = fill(tmp_path, "cat", "dog")
    (tmp_path / "features.parquet").write_bytes(b"PAR1 cut short")
    assert sum(counts(open_data(source, 12))) == 12


def test_captions_beside_classes_change_nothing(tmp_path):
    source = fill(tmp_path, "cat", "dog")
    write_labels(tmp_path / "metadata.parquet", [{"file_name": "cat/0.png", "caption": "a cat"}])
    assert open_data(source, 12).kind == "folder"
    assert sum(counts(open_data(source, 12))) == 12


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file_name": "../secret.png", "label": "a"}], r"'../secret\.png', which is no file"),
        ([{"file_name": "/etc/passwd", "label": "a"}], r"'/etc/passwd', which is no file below"),
        ([{"file_name": "9.png", "label": "a"}], r"'9\.png', which is no file below"),
        ([{"file_name": "notes.txt", "label": "a"}], "has not the ending of an image"),
        ([{"file_name": "0.png", "caption": "a"}], "has no column 'label'; it has file_name, cap"),
        ([{"file_name": "0.png", "label": 0.5}], "has type double; labels are integers or text"),
        ([{"file_name": "0.png", "label": ""}, {"file_name": "1.png", "label": "a"}], "1 empty"),
        ([{"file_name": "0.png", "label": "a"}] * 2, "names an image more than once"),
    ],
)
def test_rows_that_name_no_image_are_refused(tmp_path, rows, message):
    source = fill(tmp_path / "data", ".")
    (tmp_path / "data" / "notes.txt").touch()
    (tmp_path / "secret.png").touch()
    write_labels(tmp_path / "data" / "labels.csv", rows)
    with pytest.raises(DataError, match=message):
        open_data(source, 12)


@pytest.mark.parametrize("name", ["labels.csv", "labels.jsonl", "labels.parquet"])
def test_damaged_files_of_labels_are_named(tmp_path, name):
    source = fill(tmp_path, "images")
    (tmp_path / name).write_bytes(b'{"file_name": \xff\n"a",')
    with pytest.raises(DataError, match=f"{name} (is no.* readable|has no column)"):
        open_data(source, 12)
