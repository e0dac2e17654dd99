"""Do networks stitched of two trained ones lie above the line between them?

Two parents of one family, about 1 : 2 in multiply-adds, are trained on some images of CIFAR-10 (on
``digits`` both end alike, and there is no line to be above). All networks of one or two stitches
between them are then judged three ways: with layers fitted by least squares to 128 training images
and nothing else, after a short joint training of all, and after one with low-rank stitches. At ten
evenly spaced costs the network with the best validation accuracy that costs no more is compared,
on test images, with the line from one parent to the other in multiply-adds and accuracy: the
parents as they are now, and as they were before the joint training.

    python benchmarks/stitching.py CIFAR [--epochs 12] [--joint-epochs 4] [--seeds 2]
    python benchmarks/stitching.py CIFAR --joint-epochs 16 --joint-lr 2e-3 --out stitching_longer

CIFAR is a folder with ``train.parquet`` and ``test.parquet``. Two seeds take about ten minutes of a
core. Figures go to ``benchmarks/results/stitching.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import torch

from predictors.counts import count_architecture
from search.stitching import StitchedPoint, judge_routes
from search_space import Architecture, Macro, Mixer, Stage, metaformer
from search_space.stitches import Route, one_way, two_way
from supernet import build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.stitching.network import StitchedNet
from supernet.inherit.stitching.training import train_stitched
from supernet.network.backbone import Backbone
from supernet.training.recalibration import calibration_batches
from supernet.training.train import TrainConfig, evaluate, finetune

MACRO = Macro(stem_kernel=2, stem_stride=2, downsample="norm_conv")
DEPTHS = (2, 2, 6, 2)
WIDTHS = {"small": (8, 12, 16, 24), "large": (12, 18, 24, 36)}
MIXER = Mixer.of("depthwise_conv", kernel=3)
FITTED_TO = 128  # images
POINTS = 10
TRAINED_ON, CHOSEN_BY, JUDGED_ON = 8000, 2000, 2000

Judged = list[tuple[StitchedPoint, StitchedPoint]]
"""Each network on validation images and on test images."""


def parent(widths: Sequence[int], side: int) -> Architecture:
    block = metaformer(MIXER, 2)
    stages = tuple(Stage(w, (block,) * d) for w, d in zip(widths, DEPTHS, strict=True))
    return Architecture(MACRO, side, stages)


def macs(architecture: Architecture) -> float:
    return float(count_architecture(architecture, 10)["macs"])


def some_images(source: Path, folder: Path, side: int) -> ImageData:
    """The first images of each file, in a folder of their own."""
    for name, count in (("train", TRAINED_ON + CHOSEN_BY), ("test", JUDGED_ON)):
        table = parquet.read_table(source / f"{name}.parquet").slice(0, count)
        parquet.write_table(table, folder / f"{name}.parquet")
    share = CHOSEN_BY / (TRAINED_ON + CHOSEN_BY)
    return open_data(str(folder), side, validation_fraction=share)


def config_of(epochs: int, lr: float, seed: int) -> TrainConfig:
    return TrainConfig(
        epochs=epochs, lr=lr, batch_size=128, warmup_epochs=1, seed=seed, patience=0, evaluations=1
    )


def above(points: Judged, ends: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What is best at or below ten costs between the parents, and how far the line is below it.

    Args:
        points: All networks.
        ends: Cost and accuracy of the small and the large parent.
    """
    (least, low), (most, high) = ends
    costs = np.linspace(least, most, POINTS + 2)[1:-1]
    found = []
    for cost in costs:
        affordable = [(v.quality.accuracy, -v.quality.loss, t) for v, t in points if v.cost <= cost]
        found.append(max(affordable, key=lambda entry: entry[:2])[2].quality.accuracy)
    margins = np.array(found) - (low + (high - low) * (costs - least) / (most - least))
    return {
        "macs": [round(cost) for cost in costs],
        "accuracy": [round(value, 4) for value in found],
        "margin": [round(float(value), 4) for value in margins],
        "points_above": int((margins > 0).sum()),
        "mean_margin": round(float(margins.mean()), 4),
    }


def summary(points: Judged, before: dict[int, float]) -> dict[str, Any]:
    """Figures of a set of networks; ``before`` are the accuracies that the parents began with."""
    anchors = sorted((t for _, t in points if not t.route.stitches), key=lambda p: p.cost)
    stitched = [t.quality.accuracy for _, t in points if t.route.stitches]
    now = [(p.cost, p.quality.accuracy) for p in anchors]
    began = [(p.cost, before[p.route.parent]) for p in anchors]
    return {
        "parents": [round(p.quality.accuracy, 4) for p in anchors],
        "stitched_mean": round(float(np.mean(stitched)), 4),
        "stitched_least": round(min(stitched), 4),
        "against_line_of_parents_now": above(points, now),
        "against_line_of_parents_before": above(points, began),
        "front_on_validation_images": [
            {
                "route": str(v.route),
                "macs": round(v.cost),
                "validation_accuracy": round(v.quality.accuracy, 4),
                "test_accuracy": round(t.quality.accuracy, 4),
            }
            for v, t in sorted(points, key=lambda pair: pair[0].cost)
            if v.on_front
        ],
    }


def one_seed(seed: int, options: argparse.Namespace, data: ImageData) -> dict[str, Any]:
    batches = calibration_batches(data, FITTED_TO, seed)
    validation, test = eval_batches(data.validation), eval_batches(data.test)

    def judged(net: StitchedNet) -> Judged:
        net.eval()
        return list(zip(*(judge_routes(net, on, macs) for on in (validation, test)), strict=True))

    parents: list[Backbone] = []
    seconds: dict[str, float] = {}

    def timed(name: str, started: float) -> None:
        seconds[name] = round(time.perf_counter() - started, 1)

    for name, widths in WIDTHS.items():
        torch.manual_seed(seed)
        network, started = (
            build(parent(widths, options.size), data.num_classes),
            time.perf_counter(),
        )
        finetune(network, data, config_of(options.epochs, 4e-3, seed))
        timed(f"parent {name}", started)
        parents.append(network.eval())
    depths = [network.architecture.depths for network in parents]
    routes: list[Route] = list(dict.fromkeys((*one_way(depths), *two_way(depths))))
    net = StitchedNet(parents, routes).eval()
    started = time.perf_counter()
    net.fit(batches)
    timed("least squares", started)
    points = judged(net)
    before = {p.route.parent: p.quality.accuracy for _, p in points if not p.route.stitches}
    result: dict[str, Any] = {"seed": seed, "least squares": summary(points, before)}
    costs = [macs(architecture) for architecture in net.architectures]
    config = config_of(options.joint_epochs, options.joint_lr, seed)
    for name, rank in (("joint training", 0), ("joint training, rank 8", 8)):
        trained = copy.deepcopy(net)
        if rank:
            trained = StitchedNet(parents, routes, rank)
            trained.fit(batches)
        started = time.perf_counter()
        train_stitched(trained, data, config, costs=costs)
        timed(name, started)
        result[name] = summary(judged(trained), before)
    further: dict[int, float] = {}
    for index, network in enumerate(parents):  # what parents would gain by as many epochs alone
        alone = copy.deepcopy(network)
        finetune(alone, data, config)
        further[index] = round(evaluate(alone, test).accuracy, 4)
    result["parents trained on alone"] = list(further.values())
    return result | {"networks": len(routes), "seconds": seconds}


def run(data: ImageData, options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for seed in range(options.seeds):
        rows.append(one_seed(seed, options, data))
        for name in ("least squares", "joint training", "joint training, rank 8"):
            figures = rows[-1][name]
            print(seed, f"{name:24}", figures["parents"], figures["stitched_mean"])
            for line in ("now", "before"):
                against = figures[f"against_line_of_parents_{line}"]
                print(f"   line of parents {line:7}", against["points_above"], against["margin"])
        print(seed, rows[-1]["parents trained on alone"], rows[-1]["seconds"], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="CIFAR")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--joint-epochs", type=int, default=4)
    parser.add_argument("--joint-lr", type=float, default=4e-4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--out", default="stitching", help="name of the file of results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = some_images(Path(options.data), Path(folder), options.size)
        rows = run(data, options)
    sizes = [macs(parent(widths, options.size)) for widths in WIDTHS.values()]
    result = {
        **{key: value for key, value in vars(options).items() if key not in ("data", "out")},
        "widths": WIDTHS,
        "depths": DEPTHS,
        "mixer": MIXER.name,
        "parent_macs": sizes,
        "ratio": round(sizes[1] / sizes[0], 2),
        "fitted_to_images": FITTED_TO,
        "training_images": len(data.train),
        "test_images": JUDGED_ON,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / f"{options.out}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
