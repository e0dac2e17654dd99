"""What do the ways of making a network int8 lose?

Trained float networks, made int8 by each way, are compared with what they were on images that
neither ranges nor biases have seen:

- ``lite0``: EfficientNet-Lite0 with its published ImageNet weights and a classifier of CIFAR-10
  alone, at 64 px: convolutions with ReLU6, which allow no preparation;
- ``windows``: window attention and a convolution behind layer norms, trained on digits in seconds;
- ``uneven``: the same, with scales of its norms made uneven, exactly in float, as those of large
  transformers are.

Reported are accuracy, mean relative error of the logits, the share of images whose class stays and
the seconds that making it took, by way to find ranges, preparation, and with biases corrected or
not; and, without preparation, after one epoch of training in int8.

    python benchmarks/quantisers.py --data FOLDER

``FOLDER`` holds CIFAR-10 as ``train.parquet`` and ``test.parquet``. It takes three minutes of one
core. Figures go to ``benchmarks/results/quantisers.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pretrained_setup import CLASSES, NAME, images, published_weights, store_images
from quality_table import parent_architecture, trained

from search_space.precision import in_precision
from supernet import Backbone, build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.adaptation import fit_classifier
from supernet.inherit.parents import find_parent
from supernet.network.layers import fold_batch_norms
from supernet.quantisation.calibration import quantised_network
from supernet.quantisation.preparations import PREPARATIONS
from supernet.quantisation.preparations.pairs import pairs_of
from supernet.quantisation.ranges import RANGES
from supernet.training.config import TrainConfig
from supernet.training.quantised_training import train_quantised

RESULTS = Path(__file__).parent / "results" / "quantisers.json"
SIDE, TRAIN, TEST, CALIBRATION = 64, 2560, 500, 256
UNEVEN = 1.5  # standard deviation of the logarithms of scales
QAT = TrainConfig(epochs=1, lr=1e-5, warmup_epochs=0.2, batch_size=64, weight_decay=0.0)


def batches(split: Any, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    pictures, labels = zip(*eval_batches(split, 64, limit=limit), strict=True)
    return torch.cat(pictures), torch.cat(labels)


def lite0(folder: Path) -> tuple[Backbone, ImageData]:
    theirs, data = find_parent(NAME, published_weights()).load(), images(folder, SIDE, 0)
    network = build(replace(theirs.architecture, resolution=SIDE), theirs.num_classes)
    network.load_state_dict(theirs.state_dict())
    fit_classifier(network, eval_batches(data.train, 128), CLASSES)
    return fold_batch_norms(network), data


def windows(uneven: bool = False) -> tuple[Backbone, ImageData]:
    data = open_data("digits", 16, validation_fraction=0.2)
    network = trained(parent_architecture("windows"), batches(data.train, 10**6), 0)
    torch.manual_seed(0)
    paths = [name for name, _ in network.named_modules()]
    for pair in pairs_of(network.eval(), paths, [batches(data.train, 8)[0]]) if uneven else ():
        pair.divide(torch.exp(UNEVEN * torch.randn(len(pair.low))))
    return network, data


class Judge:
    """Compares networks with a float one on test images."""

    def __init__(self, network: Backbone, data: ImageData) -> None:
        self.images, self.labels = batches(data.test, TEST)
        self.wanted = self._logits(network)

    @torch.no_grad()
    def _logits(self, network: Backbone) -> torch.Tensor:
        return torch.cat([network.eval()(part) for part in self.images.split(100)])

    def __call__(self, network: Backbone) -> dict[str, float]:
        logits = self._logits(network)
        error = (logits - self.wanted).norm() / self.wanted.norm()
        classes = logits.argmax(1)
        return {
            "accuracy": round(float((classes == self.labels).float().mean()), 4),
            "logit_error": round(float(error), 4),
            "same_class": round(float((classes == self.wanted.argmax(1)).float().mean()), 4),
        }


def ways() -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Ranges, preparations and whether biases are corrected; each with the others' simplest."""
    for how in RANGES.names():
        yield how, (), False
    for name in PREPARATIONS.names():
        yield "min_max", (name,), False
    yield "min_max", (), True
    for how in RANGES.names():
        if how != "cross_entropy":
            yield how, ("smooth",), True


def compare(network: Backbone, data: ImageData) -> dict[str, dict[str, float]]:
    judge = Judge(network, data)
    calibration = list(batches(data.train, CALIBRATION)[0].split(64))
    architecture = in_precision(network.architecture, "int8")
    rows = {"float": judge(network)}
    for how, prepare, correct in ways():
        begin = time.perf_counter()
        result = quantised_network(
            network, architecture, calibration, how, prepare=prepare, correct=correct
        )
        seconds = round(time.perf_counter() - begin, 1)
        name = " + ".join([how, *prepare, *(["corrected"] if correct else [])])
        rows[name] = judge(result) | {"seconds": seconds}
        print(name, rows[name], flush=True)
    begin = time.perf_counter()
    result = quantised_network(network, architecture, calibration, prepare=())
    train_quantised(result, copy.deepcopy(network), data, QAT)
    rows["trained"] = judge(result) | {"seconds": round(time.perf_counter() - begin, 1)}
    print("trained", rows["trained"], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{"calibration_images": CALIBRATION, "test_images": TEST},
    }
    results["windows"] = compare(*windows())
    results["uneven"] = compare(*windows(uneven=True))
    with TemporaryDirectory() as folder:
        out = Path(folder)
        store_images(Namespace(out=out, data=data, images=TRAIN, test_images=TEST))
        results["lite0"] = compare(*lite0(out))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
