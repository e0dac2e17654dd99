"""Training of the supernet and of static networks (fine-tuning): the public functions.

Both run the one loop in ``supernet.training.loop``; only the objective differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from search_space.errors import RunError
from search_space.stage_space import Genes
from supernet.data.batches import steps_per_epoch
from supernet.data.dataset import ImageData
from supernet.network.norms import has_batch_norms
from supernet.network.supernet import Supernet
from supernet.network.tensor_files import digest_of
from supernet.training.config import (
    EpochMetrics,
    TrainConfig,
    TrainingDivergedError,
    check_batch_norms,
    groups_of,
)
from supernet.training.evaluation import evaluate
from supernet.training.loop import CHECKPOINTS, How, TrainingLoop
from supernet.training.objectives import NetworkObjective, SupernetObjective, balanced_weights
from supernet.training.parallel import Group
from supernet.training.recalibration import calibration_of
from supernet.training.strategies import SubnetSampler, make_sampler
from supernet.training.teachers import OpenedTeacher, open_teacher
from supernet.training.tokenisation import TokenSchedule

__all__ = [
    "CHECKPOINTS",
    "EpochMetrics",
    "How",
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
    directory: str | Path | None,
    *,
    sampler: SubnetSampler | None = None,
    cost: Callable[[Genes], npt.NDArray[np.float64]] | None = None,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    logits: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    **how: Unpack[How],
) -> list[EpochMetrics]:
    """Trains the shared weights in place; continues by itself from a checkpoint in ``directory``.

    Called on every worker of a ``torch.distributed`` process group, where there is one, it trains
    with all of them; only the first one has a ``directory``.

    Example:
        >>> supernet = Supernet(space, data.num_classes)
        >>> metrics = train_supernet(supernet, data, TrainConfig(epochs=8), "runs/mine/supernet")
        >>> metrics[-1].val_accuracy["largest"]

    Args:
        supernet: ``supernet(images, architecture, drop_path_rate=…)`` → logits, with ``.space``.
        directory: Where checkpoints and metrics go; None to write nothing.
        sampler: By default what ``config.strategy`` and ``config.shrinking`` say.
        cost: Of rows of genes, shape (n, genes) to (n,), for strategies that draw by cost.
        teacher: ``teacher(images)`` → logits, in the place of the teacher that ``config`` names.
        logits: Folder that keeps a teacher's stored logits.
        identity: What else a checkpoint must have in common to be continued, JSON-able, such as
            the weights that the training starts from.
        how: See ``How``.

    Returns:
        The metrics of all epochs.

    Raises:
        RunError: The checkpoint there was made with another configuration, or ``patience`` or
            ``layer_decay`` is set, which are for single networks, or progressive shrinking for
            subnets that share no channels.
        TrainingDivergedError: The loss stayed non-finite.
    """
    _check_for_subnets(config, supernet)
    space: Any = supernet.space
    group = Group.current()
    device = how.get("device", "cpu")
    total_steps = config.epochs * steps_per_epoch(data, config.batch_size)
    if sampler is None:
        sampler = make_sampler(space, config, total_steps, cost, teacher=teacher is not None)
    if teacher is None:
        workers = how.get("workers", 0)
        opened = open_teacher(config, data, device, logits, workers=workers, group=group)
    else:
        opened = _opened(teacher)
    TokenSchedule(config.tokens).check(space, min(space.resolutions))
    calibration = calibration_of(space, data, config, workers=how.get("workers", 0))
    if calibration is not None:
        check_batch_norms(config, len(data.train), group.size, groups=groups_of(config))
    objective = SupernetObjective(
        supernet.to(device),
        sampler,
        config,
        class_weights=class_weights_of(config, data, device),
        teacher=None if opened is None else opened.logits,
        total_steps=total_steps,
        rank=group.rank,
        calibration=calibration,
    )
    known = {
        "space": space.digest,
        "sampler": repr(sampler),
        "teacher": None if opened is None else opened.identity,
        **(identity or {}),
    }
    loop = TrainingLoop(supernet, objective, data, config, directory, known, group=group, **how)
    return loop.run()


def finetune(
    network: nn.Module,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path | None = None,
    *,
    teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    logits: Path | None = None,
    **how: Unpack[How],
) -> list[EpochMetrics]:
    """Trains a static network in place, on labels or on the logits of a teacher.

    As ``train_supernet``; a checkpoint is continued only by a network that starts from the same
    weights. ``teacher(images)`` comes before the one that ``config`` names.
    """
    device = how.get("device", "cpu")
    opened: OpenedTeacher | None
    if teacher is not None:
        opened = _opened(teacher)
    else:
        opened = open_teacher(config, data, device, logits, workers=how.get("workers", 0))
    if has_batch_norms(network):
        check_batch_norms(config, len(data.train))
    objective = NetworkObjective(
        network.to(device),
        config,
        class_weights=class_weights_of(config, data, device),
        teacher=None if opened is None else opened.logits,
    )
    identity = {
        "start": digest_of(network.state_dict()),
        "teacher": None if opened is None else opened.identity,
    }
    return TrainingLoop(network, objective, data, config, directory, identity, **how).run()


def _opened(teacher: Callable[[torch.Tensor], torch.Tensor]) -> OpenedTeacher:
    return OpenedTeacher(lambda batch: teacher(batch.images), True)


def _check_for_subnets(config: TrainConfig, supernet: nn.Module) -> None:
    if config.patience:
        raise RunError(
            f"patience is {config.patience}; a supernet is trained for all its epochs, since its "
            "subnets have no one best epoch: set it to 0"
        )
    if config.layer_decay != 1:
        raise RunError(
            f"layer_decay is {config.layer_decay:g}; it is by the depth of a layer in a network, "
            "and subnets have several: set it to 1"
        )
    if config.shrinking == "progressive" and not isinstance(supernet, Supernet):
        raise RunError(
            "shrinking is 'progressive', which sorts the channels that subnets share, but the "
            "alternatives around a trained network share none: set it to 'none' or 'delayed'"
        )


def class_weights_of(
    config: TrainConfig, data: ImageData, device: str | torch.device
) -> torch.Tensor | None:
    """Returns factors (classes,) of the loss to the labels, or None where all count alike."""
    if config.class_weights == "none":
        return None
    return balanced_weights(data.train.labels, data.num_classes).to(device)
