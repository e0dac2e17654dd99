"""A training that is tiny: few images, a small network, settings for a few steps."""

from __future__ import annotations

import torch
from torch import nn

from supernet import Supernet
from supernet.data.dataset import ImageData, open_data
from supernet.training.train import TrainConfig


def few_images(validation_fraction: float = 0.7) -> ImageData:
    """What is tested is the loop, not what it learns."""
    return open_data("digits", 16, test_fraction=0.9, validation_fraction=validation_fraction)


def config(**changes) -> TrainConfig:
    """A sandwich: the strategy with the most roles and targets."""
    values = {"epochs": 4, "batch_size": 16, "lr": 1e-3, "warmup_epochs": 1, "snapshot_steps": 1}
    return TrainConfig(**(values | {"strategy": "sandwich", "num_random": 1} | changes))


def fresh(space) -> Supernet:
    torch.manual_seed(0)
    return Supernet(space, 10)


def small_network(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 16 * 16, 16), nn.GELU(), nn.Linear(16, classes)
    )
