"""Sandwich rule (Yu et al., "BigNAS", ECCV 2020): the extremes, and random ones between them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from search_space.space import SearchSpace
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target
from supernet.training.strategies.extremes import draw_extremes


@dataclass(eq=False)
class SandwichSampler(SubnetSampler):
    """Trains the largest on labels; the smallest and ``num_random`` random ones learn from it.

    The smallest of a step draws its mixers (``draw_extremes``). The largest is always the same, so
    that all learn from one teacher. With ``teacher`` the largest learns from a
    fixed network instead of the labels.
    """

    space: SearchSpace = field(repr=False)
    num_random: int = 2
    seed: int = 0
    _: KW_ONLY
    teacher: bool = False

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        common = np.random.default_rng([self.seed, step])
        smallest = draw_extremes(self.space, common, 1)
        # one worker draws all from one generator, and the first of several draws the same
        generator = np.random.default_rng([self.seed, step, rank]) if rank else common
        genes = np.concatenate([smallest, self.space.sample(generator, self.num_random)])
        largest = StepSubnet(
            role="largest",
            architecture=self.space.largest,
            target=Target.TEACHER if self.teacher else Target.LABELS,
            regularised=True,
        )
        others = (
            StepSubnet(role="random" if i else "smallest", architecture=drawn, target=Target.FIRST)
            for i, drawn in enumerate(self.space.decode(genes))
        )
        return (largest, *others)
