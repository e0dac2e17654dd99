"""External teachers: local weights only, the same logits as the network alone, clear refusals."""

from __future__ import annotations

import hashlib
import json
import pickle
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_backbone import images, network, small
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Normalize

from results.export.card import ModelCard
from results.export.write import export_network
from search_space.errors import CorruptFileError, DataError, UsageError
from search_space.preprocessing import Preprocessing
from supernet.data.batches import Batch
from supernet.training.objectives import distillation_loss
from supernet.training.teachers import load_teacher

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
STATISTICS: dict[str, Any] = {"data": Preprocessing(resolution=24, mean=MEAN, std=STD)}
EXPORT_MEAN, EXPORT_STD = (0.1, 0.2, 0.3), (0.9, 0.8, 0.7)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whoever opens a connection fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def model(name: str, classes: int = 10, **options: Any) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=classes, **options).eval()


def saved(folder: Path, module: nn.Module, name: str = "weights.safetensors") -> Path:
    save_file(
        {key: value.contiguous() for key, value in module.state_dict().items()}, folder / name
    )
    return folder / name


def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(2))


def expected_logits(module: nn.Module, side: int, mean, std) -> torch.Tensor:
    """From pixels in 0..1, as the network's own preprocessing has it."""
    resized = F.interpolate(pixels(), (side, side), mode="bilinear", antialias=True)
    with torch.no_grad():
        return module(Normalize(mean, std)(resized))


def data_images() -> torch.Tensor:
    return Normalize(MEAN, STD)(pixels())


@pytest.mark.parametrize(
    "name", ["test_resnet.r160_in1k", "test_convnext", "test_vit", "test_vit2"]
)
def test_a_timm_teacher_gives_its_own_logits(tmp_path, name):
    own = model(name)
    path = saved(tmp_path, own)
    teacher = load_teacher(name, 10, path, **STATISTICS)
    config = own.pretrained_cfg
    assert teacher.resolution == config["input_size"][-1]
    wanted = expected_logits(own, teacher.resolution, config["mean"], config["std"])
    torch.testing.assert_close(teacher(data_images()), wanted, atol=1e-4, rtol=1e-4)
    assert teacher.identity == {
        "name": name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "resolution": teacher.resolution,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
    assert json.loads(json.dumps(teacher.identity)) == teacher.identity
    assert "state_dict" not in teacher.network.pretrained_cfg


def test_a_teacher_never_changes_and_teaches_with_gradient(tmp_path):
    own = model("test_resnet")  # has batch norm
    teacher = load_teacher("test_resnet", 10, saved(tmp_path, own), **STATISTICS)
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    student = nn.Linear(3 * 24 * 24, 10)
    batch = Batch(data_images(), torch.zeros(3, dtype=torch.int64), torch.arange(3), 0)
    wanted = teacher.logits(batch)
    assert torch.equal(wanted, teacher(batch.images))
    assert not wanted.requires_grad
    distillation_loss(student(batch.images.flatten(1)), wanted).backward()
    assert student.weight.grad is not None
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert all(
        torch.equal(value, before[key]) for key, value in teacher.network.state_dict().items()
    )


def test_torch_files_are_read_without_running_their_code(tmp_path):
    own = model("test_resnet")
    torch.save({"model": own.state_dict()}, tmp_path / "weights.pth")
    teacher = load_teacher("test_resnet", 10, tmp_path / "weights.pth", **STATISTICS)
    config = own.pretrained_cfg
    wanted = expected_logits(own, teacher.resolution, config["mean"], config["std"])
    torch.testing.assert_close(teacher(data_images()), wanted, atol=1e-4, rtol=1e-4)


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_pickles_are_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(_Bomb(), protocol=2))
    with pytest.raises(CorruptFileError, match=f"{name} is .*safetensors"):
        load_teacher("test_resnet", 10, name, **STATISTICS)
    assert not Path("exploded").exists()


# Exports ---------------------------------------------------------------------------------


@pytest.fixture
def export(tmp_path) -> Path:
    export_network(
        network(),
        tmp_path / "export",
        preprocessing=Preprocessing(resolution=32, mean=EXPORT_MEAN, std=EXPORT_STD),
        card=ModelCard(title="test"),
        formats=["timm"],
    )
    return tmp_path / "export"


def test_an_export_teaches(export):
    teacher = load_teacher(str(export), 7, **STATISTICS)
    wanted = expected_logits(network(), 32, EXPORT_MEAN, EXPORT_STD)
    torch.testing.assert_close(teacher(data_images()), wanted, atol=1e-5, rtol=1e-5)
    assert teacher.identity["name"] == f"nas_backbone {small().digest}"


def test_an_export_of_which_only_two_files_are_left_teaches(export):
    (export / "verified.json").unlink()
    assert load_teacher(str(export), 7, **STATISTICS)(data_images()).shape == (3, 7)


def change_config(export: Path, **changes: Any) -> None:
    config = json.loads((export / "config.json").read_text())
    (export / "config.json").write_text(json.dumps(config | changes))


def test_damaged_exports_are_refused(export):
    path = export / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"model\.safetensors was cut short or altered"):
        load_teacher(str(export), 7, **STATISTICS)
    (export / "verified.json").write_text("{}")
    with pytest.raises(CorruptFileError, match=r"verified\.json: sha256.*nas export"):
        load_teacher(str(export), 7, **STATISTICS)
    change_config(export, digest="0" * 12)
    with pytest.raises(CorruptFileError, match="digest"):
        load_teacher(str(export), 7, **STATISTICS)
    change_config(export, architecture="resnet18")
    with pytest.raises(UsageError, match=r"of 'resnet18', not an export.*as its weights"):
        load_teacher(str(export), 7, **STATISTICS)
    (export / "config.json").unlink()
    with pytest.raises(CorruptFileError, match=r"config\.json does not exist"):
        load_teacher(str(export), 7, **STATISTICS)


def test_weights_of_another_export_are_refused(export):
    (export / "verified.json").unlink()
    saved(export, network("convnext"), "model.safetensors")
    with pytest.raises(CorruptFileError, match=r"does not hold the weights of .*nas export"):
        load_teacher(str(export), 7, **STATISTICS)


# What a user can get wrong ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_another_number_of_classes_is_refused(tmp_path, name):
    path = saved(tmp_path, model(name, classes=1000))
    with pytest.raises(DataError, match=r"for 1000 classes, the data has 10;.*fine-tune it"):
        load_teacher(name, 10, path, **STATISTICS)


def test_another_number_of_classes_of_an_export_is_refused(export):
    with pytest.raises(DataError, match=r"for 7 classes, the data has 10;.*fine-tune it"):
        load_teacher(str(export), 10, **STATISTICS)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"'resnet5O'.*Nearest in timm: .*resnet50"):
        load_teacher("resnet5O", 10, "weights.safetensors", **STATISTICS)
    for elsewhere in ("hf-hub:timm/resnet18.a1_in1k", "local-dir:somewhere", "no/such/folder"):
        with pytest.raises(UsageError, match="must be a model of timm's or an existing folder"):
            load_teacher(elsewhere, 10, "weights.safetensors", **STATISTICS)


def test_weights_must_be_given_once(export):
    with pytest.raises(UsageError, match="none are downloaded; give the path"):
        load_teacher("test_resnet", 10, **STATISTICS)
    with pytest.raises(UsageError, match="leave one of them out"):
        load_teacher(str(export), 7, export / "model.safetensors", **STATISTICS)


def test_unusable_weights_are_refused(tmp_path):
    with pytest.raises(CorruptFileError, match=r"missing\.safetensors does not exist; give"):
        load_teacher("test_resnet", 10, tmp_path / "missing.safetensors", **STATISTICS)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CorruptFileError, match="no tensors"):
        load_teacher("test_resnet", 10, tmp_path / "empty.safetensors", **STATISTICS)
    other = saved(tmp_path, model("test_convnext"))
    for name in ("test_resnet", "test_vit"):
        with pytest.raises(CorruptFileError, match=f"do not fit {name} .*; give a checkpoint"):
            load_teacher(name, 10, other, **STATISTICS)
    own = saved(tmp_path, model("test_resnet"))
    with pytest.raises(UsageError, match=r"no_such_tag.*test_resnet\.r160_in1k; take one"):
        load_teacher("test_resnet.no_such_tag", 10, own, **STATISTICS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_teacher_on_a_gpu_runs_in_bfloat16_and_answers_in_float32(tmp_path):
    path = saved(tmp_path, model("test_vit"))
    exact = load_teacher("test_vit", 10, path, **STATISTICS)(images(8, 3, 24, 24))
    teacher = load_teacher("test_vit", 10, path, **STATISTICS, device="cuda")
    found = teacher(images(8, 3, 24, 24))
    assert (found.device.type, found.dtype) == ("cuda", torch.float32)
    assert not torch.equal(found.cpu(), exact)
    torch.testing.assert_close(found.cpu(), exact, atol=0.1, rtol=0.1)
