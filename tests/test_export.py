"""Exports: every format of every space reproduces the subnet; damage is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from predictors.measuring.runtimes.onnx_graph import to_onnx
from results.export import OPSETS
from results.export.card import ModelCard
from results.export.formats import FILES, write_onnx
from results.export.write import export_network, read_export
from search_space import Architecture, Mixer, Stage, load_space, metaformer
from search_space.errors import CorruptFileError, ExportError, UsageError
from search_space.preprocessing import Preprocessing
from supernet import Supernet, build

CARD = ModelCard(title="test", class_names=[f"class {i}" for i in range(5)])


def one_of_each_mixer(shifted_map: int = 24) -> Architecture:
    """Padded, shifted and global windows beside every other mixer, on small maps."""
    macro = load_space("digits").macro
    attention = Mixer.of("window_attention", window=4, head_dim=8)
    stages = (
        Stage(
            16,
            (
                metaformer(attention, 2),
                metaformer(attention, 2),
                metaformer(Mixer.of("pooling"), 2),
            ),
        ),
        Stage(24, (metaformer(Mixer.of("focal_modulation"), 2), metaformer(attention, 2))),
        Stage(32, (metaformer(attention, 2), metaformer(Mixer.of("gnconv"), 2))),
        Stage(32, (metaformer(Mixer.of("depthwise_conv"), 2), metaformer(attention, 2))),
    )
    return Architecture(macro, shifted_map, stages)


@pytest.mark.parametrize(
    "side", [16, *(pytest.param(side, marks=pytest.mark.slow) for side in (24, 30))]
)
def test_all_mixers_in_all_formats(tmp_path: Path, side: int) -> None:
    architecture = one_of_each_mixer(side)
    network = build(architecture, 5)
    exported = export_network(
        network, tmp_path / "out", preprocessing=Preprocessing(resolution=side), card=CARD
    )
    assert [item.format for item in exported] == ["timm", "onnx", "torch_export"]
    assert read_export(tmp_path / "out") == tuple(exported)
    assert network.training  # left as it was
    images = np.random.default_rng(0).normal(size=(7, 3, side, side)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", 3, side, side]
    assert session.get_outputs()[0].shape == ["batch", 5]
    (actual,) = session.run(None, {"images": images})
    with torch.inference_mode():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_openvino_loads_all_mixers(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    network, path = build(one_of_each_mixer(), 5).eval(), tmp_path / "model.onnx"
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    write_onnx(network, images[:1], path, OPSETS[-1])
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (actual,) = compiled(images.numpy()).values()
    with torch.inference_mode():
        expected = network(images).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_exported_subnet_is_the_supernets_subnet(tmp_path: Path) -> None:
    space = load_space("digits")
    supernet = Supernet(space, 5).eval()
    (architecture,) = space.decode(space.sample(np.random.default_rng(1), 1))
    export_network(
        supernet.extract(architecture),
        tmp_path / "out",
        preprocessing=Preprocessing(resolution=architecture.resolution),
        card=CARD,
        reference=lambda images: supernet(images, architecture),
    )
    side = architecture.resolution
    script = (
        "import nas.timm, timm, torch, sys\n"
        f"model = timm.create_model('local-dir:{tmp_path / 'out'}', pretrained=True).eval()\n"
        f"images = torch.randn(2, 3, {side}, {side}, generator=torch.Generator().manual_seed(5))\n"
        "print(model(images).tolist())\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.getcwd()},
    ).stdout
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        expected = supernet(images, architecture)
    torch.testing.assert_close(torch.tensor(json.loads(printed)), expected, atol=1e-4, rtol=0)


def test_a_format_that_computes_something_else_fails_the_export(tmp_path: Path) -> None:
    network = build(one_of_each_mixer(), 5)
    previous = tmp_path / "out"
    previous.mkdir()
    (previous / "verified.json").write_text("of an earlier export")
    with pytest.raises(ExportError, match=r"differ from the network's by .*, more than"):
        export_network(
            network,
            previous,
            preprocessing=Preprocessing(resolution=24),
            card=CARD,
            reference=lambda images: network(images) + 0.01,
            formats=["timm"],
        )
    assert (previous / "verified.json").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [FILES["timm"], "config.json", "README.md"])
def test_a_file_that_was_cut_short_is_found(tmp_path: Path, name: str) -> None:
    network = build(one_of_each_mixer(), 5)
    out = tmp_path / "out"
    settings = Preprocessing(resolution=24)
    export_network(network, out, preprocessing=settings, card=CARD, formats=["timm"])
    data = (out / name).read_bytes()
    (out / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptFileError, match=f"{name} was altered or cut short.*nas export"):
        read_export(out)
    export_network(network, out, preprocessing=settings, card=CARD, formats=["timm"])
    assert read_export(out)


def test_half_written_export_does_not_look_finished(tmp_path: Path) -> None:
    leftover = tmp_path / ".out.nas.partial"
    leftover.mkdir()
    (leftover / FILES["onnx"]).write_bytes(b"half")
    of_others = tmp_path / ".out.partial"
    of_others.write_text("years of work")
    with pytest.raises(CorruptFileError, match="no complete export"):
        read_export(tmp_path / "out")
    network = build(one_of_each_mixer(), 5)
    settings = Preprocessing(resolution=24)
    export_network(network, tmp_path / "out", preprocessing=settings, card=CARD, formats=["timm"])
    assert not leftover.exists()
    assert of_others.exists()


def test_model_card_says_how_to_load_and_what_goes_in(tmp_path: Path) -> None:
    network = build(one_of_each_mixer(), 5)
    export_network(
        network,
        tmp_path / "out",
        preprocessing=Preprocessing(resolution=24, mean=(0.1, 0.2, 0.3), std=(1, 1, 1)),
        card=CARD,
        formats=["timm"],
    )
    text = (tmp_path / "out" / "README.md").read_text()
    for expected in (
        "(batch, 3, 24, 24)",
        "0.1000, 0.2000, 0.3000",
        "class 4",
        "timm.create_model",
    ):
        assert expected in text


def test_a_folder_that_is_no_export_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match="exists and is no export"):
        export_network(
            build(one_of_each_mixer(), 5),
            tmp_path,
            preprocessing=Preprocessing(resolution=24),
            card=CARD,
        )
    assert (tmp_path / "notes.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["/dev/zero", "../model.onnx", "pipe"])
def test_a_manifest_that_names_no_file_of_the_export_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "verified.json").write_text(json.dumps({"exports": [], "sha256": {name: "0" * 64}}))
    with pytest.raises(CorruptFileError, match=r"no name of a folder|is a pipe"):
        read_export(tmp_path)


@pytest.mark.parametrize("opset", [None, *OPSETS])
def test_an_export_has_the_operators_that_a_runtime_knows(
    tmp_path: Path, opset: int | None
) -> None:
    """By default those that modules are measured with: a board that ran these loads it."""
    network = build(one_of_each_mixer(16), 5)
    settings = Preprocessing(resolution=16)
    more = {} if opset is None else {"opset": opset}
    export_network(
        network, tmp_path / "e", preprocessing=settings, card=CARD, formats=["onnx"], **more
    )
    model = onnx.load(tmp_path / "e" / "model.onnx")
    onnx.checker.check_model(model)
    measured = to_onnx(network.stem, torch.zeros(1, 3, 16, 16))
    expected = measured.opset_import[0].version if opset is None else opset
    assert [(item.domain, item.version) for item in model.opset_import] == [("", expected)]
    if opset is None:
        assert model.ir_version == measured.ir_version <= 8
    kinds = {node.op_type for node in model.graph.node}
    assert "Gelu" not in kinds or expected >= 20
    assert "LayerNormalization" not in kinds or expected >= 17
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["images"] == "float32, (batch, 3, 16, 16); height and width are fixed"
    assert facts["digest"] == network.architecture.digest
    assert "must be 16 px high and wide" in (tmp_path / "e" / "README.md").read_text()
