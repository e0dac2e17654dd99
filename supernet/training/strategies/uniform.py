"""Uniform single path (Chen et al., "AutoFormer", ICCV 2021): one random subnet a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from search_space.space import SearchSpace
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target


class UniformSampler(SubnetSampler):
    """Trains one subnet, each gene uniform over its choices, with drop-path as published.

    With ``teacher`` it learns from a fixed network instead of the labels. Nothing is common to the
    workers.
    """

    def __init__(self, space: SearchSpace, seed: int = 0, *, teacher: bool = False) -> None:
        self.space, self.seed, self.teacher = space, seed, teacher

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        genes = self.space.sample(np.random.default_rng([self.seed, step, rank]), 1)
        return (
            StepSubnet(
                role="random",
                architecture=self.space.decode(genes)[0],
                target=Target.TEACHER if self.teacher else Target.LABELS,
                regularised=True,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"name": "uniform", "seed": self.seed, "teacher": self.teacher}
