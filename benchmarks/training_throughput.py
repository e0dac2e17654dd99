"""What does a training step of the supernet cost? Against its subnets alone, and against timm.

Side by side, in turn: (a) a step of the training loop, with the strategy's subnets, one clipping
and one optimiser step, against the sum of the same subnets trained as static networks by the same
loop, each with an optimiser of its own; (b) the loop's step of the static largest network against a
plain step with timm's parts (its model interface, loss and optimiser). Then the time that a batch
takes to load, as a share of the supernet's step.

    python benchmarks/training_throughput.py [--space cifar] [--batch-size 64] [--rounds 12]
        [--device cuda] [--data FOLDER_OR_NAME]

Run it on an idle machine. Figures go to ``benchmarks/results/training_throughput.json``, where
those of other devices and spaces stay.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from torch import nn

from search_space import load_space
from supernet import Backbone, Supernet
from supernet.data.batches import Batch, train_loader
from supernet.data.dataset import ImageData, open_data
from supernet.training.config import TrainConfig
from supernet.training.loop import TrainingLoop
from supernet.training.objectives import NetworkObjective, SupernetObjective
from supernet.training.precision import autocast
from supernet.training.strategies import SandwichSampler, SubnetSampler

RESULTS = Path(__file__).parent / "results" / "training_throughput.json"


class FixedSampler(SandwichSampler):
    """The subnets of one step, in every step: what both sides train is the same."""

    def __call__(self, step: int, rank: int = 0) -> tuple[Any, ...]:
        return super().__call__(0, rank)


def loop_of(module: nn.Module, objective: Any, data: ImageData, config: TrainConfig, device: str):
    return TrainingLoop(
        module,
        objective,
        data,
        config,
        None,
        {},
        device=device,
    )


def supernet_step(
    supernet: Supernet, sampler: SubnetSampler, data: ImageData, config: TrainConfig, device: str
) -> Callable[[Batch], Any]:
    objective = SupernetObjective(supernet, sampler, config)
    return loop_of(supernet, objective, data, config, device)._step


def static_step(
    network: Backbone, data: ImageData, config: TrainConfig, device: str
) -> Callable[[Batch], Any]:
    objective = NetworkObjective(network, config)
    return loop_of(network, objective, data, config, device)._step


def timm_step(network: Backbone, config: TrainConfig) -> Callable[[Batch], Any]:
    optimizer = create_optimizer_v2(
        network, opt="adamw", lr=config.lr, weight_decay=config.weight_decay
    )
    criterion = LabelSmoothingCrossEntropy(config.label_smoothing)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        with autocast(batch.images.device, "auto"):
            loss = criterion(network(batch.images), batch.targets)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.clip_norm)
        optimizer.step()
        return float(loss.detach())

    return step


def times(
    sides: Sequence[Sequence[Callable[[Batch], Any]]], batch: Batch, rounds: int, device: str
) -> np.ndarray:
    """Seconds of each side's calls together, in turn; shape (rounds, sides)."""
    result = np.zeros((rounds + 2, len(sides)))
    for i in range(rounds + 2):
        for j in np.random.default_rng(i).permutation(len(sides)):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            for call in sides[j]:
                call(batch)
            if device == "cuda":
                torch.cuda.synchronize()
            result[i, j] = time.perf_counter() - start
    return result[2:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    space = load_space(options.space)
    data = open_data(options.data, space.resolutions[-1])
    config = TrainConfig(epochs=1000, batch_size=options.batch_size, lr=1e-4)
    torch.manual_seed(0)
    supernet = Supernet(space, data.num_classes).to(options.device).train()
    sampler = FixedSampler(space, num_random=2, seed=0)
    networks = [supernet.extract(subnet.architecture) for subnet in sampler(0)]
    largest = supernet.extract(space.largest)
    started = time.perf_counter()
    batches = list(zip(range(8), train_loader(data, options.batch_size, 0, 0), strict=False))
    loading = (time.perf_counter() - started) / len(batches)
    batch = batches[0][1].to(torch.device(options.device))
    measured = times(
        [
            [supernet_step(supernet, sampler, data, config, options.device)],
            [static_step(network, data, config, options.device) for network in networks],
            [static_step(networks[0], data, config, options.device)],
            [timm_step(largest, config)],
        ],
        batch,
        options.rounds,
        options.device,
    )
    ratio = np.percentile(measured[:, 0] / measured[:, 1], [25, 50, 75])
    over_timm = np.percentile(measured[:, 2] / measured[:, 3], [25, 50, 75])
    seconds = np.median(measured, axis=0)
    row = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "space": options.space,
        "batch_size": options.batch_size,
        "rounds": options.rounds,
        "supernet_images_per_s": options.batch_size / seconds[0],
        "timm_largest_images_per_s": options.batch_size / seconds[3],
        "supernet_over_sum_of_subnets": ratio[1],
        "quartiles": [ratio[0], ratio[2]],
        "own_over_timm_step_of_largest": over_timm[1],
        "own_over_timm_quartiles": [over_timm[0], over_timm[2]],
        "supernet_over_timm_step_of_largest": seconds[0] / seconds[3],
        "loading_over_supernet_step": loading / seconds[0],
    }
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    same = ("device", "space", "batch_size")
    rows = [other for other in rows if any(other[key] != row[key] for key in same)]
    RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
