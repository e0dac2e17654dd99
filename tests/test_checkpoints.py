"""Checkpoint folders: whole or not there, the last good one is used, strangers' files are left."""

from __future__ import annotations

import hashlib
import json
import pickle
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import config, few_images, small_network

from search_space.errors import CorruptFileError, RunError
from supernet.network.tensor_files import read_tensors
from supernet.training.checkpoints import (
    MARKER,
    METADATA,
    WEIGHTS,
    Checkpoint,
    CheckpointFolder,
)
from supernet.training.train import finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def checkpoint(step: int) -> Checkpoint:
    tensors = {"w": torch.arange(4.0) * step, "table": torch.eye(3)}
    optimizer = {"w/m": torch.ones(4)}
    return Checkpoint(step=step, weights=tensors, optimizer=optimizer, metadata={"note": step})


def written(directory: Path, steps=(1, 2, 3)) -> None:
    for step in steps:
        CheckpointFolder(directory).save(checkpoint(step))


def test_checkpoints_keep_two_and_round_trip(tmp_path):
    written(tmp_path)
    assert [path.name[:14] for path in sorted(tmp_path.iterdir())] == [
        "step-000000002",
        "step-000000003",
    ]
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    assert (found.step, found.metadata) == (3, {"note": 3})
    assert torch.equal(found.weights["w"], torch.arange(4.0) * 3)
    assert torch.equal(found.optimizer["w/m"], torch.ones(4))
    newest = max(tmp_path.iterdir())
    assert torch.equal(load_file(newest / "model.safetensors")["table"], torch.eye(3))
    assert CheckpointFolder(tmp_path / "nothing").newest() is None


def test_a_killed_write_leaves_no_checkpoint(tmp_path):
    written(tmp_path, [1])
    left = tmp_path / "step-000000002-0000"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    assert found.step == 1
    assert left.exists()  # it was only read
    assert CheckpointFolder(tmp_path).load() is not None
    assert not left.exists()


@pytest.mark.parametrize("scheme", ["", "file://", "memory://"])
def test_folders_of_all_kinds_keep_checkpoints(scheme, tmp_path):
    folder = CheckpointFolder(f"{scheme}{tmp_path}", "run")
    assert folder.is_local == (scheme != "memory://")
    folder.claim("token")
    elsewhere = pickle.loads(pickle.dumps(folder))
    assert elsewhere.is_shared("token")
    assert not elsewhere.is_shared("another")
    assert folder.newest() is None
    names = [folder.write(checkpoint(step)) for step in (5, 10, 10)]
    assert folder.names() == names[::-1]
    assert names == ["step-000000005-0000", "step-000000010-0000", "step-000000010-0001"]
    for name, step in zip(names, (5, 10, 10), strict=True):
        assert torch.equal(elsewhere.read(name).weights["w"], checkpoint(step).weights["w"])
    # as if one was still being written
    folder.filesystem.rm_file(f"{folder.path}/{names[2]}/{METADATA}")
    folder.filesystem.pipe_file(f"{folder.path}/{names[1]}/{WEIGHTS}", b"damaged")
    with pytest.raises(CorruptFileError, match="cut short or altered"):
        folder.read(names[1])
    with pytest.warns(UserWarning, match="cut short"):
        newest = folder.newest()
    assert newest is not None
    assert newest.name == names[0]
    folder.close()
    assert folder.names() == [names[1], names[0]]
    assert not folder.filesystem.exists(f"{folder.path}/{names[2]}")
    folder.close(0)
    assert not folder.filesystem.exists(f"{folder.path}/{MARKER}")


def test_a_folder_that_nothing_opens_is_refused(tmp_path):
    with pytest.raises(RunError, match="'nowhere://folder' cannot be opened"):
        CheckpointFolder("nowhere://folder", "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used"):
        CheckpointFolder(tmp_path / "file", "run").claim("token")


@pytest.mark.parametrize("name", ["run*", "run[12]", "run?"])
def test_a_pattern_is_no_name_where_it_stands_for_other_folders(tmp_path, name):
    with pytest.raises(RunError, match=rf"storage memory://.*has '\{name[3]}' in its path"):
        CheckpointFolder(f"memory://{tmp_path}", name)
    folder = CheckpointFolder(tmp_path, name)  # a name like others on this machine
    folder.save(checkpoint(1))
    assert len(folder.names()) == 1


def test_another_format_is_refused(tmp_path):
    written(tmp_path, [1])
    file = min(tmp_path.iterdir()) / METADATA
    content = json.loads(file.read_text())["content"] | {"format": 2}
    text = json.dumps(content, sort_keys=True)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps({"sha256": sha256, "content": content}))
    with pytest.raises(CorruptFileError, match="format=2"):
        CheckpointFolder(tmp_path).read(file.parent.name)


def test_what_this_tool_did_not_write_is_never_deleted(tmp_path):
    photo = tmp_path / "images" / "cats" / "1.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"photo")
    folder = CheckpointFolder(tmp_path, "images")
    with pytest.raises(RunError, match=r"/images is no folder .* holds 'cats'"):
        folder.claim("token")
    assert [path.name for path in tmp_path.rglob("*")] == ["images", "cats", "1.jpg"]
    folder.close(0)
    assert photo.read_bytes() == b"photo"
    (tmp_path / "empty").mkdir()
    CheckpointFolder(tmp_path, "empty").claim("token")
    # a folder of a single worker is continued by several, and one that was claimed by all
    written(tmp_path / "alone", [1])
    alone = CheckpointFolder(tmp_path / "alone")
    alone.claim("token")
    notes = tmp_path / "alone" / "notes.txt"
    notes.write_text("mine")
    (tmp_path / "alone" / "step-3").mkdir()
    alone.claim("again")
    alone.save(checkpoint(2))
    alone.close(0)
    assert sorted(path.name for path in notes.parent.iterdir()) == [MARKER, "notes.txt", "step-3"]


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
        CheckpointFolder(tmp_path).read(file.parent.name)
    absent = name == METADATA and damage == "remove"  # as if it was still being written
    with nullcontext() if absent else pytest.warns(UserWarning, match="damaged"):
        found = CheckpointFolder(tmp_path).newest()
    assert found is not None
    assert found.step == 2


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a pickle was loaded')",))


def test_a_pickle_in_disguise_is_not_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    for protocol in range(6):
        path.write_bytes(pickle.dumps(Bomb(), protocol))
        with pytest.raises(CorruptFileError, match="not a whole safetensors file"):
            read_tensors(path)
    data = few_images()
    finetune(small_network(), data, config(epochs=1), tmp_path / "run")
    newest = max((tmp_path / "run" / "checkpoints").iterdir())
    (newest / "model.safetensors").write_bytes(pickle.dumps(Bomb(), 2))
    with pytest.warns(UserWarning, match="altered"):
        finetune(small_network(), data, config(epochs=1), tmp_path / "run")


def test_files_that_are_no_tensors(tmp_path):
    with pytest.raises(CorruptFileError, match="does not exist"):
        read_tensors(tmp_path / "absent.safetensors")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CorruptFileError, match=r"empty\.pth is not a readable tensor file"):
        read_tensors(tmp_path / "empty.pth")
    (tmp_path / "x.safetensors").write_bytes(b"hello there, this is text")
    with pytest.raises(CorruptFileError, match="not a whole safetensors"):
        read_tensors(tmp_path / "x.safetensors")
