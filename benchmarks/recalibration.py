"""What do batch norms of subnets need? Accuracy before and after recalibration, and its cost.

A space of inverted residuals is trained on ``digits``. Random subnets are then judged on the
validation images four ways: as extracted, with the averages that a fresh network has; with the
statistics of each validation batch, which depend on what else is in a batch; and recalibrated on
some training images, more and more. The cost is seconds a subnet, extraction included.

    python benchmarks/recalibration.py [--epochs 40] [--subnets 20]

It takes about four minutes of one core. Figures go to ``benchmarks/results/recalibration.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch

from search_space.space_definition import space_from_dict
from supernet import Supernet
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.evaluation import evaluate
from supernet.training.recalibration import calibration_batches, extract
from supernet.training.train import TrainConfig, train_supernet

INVERTED = {
    "inverted_residual": {"expansion": [2.0, 4.0], "kernel": [3, 5], "squeeze": [0.0, 0.25]}
}
SPACE = {
    "name": "inverted residuals",
    "macro": {
        "stem": "conv_act",
        "stem_kernel": 3,
        "stem_stride": 2,
        "downsample": "block",
        "head": "conv",
        "head_width": 128,
        "head_norm": "none",
    },
    "resolution": 16,
    "stages": [
        {"width": [16, 24], "depth": [1, 2, 3], "choices": [INVERTED], "stride": 1},
        {"width": [32, 48], "depth": [1, 2, 3], "choices": [INVERTED]},
        {"width": [64, 96], "depth": [1, 2, 3], "choices": [INVERTED]},
    ],
}
IMAGES = (32, 128, 512, 1024)
EVERY = "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--subnets", type=int, default=20)
    options = parser.parse_args()
    torch.manual_seed(0)
    space = space_from_dict(SPACE)
    data = open_data("digits", 16)
    supernet = Supernet(space, data.num_classes)
    started = time.perf_counter()
    config = TrainConfig(epochs=options.epochs, strategy="sandwich", num_random=1, evaluations=1)
    train_supernet(supernet, data, config, None)
    supernet.eval()
    trained = time.perf_counter() - started
    subnets = space.decode(space.sample(np.random.default_rng(0), options.subnets))
    validation = eval_batches(data.validation)
    calibration = {str(n): calibration_batches(data, n) for n in IMAGES}
    calibration[EVERY] = calibration_batches(data, len(data.train))
    for batches in calibration.values():
        list(batches)  # decoding is paid once
    rows = []
    for architecture in subnets:
        accuracy = {"fresh averages": evaluate(supernet.extract(architecture), validation).accuracy}
        inherited = evaluate(supernet, validation, architecture=architecture)
        accuracy["validation batches"] = inherited.accuracy
        seconds = {}
        for name, batches in calibration.items():
            started = time.perf_counter()
            network = extract(supernet, architecture, batches)
            seconds[name] = round(time.perf_counter() - started, 4)
            accuracy[name] = evaluate(network, validation).accuracy
        started = time.perf_counter()
        evaluate(network, validation)
        rows.append(
            {
                "digest": architecture.digest,
                "accuracy": {name: round(value, 4) for name, value in accuracy.items()},
                "recalibration_s": seconds,
                "evaluation_s": round(time.perf_counter() - started, 4),
            }
        )
    means = {}
    for name in rows[0]["accuracy"]:
        values = [row["accuracy"][name] for row in rows]
        costs = [row["recalibration_s"].get(name, 0.0) for row in rows]
        away = [abs(row["accuracy"][name] - row["accuracy"][EVERY]) for row in rows]
        means[name] = {
            "accuracy": round(float(np.mean(values)), 4),
            "largest_difference_to_all": round(max(away), 4),
            "recalibration_s": round(float(np.mean(costs)), 4),
        }
        print(f"{name:20} {means[name]}")
    result = {
        "space": space.name,
        "epochs": options.epochs,
        "training_s": round(trained, 1),
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "evaluation_s": round(float(np.mean([row["evaluation_s"] for row in rows])), 4),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "means": means,
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / "recalibration.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
