"""What the search chooses on CIFAR-10 against timm's small models of the same measured latency.

The search runs as a user would run it, at each latency budget (one image, one CPU thread) and on
each runtime, with one supernet for all of them. The models of timm are adapted to 32 px in the
usual way (the first convolution keeps the image's size, or half of it where it makes patches; no
pooling after it). They and the chosen networks are trained with one recipe for as many epochs and
with the same seeds, the chosen ones from inherited weights; what the supernet cost is said beside
that. At the end all networks are measured in turn in one run on each runtime, and all latencies
brought to the speed that the machine had in the searches, by the chosen networks' median. Each
budget's opponent is the model of timm that meets it and has the best mean test accuracy, with
hindsight.

    python benchmarks/small_models.py --data FOLDER --runs FOLDER
        [--parts search seeds peers table] [--space FILE] [--seeds 3] [--images 10000]
        [--budgets eager:3ms onnxruntime:1ms]

``--data`` is a folder with ``train.parquet`` and ``test.parquet``; an even part of the training
images is used. ``--runs`` keeps them, the searches, and the figures of the trained models, so that
parts may run in several processes, also at the same time; ``table`` writes the results.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from folded import folded
from torch import nn

from nas.config import RunConfig, TrainedConfig
from nas.resolving import resolve
from nas.workflows.pipeline import run_search, run_training
from predictors.measuring.bench import Bench, Limits, Subject, run_rounds, statistic, steady
from predictors.measuring.this_machine import local_conditions
from results.report.data import Chosen, read_result
from results.store import SUPERNET
from search_space import Architecture
from search_space.units import parse_latency
from supernet import Supernet, build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.config import TrainConfig
from supernet.training.loggers import METRICS
from supernet.training.loop import CHECKPOINTS
from supernet.training.recalibration import extract_for
from supernet.training.train import evaluate, finetune

BENCHMARKS = Path(__file__).parent
SIDE = 32
DEFAULT = ("eager:1.5ms", "eager:2ms", "eager:3ms", "onnxruntime:0.5ms", "onnxruntime:1ms")
PEERS = (
    "lcnet_075", "fasternet_t0", "mobilenetv3_small_100", "mobilenetv4_conv_small_050",
    "test_resnet", "edgenext_xx_small", "mobilenetv4_conv_small", "convnext_atto",
    "convnext_femto",
)  # fmt: skip


def adapted(name: str, num_classes: int) -> nn.Module:
    """A timm model for images of 32 px."""
    network = timm.create_model(name, num_classes=num_classes)
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    if first.stride[0] == 4:
        first.stride, first.padding = (2, 2), (1, 1)
    else:
        first.stride = (1, 1)
    if hasattr(network, "maxpool"):
        network.maxpool = nn.Identity()
    return network


def part_of_images(source: Path, target: Path, images: int) -> None:
    """Write ``images`` evenly spread training images, and all test images, to ``target``."""
    if (target / "test.parquet").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(source / "train.parquet")
    rows = np.linspace(0, len(table), images, endpoint=False).astype(np.int64)
    pq.write_table(table.take(rows), target / "train.parquet")
    shutil.copy(source / "test.parquet", target / "test.parquet")


def configuration(options: argparse.Namespace, job: str | None) -> RunConfig:
    """Of the search of a job, such as ``eager:3ms``, or of the supernet's training."""
    runtime, budget = (None, None) if job is None else job.split(":")
    return resolve(
        {
            "data": str(options.runs / "images"),
            "space": str(options.space),
            "device": "cpu",
            "target_latency": budget,
            "validation_fraction": 0.1,
            "latency.threads": 1,
            "latency.runtime": runtime,
            "supernet": None if budget is None else str(options.runs / "supernet"),
            "train.epochs": options.supernet_epochs,
            "train.batch_size": 128,
            "train.lr": 1e-3,
            "train.warmup_epochs": 0.5,
            "train.evaluations": 1,
            "search.evaluations": 200,
            "search.finalists": 1,
            "finetune.epochs": options.epochs,
            "finetune.warmup_epochs": 0.5,
            "finetune.evaluations": 1,
        },
        with_budget=budget is not None,
    )


def folder(options: argparse.Namespace, job: str) -> Path:
    return options.runs / job.replace(":", "-")


def search(options: argparse.Namespace) -> None:
    run_training(configuration(options, None), options.runs / "supernet", resume=True)
    for job in options.budgets:
        run_search(configuration(options, job), folder(options, job), resume=True)


def images(options: argparse.Namespace) -> tuple[TrainConfig, ImageData]:
    """The recipe of the final training, and its data."""
    config = configuration(options, options.budgets[0])
    assert isinstance(config, TrainedConfig)
    fraction = config.validation_fraction
    data = open_data(str(options.runs / "images"), SIDE, validation_fraction=fraction)
    return config.finetune, data


def train(
    options: argparse.Namespace, name: str, names: Sequence[str], make: Callable[[str], nn.Module]
) -> None:
    """Train each network with each seed that the file ``name`` does not have yet."""
    path = options.runs / name
    recipe, data = images(options)
    for seed in range(options.seeds):
        for network_name in names:
            known = json.loads(path.read_text()) if path.exists() else {}
            if str(seed) in known.get(network_name, {}):
                continue
            torch.manual_seed(seed)
            network = make(network_name)
            begin = time.perf_counter()
            finetune(network, data, replace(recipe, seed=seed))
            accuracy = evaluate(network, eval_batches(data.test, 500)).accuracy
            figures = {"accuracy": accuracy, "seconds": round(time.perf_counter() - begin, 1)}
            known = json.loads(path.read_text()) if path.exists() else {}
            known.setdefault(network_name, {})[str(seed)] = figures
            print(network_name, seed, figures, flush=True)
            path.write_text(json.dumps(known, indent=1) + "\n")


def chosen_networks(options: argparse.Namespace) -> dict[str, Chosen]:
    """What each search chose, by job."""
    found = {job: read_result(folder(options, job) / "result.json") for job in options.budgets}
    return {job: data.chosen for job, data in found.items() if data.chosen is not None}


def architecture_of(network: Chosen) -> Architecture:
    assert network.architecture is not None
    return Architecture.from_dict(network.architecture)


def train_chosen(options: argparse.Namespace) -> None:
    """Train the chosen networks from inherited weights."""
    config = configuration(options, None)
    supernet = Supernet(config.search_space(), 10)
    checkpoint = CheckpointFolder(options.runs / "supernet" / SUPERNET / CHECKPOINTS).newest()
    assert checkpoint is not None
    supernet.load_state_dict(checkpoint.trained_weights())
    by_digest = {c.digest: architecture_of(c) for c in chosen_networks(options).values()}

    assert isinstance(config, TrainedConfig)
    recipe, (_, data) = config.train, images(options)

    def inherited(digest: str) -> nn.Module:
        return extract_for(supernet, by_digest[digest], data, recipe)

    train(options, "chosen.json", list(by_digest), inherited)


def train_peers(options: argparse.Namespace) -> None:
    """Train the models of timm."""
    train(options, "peers.json", options.peers, lambda name: adapted(name, 10))


def measured(networks: list[nn.Module], runtime: str) -> list[float]:
    """Milliseconds of each network, measured in turn."""
    conditions = local_conditions(threads=1, runtime=runtime)
    image = torch.randn(1, 3, SIDE, SIDE)
    subjects = [Subject(folded(deepcopy(n.eval()), image), image) for n in networks]
    bench = Bench(subjects, conditions)
    with steady(conditions):
        run_rounds(bench, Limits(min_rounds=40, max_rounds=400, min_seconds=20), lambda _: True)
    return [statistic(samples) for samples in bench.samples]


def summary(seeds: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Mean and spread of test accuracies over seeds."""
    values = [each["accuracy"] for each in seeds.values()]
    spread = statistics.stdev(values) if len(values) > 1 else math.nan
    return {
        "test_accuracy": round(statistics.mean(values), 4),
        "standard_deviation": round(spread, 4),
        "test_accuracies": [round(value, 4) for value in values],
        "seconds": [each["seconds"] for each in seeds.values()],
    }


def table(options: argparse.Namespace) -> dict[str, Any]:
    peers = json.loads((options.runs / "peers.json").read_text())
    trained = json.loads((options.runs / "chosen.json").read_text())
    chosen = chosen_networks(options)
    models = {name: adapted(name, 10) for name in peers}
    rows, speeds = [], {}
    for runtime in dict.fromkeys(job.split(":")[0] for job in chosen):
        here = {job: network for job, network in chosen.items() if job.startswith(runtime)}
        networks = [build(architecture_of(c), 10) for c in here.values()]
        latencies = measured([*networks, *models.values()], runtime)
        in_search = [float(network.measured["latency_ms"] or math.nan) for network in here.values()]
        ratios = [then / now for then, now in zip(in_search, latencies, strict=False)]
        speeds[runtime] = statistics.median(ratios)
        latencies = [latency * speeds[runtime] for latency in latencies]
        of_peers = dict(zip(models, latencies[len(here) :], strict=True))
        for (job, network), then, latency in zip(here.items(), in_search, latencies, strict=False):
            limit = parse_latency(job.split(":")[1])
            able = {n: summary(peers[n]) for n, time_ms in of_peers.items() if time_ms <= limit}
            best = max(able, key=lambda name: able[name]["test_accuracy"]) if able else None
            ours = summary(trained[network.digest])
            rows.append(
                {
                    "runtime": runtime,
                    "budget_ms": limit,
                    "chosen": {
                        "digest": network.digest,
                        "latency_ms_in_search": round(then, 3),
                        "latency_ms": round(latency, 3),
                        "test_accuracy_before": network.test_accuracy_before,
                        **ours,
                        "architecture": architecture_of(network).to_dict(),
                    },
                    "best_peer": None
                    if best is None
                    else {"name": best, "latency_ms": round(of_peers[best], 3), **able[best]},
                    "latency_ms_of_peers": {n: round(t, 3) for n, t in of_peers.items()},
                }
            )
            print(
                f"{job}: chosen {ours['test_accuracy']:.2%} in {latency:.2f} ms, best {best}", able
            )
    metrics = (options.runs / "supernet" / SUPERNET / METRICS).read_text().splitlines()
    seconds = round(sum(json.loads(line)["seconds"] for line in metrics), 1)
    accuracies = {name: summary(seeds) for name, seeds in peers.items()}
    return {"rows": rows, "speed": speeds, "supernet_seconds": seconds, "peers": accuracies}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["search", "seeds", "peers", "table"])
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--supernet-epochs", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--budgets", nargs="+", default=DEFAULT)
    parser.add_argument("--space", type=Path, default=BENCHMARKS / "data" / "cifar_residual.yaml")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--results", type=Path, default=BENCHMARKS / "results" / "small_models.json"
    )
    parser.add_argument("--peers", nargs="+", default=PEERS)
    options = parser.parse_args()
    part_of_images(options.data, options.runs / "images", options.images)
    if "search" in options.parts:
        search(options)
    if "seeds" in options.parts:
        train_chosen(options)
    if "peers" in options.parts:
        train_peers(options)
    if "table" in options.parts:
        content = {
            "settings": {
                "images": options.images,
                "supernet_epochs": options.supernet_epochs,
                "epochs": options.epochs,
                "space": options.space.stem,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
            **table(options),
        }
        options.results.write_text(json.dumps(content, indent=1) + "\n")
        print(options.results)


if __name__ == "__main__":
    main()
