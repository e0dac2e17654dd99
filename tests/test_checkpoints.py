"""Checkpoint files: whole or not there, the last good one is used, nothing is unpickled."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import config, few_images, small_network

from search_space.errors import CorruptFileError
from supernet.network.tensor_files import read_tensors
from supernet.training.checkpoints import (
    Checkpoint,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from supernet.training.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def written(directory: Path, steps=(1, 2, 3)) -> None:
    for step in steps:
        tensors = {"w": torch.arange(4.0) * step, "table": torch.eye(3)}
        optimizer = {"w/m": torch.ones(4)}
        save_checkpoint(
            directory,
            Checkpoint(step=step, weights=tensors, optimizer=optimizer, metadata={"note": step}),
        )


def test_checkpoints_keep_two_and_round_trip(tmp_path):
    written(tmp_path)
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [
        "step-000000002",
        "step-000000003",
    ]
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.metadata) == (3, {"note": 3})
    assert torch.equal(found.weights["w"], torch.arange(4.0) * 3)
    assert torch.equal(found.optimizer["w/m"], torch.ones(4))
    newest = max(tmp_path.iterdir())
    assert torch.equal(load_file(newest / "model.safetensors")["table"], torch.eye(3))
    assert load_latest(tmp_path / "nothing") is None


def test_a_killed_write_leaves_no_checkpoint(tmp_path):
    written(tmp_path, [1])
    left = tmp_path / ".writing-123"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 1
    written(tmp_path, [2])
    assert not left.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "metadata.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_damage_is_found_and_the_one_before_used(tmp_path, name, damage):
    written(tmp_path)
    file = max(tmp_path.iterdir()) / name
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-5])
    elif damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.unlink()
    with pytest.raises(CorruptFileError, match=name):
        load_checkpoint(file.parent)
    with pytest.warns(UserWarning, match="damaged"):
        found = load_latest(tmp_path)
    assert found is not None
    assert found.step == 2


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def test_pickle_in_disguise_is_refused_unread(tmp_path):
    data = few_images()
    torch_file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, torch_file)
    old_torch_file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, old_torch_file, _use_new_zipfile_serialization=False)
    pickles = [pickle.dumps(Bomb(), protocol) for protocol in range(6)]
    for content in (*pickles, torch_file.getvalue(), old_torch_file.getvalue()):
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        with pytest.raises(
            CorruptFileError, match=r"model\.safetensors is not a whole safetensors"
        ):
            read_tensors(path)
    finetune(small_network(), data, config(epochs=1), tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(pickles[2])
    with pytest.warns(UserWarning, match="damaged"):
        finetune(small_network(), data, config(epochs=1), tmp_path / "run")


def test_files_that_are_no_tensors(tmp_path):
    with pytest.raises(CorruptFileError, match="does not exist"):
        read_tensors(tmp_path / "absent.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"hello there, this is text")
    with pytest.raises(CorruptFileError, match="not a whole safetensors"):
        read_tensors(tmp_path / "x.safetensors")
