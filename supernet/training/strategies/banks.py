"""Cost banks: subnets by what they cost, so that a step can train subnets of similar cost.

The cost is any function of gene rows, in any unit: MACs, or latency on the target device. All
rows are drawn and costed at once; nothing is re-drawn until it falls into a range.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_space.errors import UsageError
from search_space.space import SearchSpace
from search_space.stage_space import Genes
from supernet.training.strategies.extremes import draw_extremes

Costs = npt.NDArray[np.float64]
CostFunction = Callable[[Genes], npt.NDArray[np.floating]]

PULLS = 4  # crossings with an end of the space, at most
END_ROWS = 256  # rows of either end itself


@dataclass(frozen=True, eq=False, repr=False)
class Banks:
    """Holds rows of a space in ranges of cost, from light to heavy; ``fill`` makes it.

    Attributes:
        edges: Shape (banks + 1,), ascending. A bank has costs from its lower edge up to, not
            including, its upper one; the last includes its upper one.
        rows: For each bank, shape (n, genes), n ≥ 1, distinct and by ascending cost.
        costs: For each bank, the costs of its rows, shape (n,).
    """

    space: SearchSpace
    edges: Costs
    rows: tuple[Genes, ...]
    costs: tuple[Costs, ...]

    @classmethod
    def fill(
        cls,
        space: SearchSpace,
        cost: CostFunction,
        num_banks: int = 8,
        seed: int = 0,
        *,
        population: int = 65_536,
        per_bank: int = 4096,
    ) -> Banks:
        """Fills banks with random rows of ``space``.

        A range without rows is joined to the next heavier one that has some, so there may be
        fewer banks than ``num_banks``.

        Args:
            cost: Rows of shape (n, genes) → costs of shape (n,).
            num_banks: Ranges of equal ratio between the smallest and the largest cost drawn.
            population: Rows to draw, from the whole range of sizes.
            per_bank: Rows to keep in each bank, at random.

        Raises:
            UsageError: A cost is not positive or not finite.
        """
        rng = np.random.default_rng(seed)
        genes = _population(space, rng, population)
        # distinct by a random hash, much faster than by all genes; one that collides is one less
        hashes = genes @ rng.integers(-(2**62), 2**62, size=space.num_genes)
        genes = genes[np.unique(hashes, return_index=True)[1]]
        values = _costs(cost, genes)
        bounds = _equal_ratios(values, num_banks)
        index = np.searchsorted(bounds, values, side="right") - 1
        index[values == bounds[-1]] = len(bounds) - 2
        filled = np.unique(index)
        rows, costs = [], []
        for bank in filled:
            members = rng.permutation(np.flatnonzero(index == bank))[:per_bank]
            members = members[np.argsort(values[members], kind="stable")]
            rows.append(genes[members])
            costs.append(values[members])
        joined = np.concatenate([bounds[:1], bounds[filled[:-1] + 1], bounds[-1:]])
        return cls(space, joined, tuple(rows), tuple(costs))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        """The number of banks, and 12 digits of the SHA-256 of their rows."""
        total = hashlib.sha256()
        for rows in self.rows:
            total.update(f"{rows.shape};".encode() + rows.astype("<i8").tobytes())
        return f"{len(self)} banks of rows {total.hexdigest()[:12]}"


def _population(space: SearchSpace, rng: np.random.Generator, n: int) -> Genes:
    """Draws rows over the whole range of sizes, shape (about n, genes).

    Sums over many random blocks crowd around their mean. So rows are crossed with rows of either
    end, 0 to ``PULLS`` times, which leaves half of a row's genes each time.
    """
    ends = [draw_extremes(space, rng, END_ROWS, heaviest=heaviest) for heaviest in (False, True)]
    rows = space.sample(rng, n)
    pulls = rng.integers(-PULLS, PULLS + 1, size=n)
    for heaviest, count in ((False, -pulls), (True, pulls)):
        for level in range(PULLS):
            chosen = np.flatnonzero(count > level)
            partners = draw_extremes(space, rng, len(chosen), heaviest=heaviest)
            rows[chosen] = space.crossover(rows[chosen], partners, rng)
    return np.concatenate([space.encode([space.smallest, space.largest]), *ends, rows])


def _costs(cost: CostFunction, genes: Genes) -> Costs:
    values = np.asarray(cost(genes), dtype=np.float64)
    assert values.shape == (len(genes),)
    if not np.isfinite(values).all():
        raise UsageError(
            f"{np.count_nonzero(~np.isfinite(values))} of {len(values)} subnets have a cost that "
            "is not finite; banks need a cost of every subnet, so take another one."
        )
    return values


def _equal_ratios(values: Costs, num_banks: int) -> Costs:
    low, high = float(values.min()), float(values.max())
    if low <= 0:
        raise UsageError(
            f"the smallest cost is {low:g}, and ranges of equal ratio need positive costs; "
            "take another cost, such as MACs."
        )
    return np.geomspace(low, high, num_banks + 1 if low < high else 2)
