"""Sandwich rule (Yu et al., "BigNAS", ECCV 2020): the extremes, and random ones between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from search_space.space import SearchSpace
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target
from supernet.training.strategies.extremes import draw_extremes


class SandwichSampler(SubnetSampler):
    """Trains the largest on labels; the smallest and ``num_random`` random ones learn from it.

    The smallest of a step draws its mixers: they have no order of size, and one fixed smallest
    network would be trained out of proportion to all that it is compared with. The largest is
    always the same, so that all learn from one teacher. With ``teacher`` the largest learns from a
    fixed network instead of the labels.
    """

    def __init__(
        self, space: SearchSpace, num_random: int = 2, seed: int = 0, *, teacher: bool = False
    ) -> None:
        self.space, self.num_random, self.seed, self.teacher = space, num_random, seed, teacher

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        common = np.random.default_rng([self.seed, step])
        smallest = draw_extremes(self.space, common, 1)
        # one worker draws all from one generator, and the first of several draws the same
        generator = np.random.default_rng([self.seed, step, rank]) if rank else common
        genes = np.concatenate([smallest, self.space.sample(generator, self.num_random)])
        roles = ["smallest", *["random"] * self.num_random]
        largest = StepSubnet(
            role="largest",
            architecture=self.space.largest,
            target=Target.TEACHER if self.teacher else Target.LABELS,
            regularised=True,
        )
        return (
            largest,
            *(
                StepSubnet(role=role, architecture=drawn, target=Target.FIRST)
                for role, drawn in zip(roles, self.space.decode(genes), strict=True)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": "sandwich",
            "num_random": self.num_random,
            "seed": self.seed,
            "teacher": self.teacher,
        }
