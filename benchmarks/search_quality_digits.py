"""Does the search find something? The chosen network against the best of 20 random ones.

For each seed, on ``digits``: one supernet; the search's chosen network and 20 random
architectures that meet the same predicted budget, fine-tuned in the same way; the chosen one
is re-measured too. Reported: test accuracies. The best of the 20 is picked by test accuracy,
which favours the random side; a fairer opponent picks by validation loss after fine-tuning, as
the search does, and is reported too.

    python benchmarks/search_quality_digits.py [--seeds 0 1 2] [--random 20]

Figures go to ``benchmarks/results/search_quality_digits.json``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nas.cli.console import Console
from nas.resolving import resolve
from nas.workflows.pipeline import run_search
from predictors.tables.latency_table import LatencyTable
from search_space import Architecture
from supernet import Supernet
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.train import evaluate, finetune


def one_seed(seed: int, target: str, n: int, folder: Path) -> dict[str, Any]:
    config = resolve({"data": "digits", "device": "cpu", "target_latency": target, "seed": seed})
    path = folder / f"seed-{seed}"
    report = run_search(config, path, console=Console())
    chosen = report.chosen
    assert chosen is not None
    space = config.search_space()
    data = open_data("digits", space.resolutions[-1], seed=seed)
    latency = LatencyTable.load(path / "latency.parquet").compile(space, data.num_classes)
    rng = np.random.default_rng(1000 + seed)
    rows = space.sample(rng, 2000)
    feasible = rows[latency.predict(rows) <= config.limits()["latency_ms"]][:n]
    supernet = Supernet(space, data.num_classes).eval()
    checkpoint = CheckpointFolder(path / "supernet" / "checkpoints").newest()
    assert checkpoint is not None
    supernet.load_state_dict(checkpoint.trained_weights())

    def tuned(architecture: Architecture) -> dict[str, Any]:
        network = supernet.extract(architecture)
        before = evaluate(network, eval_batches(data.test))
        finetune(network, data, config.finetune)
        after = evaluate(network, eval_batches(data.test))
        return {
            "digest": architecture.digest,
            "test_accuracy_before": before.accuracy,
            "test_accuracy": after.accuracy,
            "test_loss": after.loss,
            "validation_loss": evaluate(network, eval_batches(data.validation)).loss,
        }

    random = [tuned(architecture) for architecture in space.decode(feasible)]
    best_by_validation = min(random, key=lambda item: item["validation_loss"])
    result = {
        "seed": seed,
        "target_ms": config.limits()["latency_ms"],
        "chosen_measured_ms": chosen.measured["latency_ms"],
        "chosen_test_accuracy": chosen.test_accuracy,
        "chosen_test_accuracy_before": chosen.test_accuracy_before,
        "random_best_by_test": max(item["test_accuracy"] for item in random),
        "random_best_by_validation": best_by_validation["test_accuracy"],
        "random_mean": float(np.mean([item["test_accuracy"] for item in random])),
        "random_before_mean": float(np.mean([item["test_accuracy_before"] for item in random])),
        "random": random,
    }
    print({key: value for key, value in result.items() if key != "random"})
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument("--target-latency", default="2ms")
    options = parser.parse_args()
    path = Path(__file__).parent / "results" / "search_quality_digits.json"
    content: dict[str, Any] = {
        "space": "digits",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seeds": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            content["seeds"].append(
                one_seed(seed, options.target_latency, options.random, Path(folder))
            )
            path.write_text(json.dumps(content, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
