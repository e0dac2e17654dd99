"""The ends of a space as random rows: extents at their end, mixers at random.

Mixers have no order of size. One fixed smallest network would be trained out of proportion to
all that it is compared with, and so would the mixer of one fixed largest.
"""

from __future__ import annotations

import numpy as np

from search_space.space import INACTIVE, Genes, SearchSpace


def draw_extremes(
    space: SearchSpace, rng: np.random.Generator, n: int, *, heaviest: bool = False
) -> Genes:
    """Draws ``n`` rows with all extents smallest (largest), shape (n, genes).

    Each position has the lightest (heaviest) choice of a random mixer.
    """
    end = space.largest if heaviest else space.smallest
    genes = np.repeat(space.encode([end]), n, axis=0)
    for i, stage in enumerate(space.stages):
        choices: dict[str, int] = {}
        for j, block in enumerate(stage.blocks):  # listed from light to heavy
            if heaviest:
                choices[block.mixer.name] = j
            else:
                choices.setdefault(block.mixer.name, j)
        columns = space.block_columns(i)
        drawn = rng.choice(list(choices.values()), size=(n, stage.max_depth))
        genes[:, columns] = np.where(genes[:, columns] == INACTIVE, INACTIVE, drawn)
    return genes
