"""Plans of what is timed to learn the latency of entries, and how samples become it.

A component that is timed alone pays for a call of the runtime, a component of a network does not.
By the runtime's method (``runtimes.base``) a plan adds subjects that only serve to take this cost
out: one empty network for all entries, or for each entry a chain of twice as many copies.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from predictors.counts import count_entry
from predictors.measuring.bench import Subject, WeightPool, entry_subject, statistic
from predictors.measuring.runtimes import find_runtime, require_int8
from predictors.operators import DTYPES
from predictors.tables.additive import Entry
from predictors.tables.conditions import Conditions
from predictors.tables.latency_table import spec_to_json
from search_space import ModuleSpec

_FLOOR = 1e-3  # of the samples: a difference below it is noise, and latencies are positive
_EMPTY_FEATURES = 8
# of entries that are loaded together, roughly, where the runtime keeps memory for each
_MOST_BYTES = 4e9
_BYTES_BESIDES = 1e6  # of a prepared entry: session and graph
_PER_ACTIVATION = 3  # elements kept: memory grows by doubling, and masks are as large as maps


class Copies(nn.Module):
    """Several copies of a component, with weights of their own.

    Blocks form a chain, as in a network. Others change the shape of the map, so they stand side by
    side with inputs of their own, ``images`` being ``(copies, batch, …)``; otherwise a compiler
    would find that they share work.
    """

    def __init__(self, copies: Sequence[nn.Module], chained: bool) -> None:
        super().__init__()
        self.copies, self.chained = nn.ModuleList(copies), chained

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if not self.chained:
            each = zip(self.copies, images.unbind(0), strict=True)
            return tuple(copy(image) for copy, image in each)
        for copy in self.copies:
            images = copy(images)
        return images


class EntryPlan:
    """Subjects for ``entries``: first one per entry, then what the runtime's method adds.

    Raises:
        UsageError: An entry is in int8, and the runtime runs nothing in it.
    """

    def __init__(self, entries: Sequence[Entry], conditions: Conditions) -> None:
        self.entries, self.conditions = list(entries), conditions
        self.runtime = find_runtime(conditions.runtime)
        self.method = self.runtime.method if self.entries else "direct"
        if any(spec.quantised for spec, _ in self.entries):
            require_int8(conditions.runtime)

    def __len__(self) -> int:
        return len(self.names())

    def names(self) -> list[str]:
        """Names the subjects, the same in every process."""
        names = [f"{spec_to_json(spec)}@{size}" for spec, size in self.entries]
        more = {"constant": ["empty network"], "slope": [f"twice {name}" for name in names]}
        return names + more.get(self.method, [])

    def subjects(self, pool: WeightPool) -> list[Subject]:
        """Makes the subjects, with weights of ``pool``."""
        if self.method == "slope":
            return [
                copies_subject(*entry, factor * self.runtime.copies, self.conditions, pool)
                for factor in (1, 2)
                for entry in self.entries
            ]
        result = [entry_subject(*entry, self.conditions, pool) for entry in self.entries]
        if self.method == "constant":
            result.append(empty_subject(self.conditions, pool))
        return result

    def latencies(self, samples: Sequence[Sequence[float]]) -> list[list[float]]:
        """Takes the cost of a call out of the samples: milliseconds of each run, per entry.

        Their statistic is the difference of the subjects' statistics, over n for slopes.
        """
        alone, added = samples[: len(self.entries)], samples[len(self.entries) :]
        if self.method == "slope":
            return [
                [value / self.runtime.copies for value in without_cost(twice, statistic(once))]
                for once, twice in zip(alone, added, strict=True)
            ]
        cost = statistic(added[0]) if self.method == "constant" else 0.0
        return [without_cost(values, cost) for values in alone]


def first_portion(entries: Sequence[Entry], conditions: Conditions) -> list[Entry]:
    """Selects as many of ``entries``, from the first on, as may be loaded at once."""
    if not find_runtime(conditions.runtime).keeps_memory:
        return list(entries)
    used, result = 0.0, list[Entry]()
    for spec, in_size in entries:
        cost = count_entry(spec, in_size)
        elements = cost.num_params + _PER_ACTIVATION * conditions.batch_size * cost.activations
        used += elements * DTYPES[conditions.precision].itemsize + _BYTES_BESIDES
        if result and used > _MOST_BYTES:
            break
        result.append((spec, in_size))
    return result


def without_cost(samples: Sequence[float], cost: float) -> list[float]:
    """Subtracts ``cost`` from ``samples``, which stay above zero whatever the noise."""
    return [max(value - cost, _FLOOR * value) for value in samples]


def empty_subject(conditions: Conditions, pool: WeightPool) -> Subject:
    """Makes a network that does nothing: what its run takes is the cost of a call."""
    return Subject(nn.Identity(), pool.take((conditions.batch_size, 1, 1, _EMPTY_FEATURES)))


def copies_subject(
    spec: ModuleSpec, in_size: int, copies: int, conditions: Conditions, pool: WeightPool
) -> Subject:
    """Makes a subject of ``copies`` copies of a component, see ``Copies``."""
    parts = [entry_subject(spec, in_size, conditions, pool) for _ in range(copies)]
    chained = spec.kind == "block"
    images = parts[0].images
    if not chained:
        images = pool.take((copies, *images.shape))
    return Subject(Copies([part.module for part in parts], chained).eval(), images)
