"""Multi-architectural sampling (Liao et al., "Searching for efficient multi-stage vision
transformers", 2021, ViT-ResNAS): the batch is cut into groups, each trains another subnet.

One step then averages over several subnets at the price of one pass through the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from search_space.space import SearchSpace
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target


class MultiArchitectureSampler(SubnetSampler):
    """Trains ``groups`` random subnets, the k-th on the k-th part of the batch.

    With ``teacher`` they learn from a fixed network instead of the labels. Nothing is common to
    the workers.
    """

    def __init__(
        self, space: SearchSpace, groups: int = 2, seed: int = 0, *, teacher: bool = False
    ) -> None:
        self.space, self.groups, self.seed, self.teacher = space, groups, seed, teacher

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        genes = self.space.sample(np.random.default_rng([self.seed, step, rank]), self.groups)
        return tuple(
            StepSubnet(
                role="random",
                architecture=architecture,
                target=Target.TEACHER if self.teacher else Target.LABELS,
                part=(k, self.groups),
            )
            for k, architecture in enumerate(self.space.decode(genes))
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": "multi_architecture",
            "groups": self.groups,
            "seed": self.seed,
            "teacher": self.teacher,
        }
