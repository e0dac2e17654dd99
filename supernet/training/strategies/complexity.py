"""Complexity-aware sampling (Tang et al., "ElasticViT", ICCV 2023).

Subnets of very different size pull the weights that they share apart. So a step trains subnets of
one cost bank, and the next step those of the same or of an adjacent one.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt

from search_space.errors import UsageError
from search_space.stage_space import Genes
from supernet.training.strategies.banks import Banks
from supernet.training.strategies.base import StepSubnet, SubnetSampler, Target
from supernet.training.strategies.extremes import draw_extremes

CHUNK = 4096  # steps of the walk that are drawn at once
WALK = 0x57414C4B  # a stream of its own
SMALLEST_LEVELS = 3  # smallest subnets of growing cost
CHEAPEST_SHARE = 0.05  # of a bank: what counts as its smallest


class BankWalk:
    """Walks over banks at random, −1, 0 or +1 a step, as a function of (seed, step).

    It is reflected half a step outside of the ends, where it stays for a step; so it is in each
    bank equally often.
    """

    def __init__(self, num_banks: int, seed: int) -> None:
        self.num_banks, self.seed = num_banks, seed
        start = np.random.default_rng([seed, 0, WALK]).integers(num_banks, size=1)
        self._free: npt.NDArray[np.int64] = start  # without the ends, position at step 0, 1 …

    def __call__(self, step: int) -> int:
        while len(self._free) <= step:
            chunk = 1 + (len(self._free) - 1) // CHUNK
            rng = np.random.default_rng([self.seed, chunk, WALK])
            moves = self._free[-1] + np.cumsum(rng.integers(-1, 2, size=CHUNK))
            self._free = np.concatenate([self._free, moves])
        folded = int(self._free[step]) % (2 * self.num_banks)
        return min(folded, 2 * self.num_banks - 1 - folded)


@dataclass(eq=False)
class ComplexitySampler(SubnetSampler):
    """Trains ``num_random`` subnets of one bank, and a smallest one near it.

    With a fixed teacher (``teacher``) those of the bank learn from it, as published. Without one
    the largest comes first, on labels, and they learn from it as in the sandwich rule: it is far
    from the bank's cost, but a teacher in place that is not trained has nothing to teach. The
    smallest comes last and learns the mean prediction of all before it; it is far from any
    teacher, and near to its peers. There are ``SMALLEST_LEVELS`` smallest ones, each for as many
    adjacent banks: that of the space with random mixers, then one of the cheapest of the lowest of
    these banks.

    The walk and the smallest are common to all workers; each worker draws the others by itself.

    Raises:
        UsageError: ``num_random`` is below 1.
    """

    banks: Banks
    num_random: int = 3
    seed: int = 0
    _: KW_ONLY
    teacher: bool = False

    def __post_init__(self) -> None:
        if self.num_random < 1:
            raise UsageError(
                f"{self.num_random} subnets of a bank in a step: at least 1 is needed."
            )
        self.walk = BankWalk(len(self.banks), self.seed)

    def __call__(self, step: int, rank: int = 0) -> tuple[StepSubnet, ...]:
        space, bank = self.banks.space, self.walk(step)
        # [seed, step] and [seed, step, 0] are one stream, and no worker's own
        smallest = self._smallest(bank, np.random.default_rng([self.seed, step]))
        drawn = self._draw(bank, step, np.random.default_rng([self.seed, step, rank + 1]))
        *members, last = space.decode(np.concatenate([drawn, smallest]))
        first = StepSubnet(role="largest", architecture=space.largest, regularised=True)
        target = Target.TEACHER if self.teacher else Target.FIRST
        others = (
            StepSubnet(role="random", architecture=member, target=target, bank=bank)
            for member in members
        )
        smallest_last = StepSubnet(role="smallest", architecture=last, target=Target.PEERS)
        return (*(() if self.teacher else (first,)), *others, smallest_last)

    def _draw(self, bank: int, step: int, rng: np.random.Generator) -> Genes:
        """Draws rows of a bank, distinct if it has as many, shape (num_random, genes)."""
        rows = self.banks.rows[bank]
        return rows[rng.choice(len(rows), self.num_random, replace=len(rows) < self.num_random)]

    def _smallest(self, bank: int, rng: np.random.Generator) -> Genes:
        """Draws a smallest subnet at or below a bank, shape (1, genes)."""
        span = -(-len(self.banks) // SMALLEST_LEVELS)
        lowest = bank // span * span
        if lowest == 0:
            return draw_extremes(self.banks.space, rng, 1)
        rows = self.banks.rows[lowest]  # by ascending cost
        return rows[rng.integers(max(1, round(CHEAPEST_SHARE * len(rows))), size=1)]
