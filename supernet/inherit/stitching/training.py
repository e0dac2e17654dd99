"""Joint training of all stitched networks: each step trains one of them.

It is drawn from all alike (SN-Net), or first a range of cost and then one within it (SN-Netv2's
resource-constrained sampling), so that costs that many networks share do not crowd out the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from search_space.architecture import Architecture
from search_space.errors import UsageError
from supernet.data.batches import Batch
from supernet.data.dataset import ImageData
from supernet.inherit.stitching.network import StitchedNet
from supernet.network.backbone import Backbone
from supernet.network.tensor_files import digest_of
from supernet.training.config import EpochMetrics, TrainConfig, check_batch_norms
from supernet.training.evaluation import Batches, Quality, at_trained_resolution
from supernet.training.loop import How, TrainingLoop
from supernet.training.objectives import SupernetObjective, Teacher
from supernet.training.recalibration import calibration_batches, evaluate_subnet
from supernet.training.strategies import StepSubnet, SubnetSampler, Target

RANGES = 10


def ranges_of(costs: Sequence[float], ranges: int = RANGES) -> tuple[tuple[int, ...], ...]:
    """Groups networks by cost, in ranges of one width from the least to the largest cost.

    Args:
        costs: Of the networks.
        ranges: How many; those without a network are left out.

    Returns:
        Positions of the networks of each range, the cheapest first.
    """
    least, width = min(costs), (max(costs) - min(costs)) / ranges
    numbers = [
        min(ranges - 1, math.floor((cost - least) / width)) if width else 0 for cost in costs
    ]
    by_cost = sorted(range(len(costs)), key=costs.__getitem__)
    groups = (tuple(i for i in by_cost if numbers[i] == number) for number in range(ranges))
    return tuple(group for group in groups if group)


@dataclass(eq=False)
class RouteSampler(SubnetSampler):
    """Draws one network a step: a range of cost, and one of its networks, both alike.

    Args:
        architectures: The networks.
        ranges: As ``ranges_of`` gives them; one range of all draws from all alike.
        seed: Of the draws.
        teacher: Whether they learn from a fixed network instead of the labels.
    """

    architectures: Sequence[Architecture] = field(repr=False)
    ranges: tuple[tuple[int, ...], ...]
    seed: int = 0
    _: KW_ONLY
    teacher: bool = False

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        rng = np.random.default_rng([self.seed, step, rank])
        chosen = self.ranges[int(rng.integers(len(self.ranges)))]
        architecture = self.architectures[chosen[int(rng.integers(len(chosen)))]]
        target = Target.TEACHER if self.teacher else Target.LABELS
        return (
            StepSubnet(role="route", architecture=architecture, target=target, regularised=True),
        )


class _Objective(SupernetObjective):
    """Trains the networks that are drawn; the parents, as they become, are what is validated."""

    net: StitchedNet

    def qualities(self, batches: Batches) -> dict[str, Quality]:
        return {
            f"parent {route.parent}": evaluate_subnet(
                self.net, architecture, batches, self.calibration, amp=self.config.amp
            )
            for architecture, route in self.net.networks.items()
            if not route.stitches
        }


def train_stitched(
    net: StitchedNet,
    data: ImageData,
    config: TrainConfig,
    directory: str | Path | None = None,
    *,
    costs: Sequence[float] | None = None,
    ranges: int = RANGES,
    teacher: Backbone | None = None,
    **how: Unpack[How],
) -> list[EpochMetrics]:
    """Trains parents and stitching layers together, in place, as ``train_supernet`` does.

    A rate of a tenth of what the parents were trained with, or less, is what is published.

    Args:
        net: Fitted, see ``StitchedNet.fit``.
        data: At the resolution of the parents.
        config: How; options of a strategy are not looked at.
        directory: Where checkpoints go, from which it continues; None to write nothing.
        costs: Of ``net.architectures``, such as multiply-adds, to draw ranges of cost alike;
            without them all networks are.
        ranges: How many ranges of cost.
        teacher: A trained network that all learn from in place of the labels.
        how: See ``How``.

    Raises:
        UsageError: There is not one cost for each network.
        RunError: The checkpoint there is of another start or configuration.
        TrainingDivergedError: The loss stayed non-finite.
    """
    networks = net.architectures
    if costs is not None and len(costs) != len(networks):
        raise UsageError(f"{len(costs)} costs for {len(networks)} networks; give one of each.")
    groups = (tuple(range(len(networks))),) if costs is None else ranges_of(costs, ranges)
    sampler = RouteSampler(networks, groups, config.seed, teacher=teacher is not None)
    device, calibration = how.get("device", "cpu"), None
    if net.needs_images:
        check_batch_norms(config, len(data.train))
        calibration = calibration_batches(data, config.recalibration_images, config.seed)
    objective = _Objective(
        net.to(device),
        sampler,
        config,
        teacher=None if teacher is None else _guide(teacher.to(device)),
        calibration=calibration,
    )
    objective.net = net
    identity = {
        "start": digest_of(net.state_dict()),
        "networks": [architecture.digest for architecture in networks],
        "sampler": repr(sampler),
        "teacher": None if teacher is None else digest_of(teacher.state_dict()),
    }
    return TrainingLoop(net, objective, data, config, directory, identity, **how).run()


def _guide(teacher: Backbone) -> Teacher:
    """The logits that a network gives a batch."""
    teacher.eval()

    def logits(batch: Batch) -> torch.Tensor:
        result: torch.Tensor = teacher(at_trained_resolution(teacher, batch.images))
        return result

    return logits
