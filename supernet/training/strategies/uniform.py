"""Uniform draws: one random subnet a step, or one for each group of the batch.

Uniform single path is of Chen et al., "AutoFormer", ICCV 2021. Multi-architectural sampling is of
Liao et al., "Searching for efficient multi-stage vision transformers" (ViT-ResNAS), 2021: one step
then averages over several subnets at the price of one pass through the batch. Nothing is common to
the workers: each trains subnets of its own draws.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from search_space.space import SearchSpace
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target


@dataclass(eq=False)
class MultiArchitectureSampler(SubnetSampler):
    """Trains ``groups`` random subnets, the k-th on the k-th part of the batch.

    With ``teacher`` they learn from a fixed network instead of the labels. Uniform single path is
    one group, with drop-path (``regularised``) as published.
    """

    space: SearchSpace = field(repr=False)
    groups: int = 2
    seed: int = 0
    _: KW_ONLY
    teacher: bool = False
    regularised: bool = False

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
