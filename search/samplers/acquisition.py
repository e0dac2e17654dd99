"""Expected hypervolume improvement, exact, for independent normal objectives.

The region that the front does not dominate is cut into boxes that do not overlap. What a point
``y`` adds inside a box ``(l, u]`` is ``Π max(0, u − max(l, y))``, a product whose factors are
``max(0, u − y) − max(0, l − y)``; independent objectives make its expectation the product of
expected improvements over the bounds (Emmerich et al. 2006; Yang et al. 2019). A known objective
is one with deviation 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from results.pareto import non_dominated
from search.problem import Values

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Boxes:
    """Disjoint boxes that cover what a front does not dominate, below the reference point.

    Args:
        levels: per objective, ascending, the first −∞ and the last the reference's.
        lower, upper: indices into the levels, shape (boxes, objectives) both.
    """

    levels: tuple[Values, ...]
    lower: Indices
    upper: Indices


def boxes(front: Values, reference: Values) -> Boxes:
    """Boxes of minimised points (n, objectives), which may dominate each other, and (objectives,).

    Points without an improvement on the reference add nothing. There are up to
    ``(n + 1)^(objectives − 1)`` boxes.
    """
    front = front[(front < reference).all(axis=1)]
    front = np.unique(front[non_dominated(front)], axis=0)
    levels = tuple(
        np.concatenate([[-np.inf], np.unique(front[:, k]), [reference[k]]])
        for k in range(len(reference))
    )
    ranks = np.stack(
        [np.searchsorted(level, front[:, k]) for k, level in enumerate(levels)], axis=1
    )
    lower, upper = _decompose(ranks, [len(level) - 1 for level in levels])
    return Boxes(levels, lower, upper)


def _decompose(points: Indices, ends: list[int]) -> tuple[Indices, Indices]:
    """Boxes in coordinates of levels: from 0, minus infinity, to ``ends``, the reference.

    Slabs between neighbouring values of the last coordinate; in each the points before the slab
    matter, in one dimension less.
    """
    if len(ends) == 1:
        top = int(points[:, 0].min()) if len(points) else ends[0]
        return np.array([[0]], dtype=np.int64), np.array([[top]], dtype=np.int64)
    cuts = np.unique(np.concatenate([[0], points[:, -1], [ends[-1]]]))
    lowers, uppers = [], []
    for start, end in pairwise(cuts.tolist()):
        before = points[points[:, -1] <= start][:, :-1]
        lower, upper = _decompose(before, ends[:-1])
        lowers.append(np.hstack([lower, np.full((len(lower), 1), start)]))
        uppers.append(np.hstack([upper, np.full((len(upper), 1), end)]))
    return np.concatenate(lowers), np.concatenate(uppers)


def expected_improvement(mean: Values, deviation: Values, level: Values) -> Values:
    """``E max(0, level − Y)`` of normal Y, shapes broadcast; deviation 0 is a known value."""
    gap = level - mean
    known = deviation <= 0
    ratio = gap / np.where(known, 1.0, deviation)
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
    expected = gap * ndtr(ratio) + deviation * density
    return np.asarray(np.where(known, np.maximum(gap, 0.0), np.maximum(expected, 0.0)))


def expected_hypervolume_improvement(mean: Values, deviation: Values, free: Boxes) -> Values:
    """What each candidate is expected to add to the hypervolume, shape (n,).

    Args:
        mean, deviation: of minimised objectives, shape (n, objectives).
        free: boxes that the front leaves.
    """
    product = np.ones((len(mean), len(free.lower)))
    for k, level in enumerate(free.levels):
        gain = np.zeros((len(mean), len(level)))  # none over −∞
        gain[:, 1:] = expected_improvement(mean[:, k, None], deviation[:, k, None], level[1:])
        product *= gain[:, free.upper[:, k]] - gain[:, free.lower[:, k]]
    return np.asarray(product.sum(axis=1))
