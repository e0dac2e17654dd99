"""Which folders of images are splits and which classes, and what is said where it is unclear."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from search_space.errors import DataError
from supernet.data.dataset import open_data


def fill(root: Path, *folders: str) -> str:
    for shade, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
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


def test_a_test_split_beside_classes_is_refused(tmp_path):
    source = fill(tmp_path, "cat", "dog", "test/cat", "test/dog")
    with pytest.raises(DataError, match=r"test has subfolders .*move the folders .*train"):
        open_data(source, 12)


def test_images_without_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"train: it needs one subfolder per class"):
        open_data(fill(tmp_path, "train", "test"), 12)
