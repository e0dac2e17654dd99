"""A training step of a supernet on this GPU against its subnets', and two workers that share it.

    python benchmarks/on_gpu_training.py OUT [--device cuda] [--spaces cifar:256 tiny:64]
        [--rounds 10] [--workers cifar:256] [--epochs 4]

First, in turn, the supernet's step against the sum of the same subnets as static networks, as in
``training_throughput.py``, and how far outputs of subnets and of their extracted networks are
apart. Then the same training by one worker of Ray and by two that have half of the GPU each.
The figures are left in the folder OUT.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from on_gpu import add_part, machine
from training_throughput import FixedSampler, static_step, supernet_step, times

from search_space import load_space
from supernet import Supernet
from supernet.data.batches import train_loader
from supernet.data.dataset import open_data
from supernet.training.config import TrainConfig


def steps(space_name: str, batch_size: int, rounds: int, device: str) -> dict[str, Any]:
    """The ratio of a supernet's step to the sum of its subnets' static steps."""
    space = load_space(space_name)
    data = open_data("digits", space.resolutions[-1])
    config = TrainConfig(epochs=1000, batch_size=batch_size, lr=1e-4)
    torch.manual_seed(0)
    supernet = Supernet(space, data.num_classes).to(device)
    sampler = FixedSampler(space, num_random=2, seed=0)
    subnets = [subnet.architecture for subnet in sampler(0)]
    networks = [supernet.extract(architecture) for architecture in subnets]
    batch = next(iter(train_loader(data, batch_size, 0, 0))).to(torch.device(device))
    differences = []
    supernet.eval()
    with torch.inference_mode():
        for architecture, network in zip(subnets, networks, strict=True):
            if architecture.resolution == batch.images.shape[-1]:
                shared = supernet(batch.images, architecture)
                differences.append(float((shared - network.eval()(batch.images)).abs().max()))
    supernet.train()
    for network in networks:
        network.train()
    seconds = times(
        [
            [supernet_step(supernet, sampler, data, config, device)],
            [static_step(network, data, config, device) for network in networks],
        ],
        batch,
        rounds,
        device,
    )
    low, ratio, high = np.percentile(seconds[:, 0] / seconds[:, 1], [25, 50, 75])
    middle = np.median(seconds, axis=0)
    return {
        "space": space_name,
        "batch_size": batch_size,
        "subnets": len(subnets),
        "supernet_over_sum_of_subnets": float(ratio),
        "quartiles": [float(low), float(high)],
        "supernet_step_ms": float(1e3 * middle[0]),
        "images_per_s": float(batch_size / middle[0]),
        "largest_output_difference": max(differences, default=None),
        "peak_memory_bytes": (int(torch.cuda.max_memory_allocated()) if device == "cuda" else None),
    }


def by_workers(
    count: int, space_name: str, batch_size: int, epochs: int, device: str
) -> dict[str, Any]:
    """Images per second and losses of a short training by ``count`` workers on one device."""
    from supernet.cluster.distributed import Workers, train_distributed

    space = load_space(space_name)
    open_images = partial(open_data, "digits", space.resolutions[-1])
    data = open_images()
    torch.manual_seed(0)
    supernet = Supernet(space, data.num_classes)
    config = TrainConfig(epochs=epochs, batch_size=batch_size, lr=1e-3, evaluations=1)
    with tempfile.TemporaryDirectory() as folder:
        metrics = train_distributed(
            supernet,
            data,
            config,
            folder,
            Workers(count=count, gpus=1 / count if device == "cuda" else 0, max_failures=0),
            open_images,
            notice=print,
            loggers=(),
        )
    return {
        "space": space_name,
        "batch_size": batch_size,
        "workers": count,
        "images_per_s": [m.images_per_s for m in metrics],
        "losses": [m.losses for m in metrics],
        "val_accuracy": metrics[-1].val_accuracy,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--spaces", nargs="*", default=["cifar:256", "tiny:64"])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--workers", default="cifar:256")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    for name, _, size in (each.partition(":") for each in options.spaces):
        row = steps(name, int(size), options.rounds, options.device)
        result = machine(options.device) | {"rows": [row]}
        add_part(options.out, f"training-{name}", result)
    if not options.workers:
        return
    name, _, size = options.workers.partition(":")
    try:
        import ray  # noqa: F401
    except ImportError:
        print("two workers on one GPU: left out, since Ray is not installed")
        return
    rows = [by_workers(n, name, int(size), options.epochs, options.device) for n in (1, 2)]
    add_part(options.out, f"workers-{name}", machine(options.device) | {"rows": rows})


if __name__ == "__main__":
    main()
