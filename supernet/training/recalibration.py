"""Averages of batch norms for networks that inherit weights from a supernet.

Subnets share weights but no averages, so a subnet is judged, fine-tuned or exported as the network
that is extracted from the supernet and has seen some training images (Yu & Huang, "Universally
Slimmable Networks", ICCV 2019). The averages are mean and variance of all positions of all these
images, each batch normalised by itself. Networks without batch norms stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from search_space.architecture import Architecture
from search_space.space import SearchSpace
from supernet.data.dataset import ImageData
from supernet.data.evaluation_batches import EvalBatches, moved
from supernet.network.backbone import Backbone
from supernet.network.norms import BatchNorm, pooled
from supernet.network.supernet import Subnets, needs_images
from supernet.quantisation.calibration import quantised_network
from supernet.training.config import TrainConfig
from supernet.training.evaluation import (
    Batches,
    Quality,
    at_trained_resolution,
    evaluate,
    evaluation_mode,
)
from supernet.training.precision import autocast

RANGE_IMAGES = 256
_BATCH_SIZE = 128  # images at most that are normalised together
_STREAM = 5  # of the seed: what is drawn here is drawn nowhere else


def calibration_batches(
    data: ImageData, images: int, seed: int = 0, *, workers: int = 0
) -> EvalBatches:
    """Draws training images without augmentation, in batches of one size but for a remainder.

    Args:
        data: At the resolution of the networks, or larger.
        images: How many; all where there are fewer.
        seed: Of which images are taken, and of their order: a batch must hold all classes.
        workers: Data-loading processes; with 0 this one loads.
    """
    rng = np.random.default_rng([seed, _STREAM])
    chosen = rng.permutation(len(data.train))[:images].tolist()
    count = -(-len(chosen) // _BATCH_SIZE)
    return EvalBatches(data.train, -(-len(chosen) // count), chosen, workers)


def range_images(data: ImageData, seed: int = 0, *, workers: int = 0) -> EvalBatches:
    """Draws training images that give the ranges of activations in int8."""
    return calibration_batches(data, RANGE_IMAGES, seed, workers=workers)


def calibration_of(
    space: SearchSpace, data: ImageData, config: TrainConfig, *, workers: int = 0
) -> EvalBatches | None:
    """Draws what recalibrates networks of ``space``; None where none of them needs it."""
    if not needs_images(space):
        return None
    return calibration_batches(data, config.recalibration_images, config.seed, workers=workers)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: Batches, *, amp: str = "auto") -> int:
    """Makes the averages of a network's batch norms those of ``batches``, in place.

    Example:
        >>> network = supernet.extract(architecture)
        >>> recalibrate(network, calibration_batches(data, 1024))

    Args:
        network: A static network; nothing but the averages changes.
        batches: (images (n, 3, side, side) float32 normalised, labels) pairs, resized to the
            resolution of the network's architecture where it has one. Each position of each image
            counts alike, so a smaller batch counts for less.
        amp: As the network is evaluated with.

    Returns:
        How many images it saw; 0 for a network without batch norms.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return 0
    device, seen = norms[0].weight.device, 0
    with evaluation_mode(network), pooled(norms):  # without dropout and drop path
        for images, _ in moved(batches, device):
            with autocast(device, amp):
                network(at_trained_resolution(network, images))
            seen += len(images)
    return seen


def extract(
    supernet: Subnets,
    architecture: Architecture,
    batches: Batches | None,
    *,
    amp: str = "auto",
    **options: Any,
) -> Backbone:
    """Extracts a subnet as ``Supernet.extract`` does, with averages and ranges of ``batches``.

    Args:
        supernet: Holds the weights.
        architecture: A point of its space.
        batches: As for ``recalibrate``; None where the space has neither batch norms nor int8.
        amp: As the network is evaluated with.
        options: As those of ``Backbone``.
    """
    network = supernet.extract(architecture, **options)
    if batches is not None:
        recalibrate(network, batches, amp=amp)
    return in_own_precision(network, architecture, batches)


def in_own_precision(
    network: Backbone, architecture: Architecture, batches: Batches | None
) -> Backbone:
    """Returns the network of ``architecture``: itself, or made of it with ranges of ``batches``.

    Raises:
        UsageError: The architecture is in int8, and there are no images.
    """
    if network.architecture == architecture:
        return network
    device = next(network.parameters()).device
    images = [] if batches is None else moved(batches, device)
    resized = (at_trained_resolution(network, each) for each, _ in images)
    return quantised_network(network, architecture, resized)


def extract_for(
    supernet: Subnets,
    architecture: Architecture,
    data: ImageData,
    config: TrainConfig,
    **options: Any,
) -> Backbone:
    """Extracts a subnet with averages of the images that it is to be trained or exported for."""
    batches = None
    if supernet.needs_images:
        batches = calibration_batches(data, config.recalibration_images, config.seed)
    return extract(supernet, architecture, batches, amp=config.amp, **options)


def evaluate_subnet(
    supernet: Any,
    architecture: Architecture,
    batches: Batches,
    calibration: Batches | None,
    *,
    amp: str = "auto",
) -> Quality:
    """Judges a subnet as ``evaluate`` does; with ``calibration``, the network extracted by it."""
    if calibration is None:
        return evaluate(supernet, batches, architecture=architecture, amp=amp)
    return evaluate(extract(supernet, architecture, calibration, amp=amp), batches, amp=amp)
