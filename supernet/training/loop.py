"""Loop of a training: steps, roll-back, checkpoints, metrics.

Everything random in a step depends on (seed, step), so a checkpoint needs no generator state
and a resumed run is bitwise the run that was never stopped (on a CPU). A non-finite loss or
gradient is seen before the optimiser uses it; training then goes back to the last snapshot
with half the step size. In float16 an overflow of scaled gradients only leaves the step out.

Several workers run this same loop, each on its share of every batch. They meet once a step, when
gradients are averaged; the figures that come along tell all of them the same, so all roll back,
stop and save together.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import nn

from search_space.errors import RunError
from supernet.data.augmentation import mix_seed
from supernet.data.batches import Batch, steps_per_epoch, train_loader
from supernet.data.dataset import ImageData
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import (
    BEST,
    Checkpoint,
    CheckpointFolder,
    CheckpointStore,
    check_identity,
)
from supernet.training.config import (
    EpochMetrics,
    TrainConfig,
    TrainingDivergedError,
    check_batch_size,
)
from supernet.training.evaluation import Quality
from supernet.training.loggers import MetricFiles
from supernet.training.loop_state import Snapshot, State, copied
from supernet.training.objectives import Objective
from supernet.training.optimizer import MovingAverage, NamedOptimizer
from supernet.training.parallel import Group
from supernet.training.precision import LossScale

CHECKPOINTS = "checkpoints"
ProgressCallback = Callable[[int, int, dict[str, Any]], None]
EpochCallback = Callable[[EpochMetrics], None]


class How(TypedDict, total=False):
    """Holds options of running a training; none of them decides its result.

    Attributes:
        device: Where it trains; the CPU by default.
        workers: Data-loading processes; 0 loads in this one.
        progress: Called after each step with (done steps, all steps, figures by name).
        on_epoch: Called after each epoch, and at the start for those of a training that is
            continued.
        checkpoint_seconds: Time between checkpoints within an epoch, 60 by default.
        store: Where checkpoints are kept; by default below the training's directory.
        loggers: Names of ``supernet.training.loggers``, for a training with a directory.
    """

    device: str | torch.device
    workers: int
    progress: ProgressCallback | None
    on_epoch: EpochCallback | None
    checkpoint_seconds: float
    store: CheckpointStore | None
    loggers: Sequence[str]


class TrainingLoop:
    """Trains ``module`` in place by ``objective``; arguments as in ``supernet.training.train``."""

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        data: ImageData,
        config: TrainConfig,
        directory: str | Path | None,
        identity: Mapping[str, Any],
        *,
        group: Group | None = None,
        **how: Unpack[How],
    ) -> None:
        self.module, self.objective, self.data, self.config = module, objective, data, config
        self.device = torch.device(how.get("device", "cpu"))
        self.progress, self.on_epoch = how.get("progress"), how.get("on_epoch")
        self.store = how.get("store")
        if self.store is None and directory is not None:
            self.store = CheckpointFolder(directory, CHECKPOINTS)
        self.workers = how.get("workers", 0)
        self.group = group or Group()
        check_batch_size(config, len(data.train), self.group.size)
        self.checkpoint_seconds = how.get("checkpoint_seconds", 60.0)
        self.augment = data.augmentation(config.augment)
        images = min(config.batch_size, len(data.train))
        if (self.augment.mixup or self.augment.cutmix) and images < 2:
            raise RunError(
                f"a batch has {images} image (batch_size {config.batch_size}, {len(data.train)} "
                f"training images), but mixup is {self.augment.mixup} and cutmix "
                f"{self.augment.cutmix}, which mix pairs; give a batch_size of 2 or more, or set "
                "both to 0"
            )
        self.identity: dict[str, Any] = {
            "train": config.to_dict(),
            "augment": self.augment.to_dict(),
            "data": data.fingerprint,
            **identity,
        }
        self.steps_per_epoch = steps_per_epoch(data, config.batch_size)
        self.total_steps = config.epochs * self.steps_per_epoch
        self.parameters = dict(module.named_parameters())
        self.average: MovingAverage | None = None
        if config.ema_decay:
            state = module.state_dict(keep_vars=True)
            tensors = {name: value for name, value in state.items() if value.is_floating_point()}
            self.average = MovingAverage(tensors, config.ema_decay)
        self.optimizer = NamedOptimizer(module, config, self.steps_per_epoch, self.average)
        options: dict[str, Any] = {"workers": self.workers, "folder": directory}
        self.validation = eval_batches(data.validation, 4 * config.batch_size, **options)
        self.scale = LossScale(self.device, config.amp, self.group)
        self.state = State()
        self.best: dict[str, torch.Tensor] = {}  # tensors of the network after its best epoch
        self.files = (
            None if directory is None else MetricFiles(Path(directory), how.get("loggers", ()))
        )
        self._last_saved = time.monotonic()

    def run(self) -> list[EpochMetrics]:
        """Trains to the end, from the checkpoint if there is one; returns all epochs' metrics."""
        with nullcontext() if self.files is None else self.files:
            self._resume()
            for metrics in self._epochs():
                self._tell(metrics)
            self.snapshot = self._take_snapshot()
            while self.state.step < self.total_steps and not self._has_waited():
                if not self._run_epoch():
                    self._roll_back()
            if self.average is not None:
                self.average.use()
            if self.best:
                self.module.load_state_dict(self.best)
        return self._epochs()

    def _has_waited(self) -> bool:
        return 0 < self.config.patience <= self.state.waited

    def _epochs(self) -> list[EpochMetrics]:
        return [EpochMetrics(**line) for line in self.state.history]

    # Steps --------------------------------------------------------------------------------

    def _run_epoch(self) -> bool:
        """Trains to the end of the epoch under way; False if a step was not finite."""
        epoch, done = divmod(self.state.step, self.steps_per_epoch)
        self.module.train()
        started = time.perf_counter()
        for batch in train_loader(
            self.data,
            self.config.batch_size,
            epoch,
            self.config.seed,
            self.workers,
            augment=self.augment,
            label_smoothing=self.config.label_smoothing,
            start=done,
            shard=(self.group.rank, self.group.size),
            variants=self.config.teacher_variants or None,
            balanced=self.config.sampling == "balanced",
        ):
            taken = self._step(batch.to(self.device))
            if taken is None:
                return False
            losses, save_is_due = taken
            state = self.state
            for role, loss in losses:
                total, count = state.loss_sums.get(role, (0.0, 0))
                state.loss_sums[role] = [total + loss, count + 1]
            state.step += 1
            state.images += len(batch.images) * self.group.size
            now = time.perf_counter()
            state.seconds += now - started
            started = now
            at_end = state.step % self.steps_per_epoch == 0
            self._report(epoch)
            if not at_end and state.step % self.config.snapshot_steps == 0:
                if not self._all_finite():
                    return False
                self.snapshot = self._take_snapshot()
                if save_is_due:
                    self._save()
        if not self._all_finite():
            return False
        self._end_epoch(epoch)
        return True

    def _step(self, batch: Batch) -> tuple[list[tuple[str, float]], bool] | None:
        """Takes an optimiser step; returns (role, loss) of all workers' subnets, whether to save.

        Returns None, and changes nothing, where a loss or the gradient is not finite. A gradient
        that overflowed because it is scaled changes the scale alone.
        """
        step = self.state.step
        self.objective.prepare(step, self.optimizer.states)
        self.optimizer.begin(step, self.state.lr_scale)
        parts = self.config.accumulate
        roles: list[str] = []
        values: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        trained: list[torch.Tensor] | None = None  # what subnets of full learning rate trained
        slowest = 1.0
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            rank = [self.group.rank] if self.group.rank else []
            seed = mix_seed(self.config.seed, step, 3, *rank)
            torch.manual_seed(seed & 0x7FFFFFFFFFFFFFFF)
            for k in range(parts):
                roles, values = [], []
                for one in self.objective.losses(step, batch.part(k, parts)):
                    if one.lr_factor < 1 and trained is None:
                        trained, slowest = self._trained_so_far(), one.lr_factor
                    self.scale.backward(one.loss * (one.weight / parts))
                    roles.append(one.role)
                    values += [one.loss.detach().float() / parts, one.label_loss.float() / parts]
                sums = values if k == 0 else [a + b for a, b in zip(sums, values, strict=True)]
        due = time.monotonic() - self._last_saved >= self.checkpoint_seconds
        figures_here = torch.stack([*sums, sums[0].new_tensor(float(due))])
        figures = self.group.reduce(list(self.parameters.values()), figures_here)
        self.optimizer.unscale(self.scale)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip_norm or math.inf)
        # One transfer from the device for everything that must be looked at.
        *looked_at, norm_value = torch.cat([figures.flatten(), norm.to(figures)[None]]).tolist()
        overflow = not math.isfinite(norm_value)
        left_out = self.scale.update(overflow=overflow)
        if not all(map(math.isfinite, looked_at)) or (overflow and not left_out):
            return None
        if not left_out:
            rates = None
            if trained is not None:
                shared = self.group.union(trained)
                factors = [torch.where(mask, 1.0, slowest) for mask in shared]
                rates = dict(zip(self.parameters, factors, strict=True))
            self.optimizer.step(step, rates)
        width = figures.shape[1]
        rows = [looked_at[i : i + width] for i in range(0, len(looked_at), width)]
        self.objective.observe(step, [row[1:-1:2] for row in rows])
        losses = [pair for row in rows for pair in zip(roles, row[:-1:2], strict=True)]
        return losses, bool(rows[0][-1])

    def _trained_so_far(self) -> list[torch.Tensor]:
        """Marks the elements of each parameter that have a gradient by now."""
        return [
            torch.zeros_like(value, dtype=torch.bool) if value.grad is None else value.grad != 0
            for value in self.parameters.values()
        ]

    def _all_finite(self) -> bool:
        checks = [parameter.detach().isfinite().all() for parameter in self.parameters.values()]
        return bool(torch.stack(checks).all())

    def _roll_back(self) -> None:
        scale, count = self.state.lr_scale / 2, self.state.rollbacks + 1
        step = self.state.step
        if count > self.config.max_bad_steps:
            lr = self.config.lr * self.state.lr_scale
            raise TrainingDivergedError(
                f"training diverged at step {step}: the loss or its gradient is not finite, even "
                f"after {count - 1} roll-backs down to a peak learning rate of {lr:.3g} (at first "
                f"{self.config.lr:.3g}). Start anew with a learning rate of {lr / 4:.1g} or "
                "below, or longer warm-up"
            )
        self._restore(self.snapshot)
        self.state.lr_scale, self.state.rollbacks = scale, count
        # The next roll-back must find the smaller step size, also after a restart.
        self.snapshot = self._take_snapshot()
        self._save()

    # Snapshots and checkpoints --------------------------------------------------------------

    def _take_snapshot(self) -> Snapshot:
        objective = self.objective.state_dict()
        return Snapshot(
            copied(self.module.state_dict()),
            copied(self.optimizer.tensors()),
            asdict(replace(self.state, objective=objective, loss_scale=self.scale.state_dict())),
        )

    def _restore(self, snapshot: Snapshot) -> None:
        self.module.load_state_dict(snapshot.weights)
        self.optimizer.load(snapshot.optimizer)
        self.state = State(**json.loads(json.dumps(snapshot.state)))
        self.objective.load_state_dict(self.state.objective)
        self.scale.load_state_dict(self.state.loss_scale)

    def _save(self) -> None:
        """Writes the last snapshot, so that a resumed run rolls back to where this one would."""
        self._last_saved = time.monotonic()
        if self.store is not None:
            self.store.save(
                Checkpoint(
                    step=self.snapshot.state["step"],
                    weights=self.snapshot.weights,
                    optimizer=self.snapshot.optimizer
                    | {f"{name}/{BEST}": tensor for name, tensor in self.best.items()},
                    metadata={"identity": self.identity, "state": self.snapshot.state},
                )
            )

    def _resume(self) -> None:
        stored = None if self.store is None else self.store.load()
        if stored is None:
            return
        check_identity(stored.metadata["identity"], self.identity, self.store)
        self._restore(Snapshot(stored.weights, stored.optimizer, stored.metadata["state"]))
        self.best = stored.kept(BEST)
        self._write_metrics()

    # Metrics --------------------------------------------------------------------------------

    def _end_epoch(self, epoch: int) -> None:
        state, config = self.state, self.config
        started = time.perf_counter()
        quality: dict[str, Quality] = {}
        before, now = (config.evaluations * e // config.epochs for e in (epoch, epoch + 1))
        if (now > before or config.patience) and self.group.rank == 0:
            with nullcontext() if self.average is None else self.average.used():
                quality = self.objective.qualities(self.validation)
                if config.patience:
                    self._keep_best(sum(value.loss for value in quality.values()))
        metrics = EpochMetrics(
            epoch=epoch,
            step=state.step,
            seconds=state.seconds + time.perf_counter() - started,
            images_per_s=state.images / max(state.seconds, 1e-9),
            lr=self.optimizer.lr,
            rollbacks=state.rollbacks,
            losses={role: total / count for role, (total, count) in state.loss_sums.items()},
            val_accuracy={role: value.accuracy for role, value in quality.items()},
            val_loss={role: value.loss for role, value in quality.items()},
        )
        state.history.append(asdict(metrics))
        state.loss_sums, state.seconds, state.images = {}, 0.0, 0
        self.snapshot = self._take_snapshot()
        self._save()
        self._write_metrics()
        if self.files is not None:
            self.files.log(metrics.to_dict())
        self._report(epoch, metrics)
        self._tell(metrics)

    def _keep_best(self, loss: float) -> None:
        state = self.state
        best = math.inf if state.best_loss is None else state.best_loss
        if not loss < best:  # nor is it where it is not a number
            state.waited += 1
            return
        state.best_loss, state.waited = loss, 0
        self.best = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in self.module.state_dict().items()
        }

    def _tell(self, metrics: EpochMetrics) -> None:
        if self.on_epoch is not None:
            self.on_epoch(metrics)

    def _report(self, epoch: int, metrics: EpochMetrics | None = None) -> None:
        if self.progress is None:
            return
        state = self.state
        info: dict[str, Any] = {
            "epoch": epoch,
            "epochs": self.config.epochs,
            "lr": self.optimizer.lr,
            "rollbacks": state.rollbacks,
        }
        if metrics is not None:
            info |= metrics.to_dict()
        elif state.seconds:
            info["images_per_s"] = state.images / state.seconds
            for role, (total, count) in state.loss_sums.items():
                info[f"loss_{role}" if role else "loss"] = total / count
        self.progress(state.step, self.total_steps, info)

    def _write_metrics(self) -> None:
        if self.files is not None:
            self.files.rewrite(metrics.to_dict() for metrics in self._epochs())
