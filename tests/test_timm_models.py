"""Which of timm's networks an architecture is, and exports that plain timm loads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm_pairs import PAIRS, QUICK, randomised

from results.export.card import ModelCard
from results.export.write import export_network, read_export
from search_space import Architecture, Block, Mixer, Stage, known, metaformer
from search_space.errors import NasError
from search_space.known import CONVNEXT, FOCALNET, POOLFORMER, SWIN, SWINV2
from search_space.known_convolutional import (
    EFFICIENTNET_LITE,
    MOBILENETV3_SMALL,
    RESNET,
    RESNET_D,
)
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.network.timm_models import timm_model, to_timm
from supernet.network.timm_weights import from_timm


def point(macro, resolution: int, *stages: tuple[int, list[Block]]) -> Architecture:
    return Architecture(macro, resolution, tuple(Stage(w, tuple(b)) for w, b in stages))


def four(macro, resolution: int, block, widths=(16, 32, 64, 128)) -> Architecture:
    return point(macro, resolution, *((w, [block] * (1 + i % 2)) for i, w in enumerate(widths)))


def inverted(**params) -> Block:
    return Block.of("inverted_residual", **params)


SKIP = Block.of("skip")
POINTS = {
    "convnext": four(CONVNEXT, 64, metaformer(Mixer.of("depthwise_conv", kernel=5))),
    "swin": four(SWIN, 224, metaformer(Mixer.of("window_attention", window=7, head_dim=8), 2.0)),
    "swin-fewer-heads": four(
        SWIN,
        224,
        metaformer(Mixer.of("window_attention", window=7, head_dim=8, head_ratio=0.5), 2.0),
    ),
    "swinv2": four(
        SWINV2,
        96,
        metaformer(
            Mixer.of("cosine_window_attention", window=5, head_dim=8, trained=8),
            2.0,
            res_post_norm=True,
        ),
    ),
    "focalnet": four(FOCALNET, 64, metaformer(Mixer.of("focal_modulation", levels=3), 3.0)),
    "poolformer": four(POOLFORMER, 64, metaformer(Mixer.of("pooling"))),
    "resnet": four(RESNET, 64, Block.of("basic"), (64, 32, 48, 64)),
    "resnet-d": four(RESNET_D, 64, Block.of("bottleneck"), (64, 128, 192, 256)),
    "efficientnet-lite": point(
        EFFICIENTNET_LITE,
        75,
        (8, [Block.of("depthwise_separable"), SKIP, inverted(expansion=3, activation="silu")]),
        (24, [inverted(expansion=3, kernel=5), inverted(expansion=4)]),
        (32, [Block.of("fused_inverted_residual", expansion=2)]),
    ),
    "mobilenetv3": point(
        MOBILENETV3_SMALL,
        64,
        (16, [Block.of("depthwise_separable", activation="relu")]),
        (24, [inverted(expansion=3, squeeze=0.7, gate="hard_sigmoid", activation="hard_swish")]),
    ),
}


@pytest.mark.parametrize("name", QUICK)
def test_known_designs_and_back(name: str) -> None:
    architecture = known(name)
    model = timm_model(architecture)
    assert model is not None
    assert (model.name, dict(model.arguments)) == (PAIRS[name], {})
    with torch.device("meta"):
        theirs = timm.create_model(PAIRS[name], num_classes=3)
    ours = randomised(build(architecture, 3), seed=1)
    state = to_timm(ours)
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    again = from_timm(state, ours)
    assert all(torch.equal(again[key], value) for key, value in ours.state_dict().items())


@pytest.mark.parametrize("name", POINTS)
def test_points_that_timm_can_express(name: str) -> None:
    architecture = POINTS[name]
    model = timm_model(architecture)
    assert model is not None
    ours = randomised(build(architecture, 5), seed=1)
    theirs = model.build(5).eval()
    theirs.load_state_dict(to_timm(ours))
    images = torch.randn(1, 3, architecture.resolution, architecture.resolution)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "architecture",
    [
        known("hornet_t"),
        four(replace(CONVNEXT, downsample="conv_norm"), 64, POINTS["convnext"].stages[0].blocks[0]),
        four(CONVNEXT, 64, metaformer(Mixer.of("depthwise_conv", kernel=5), 2.0)),
        four(RESNET, 64, Block.of("basic", ratio=0.5)),
        four(SWIN, 64, metaformer(Mixer.of("window_attention", window=7, head_dim=8))),
        four(SWIN, 224, POINTS["swin"].stages[0].blocks[0].replaced(res_post_norm=True)),
        four(SWINV2, 96, POINTS["swinv2"].stages[0].blocks[0].replaced(res_post_norm=False)),
        replace(known("maxvit_t"), resolution=448),
        four(
            SWIN,
            224,
            metaformer(
                Mixer.of("window_attention", window=7, head_dim=8, normaliser="scaling"), 2.0
            ),
        ),
    ],
    ids=[
        *("mixer", "transition", "mlp", "inner width", "small maps"),
        *("norm after", "norm before", "windows of the image", "normaliser"),
    ],
)
def test_what_timm_cannot_express(architecture: Architecture) -> None:
    assert timm_model(architecture) is None
    with torch.device("meta"), pytest.raises(NasError, match="no network of timm's own"):
        to_timm(build(architecture, 3))


_ALONE = """
import runpy, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
folder = Path(sys.argv[1])
models = [runpy.run_path(str(folder / "plain_timm" / "model.py"))["model"]]
if (folder / "plain_timm" / "config.json").exists():
    import timm
    models.append(timm.create_model(f"local-dir:{folder}/plain_timm", pretrained=True).eval())
images = load_file(sys.argv[2])["images"]
with torch.inference_mode():
    save_file({f"logits{i}": m(images).clone() for i, m in enumerate(models)}, sys.argv[3])
ours = {"nas", "results", "search", "predictors", "supernet", "search_space"}
assert not ours & {name.partition(".")[0] for name in sys.modules}, "not alone"
"""


@pytest.mark.parametrize(("name", "ways"), [("resnet", 2), ("efficientnet-lite", 1)])
def test_export_is_loaded_without_this_package(name: str, ways: int, tmp_path: Path) -> None:
    architecture = POINTS[name]
    side = architecture.resolution
    network = randomised(build(architecture, 4), seed=2)
    exported = export_network(
        network,
        tmp_path / "out",
        preprocessing=Preprocessing(resolution=side),
        card=ModelCard(title="A test"),
        formats=("timm", "plain_timm"),
    )
    assert [item.format for item in exported] == ["timm", "plain_timm"]
    assert read_export(tmp_path / "out") == tuple(exported)
    assert "plain_timm" in (tmp_path / "out" / "README.md").read_text()
    images = torch.randn(2, 3, side, side)
    given, got = tmp_path / "images.safetensors", tmp_path / "logits.safetensors"
    save_file({"images": images}, given)
    command = [sys.executable, "-c", _ALONE, tmp_path / "out", given, got]
    subprocess.run(command, check=True, cwd=tmp_path)
    found = load_file(got)
    assert len(found) == ways
    with torch.inference_mode():
        expected = network(images)
    for logits in found.values():
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    if ways == 2:
        config = json.loads((tmp_path / "out" / "plain_timm" / "config.json").read_text())
        assert config["pretrained_cfg"]["classifier"] == "fc"
