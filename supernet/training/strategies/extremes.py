"""The ends of a space as random rows: extents at their end, mixers at random.

Mixers have no order of size. One fixed smallest network would be trained out of proportion to
all that it is compared with, and so would the mixer of one fixed largest.
"""

from __future__ import annotations

import numpy as np

from search_space.space import SearchSpace
from search_space.stage_space import INACTIVE, Genes


def draw_extremes(
    space: SearchSpace, rng: np.random.Generator, n: int, *, heaviest: bool = False
) -> Genes:
    """Draws ``n`` rows with all extents smallest (largest), shape (n, genes).

    Each position has the lightest (heaviest) choice of a random mixer; where it may be skipped it
    is (is not).
    """
    end = space.largest if heaviest else space.smallest
    genes = np.repeat(space.encode([end]), n, axis=0)
    for i, stage in enumerate(space.stages):
        columns, ends = space.block_columns(i), []
        for of_position in stage.positions:
            choices: dict[str, int] = {}
            for j, block in enumerate(of_position):  # listed from light to heavy
                if block.skipped and not heaviest:
                    choices = {block.label: j}
                    break
                if block.skipped and len(of_position) > 1:
                    continue
                if heaviest:
                    choices[block.label] = j
                else:
                    choices.setdefault(block.label, j)
            ends.append(list(choices.values()))
        counts = np.array([len(of_position) for of_position in ends])
        table = np.array([(e * max(counts))[: max(counts)] for e in ends])
        pick = rng.integers(0, counts, size=(n, stage.max_depth))
        drawn = table[np.arange(stage.max_depth), pick]
        genes[:, columns] = np.where(genes[:, columns] == INACTIVE, INACTIVE, drawn)
    return genes
