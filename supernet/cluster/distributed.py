"""Supernet training by several workers, on this machine or a cluster, through Ray Train.

Each worker runs ``train_supernet`` on its share of every batch. The first one writes checkpoints,
in the format of ``supernet.training.checkpoints``, to storage that all workers see; when a worker
is lost all start again from the last one, fewer of them where the lost one has no replacement. This
process trains nothing: it shows progress, writes metrics, and loads the last checkpoint at the
end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_space.errors import NasError, RunError
from supernet.cluster.connection import connection_lost, fit_aside, one_line
from supernet.cluster.distributed_worker import (
    TELL_SECONDS,
    Cost,
    SupernetJob,
    as_arrow,
    work,
)
from supernet.cluster.jobs import hired
from supernet.data.dataset import ImageData
from supernet.network.supernet import Supernet
from supernet.training.checkpoints import Checkpoint, CheckpointFolder, check_identity
from supernet.training.config import EpochMetrics, TrainConfig, check_batch_size, check_groups
from supernet.training.loggers import MetricFiles
from supernet.training.loop import ProgressCallback
from supernet.training.train import CHECKPOINTS

SILENT_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """States how many workers train, and where.

    Attributes:
        gpus: Of each; None for one where the cluster has any.
        address: Of the cluster, see ``supernet.cluster.connection.connected``.
        storage: Folder or URL that all nodes see; checkpoints are kept in its folder ``name``. By
            default they are in the training's directory, which all nodes must share then.
        max_failures: Lost workers until the training is given up.
        elastic: Whether it goes on with fewer workers where a lost one has no replacement, or
            waits for one.
    """

    count: int
    gpus: float | None = None
    address: str | None = None
    storage: str | None = None
    name: str = "supernet"
    max_failures: int = 3
    elastic: bool = True


def train_distributed(
    supernet: Supernet,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path,
    workers: Workers,
    open_images: Callable[[], ImageData],
    *,
    progress: ProgressCallback | None = None,
    notice: Callable[[str], None] | None = None,
    device: str | torch.device = "cpu",
    cost: Cost | None = None,
    logits: Path | None = None,
    loader_workers: int = 0,
    checkpoint_seconds: float = 60.0,
    loggers: Sequence[str] = ("tensorboard",),
) -> list[EpochMetrics]:
    """Trains as ``train_supernet`` does, by ``workers``, and leaves the same files and weights.

    It starts from the weights that ``config.seed`` gives, or from the newest checkpoint in
    ``directory`` or the storage, whatever number of workers wrote it.

    Args:
        open_images: Called on each worker; must give there what ``data`` is here.
        notice: Called with a sentence where the training goes on otherwise than planned.
        device: Of this process, for ``supernet``.
        cost: As for ``train_supernet``; must be picklable.

    Raises:
        RunError: Cluster, storage or batch size cannot be used, or workers are lost again and
            again.
        DataError: A worker finds other images.
        TrainingDivergedError: The loss stayed non-finite.
    """
    directory = Path(directory).resolve()
    local = CheckpointFolder(directory / CHECKPOINTS)
    known = local.load()
    if not _is_finished(known, config):
        check_batch_size(config, len(data.train), workers.count)
        check_groups(config, len(data.train), workers.count)
        in_run = workers.storage is None
        storage = local if in_run else CheckpointFolder(str(workers.storage), workers.name)
        with hired(storage, workers.address, workers.count, workers.gpus) as (token, resources):
            start = _start(storage, None if in_run else known)
            job = SupernetJob(
                space=supernet.space,
                num_classes=supernet.num_classes,
                open_images=open_images,
                fingerprint=data.fingerprint,
                config=config,
                cost=cost,
                logits=logits,
                loader_workers=loader_workers,
                checkpoint_seconds=checkpoint_seconds,
                storage=storage,
                token=token,
                start=None if start is None else start.name,
                count=workers.count,
                resources=resources,
                board=_board(),
            )
            files = MetricFiles(directory, loggers)
            epochs = {} if start is None else _epochs(start)
            _run(job, workers, _Listener(files, epochs, progress, notice))
        known = storage.newest()
        if known is None or not _is_finished(known, config):
            raise RunError(
                f"all {config.epochs} epochs were trained, but the last checkpoint in {storage} "
                "is damaged or gone; give the same command with --resume to train again what is "
                "missing"
            )
        if not in_run:
            local.save(known)
    assert known is not None
    here = {"train": config.to_dict(), "data": data.fingerprint, "space": supernet.space.digest}
    check_identity({key: known.metadata["identity"].get(key) for key in here}, here, local)
    supernet.load_state_dict(known.trained_weights())
    supernet.to(device)
    # An earlier command may have been killed before it heard of the last epochs.
    MetricFiles(directory).rewrite(_epochs(known).values())
    return [EpochMetrics(**line) for line in known.metadata["state"]["history"]]


def fewest_workers(batch_size: int, accumulate: int, count: int) -> int:
    """Counts with how few workers a training of ``count`` can go on by itself.

    From there up to ``count`` every number cuts the batch into equal parts; Ray may pick any.
    """
    least = count
    while least > 1 and batch_size % (accumulate * (2 * (least - 1) if least > 2 else 1)) == 0:
        least -= 1
    return least


def _is_finished(known: Checkpoint | None, config: TrainConfig) -> bool:
    return known is not None and len(known.metadata["state"]["history"]) >= config.epochs


def _epochs(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    history = checkpoint.metadata["state"]["history"]
    return {line["epoch"]: EpochMetrics(**line).to_dict() for line in history}


def _start(storage: CheckpointFolder, known: Checkpoint | None) -> Checkpoint | None:
    """Finds the checkpoint to begin with: the storage's newest, or ``known`` if it is newer."""
    stored = storage.newest(set_aside=True)
    if known is None or (stored is not None and stored.step >= known.step):
        return stored
    return replace(known, name=storage.write(known))


class _Board:
    """Holds what the workers last said; an actor."""

    def __init__(self) -> None:
        self._latest: tuple[int, int, dict[str, Any]] | None = None
        self._epochs: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def tell(self, done: int, total: int, info: dict[str, Any]) -> None:
        self._latest = done, total, info
        if "seconds" in info:
            self._epochs.append({key: info[key] for key in info if key != "epochs"})

    def note(self, text: str) -> None:
        self._notes.append(text)

    def take(self, epochs: int, notes: int) -> tuple[Any, list[dict[str, Any]], list[str]]:
        """Gives the latest step if it is new, and what came after so many epochs and notes.

        What was said is kept: an answer may come too late to be heard.
        """
        latest, self._latest = self._latest, None
        return latest, self._epochs[epochs:], self._notes[notes:]


def _board() -> Any:
    here = ray.get_runtime_context().get_node_id()
    options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
    return ray.remote(num_cpus=0)(_Board).options(**options).remote()


class _FailFast(ray.train.UserCallback):
    """Ends the training at once on an error that no repetition cures. Runs in Ray's controller."""

    def __init__(self, board: Any) -> None:
        self.board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, NasError):
                raise error
        ranks = ", ".join(map(str, sorted(worker_exceptions)))
        self.board.note.remote(f"worker {ranks} failed; going back to the last checkpoint")


@dataclass
class _Listener:
    """Writes and shows what the board says."""

    files: MetricFiles
    epochs: dict[int, dict[str, Any]]
    progress: ProgressCallback | None
    notice: Callable[[str], None] | None
    heard: float = 0.0
    counts: tuple[int, int] = (0, 0)  # of epochs and notes that were heard

    def hear(self, board: Any) -> None:
        try:
            latest, ended, notes = ray.get(board.take.remote(*self.counts), timeout=10.0)
        except ray.exceptions.RayError:
            return  # progress is not worth the training
        self.counts = self.counts[0] + len(ended), self.counts[1] + len(notes)
        for epoch in ended:
            self.epochs[epoch["epoch"]] = epoch
            self.files.log(epoch)
        if ended:
            self.files.rewrite(self.epochs[number] for number in sorted(self.epochs))
        now = time.monotonic()
        if latest is not None or notes or not self.heard:
            self.heard = now
        elif now - self.heard > SILENT_SECONDS:
            self.heard = now
            notes = [
                "no word from the workers for two minutes; `ray status` shows what they wait for"
            ]
        if self.notice is not None:
            for note in notes:
                self.notice(note)
        if self.progress is not None and latest is not None:
            self.progress(*latest)


def _run(job: SupernetJob, workers: Workers, listener: _Listener) -> None:
    with listener.files:
        error = fit_aside(
            _trainer(job, workers).fit, TELL_SECONDS, lambda: listener.hear(job.board)
        )
        if error is not None:
            raise _explained(error, workers)


def _trainer(job: SupernetJob, workers: Workers) -> TorchTrainer:
    train: Any = ray.train  # mypy sees the classes of Ray's first version of it
    # NCCL refuses two workers on one GPU; Gloo copies through main memory, which is soon done there
    shared = 0 < job.resources.get("GPU", 0) < 1
    least = workers.count
    if workers.elastic:
        least = fewest_workers(job.config.batch_size, job.config.accumulate, workers.count)
    return TorchTrainer(
        work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="gloo" if shared else None),
        scaling_config=train.ScalingConfig(
            num_workers=workers.count if least == workers.count else (least, workers.count),
            use_gpu="GPU" in job.resources,
            resources_per_worker=dict(job.resources),
        ),
        run_config=train.RunConfig(
            name=job.storage.path.rpartition("/")[2],
            storage_path=job.storage.path.rpartition("/")[0],
            storage_filesystem=as_arrow(job.storage),
            failure_config=train.FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=2),
            callbacks=[_FailFast(job.board)],
            logging_config=train.LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _explained(error: BaseException, workers: Workers) -> BaseException:
    """Gives the error that a user is told; a bug stays what it is."""
    if isinstance(error, ray.train.ControllerError):
        cause = error.controller_failure
        if isinstance(cause, NasError):
            return cause
        if _is_rays(cause):
            return RunError(f"the workers could not be started: {one_line(cause)}")
    if isinstance(error, ray.train.WorkerGroupError):
        failures = error.worker_failures.values()
        if any(map(_is_rays, failures)):
            return RunError(
                f"workers were lost {workers.max_failures + 1} times, the last time as "
                f"{one_line(next(iter(failures)))}. The last checkpoint is kept: look at memory "
                "and network of the nodes, then continue with --resume"
            )
    if isinstance(error, ray.exceptions.RayError):
        return connection_lost(error)
    return error


def _is_rays(error: BaseException) -> bool:
    """Tells whether Ray raised it itself: a lost worker is no fault of the training's."""
    return type(error).__module__.startswith("ray.")
