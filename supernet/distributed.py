"""Supernet training by several workers, on this machine or a cluster, through Ray Train.

Each worker runs ``train_supernet`` on its share of every batch. The first one writes checkpoints,
in the format of ``supernet.checkpoints``, to storage that all workers see; when a worker is lost
all start again from the last one, fewer of them where the lost one has no replacement. This
process trains nothing: it shows progress, writes metrics, and loads the last checkpoint at the
end.
"""

from __future__ import annotations

import pickle
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, get_device
from ray.train.v2._internal.exceptions import RayTrainError  # what is no fault of the training's
from ray.train.v2.api.callback import UserCallback  # ray.train has these, too, but not their types
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.v2.torch.torch_trainer import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search_space.errors import DataError, NasError, RunError
from search_space.space import Genes, SearchSpace
from supernet.checkpoints import Checkpoint, LocalStore, save_checkpoint
from supernet.cluster import connected, nodes, share
from supernet.data import ImageData
from supernet.loop import ProgressCallback
from supernet.metric_files import MetricFiles
from supernet.parallel import Group
from supernet.storage import Storage
from supernet.supernet import Supernet
from supernet.train_config import EpochMetrics, TrainConfig
from supernet.training import CHECKPOINTS, train_supernet

TELL_SECONDS = 0.5
SILENT_SECONDS = 120.0
Cost = Callable[[Genes], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Who trains.

    count: workers that are asked for. gpus: of each; None for one where the cluster has any.
    address: of the cluster, see ``supernet.cluster.connected``.
    storage: folder or URL that all nodes see; checkpoints are kept in its folder ``name``. By
        default they are in the training's own directory, which all nodes must share then.
    max_failures: lost workers until the training is given up. elastic: whether it goes on with
        fewer workers where a lost one has no replacement, or waits for one.
    """

    count: int
    gpus: float | None = None
    address: str | None = None
    storage: str | None = None
    name: str = "supernet"
    max_failures: int = 3
    elastic: bool = True


@dataclass(frozen=True, kw_only=True)
class _Job:
    """All that a worker must know; pickled once."""

    space: SearchSpace
    num_classes: int
    open_images: Callable[[], ImageData]
    fingerprint: str
    config: TrainConfig
    cost: Cost | None
    logits: Path | None
    loader_workers: int
    checkpoint_seconds: float
    storage: Storage
    token: str
    start: str | None
    count: int
    resources: dict[str, float]
    board: Any


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
    tensorboard: bool = True,
) -> list[EpochMetrics]:
    """As ``train_supernet``, by ``workers``; leaves the same files, and weights in ``supernet``.

    It starts from the weights that ``config.seed`` gives, or from the newest checkpoint in
    ``directory`` or the storage, whatever number of workers wrote it.

    open_images: called on each worker; must give there what ``data`` is here.
    notice: called with a sentence where the training goes on otherwise than asked.
    device: of this process, for ``supernet``. cost: must be picklable.

    Raises RunError where cluster, storage or batch size cannot be used, or workers are lost again
    and again; DataError where a worker finds other images; TrainingDivergedError.
    """
    directory = Path(directory).resolve()
    local = LocalStore(directory / CHECKPOINTS)
    found = local.load()
    if not _is_finished(found, config):
        own = workers.storage is None
        storage = Storage(
            str(directory) if workers.storage is None else workers.storage,
            CHECKPOINTS if own else workers.name,
        )
        token = uuid.uuid4().hex
        storage.create(token)
        try:
            start = _start(storage, None if own else found)
            with connected(workers.address):
                resources = share(nodes(), workers.count, workers.gpus)
                job = _Job(
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
                    start=None if start is None else start[0],
                    count=workers.count,
                    resources=resources,
                    board=_board(),
                )
                files = MetricFiles(directory, tensorboard=tensorboard)
                epochs = {} if start is None else _epochs(start[1])
                _run(job, workers, _Listener(files, epochs, progress, notice))
        finally:
            storage.tidy()
        last = storage.newest()
        if last is not None and not own:
            save_checkpoint(local.directory, last[1])
    # Finished: nothing is trained here, but everything is checked, loaded and written as ever.
    return train_supernet(
        supernet,
        data,
        config,
        directory,
        device=device,
        cost=cost,
        logits=logits,
        workers=loader_workers,
        tensorboard=False,
    )


def fewest_workers(batch_size: int, accumulate: int, count: int) -> int:
    """With how few workers a training of ``count`` can go on by itself.

    From there up to ``count`` every number cuts the batch into equal parts; Ray may pick any.
    """
    least = count
    while least > 1 and batch_size % (accumulate * (2 * (least - 1) if least > 2 else 1)) == 0:
        least -= 1
    return least


def _is_finished(found: Checkpoint | None, config: TrainConfig) -> bool:
    return found is not None and len(found.metadata["state"]["history"]) >= config.epochs


def _epochs(checkpoint: Checkpoint) -> dict[int, dict[str, Any]]:
    history = checkpoint.metadata["state"]["history"]
    return {line["epoch"]: EpochMetrics(**line).to_dict() for line in history}


def _start(storage: Storage, found: Checkpoint | None) -> tuple[str, Checkpoint] | None:
    """Where workers begin: the newest checkpoint in the storage, or ``found`` if that is newer."""
    stored = storage.newest()
    if found is None or (stored is not None and stored[1].step >= found.step):
        return stored
    return storage.save(found).rpartition("/")[2], found


# On the workers ---------------------------------------------------------------------------------


class RayStore:
    """Checkpoints of a worker: written by the first one, reported by all, to Ray Train."""

    def __init__(self, storage: Storage, start: str | None, rank: int) -> None:
        self.storage, self.start, self.rank = storage, start, rank

    def __str__(self) -> str:
        return str(self.storage)

    def load(self) -> Checkpoint | None:
        """What this run reported last, else the one that it starts from."""
        reported = ray.train.get_checkpoint()
        name = self.start if reported is None else reported.path.rpartition("/")[2]
        return None if name is None else self.storage.load(name)

    def save(self, checkpoint: Checkpoint) -> None:
        reported = None
        if self.rank == 0:
            path = self.storage.save(checkpoint)
            reported = ray.train.Checkpoint(path, self.storage.filesystem)
        ray.train.report(
            {"step": checkpoint.step},
            checkpoint=reported,
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
        )


def _work(options: Mapping[str, _Job]) -> None:
    job = options["job"]
    try:
        _train(job, Group.current())
    except NasError as error:
        raise _portable(error) from None


def _train(job: _Job, group: Group) -> None:
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


def _opened(job: _Job, group: Group) -> ImageData:
    """The images; all workers fail together where one of them has no or other ones."""
    where = f"the worker on {ray.util.get_node_ip_address()}"
    problem, data = "", None
    try:
        data = job.open_images()
    except NasError as error:
        problem = f"{where} cannot open the images: {error}"
    if data is not None and data.fingerprint != job.fingerprint:
        problem = (
            f"{where} finds other images (fingerprint {data.fingerprint}, here "
            f"{job.fingerprint}); the same must be at the same path on all nodes"
        )
    if not job.storage.is_shared(job.token):
        problem = (
            f"{where} does not see the storage {job.storage}; give a folder or URL that all nodes "
            "of the cluster share, with --storage"
        )
    for found in group.gather(problem):
        if found:
            raise DataError(found)
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


def _portable(error: NasError) -> NasError:
    """The error, or its words where it cannot be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(str(error))
    return error


# In this process --------------------------------------------------------------------------------


class _Board:
    """What the workers last said; an actor."""

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

    def take(self) -> tuple[Any, list[dict[str, Any]], list[str]]:
        """Everything since the last call."""
        taken = self._latest, self._epochs, self._notes
        self._latest, self._epochs, self._notes = None, [], []
        return taken


def _board() -> Any:
    here = ray.get_runtime_context().get_node_id()
    options = {"scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False)}
    return ray.remote(num_cpus=0)(_Board).options(**options).remote()


class _FailFast(UserCallback):
    """Ends the training at once on an error that no repetition mends. Runs in Ray's controller."""

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

    def hear(self, board: Any) -> None:
        try:
            latest, ended, notes = ray.get(board.take.remote(), timeout=10.0)
        except ray.exceptions.RayError:
            return  # progress is not worth the training
        for epoch in ended:
            self.epochs[epoch["epoch"]] = epoch
            self.files.add_events(epoch)
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


def _run(job: _Job, workers: Workers, listener: _Listener) -> None:
    trainer, ended = _trainer(job, workers), []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            ended.append(error)

    # Not in the main thread, where Ray would answer an interruption by ending this process.
    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(TELL_SECONDS)
            listener.hear(job.board)
    finally:
        listener.files.close()
    for error in ended:
        raise _explained(error, workers)


def _trainer(job: _Job, workers: Workers) -> TorchTrainer:
    least = workers.count
    if workers.elastic:
        least = fewest_workers(job.config.batch_size, job.config.accumulate, workers.count)
    return TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(),
        scaling_config=ScalingConfig(
            num_workers=workers.count if least == workers.count else (least, workers.count),
            use_gpu="GPU" in job.resources,
            resources_per_worker=job.resources,
        ),
        run_config=RunConfig(
            name=job.storage.name,
            storage_path=job.storage.base,
            storage_filesystem=job.storage.filesystem,
            failure_config=FailureConfig(max_failures=workers.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_FailFast(job.board)],
            logging_config=LoggingConfig(log_level="CRITICAL"),
        ),
    )


def _explained(error: BaseException, workers: Workers) -> BaseException:
    """What a person is told; a bug stays what it is."""
    if isinstance(error, ray.train.ControllerError):
        cause = error.controller_failure
        if isinstance(cause, NasError):
            return cause
        if isinstance(cause, RayTrainError):
            return RunError(f"the workers could not be started: {_line(cause)}")
    if isinstance(error, ray.train.WorkerGroupError):
        failures = error.worker_failures.values()
        if any(isinstance(failure, RayTrainError) for failure in failures):
            return RunError(
                f"workers were lost {workers.max_failures + 1} times, the last time as "
                f"{_line(next(iter(failures)))}. The last checkpoint is kept: look at memory and "
                "network of the nodes, then continue with --resume"
            )
    if isinstance(error, ray.exceptions.RayError):
        return RunError(
            f"the connection to the cluster was lost ({_line(error)}). The last checkpoint is "
            "kept; continue with --resume"
        )
    return error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
