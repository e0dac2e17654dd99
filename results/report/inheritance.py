"""Data of a report on a search that began with a trained network, its parent: plain and frozen.

Losses are mean cross entropies in nats, accuracies 0..1; what is None is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt

from search_space.names import Digest


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a change alone does to the parent, by the tables of quality and latency.

    Args:
        loss: The increase of its loss on held-out images.
        loss_error: Standard error of that.
        saved_ms: The latency that it saves, milliseconds; negative where it costs some.
    """

    loss: FiniteFloat | None = None
    loss_error: FiniteFloat | None = None
    saved_ms: FiniteFloat | None = None


@dataclass(frozen=True, kw_only=True)
class BlockFate:
    """A block of the parent, and what stands at its place in the chosen network.

    Args:
        stage: Its number, from 0.
        position: In the stage, from 0.
        before: The parent's block, as files of architectures hold it.
        after: The chosen network's.
        widths_before: Channels inside the parent's, by the parameter that decides them.
        widths_after: Channels inside the chosen network's.
        change: What putting it there does to the parent; None where it is the parent's own.
    """

    stage: NonNegativeInt
    position: NonNegativeInt
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    widths_before: Mapping[str, PositiveInt] = field(default_factory=dict)
    widths_after: Mapping[str, PositiveInt] = field(default_factory=dict)
    change: Change | None = None


@dataclass(frozen=True, kw_only=True)
class LossPair:
    """Loss of an evaluated network: as the quality table adds it up, and as it is."""

    digest: Digest
    predicted: FiniteFloat
    real: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class Step:
    """A network on the way from the parent to the chosen one.

    Args:
        name: What it is, and what was done to it.
        validation_accuracy: On the images that the search looked at.
        test_accuracy: On those that nothing was decided by.
        phases: Names of the run's phases that led to it from the step before.
        of_parent: Whether it is the parent still.
    """

    name: str
    validation_accuracy: FiniteFloat | None = None
    test_accuracy: FiniteFloat | None = None
    phases: tuple[str, ...] = ()
    of_parent: bool = False


@dataclass(frozen=True, kw_only=True)
class TriedParent:
    """A network that was tried as the parent, by a short training on the images.

    Args:
        name: timm's, of network and weights, or a folder.
        digest: Of its architecture at the resolution that it was tried at.
        weights: A file of them; None where timm fetches them, or the folder holds them.
        top1: Accuracy on the validation images of ImageNet-1k, as published.
        latency_ms: On the run's device, at that resolution.
        num_params: Parameters.
        macs: Multiply-adds for one image.
        accuracy: On validation images, with a fitted classifier alone or after the short training,
            whichever is better; balanced accuracy where that is what the run looks for. None before
            it was tried.
        loss: On the same images.
        by_training: Whether the short training made it better than the classifier alone.
        images: How many these are.
        seconds: What trying it took.
        fingerprint: Of the images as it sees them.
    """

    name: str
    digest: Digest
    weights: str | None = None
    top1: FiniteFloat | None = None
    latency_ms: FiniteFloat | None = None
    num_params: NonNegativeInt
    macs: NonNegativeInt
    accuracy: FiniteFloat | None = None
    loss: FiniteFloat | None = None
    by_training: bool = False
    images: NonNegativeInt = 0
    seconds: FiniteFloat = 0.0
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class ZooNetwork:
    """A published network within the limits that no other such is ahead of.

    Args:
        name: timm's, of network and weights.
        image_size: Side of the images that it was judged on.
        top1: Accuracy on the validation images of ImageNet-1k, as published.
        latency_ms: On the run's device, for an image of that size.
        origin: How the latency is known: measured, estimated or predicted.
        num_params: Parameters, with 1000 classes.
        macs: Multiply-adds for one image.
    """

    name: str
    image_size: PositiveInt
    top1: FiniteFloat
    latency_ms: FiniteFloat
    origin: str
    num_params: NonNegativeInt
    macs: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class ZooFront:
    """What the zoo offers within the run's limits.

    Args:
        networks: Its front, as far as latencies are known, the most accurate first.
        source: Where the accuracies are from.
        note: A sentence on what is not known.
    """

    networks: tuple[ZooNetwork, ...] = ()
    source: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What a search that began with a trained network has to say of it.

    Args:
        parent: Name of the network among the report's baselines.
        resolution: What the chosen network's lower resolution alone does; None where it is the
            parent's.
        blocks: Of the parent; empty where the parent is what was chosen.
        losses: Of the evaluated networks.
        steps: From the published parent to the chosen network.
        zoo: Published networks to compare with.
        tried: Networks that were tried as the parent, this one among them; empty where there was no
            choice.
        reason: Why this one of them was kept.
    """

    parent: str
    resolution: Change | None = None
    blocks: tuple[BlockFate, ...] = ()
    losses: tuple[LossPair, ...] = ()
    steps: tuple[Step, ...] = ()
    zoo: ZooFront | None = None
    tried: tuple[TriedParent, ...] = ()
    reason: str = ""
