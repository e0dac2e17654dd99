"""The trainings of ``pretrained.py``: chosen networks, each for as many images × MACs.

What is chosen is stored as weights and a line of JSON, so that it can be trained on another
machine than the one whose latency decides. A step costs three forward passes of the network, and a
guided one a forward pass of the parent besides; cheaper networks get more epochs.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pretrained_setup as setup
import torch
from pretrained_pruned import resized, with_new_averages
from torch import Tensor, nn

from search_space import Architecture
from supernet import Backbone, build
from supernet.inherit.guidance import finetune_guided
from supernet.network.tensor_files import read_tensors, write_tensors
from supernet.training.recalibration import calibration_batches, recalibrate
from supernet.training.train import finetune


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A network before its training.

    Attributes:
        way: ``ours``, ``pruned``, ``resolution`` or ``parent``.
        seed: Of the parent.
        budget: Part of the parent's latency; 1 for the parent.
        side: Of its images.
        macs: Of one image.
        parent_macs: Likewise of the parent.
        latency_ms: Measured, together with ``parent_ms``.
        guided: With the parent's guidance or without, by training.
        architecture: In plain form; None for one of timm's.
        recalibrated: Whether batch norms get their averages anew before the training.
    """

    way: str
    seed: int
    budget: float
    side: int
    macs: int
    parent_macs: int
    latency_ms: float
    parent_ms: float
    guided: tuple[bool, ...]
    architecture: dict[str, Any] | None
    recalibrated: bool = False

    @property
    def name(self) -> str:
        return f"{self.way}-{round(100 * self.budget)}-{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training."""

    chosen: Chosen
    folder: Path
    guided: bool
    seed: int
    epochs: int
    side: int
    device: str

    @property
    def name(self) -> str:
        how = "guided" if self.guided else "labels"
        return f"{self.chosen.name} {how} {self.seed}"


def store(folder: Path, chosen: Chosen, network: nn.Module) -> None:
    """Writes a network; convolutions in 16 bits, which halves what travels to a GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / f"{chosen.name}.safetensors", halved(network.state_dict()))
    (folder / f"{chosen.name}.json").write_text(json.dumps(asdict(chosen), indent=1) + "\n")


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half() if v.ndim == 4 else v for k, v in state.items()}


def read(folder: Path) -> list[Chosen]:
    """Reads what is stored, by name."""
    found = [json.loads(file.read_text()) for file in sorted(folder.glob("*-*.json"))]
    return [Chosen(**{**each, "guided": tuple(each["guided"])}) for each in found]


def load(folder: Path, chosen: Chosen) -> nn.Module:
    """Builds a stored network."""
    state = read_tensors(folder / f"{chosen.name}.safetensors")
    state = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    if chosen.architecture is None:
        return resized(setup.NAME, setup.CLASSES, state)
    network = build(Architecture.from_dict(chosen.architecture), setup.CLASSES)
    network.load_state_dict(state)
    return network.eval()


def epochs_of(chosen: Chosen, guided: bool, epochs: float) -> int:
    """Epochs that cost as much as ``epochs`` of the parent without guidance."""
    step = 3 * chosen.macs + guided * chosen.parent_macs
    return max(1, round(epochs * 3 * chosen.parent_macs / step))


def jobs(folder: Path, seeds: int, epochs: float, device: str, side: int) -> Iterator[Job]:
    """All trainings; those of a seed before those of the next, long ones first."""
    known = read(folder / "chosen")
    for seed in range(seeds):
        of_seed = [
            Job(
                chosen=chosen,
                folder=folder,
                guided=guided,
                seed=seed,
                epochs=epochs_of(chosen, guided, epochs),
                side=side,
                device=device,
            )
            for chosen in known
            for guided in chosen.guided
        ]
        yield from sorted(of_seed, key=lambda job: -job.epochs)


def train(job: Job) -> dict[str, Any]:
    """Trains a network and judges it on the test images."""
    torch.set_num_threads(1)
    chosen, folder = job.chosen, job.folder / "chosen"
    torch.manual_seed(job.seed)
    network = load(folder, chosen).to(job.device)
    data = setup.images(job.folder, job.side, chosen.seed).at(chosen.side)
    if chosen.recalibrated:
        batches = calibration_batches(data, setup.FITTED, chosen.seed)
        if chosen.architecture is None:
            with_new_averages(network, batches)
        else:
            recalibrate(network, batches)
    before = setup.tested(network, data, job.device)
    recipe = replace(setup.FINAL, epochs=job.epochs, seed=job.seed)
    if job.guided:
        (whole,) = (c for c in read(folder) if c.way == "parent" and c.seed == chosen.seed)
        parent = load(folder, whole)
        assert isinstance(parent, Backbone)
        both: Any = network  # timm's network gives the same maps
        finetune_guided(both, parent, data.at(job.side), recipe, device=job.device)
    else:
        finetune(network, data, recipe, device=job.device)
    return {
        "epochs": job.epochs,
        "before": before["accuracy"],
        **setup.tested(network, data, job.device),
    }


def timed(job: Job) -> tuple[Job, dict[str, Any]]:
    """Trains, and adds the seconds; the job comes back with its figures."""
    begin = time.perf_counter()
    figures = train(job)
    return job, {**figures, "seconds": round(time.perf_counter() - begin, 1)}


def train_all(todo: list[Job], rows: setup.Rows, processes: int) -> None:
    """Trains what has no figures yet, several at a time."""
    todo = [job for job in todo if job.name not in rows.read()]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for done in as_completed([pool.submit(timed, job) for job in todo]):
            job, figures = done.result()
            rows.once(job.name, partial(dict, figures))
