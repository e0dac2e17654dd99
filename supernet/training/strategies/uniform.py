"""Uniform draws: one random subnet a step, or one for each group of the batch.

Uniform single path is of Chen et al., "AutoFormer", ICCV 2021. Multi-architectural sampling is of
Liao et al., "Searching for efficient multi-stage vision transformers" (ViT-ResNAS), 2021: one step
then averages over several subnets at the price of one pass through the batch. Nothing is common to
the workers: each trains subnets of its own draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from search_space.space import SearchSpace
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target


class MultiArchitectureSampler(SubnetSampler):
    """Trains ``groups`` random subnets, the k-th on the k-th part of the batch.

    With ``teacher`` they learn from a fixed network instead of the labels.
    """

    name, regularised = "multi_architecture", False

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
                regularised=self.regularised,
                part=(k, self.groups),
            )
            for k, architecture in enumerate(self.space.decode(genes))
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "groups": self.groups,
            "seed": self.seed,
            "teacher": self.teacher,
        }


class UniformSampler(MultiArchitectureSampler):
    """Trains one subnet, each gene uniform over its choices, with drop-path as published.

    With ``teacher`` it learns from a fixed network instead of the labels.
    """

    name, regularised = "uniform", True

    def __init__(self, space: SearchSpace, seed: int = 0, *, teacher: bool = False) -> None:
        super().__init__(space, 1, seed, teacher=teacher)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "seed": self.seed, "teacher": self.teacher}
