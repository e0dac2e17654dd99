"""Which subnets a training step trains.

The subnets of a step depend on (seed, step) alone, so that a resumed run, or several
processes of one run, draw the same ones. Sandwich rule: Yu et al., "BigNAS", ECCV 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from search_space.architecture import Architecture
from search_space.space import SearchSpace


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
    """The largest on labels; the smallest and ``num_random`` random ones distilled from it."""

    def __init__(self, space: SearchSpace, num_random: int = 2, seed: int = 0) -> None:
        self.space, self.num_random, self.seed = space, num_random, seed

    def __call__(self, step: int) -> tuple[StepSubnet, ...]:
        genes = self.space.sample(np.random.default_rng([self.seed, step]), self.num_random)
        followers = [("smallest", self.space.smallest)]
        followers += [("random", architecture) for architecture in self.space.decode(genes)]
        return (
            StepSubnet(
                role="largest",
                architecture=self.space.largest,
                distilled=False,
                regularised=True,
            ),
            *(
                StepSubnet(role=role, architecture=found, distilled=True, regularised=False)
                for role, found in followers
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        return {"name": "sandwich", "num_random": self.num_random, "seed": self.seed}
