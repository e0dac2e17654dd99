"""Choice by trainability and complexity at once, as in As-ViT (Chen et al. 2022).

κ, the condition number of the neural tangent kernel, should be small, and the expected length
distortion L^E large. They share no unit, so their dense ranks are added: equal values share a rank
and the next value has the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from predictors.proxies import Network, Proxy, ScoreSettings, proxy
from search_space import Architecture

TRAINABILITY, COMPLEXITY = "ntk_condition", "length_distortion"


@dataclass(frozen=True)
class TwoScores:
    """κ and L^E of one architecture; where undefined, infinite on the worse side."""

    kappa: float
    length: float

    def to_dict(self) -> dict[str, float]:
        """The scores by name of the proxy."""
        return {TRAINABILITY: self.kappa, COMPLEXITY: self.length}


@dataclass
class TwoScorer:
    """Scores architectures by two proxies, each distinct one once.

        scores = TwoScorer()(known("swin_t"))

    Args:
        trainability, complexity: the proxies of κ and L^E; None means the registered ones.
        known: scores by digest from an earlier run with the same settings.
        record: receives every new score: architecture, values by name, seconds.
    """

    trainability: Proxy = field(default_factory=lambda: proxy(TRAINABILITY))
    complexity: Proxy = field(default_factory=lambda: proxy(COMPLEXITY))
    settings: ScoreSettings = field(default_factory=ScoreSettings)
    known: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    record: Callable[[Architecture, Mapping[str, float], float], None] = lambda *scored: None

    def __post_init__(self) -> None:
        self._scores = {
            digest: TwoScores(values[TRAINABILITY], values[COMPLEXITY])
            for digest, values in self.known.items()
        }

    def __call__(self, architecture: Architecture) -> TwoScores:
        """κ and L^E; a proxy without a value, or with one that is not finite, counts as worst."""
        digest = architecture.digest
        if digest not in self._scores:
            start, network = time.monotonic(), Network.of_architecture(architecture)
            scores = self._scores[digest] = TwoScores(
                _finite(self.trainability.score(network, self.settings).value, math.inf),
                _finite(self.complexity.score(network, self.settings).value, -math.inf),
            )
            self.record(architecture, scores.to_dict(), time.monotonic() - start)
        return self._scores[digest]


def _finite(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise


def rank_sums(scores: Sequence[TwoScores]) -> npt.NDArray[np.int64]:
    """The sum of the dense ranks of κ, ascending, and of L^E, descending; shape (n,), best 0."""
    kappa = np.unique([s.kappa for s in scores], return_inverse=True)[1]
    length = np.unique([-s.length for s in scores], return_inverse=True)[1]
    return np.asarray(kappa + length, dtype=np.int64)


def best(scores: Sequence[TwoScores]) -> int:
    """The index of the smallest rank sum.

    Ties go to those that have both values, and of them to the better value of the criterion with
    the larger relative range: (max − min) over the mean magnitude of the finite values of all
    ``scores``. What is still equal goes to the first.
    """
    sums = rank_sums(scores)
    tied = np.flatnonzero(sums == sums.min()).tolist()
    kappas, lengths = ([getattr(s, name) for s in scores] for name in ("kappa", "length"))
    by_kappa = _relative_range(kappas) >= _relative_range(lengths)

    def order(index: int) -> tuple[bool, float]:
        kappa, length = scores[index].kappa, scores[index].length
        undefined = not (math.isfinite(kappa) and math.isfinite(length))
        return undefined, kappa if by_kappa else -length

    return min(tied, key=order)


def _relative_range(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    magnitude = sum(map(abs, finite)) / max(len(finite), 1)
    return (max(finite) - min(finite)) / magnitude if magnitude > 0 else 0.0
