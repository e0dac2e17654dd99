"""What the search chooses on CIFAR-10 against timm's small models of the same measured latency.

The search runs as a user would run it, at each latency budget (one image, one CPU thread), with
one supernet for all of them. The models of timm are adapted to 32 px in the usual way (the first
convolution keeps the image's size, or half of it where it makes patches; no pooling after it).
They and the chosen networks are trained with one recipe for as many epochs, the chosen ones from
inherited weights; what the supernet cost is said beside that. At the end all networks are measured
in turn in one run, and all latencies brought to the speed that the machine had in the searches, by
the chosen networks' median. Each budget's opponent is the model of timm that meets it and has the
best test accuracy, with hindsight.

    python benchmarks/small_models.py --data FOLDER --runs FOLDER [--parts search peers table]
        [--images 10000] [--supernet-epochs 48] [--epochs 18] [--budgets 3ms 4ms 5.5ms]

``--data`` is a folder with ``train.parquet`` and ``test.parquet``; an even part of the training
images is used. ``--runs`` keeps them, the searches, and the figures of the trained models, so that
parts may run in several processes; ``table`` writes ``benchmarks/results/small_models.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import timm
import torch
from torch import nn

from nas.config import RunConfig
from nas.resolving import resolve
from nas.workflows.pipeline import run_search, run_training
from predictors.measuring.bench import Bench, Limits, Subject, run_rounds, statistic, steady
from predictors.measuring.this_machine import local_conditions
from results.report.data import read_result
from results.store import SUPERNET
from search_space import Architecture
from search_space.units import parse_latency
from supernet import build
from supernet.data.batches import eval_batches
from supernet.data.dataset import open_data
from supernet.training.loggers import METRICS
from supernet.training.train import evaluate, finetune

BENCHMARKS = Path(__file__).parent
SIDE = 32
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


def configuration(options: argparse.Namespace, budget: str | None) -> RunConfig:
    """Of the search within ``budget``, or of the supernet's training."""
    return resolve(
        {
            "data": str(options.runs / "images"),
            "space": str(BENCHMARKS / "data" / "cifar_small.yaml"),
            "device": "cpu",
            "target_latency": budget,
            "validation_fraction": 0.1,
            "latency.threads": 1,
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


def search(options: argparse.Namespace) -> None:
    run_training(configuration(options, None), options.runs / "supernet", resume=True)
    for budget in options.budgets:
        run_search(configuration(options, budget), options.runs / budget, resume=True)


def train_peers(options: argparse.Namespace) -> None:
    """Train what is not in ``peers.json`` yet, with the recipe of the fine-tuning."""
    path = options.runs / "peers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    config = configuration(options, options.budgets[0])
    data = open_data(
        str(options.runs / "images"), SIDE, validation_fraction=config.validation_fraction
    )
    test = eval_batches(data.test, 500)
    for name in options.peers:
        if name in known:
            continue
        torch.manual_seed(0)
        network = adapted(name, data.num_classes)
        begin = time.perf_counter()
        finetune(network, data, config.finetune)
        known[name] = {
            "test_accuracy": evaluate(network, test).accuracy,
            "seconds": round(time.perf_counter() - begin, 1),
        }
        print(name, known[name], flush=True)
        path.write_text(json.dumps(known, indent=1) + "\n")


def measured(networks: list[nn.Module]) -> list[float]:
    """Milliseconds of each network, measured in turn."""
    conditions = local_conditions(threads=1)
    image = torch.randn(1, 3, SIDE, SIDE)
    bench = Bench([Subject(network.eval(), image) for network in networks], conditions)
    with steady(conditions):
        bench.warm_up()
        run_rounds(bench, Limits(min_rounds=40, max_rounds=400, min_seconds=20), lambda _: True)
    return [statistic(samples) for samples in bench.samples]


def table(options: argparse.Namespace) -> dict[str, Any]:
    peers = json.loads((options.runs / "peers.json").read_text())
    chosen, seconds = {}, {}
    for budget in options.budgets:
        data = read_result(options.runs / budget / "result.json")
        assert data.chosen is not None
        chosen[budget] = data.chosen
        seconds[budget] = {phase.name: round(phase.seconds, 1) for phase in data.phases}
    architectures = [Architecture.from_dict(dict(c.architecture)) for c in chosen.values()]
    classes = 10
    networks: list[nn.Module] = [build(architecture, classes) for architecture in architectures]
    networks += [adapted(name, classes) for name in peers]
    latencies = measured(networks)
    in_search = [float(network.measured["latency_ms"] or math.nan) for network in chosen.values()]
    ratios = [then / now for then, now in zip(in_search, latencies, strict=False)]
    speed = statistics.median(ratios)
    latencies = [latency * speed for latency in latencies]
    for name, latency in zip(peers, latencies[len(chosen) :], strict=True):
        peers[name] |= {"latency_ms": round(latency, 3)}
    for name, model in zip(peers, networks[len(chosen) :], strict=True):
        peers[name] |= {"params": sum(p.numel() for p in model.parameters())}
    rows = []
    for (budget, network), then, latency in zip(chosen.items(), in_search, latencies, strict=False):
        limit = parse_latency(budget)
        able = {n: p["test_accuracy"] for n, p in peers.items() if p["latency_ms"] <= limit}
        best = max(able, key=lambda name: able[name]) if able else None
        rows.append(
            {
                "budget_ms": limit,
                "chosen": {
                    "digest": network.digest,
                    "latency_ms_in_search": round(then, 3),
                    "latency_ms": round(latency, 3),
                    "test_accuracy_before": network.test_accuracy_before,
                    "test_accuracy": network.test_accuracy,
                    "architecture": dict(network.architecture),
                    "seconds": seconds[budget],
                },
                "best_peer": None if best is None else {"name": best, **peers[best]},
                "peers_within": sorted(able),
            }
        )
        print(
            f"{budget}: chosen {network.test_accuracy:.2%} in {latency:.2f} ms, "
            + ("no peer meets it" if best is None else f"{best} {able[best]:.2%}")
        )
    metrics = (options.runs / "supernet" / SUPERNET / METRICS).read_text().splitlines()
    supernet = {"seconds": round(sum(json.loads(line)["seconds"] for line in metrics), 1)}
    return {"rows": rows, "speed": speed, "supernet": supernet, "peers": peers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=["search", "peers", "table"])
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--supernet-epochs", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=18)
    parser.add_argument("--budgets", nargs="+", default=["3ms", "4ms", "5.5ms"])
    parser.add_argument("--peers", nargs="+", default=PEERS)
    options = parser.parse_args()
    part_of_images(options.data, options.runs / "images", options.images)
    if "search" in options.parts:
        search(options)
    if "peers" in options.parts:
        train_peers(options)
    if "table" in options.parts:
        content = {
            "settings": {
                "images": options.images,
                "supernet_epochs": options.supernet_epochs,
                "epochs": options.epochs,
                "torch": torch.__version__,
                "timm": timm.__version__,
            },
            **table(options),
        }
        path = BENCHMARKS / "results" / "small_models.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
