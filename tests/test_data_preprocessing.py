"""What an export says of its preprocessing are the pixels that accuracy was judged on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from results.export.card import ModelCard
from results.export.write import export_network
from search_space import Architecture, load_space
from supernet import build
from supernet.data.augmentation import AugmentConfig
from supernet.data.batches import train_loader
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches


def wide_images(root: Path) -> str:
    rng = np.random.default_rng(0)
    for label in ("left", "right"):
        (root / label).mkdir(parents=True)
        for index in range(6):
            coarse = Image.fromarray(rng.integers(0, 255, (5, 9, 3), dtype=np.uint8))
            coarse.resize((150, 110), Image.Resampling.BICUBIC).save(root / label / f"{index}.png")
    return str(root)


def transformed(data: ImageData, config: dict[str, object]) -> torch.Tensor:
    """Validation images by the transform that timm makes of a ``pretrained_cfg``."""
    known = timm.data.resolve_data_config({}, pretrained_cfg=config)
    transform = timm.data.create_transform(**known, is_training=False)
    split = data.validation
    return torch.stack([transform(split.raw.image(int(index))) for index in split.indices])


@pytest.mark.parametrize("fit", ["crop", "squeeze", "pad"])
@pytest.mark.parametrize(("opened", "side"), [(96, 96), (24, 24), (24, 16), (96, 48)])
def test_timm_gives_the_pixels_that_were_judged(tmp_path, fit, opened, side):
    data = open_data(wide_images(tmp_path), opened, fit=fit).at(side)
    judged, _ = next(iter(eval_batches(data.validation)))
    assert judged.shape[2:] == (side, side)
    assert torch.allclose(judged, transformed(data, data.preprocessing.timm()), atol=1e-5)
    ends = np.asarray(data.validation.raw.image(int(data.validation.indices[0])))[:, :8]
    pixels = data.validation.pixels(0)
    if fit == "pad":  # bars of the mean above and below, and nothing cut off
        assert np.ptp(pixels[0].reshape(-1, 3), axis=0).max() == 0
    if fit != "crop":
        assert np.abs(pixels[side // 2, 0] - ends[55].mean(0)).max() < 60


def test_training_sees_whole_images_where_they_are_judged_whole(tmp_path):
    """At both ends of every image is a stripe that a crop of its centre lacks."""
    source = wide_images(tmp_path)
    for file in tmp_path.rglob("*.png"):
        image = Image.open(file).resize((400, 100))
        for left in (0, 360):
            image.paste("white", (left, 0, left + 40, 100))
        image.save(file)
    augment = AugmentConfig(crop="resize", scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    for fit, seen in (("crop", False), ("squeeze", True), ("pad", True)):
        data = open_data(source, 96, fit=fit)
        images = next(train_loader(data, 4, 0, 0, augment=augment)).images
        white = (1 - torch.tensor(data.preprocessing.mean)) / torch.tensor(data.preprocessing.std)
        ends = images[:, :, 45:51, [0, 1, -2, -1]].mean((2, 3))
        assert bool(((ends - white).abs() < 0.2).all()) == seen


def test_an_export_holds_them(tmp_path):
    data = open_data(wide_images(tmp_path / "images"), 96)
    plain = load_space("tiny").smallest.to_dict() | {"resolution": 96}
    network = build(Architecture.from_dict(plain), data.num_classes)
    export_network(
        network,
        tmp_path / "out",
        preprocessing=data.preprocessing,
        card=ModelCard(title="a"),
        formats=("timm",),
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    judged, _ = next(iter(eval_batches(data.validation)))
    assert config["crop_pct"] == 0.9
    assert torch.allclose(judged, transformed(data, config), atol=1e-5)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Scale the shorter side to 106 px and cut out 96 × 96 px in the centre" in text
