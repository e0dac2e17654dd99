"""The time that an evaluation may take before it counts as hung, learnt from those that ended."""

from __future__ import annotations

import bisect

FLOOR_S = 60.0
MEDIANS = 20.0
STARTS = 20.0
MOST_S = 3600.0


class TimeLimit:
    """Learns a limit in seconds: 20 × the median evaluation so far, a minute at least.

    Until an evaluation has ended there is nothing to go by. The limit then is 20 × the longest time
    that a worker took to build its evaluator, a minute at least, and twice as long after each
    evaluation that reached it, an hour at most: an evaluation that is merely slow costs
    four times its time at most, and one that hangs costs the others minutes.

    Args:
        fixed: The limit, where it is known; nothing is learnt then.
    """

    def __init__(self, fixed: float | None = None) -> None:
        self.fixed = fixed
        self._evaluations: list[float] = []  # sorted
        self._first = FLOOR_S

    @property
    def seconds(self) -> float:
        """The limit in seconds as of now."""
        if self.fixed is not None:
            return self.fixed
        if not self._evaluations:
            return self._first
        return max(FLOOR_S, MEDIANS * self._evaluations[len(self._evaluations) // 2])

    def built(self, seconds: float) -> None:
        """Learns how long a worker took to build its evaluator."""
        self._first = min(MOST_S, max(self._first, STARTS * seconds))

    def ended(self, seconds: float) -> None:
        """Learns how long an evaluation took that ended well."""
        bisect.insort(self._evaluations, seconds)

    def reached(self, limit: float) -> bool:
        """Learns that an evaluation had not ended after ``limit``; tells whether it is to blame.

        It is not while the limit is a guess.
        """
        if self.fixed is not None or self._evaluations or limit >= MOST_S:
            return True
        self._first = min(MOST_S, max(self._first, 2 * limit))
        return False
