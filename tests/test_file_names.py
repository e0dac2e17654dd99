"""Files and folders whose names are not UTF-8, as old archives leave them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_job import nas

from results.files import atomic_write, read_json
from search_space import dump_architecture, load_space
from search_space.errors import DataError
from supernet.data.dataset import open_data

pytestmark = pytest.mark.skipif(
    sys.platform in ("darwin", "win32"), reason="its file names are UTF-8 or UTF-16"
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / os.fsdecode(b"f\xfcr")
    for number, name in enumerate((b"caf\xe9", b"dog")):
        (root / os.fsdecode(name)).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((16, 16, 3), 90 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(root / os.fsdecode(name + b"/\xe4%d.png" % index))
    return root


def test_images_are_opened_and_named(images):
    data = open_data(str(images), 16)
    assert data.class_names == ("caf\\udce9", "dog")
    assert data.fingerprint == open_data(str(images), 16).fingerprint
    (images / "dog" / os.fsdecode(b"\xe43.png")).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png cannot be read as an image"):
        open_data(str(images), 16)


def test_json_gives_such_a_name_back(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xc3\xa9")
    atomic_write(tmp_path / "a.json", json.dumps({"name": name}, ensure_ascii=False))
    assert read_json(tmp_path / "a.json") == {"name": name}
    assert "é" in (tmp_path / "a.json").read_text("utf-8")


@pytest.mark.slow
def test_a_network_is_trained_and_exported(job, images):
    file = job / "small.yaml"
    file.write_text(dump_architecture(load_space(str(job / "pebble.yaml")).smallest))
    arguments = ("train", "--architecture", file, "--data", images, "--epochs", 1, "--json")
    ran = nas(*arguments, "--train-batch-size", 8, "--name", "one")
    assert ran.code == 0, ran.err
    assert ran.out.encode()
    exported = next((job / "runs" / "one" / "export").iterdir())
    assert "caf\\udce9" in (exported / "README.md").read_text("utf-8")
    again = nas(*arguments, "--train-batch-size", 8, "--name", "one", "--resume")
    assert (again.code, again.out) == (0, ran.out)
