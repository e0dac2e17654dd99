"""The work of one worker of a distributed training, in a process that Ray Train started."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray.train
import torch
from pyarrow import fs
from ray.train.torch import get_device

from search_space.errors import DataError, NasError, RunError
from search_space.space import SearchSpace
from search_space.stage_space import Genes
from supernet.cluster.jobs import Job
from supernet.data.dataset import ImageData
from supernet.network.supernet import Supernet
from supernet.training.checkpoints import Checkpoint, CheckpointFolder
from supernet.training.loop import ProgressCallback
from supernet.training.parallel import Group
from supernet.training.train import train_supernet

TELL_SECONDS = 0.5
Cost = Callable[[Genes], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class SupernetJob(Job):
    """Holds what a worker must know beside that; ``start`` names the checkpoint to begin with."""

    space: SearchSpace
    cost: Cost | None
    logits: Path | None
    start: str | None
    count: int
    board: Any


def as_arrow(folder: CheckpointFolder) -> fs.FileSystem:
    """Gives the file system of a folder, as Ray wants it."""
    if folder.is_local:
        return fs.LocalFileSystem()
    return fs.PyFileSystem(fs.FSSpecHandler(folder.filesystem))


class RayStore:
    """Keeps checkpoints: the first worker writes them, all report them to Ray Train."""

    def __init__(self, storage: CheckpointFolder, start: str | None, rank: int) -> None:
        self.storage, self.start, self.rank = storage, start, rank

    def __str__(self) -> str:
        return str(self.storage)

    def load(self) -> Checkpoint | None:
        """Returns what this run reported last, else the one that it starts from."""
        reported = ray.train.get_checkpoint()
        name = self.start if reported is None else reported.path.rpartition("/")[2]
        return None if name is None else self.storage.read(name)

    def save(self, checkpoint: Checkpoint) -> None:
        reported = None
        if self.rank == 0:
            path = f"{self.storage.path}/{self.storage.write(checkpoint)}"
            reported = ray.train.Checkpoint(path, as_arrow(self.storage))
        ray.train.report(
            {"step": checkpoint.step},
            checkpoint=reported,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


def work(options: Mapping[str, SupernetJob]) -> None:
    """Trains ``options["job"]`` with the other workers of the process group."""
    job = options["job"]
    try:
        _train(job, Group.current())
    except NasError as error:
        raise portable(error) from None


def _train(job: SupernetJob, group: Group) -> None:
    device = get_device()
    if device.type == "cpu":
        torch.set_num_threads(int(job.resources["CPU"]))
    data = _opened(job, group)
    torch.manual_seed(job.config.seed)
    supernet = Supernet(job.space, job.num_classes)
    if group.rank == 0 and group.size != job.count:
        job.board.note.remote(f"training goes on with {group.size} of {job.count} workers")
    train_supernet(
        supernet,
        data,
        job.config,
        None,
        progress=_teller(job.board) if group.rank == 0 else None,
        device=device,
        cost=job.cost,
        logits=job.logits,
        workers=job.loader_workers,
        checkpoint_seconds=job.checkpoint_seconds,
        store=RayStore(job.storage, job.start, group.rank),
    )


def _opened(job: Job, group: Group) -> ImageData:
    """Opens the images; all workers fail together where one of them has no or other ones."""
    problem, data = "", None
    try:
        data = job.images()
    except DataError as error:
        problem = str(error)
    for message in group.gather(problem):
        if message:
            raise DataError(message)
    assert data is not None
    return data


def _teller(board: Any) -> ProgressCallback:
    last = -TELL_SECONDS

    def tell(done: int, total: int, info: dict[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if "seconds" in info or now - last >= TELL_SECONDS:  # ends of epochs have all figures
            last = now
            board.tell.remote(done, total, info)

    return tell


def portable(error: NasError) -> NasError:
    """Gives the error, or its words where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(str(error))
    return error
