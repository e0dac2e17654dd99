"""Expected hypervolume improvement, exact, for independent normal objectives.

The region that the front does not dominate is cut into boxes that do not overlap. What a point
``y`` adds inside a box ``(l, u]`` is ``Π max(0, u − max(l, y))``, a product whose factors are
``max(0, u − y) − max(0, l − y)``; independent objectives make its expectation the product of
expected improvements over the bounds (Emmerich et al. 2006; Yang et al. 2019). A known objective
is one with deviation 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from results.pareto import non_dominated
from search.problem import Values
from search.samplers.ranking import crowding_distance

MOST_BOXES = 2048


@dataclass(frozen=True)
class Boxes:
    """Disjoint boxes that cover what a front does not dominate, below the reference point.

    Each box hangs below a local upper bound of the front, and each coordinate of a bound is that
    of one point (Lacour, Klamroth and Fonseca 2017). Two objectives have one box more than points,
    three at most two boxes a point, four and five up to the square of the points.

        free = Boxes.below(reference).without(point)

    Args:
        upper: the bounds, shape (boxes, objectives).
        points: the points that define their coordinates, shape (boxes, objectives, objectives).
    """

    upper: Values
    points: Values

    @classmethod
    def below(cls, reference: Values) -> Boxes:
        """One box, all that is better than ``reference``, shape (objectives,)."""
        points = np.full((1, len(reference), len(reference)), -np.inf)
        points[0][np.diag_indices(len(reference))] = reference
        return cls(np.array(reference, dtype=np.float64)[None], points)

    @property
    def lower(self) -> Values:
        """Lower corners, shape (boxes, objectives), −∞ where nothing bounds a box."""
        lower = np.full_like(self.upper, -np.inf)
        for k in range(1, self.upper.shape[1]):
            lower[:, k] = self.points[:, :k, k].max(axis=1)
        return np.minimum(lower, self.upper)

    def without(self, point: Values) -> Boxes:
        """The boxes that remain when ``point``, shape (objectives,), joins the front."""
        cut = (point < self.upper).all(axis=1)
        if not cut.any():
            return self
        bounds, points = self.upper[cut], self.points[cut]
        uppers, defining = [self.upper[~cut]], [self.points[~cut]]
        for k in range(len(point)):
            others = np.delete(points[:, :, k], k, axis=1).max(axis=1, initial=-np.inf)
            kept = point[k] >= others
            upper, of = bounds[kept].copy(), points[kept].copy()
            upper[:, k], of[:, k] = point[k], point
            uppers.append(upper)
            defining.append(of)
        return Boxes(np.concatenate(uppers), np.concatenate(defining))


def boxes(front: Values, reference: Values) -> Boxes:
    """Boxes of minimised points (n, objectives), which may dominate each other, and (objectives,).

    Points without an improvement on the reference add nothing. At most ``MOST_BOXES`` are made:
    from four objectives on, a front of many points is represented by some of them, spread out,
    and improvements on the others are overestimated.
    """
    front = front[(front < reference).all(axis=1)]
    front = np.unique(front[non_dominated(front)], axis=0)
    order = np.argsort(-crowding_distance(front, np.zeros(len(front), np.int64)), kind="stable")
    free = Boxes.below(reference)
    for point in front[order]:
        more = free.without(point)
        if len(more.upper) > MOST_BOXES:
            break
        free = more
    return free


def expected_improvement(mean: Values, deviation: Values, level: Values) -> Values:
    """``E max(0, level − Y)`` of normal Y, shapes broadcast; deviation 0 is a known value."""
    gap = level - mean
    known = deviation <= 0
    ratio = gap / np.where(known, 1.0, deviation)
    density = np.exp(-0.5 * ratio**2) / np.sqrt(2 * np.pi)
    expected = gap * ndtr(ratio) + deviation * density
    return np.asarray(np.where(known, np.maximum(gap, 0.0), np.maximum(expected, 0.0)))


def expected_hypervolume_improvement(mean: Values, deviation: Values, free: Boxes) -> Values:
    """The expected gain in hypervolume of each candidate, shape (n,).

    Args:
        mean, deviation: of minimised objectives, shape (n, objectives).
        free: boxes that the front leaves.
    """
    product = np.ones((len(mean), len(free.upper)))
    lower = free.lower
    for k in range(mean.shape[1]):
        levels, index = np.unique(np.stack([lower[:, k], free.upper[:, k]]), return_inverse=True)
        gain = np.zeros((len(mean), len(levels)))  # none over −∞
        some = np.isfinite(levels)
        gain[:, some] = expected_improvement(mean[:, k, None], deviation[:, k, None], levels[some])
        below, above = index.reshape(2, -1)
        product *= gain[:, above] - gain[:, below]
    return np.asarray(product.sum(axis=1))
