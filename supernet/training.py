"""Training of the supernet and of static networks (fine-tuning): the public functions.

Both run the one loop in ``supernet.loop``; only the objective differs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from supernet.data import ImageData
from supernet.loop import ProgressCallback, TrainingLoop
from supernet.objectives import NetworkObjective, SupernetObjective, evaluate
from supernet.sampling import SandwichSampler, SubnetSampler
from supernet.train_config import EpochMetrics, TrainConfig, TrainingDivergedError

__all__ = [
    "EpochMetrics",
    "TrainConfig",
    "TrainingDivergedError",
    "evaluate",
    "finetune",
    "train_supernet",
]


def train_supernet(
    supernet: nn.Module,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path,
    *,
    progress: ProgressCallback | None = None,
    device: str | torch.device = "cpu",
    sampler: SubnetSampler | None = None,
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
    tensorboard: bool = True,
) -> list[EpochMetrics]:
    """Train the shared weights in place; continues by itself from a checkpoint in ``directory``.

    supernet: ``supernet(images, architecture, drop_path_rate=…)`` → logits, with ``.space``.
    sampler: by default the sandwich rule.
    progress: called after each step with (done steps, all steps, figures by name).
    workers: data-loading processes; no influence on results, nor has ``checkpoint_seconds``.

    Raises ``RunError`` where the checkpoint there was made with another configuration, and
    ``TrainingDivergedError``.
    """
    space: Any = supernet.space
    sampler = sampler or SandwichSampler(space, config.num_random, config.seed)
    objective = SupernetObjective(
        supernet.to(device),
        sampler,
        drop_path_rate=config.drop_path_rate,
        label_smoothing=config.label_smoothing,
        temperature=config.temperature,
        amp=config.amp,
    )
    identity = {"space": space.digest, "sampler": sampler.to_dict()}
    return TrainingLoop(
        supernet,
        objective,
        data,
        config,
        Path(directory),
        identity,
        device=torch.device(device),
        progress=progress,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        tensorboard=tensorboard,
    ).run()


def finetune(
    network: nn.Module,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path | None = None,
    *,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    progress: ProgressCallback | None = None,
    device: str | torch.device = "cpu",
    workers: int = 0,
    checkpoint_seconds: float = 60.0,
    tensorboard: bool = False,
) -> list[EpochMetrics]:
    """Train a static network in place, on labels or on the logits of ``teacher(images)``.

    As ``train_supernet``; without ``directory`` nothing is written. A checkpoint is continued
    only by a network that starts from the same weights.
    """
    objective = NetworkObjective(
        network.to(device),
        label_smoothing=config.label_smoothing,
        temperature=config.temperature,
        amp=config.amp,
        teacher=teacher,
    )
    identity = {"start": _weights_digest(network), "teacher": teacher is not None}
    return TrainingLoop(
        network,
        objective,
        data,
        config,
        None if directory is None else Path(directory),
        identity,
        device=torch.device(device),
        progress=progress,
        workers=workers,
        checkpoint_seconds=checkpoint_seconds,
        tensorboard=tensorboard,
    ).run()


def _weights_digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
