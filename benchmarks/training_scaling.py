"""What do more workers bring to the training of a supernet?

Measured: images per second of the real training loop on one and on two cores of this machine, one
thread and one process each, and what a step spends on waiting for the other worker and on the
reduction of gradients.

On paper: how long the reduction takes on 8 and 64 GPUs, from the bytes of the gradients and stated
bandwidths and latencies, for a ring all-reduce, 2 (n - 1) / n · bytes / bandwidth + 2 (n - 1) ·
latency (Patarasuk & Yuan, "Bandwidth optimal all-reduce algorithms", JPDC 2009), and its share of a
step that takes the longer of its arithmetic, at a stated rate, and of starting its kernels.

    python benchmarks/training_scaling.py [--space digits] [--batch-size 64] [--steps 40]
        [--strategies multi_architecture sandwich]

Run it on an idle machine. Figures go to ``benchmarks/results/training_scaling.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from predictors.counts import count_architecture
from search_space import load_space
from supernet import Supernet
from supernet.data.dataset import open_data
from supernet.training.parallel import Group
from supernet.training.strategies import make_sampler
from supernet.training.train import TrainConfig, train_supernet

WARM_UP = 5


@dataclass(frozen=True)
class Fabric:
    """Slowest link of a ring: bytes per second in one direction; seconds of a hop."""

    name: str
    gpus: int
    bandwidth: float
    latency: float


# A ring enters and leaves each node once, so it has a network card to itself; several cards make
# as many rings, each with its part of the gradients.
FABRICS = (
    Fabric("8 GPUs, NVLink 4 (450 GB/s each)", 8, 450e9, 3e-6),
    Fabric("8 GPUs, PCIe 4 x16 (25 GB/s each)", 8, 25e9, 5e-6),
    Fabric("64 GPUs, 8 nodes with 8 x 400 Gb/s", 64, 400e9, 10e-6),
    Fabric("64 GPUs, 8 nodes with one 100 Gb/s", 64, 12.5e9, 30e-6),
)
SUSTAINED = 150e12  # operations (half a multiply-add) per second, bfloat16; a sixth of H100's peak
LAUNCH = 5e-6  # seconds from one kernel to the next where Python starts them one by one
IMAGES_PER_GPU = 128


class Stopwatch:
    """Times every reduction; before it workers wait for each other, which is timed apart."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.reductions: list[float] = []
        self.ends: list[float] = []

    def reduce(self, group: Group, parameters: list[nn.Parameter], figures: Tensor) -> Tensor:
        start = time.perf_counter()
        group.barrier()
        met = time.perf_counter()
        table = Group.reduce(group, parameters, figures)
        self.ends.append(time.perf_counter())
        self.waits.append(met - start)
        self.reductions.append(self.ends[-1] - met)
        return table


class TimedGroup(Group):
    """Workers whose reductions are timed."""

    watch = Stopwatch()

    def reduce(self, parameters: Any, figures: Tensor) -> Tensor:
        return self.watch.reduce(self, parameters, figures)


class _EnoughError(Exception):
    pass


def _work(
    rank: int, size: int, folder: str, space_name: str, strategy: str, batch_size: int, steps: int
) -> None:
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank]})
    if size > 1:
        meet = f"file://{folder}/meet-{size}"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
    import supernet.training.train

    supernet.training.train.Group = TimedGroup  # type: ignore[misc]
    space = load_space(space_name)
    data = open_data("digits", max(space.resolutions))
    torch.manual_seed(0)
    done: list[float] = []
    spent: list[float] = []

    def progress(step: int, *_: Any) -> None:
        done.append(time.perf_counter())
        spent.append(time.process_time())
        if step == steps + WARM_UP:
            raise _EnoughError

    per_epoch = len(data.train) // batch_size
    config = TrainConfig(
        epochs=-(-(steps + WARM_UP) // per_epoch) + 1,
        batch_size=batch_size,
        strategy=strategy,
        evaluations=1,
        snapshot_steps=10**6,
    )
    with suppress(_EnoughError):
        train_supernet(Supernet(space, data.num_classes), data, config, None, progress=progress)
    watch = TimedGroup.watch
    # the median: an epoch's end and start fall between two steps
    step_s = float(np.median(np.diff(done)[WARM_UP - 1 :]))
    found = {
        "step_ms": 1e3 * step_s,
        "cpu_ms": 1e3 * float(np.median(np.diff(spent)[WARM_UP - 1 :])),
        "images_per_s": batch_size / step_s,
        "wait_ms": 1e3 * float(np.median(watch.waits[WARM_UP:])),
        "reduction_ms": 1e3 * float(np.median(watch.reductions[WARM_UP:])),
    }
    found["reduction_share"] = found["reduction_ms"] / found["step_ms"]
    (Path(folder) / f"{size}-{rank}.json").write_text(json.dumps(found))
    if size > 1:
        dist.destroy_process_group()


def measure(
    space: str, strategy: str, batch_size: int, steps: int, rounds: int
) -> list[dict[str, Any]]:
    """Median over rounds, in which one worker and two take turns.

    other_work: share of the machine that other programs took meanwhile.
    """
    seen: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for size, rows in seen.items():
            with tempfile.TemporaryDirectory() as folder:
                arguments = (size, folder, space, strategy, batch_size, steps)
                before, busy = time.perf_counter(), _busy_s()
                multiprocessing.spawn(_work, arguments, nprocs=size)
                machine_s = (time.perf_counter() - before) * (psutil.cpu_count() or 1)
                row = json.loads((Path(folder) / f"{size}-0.json").read_text())
                rows.append(row | {"other_work": max(0.0, _busy_s() - busy) / machine_s})
    table = []
    for size, rows in seen.items():
        medians = {key: float(np.median([row[key] for row in rows])) for key in rows[0]}
        table.append({"workers": size, **medians})
    for row in table:
        row["speed_up"] = row["images_per_s"] / table[0]["images_per_s"]
    return table


class Kernels(TorchDispatchMode):
    """Counts operations, views left out."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _busy_s() -> float:
    """Processor time that all programs but this one and its workers have taken, in seconds."""
    times, own = psutil.cpu_times(), os.times()
    all_of_them = times.user + times.nice + times.system + times.irq + times.softirq
    return float(all_of_them - own.children_user - own.children_system - own.user - own.system)


def on_paper(space_name: str, strategy: str, num_classes: int) -> dict[str, Any]:
    """Reduction times of a space's supernet, and their share of a step without any overlap."""
    space = load_space(space_name)
    with torch.device("meta"):
        supernet = Supernet(space, num_classes)
    num_params = sum(weight.numel() for weight in supernet.parameters())
    steps, kernels, macs = 16, Kernels(), 0.0
    sampler = make_sampler(space, TrainConfig(strategy=strategy), steps)
    for subnet in (subnet for step in range(steps) for subnet in sampler(step)):
        of_all_images = subnet.part[1] * steps
        macs += count_architecture(subnet.architecture, num_classes)["macs"] / of_all_images
        side = subnet.architecture.resolution
        with kernels:
            images = torch.empty(2, 3, side, side, device="meta")
            supernet(images, subnet.architecture).sum().backward()
    # forward and backward are three forward passes, and a multiply-add is two operations
    arithmetic_s = 3 * 2 * macs * IMAGES_PER_GPU / SUSTAINED
    launches_s = kernels.count / steps * LAUNCH
    step_s = max(arithmetic_s, launches_s)
    size, rows = 4 * num_params, []
    for fabric in FABRICS:
        n = fabric.gpus
        seconds = 2 * (n - 1) / n * size / fabric.bandwidth + 2 * (n - 1) * fabric.latency
        share = seconds / (step_s + seconds)
        rows.append(
            {
                "fabric": fabric.name,
                "reduction_ms": 1e3 * seconds,
                "share": share,
                "speed_up": n * (1 - share),
            }
        )
    return {
        "space": space_name,
        "num_params": num_params,
        "gradient_bytes": size,
        "macs_per_image_and_step": macs,
        "kernels_per_step": kernels.count / steps,
        "arithmetic_ms": 1e3 * arithmetic_s,
        "launches_ms": 1e3 * launches_s,
        "step_ms": 1e3 * step_s,
        "fabrics": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="digits")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", default=["multi_architecture", "sandwich"])
    options = parser.parse_args()
    results = {
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "load_before": os.getloadavg()[0],
        "space": options.space,
        "batch_size": options.batch_size,
        "steps": options.steps,
        "rounds": options.rounds,
        "assumed": {
            "images_per_gpu": IMAGES_PER_GPU,
            "operations_per_s": SUSTAINED,
            "launch_s": LAUNCH,
            "fabrics": [asdict(fabric) for fabric in FABRICS],
        },
        "strategies": {},
    }
    for strategy in options.strategies:
        measured = measure(
            options.space, strategy, options.batch_size, options.steps, options.rounds
        )
        paper = [on_paper("cifar", strategy, 10), on_paper("base", strategy, 1000)]
        print(f"{strategy}, {options.space}, batch {options.batch_size}, one thread a worker")
        _tell(measured, paper)
        results["strategies"][strategy] = {"measured": measured, "on_paper": paper}
    path = Path(__file__).parent / "results" / "training_scaling.json"
    path.write_text(json.dumps(results, indent=2) + "\n")


def _tell(measured: list[dict[str, Any]], paper: list[dict[str, Any]]) -> None:
    for row in measured:
        print(
            f"  {row['workers']} worker(s): {row['images_per_s']:7.1f} images/s "
            f"(x{row['speed_up']:.2f}; other work {row['other_work']:.0%} of the machine), step "
            f"{row['step_ms']:.1f} ms ({row['cpu_ms']:.1f} ms of a core), of which waiting "
            f"{row['wait_ms']:.1f} ms, reduction {row['reduction_ms']:.2f} ms "
            f"({row['reduction_share']:.1%})"
        )
    for space in paper:
        print(
            f"  {space['space']}: {space['gradient_bytes'] / 1e6:.0f} MB of gradients, step of "
            f"{IMAGES_PER_GPU} images on a GPU {space['step_ms']:.1f} ms (arithmetic "
            f"{space['arithmetic_ms']:.1f}, starting kernels {space['launches_ms']:.1f})"
        )
        for row in space["fabrics"]:
            print(
                f"    {row['fabric']:36} reduction {row['reduction_ms']:8.2f} ms, "
                f"{row['share']:5.1%} of the step, x{row['speed_up']:.1f}"
            )


if __name__ == "__main__":
    main()
