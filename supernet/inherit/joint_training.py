"""Short joint training: networks around a parent are trained together, with the parent as teacher.

Alternatives that were made one by one, on the parent's maps, meet those of other places here. Each
module has weights of its own, so a step trains those of the networks that it draws; of strategies
``sandwich`` keeps the parent's own modules at what they know, ``multi_architecture`` draws widely.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from torch import Tensor

from search_space.errors import RunError
from supernet.data.dataset import ImageData
from supernet.inherit.bank import WeightBank
from supernet.network.tensor_files import digest_of
from supernet.training.config import EpochMetrics, TrainConfig
from supernet.training.evaluation import at_trained_resolution
from supernet.training.loop import How
from supernet.training.train import train_supernet


def train_jointly(
    bank: WeightBank,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path | None = None,
    **how: Unpack[How],
) -> list[EpochMetrics]:
    """Trains all modules of a bank in place, as ``train_supernet`` trains shared weights.

    The parent as it is now is the teacher, a copy that stays. A peak learning rate of about a tenth
    of the one that the parent was trained with leaves what the modules know. What was measured of
    the bank before, such as a quality table, is of other weights afterwards.

    Example:
        >>> train_jointly(bank, data, TrainConfig(epochs=4, lr=5e-4), run / "joint")

    Args:
        bank: Has weights of all alternatives.
        data: At the largest resolution of the space, or larger.
        config: Without a teacher of its own.
        directory: Where checkpoints and metrics go, from which it continues; None for none.
        how: See ``How``.

    Returns:
        The metrics of all epochs.

    Raises:
        RunError: Alternatives have no weights, the configuration does not fit, or the checkpoint
            there is of other weights or another configuration.
        TrainingDivergedError: The loss stayed non-finite.
    """
    missing = bank.missing()
    if missing:
        path, spec = missing[0]
        raise RunError(
            f"{len(missing)} of {len(bank.entries)} alternatives have no weights, {spec} at {path} "
            "the first of them; cut or distil them before they are trained together"
        )
    if config.teacher is not None:
        raise RunError(
            f"teacher is {config.teacher!r}, but the networks around a parent learn from the "
            "parent: leave it out"
        )
    start = {"start": digest_of(bank.state_dict())}
    teacher = parent_teacher(bank.to(how.get("device", "cpu")))
    return train_supernet(bank, data, config, directory, teacher=teacher, identity=start, **how)


def parent_teacher(bank: WeightBank) -> Callable[[Tensor], Tensor]:
    """Returns a function of images to logits: the parent as it is now, at its own resolution."""
    network = bank.extract(bank.parent).eval().requires_grad_(False)
    return lambda images: network(at_trained_resolution(network, images))
