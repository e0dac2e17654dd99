"""Where int8 pays on a device: what its table says of components that it holds in both precisions.

A processor without instructions for products of 8-bit integers shows by its figures, as narrow
components do: nothing here asks what it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from predictors.tables.additive import Entry
from predictors.tables.latency_table import LatencyTable
from search_space.registry import FLOAT

_NAMED = 6  # kinds that a warning lists


@dataclass(frozen=True)
class Int8Gain:
    """Latency in int8 over that in float, of components of one kind and width.

    Args:
        kind: Such as ``stem``, or the mixer or kind of a block.
        width: Channels of the map that the component reads, or of a stem that it writes.
        pairs: Components that the table holds in both precisions.
        ratio: Their summed latencies in int8 over those in float.
        low: The least ratio of one of them.
        high: The greatest.
    """

    kind: str
    width: int
    pairs: int
    ratio: float
    low: float
    high: float

    @property
    def pays(self) -> bool:
        """Whether int8 is the faster one in sum."""
        return self.ratio < 1


def int8_gains(table: LatencyTable, among: Iterable[Entry] | None = None) -> list[Int8Gain]:
    """Lists kinds and widths of components that a table holds in both precisions.

    Args:
        table: Of a device.
        among: Components in int8 that are looked at, by default all.
    """
    pairs: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for spec, in_size in table.entries if among is None else among:
        value = table.entries.get((spec, in_size))
        twin = table.entries.get((spec.computing(FLOAT), in_size))
        if spec.quantised and value is not None and twin is not None:
            key = spec.label, int(spec.as_dict()["dim"])
            pairs[key].append((value.latency_ms, twin.latency_ms))
    return [
        Int8Gain(
            kind,
            width,
            len(both),
            sum(int8 for int8, _ in both) / sum(as_float for _, as_float in both),
            min(int8 / as_float for int8, as_float in both),
            max(int8 / as_float for int8, as_float in both),
        )
        for (kind, width), both in sorted(pairs.items())
    ]


def int8_warnings(table: LatencyTable, among: Iterable[Entry] | None = None) -> list[str]:
    """Says where int8 was measured slower than float, see ``int8_gains``."""
    gains = int8_gains(table, among)
    losing = [gain for gain in gains if not gain.pays]
    device, runtime = table.conditions.device, table.conditions.runtime
    if not losing:
        return []
    if len(losing) == len(gains):
        return [
            f"int8 was measured slower than float for every component on {device}, by "
            f"{runtime}: {min(g.ratio for g in gains):.2f} to "
            f"{max(g.ratio for g in gains):.2f} times as long. Its processor has no instructions "
            "for products of 8-bit integers, the runtime does not use them, or the components are "
            "too narrow to gain by them: take precision fp32, another runtime or a wider space."
        ]
    losing.sort(key=lambda gain: -gain.ratio)
    named = ", ".join(f"{g.kind} of width {g.width} ({g.ratio:.2f})" for g in losing[:_NAMED])
    more = f" and {len(losing) - _NAMED} more" if len(losing) > _NAMED else ""
    return [
        f"int8 was measured slower than float by {runtime} for {len(losing)} of {len(gains)} kinds "
        f"and widths of components: {named}{more}. A search over both precisions leaves them in "
        "float."
    ]
