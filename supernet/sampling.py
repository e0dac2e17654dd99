"""Which subnets a training step trains.

The subnets of a step depend on (seed, step) alone, so that a resumed run, or several
processes of one run, draw the same ones. Sandwich rule: Yu et al., "BigNAS", ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from search_space.architecture import Architecture
from search_space.space import INACTIVE, Genes, SearchSpace


@dataclass(frozen=True, kw_only=True)
class StepSubnet:
    """One subnet of a step.

    role: name in the metrics (``largest``, ``smallest``, ``random``).
    distilled: learns the soft logits of the step's first subnet instead of labels.
    regularised: drop-path is on.
    """

    role: str
    architecture: Architecture
    distilled: bool
    regularised: bool


class SubnetSampler(Protocol):
    """A sampling strategy: step number → subnets, the teacher first if any is distilled."""

    def __call__(self, step: int) -> tuple[StepSubnet, ...]: ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values that identify the strategy, for the checkpoint."""
        ...


class SandwichSampler:
    """The largest on labels; the smallest and ``num_random`` random ones distilled from it.

    The smallest of a step draws its mixers: they have no order of size, and one fixed smallest
    network would be trained out of proportion to all that it is compared with. The largest is
    always the same, so that all learn from one teacher.
    """

    def __init__(self, space: SearchSpace, num_random: int = 2, seed: int = 0) -> None:
        self.space, self.num_random, self.seed = space, num_random, seed
        self._smallest = space.encode([space.smallest])

    def __call__(self, step: int) -> tuple[StepSubnet, ...]:
        rng = np.random.default_rng([self.seed, step])
        genes = np.concatenate([self._draw_smallest(rng), self.space.sample(rng, self.num_random)])
        roles = ["smallest", *["random"] * self.num_random]
        return (
            StepSubnet(
                role="largest",
                architecture=self.space.largest,
                distilled=False,
                regularised=True,
            ),
            *(
                StepSubnet(role=role, architecture=found, distilled=True, regularised=False)
                for role, found in zip(roles, self.space.decode(genes), strict=True)
            ),
        )

    def _draw_smallest(self, rng: np.random.Generator) -> Genes:
        """All extents smallest, at each position the lightest choice of a random mixer."""
        genes = self._smallest.copy()
        for i, stage in enumerate(self.space.stages):
            lightest: dict[str, int] = {}
            for j, block in enumerate(stage.blocks):  # listed from light to heavy
                lightest.setdefault(block.mixer.name, j)
            columns = self.space.block_columns(i)
            drawn = rng.choice(list(lightest.values()), size=stage.max_depth)
            genes[0, columns] = np.where(genes[0, columns] == INACTIVE, INACTIVE, drawn)
        return genes

    def to_dict(self) -> dict[str, Any]:
        return {"name": "sandwich", "num_random": self.num_random, "seed": self.seed}
