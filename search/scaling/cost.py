"""Costs of any architecture: counts, and latencies on devices, component by component.

Scaling costs hundreds of architectures that share almost all of their components, so every
distinct component is costed once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

from predictors.counts import COUNT_METRICS, count_entry
from predictors.devices import Target
from predictors.estimates.estimate import estimate_entry, range_of
from predictors.estimates.interpolate import interpolated
from predictors.tables.additive import AdditiveTable, Entry
from predictors.tables.folder import provenance
from predictors.tables.latency_table import LatencyTable, MissingLatencyError
from search_space import Architecture, Component, ModuleSpec, SearchSpace, StageSpace, components
from search_space.metrics import LATENCY, on_device


class NetworkCosts:
    """Computes every metric of architectures, cached.

        NetworkCosts(num_classes=10)(known("swin_t"))["macs"]

    Args:
        targets: devices whose latencies are wanted.
        num_classes: of the head.
        interpolate: fill a measured table's gaps from its measured shapes.

    Raises:
        MissingLatencyError: A device has no latency table, or (on a call) it lacks a component.
    """

    def __init__(
        self, targets: Sequence[Target] = (), num_classes: int = 1000, *, interpolate: bool = False
    ) -> None:
        self.num_classes = num_classes
        self.latencies = {t.name: NetworkLatency(t, num_classes, interpolate) for t in targets}
        self._count = functools.cache(count_entry)
        self._known: dict[Architecture, dict[str, float]] = {}

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*COUNT_METRICS, *(on_device(LATENCY, name) for name in self.latencies))

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        """``num_params``, ``macs``, ``activations``, and ``latency_ms@DEVICE`` of each device."""
        if architecture not in self._known:
            self._known[architecture] = self._cost(architecture)
        return dict(self._known[architecture])

    def table(self, metric: str, space: SearchSpace) -> AdditiveTable:
        """One metric of a whole space.

        Raises:
            MissingLatencyError: A device's table lacks a component.
        """
        for name, latency in self.latencies.items():
            if metric == on_device(LATENCY, name):
                return latency.table(space)
        return AdditiveTable.build(
            space, self.num_classes, lambda *entry: float(getattr(self._count(*entry), metric))
        )

    def _cost(self, architecture: Architecture) -> dict[str, float]:
        parts = components(architecture, self.num_classes)
        counts = [self._count(part.spec, part.in_size) for part in parts]
        result = {name: float(sum(getattr(c, name) for c in counts)) for name in COUNT_METRICS}
        for name, latency in self.latencies.items():
            result[on_device(LATENCY, name)] = latency.predict(architecture, parts)
        return result


class NetworkLatency:
    """Predicts milliseconds of networks on one device, from its table or its datasheet.

    Raises:
        MissingLatencyError: There is no latency table, or (on a call) it lacks a component.
    """

    def __init__(self, target: Target, num_classes: int, interpolate: bool) -> None:
        self.target = target
        self._num_classes, self._interpolate = num_classes, interpolate
        if target.path.exists():
            self._table = LatencyTable.load(target.path)
        elif target.kind == "datasheet":
            self._table = LatencyTable(target.conditions, {}, {}, name=target.name)
        else:
            raise MissingLatencyError(
                f"device {target.name!r} has no latency table under these conditions yet "
                f"({target.conditions}); measure a space that contains the family with: "
                f"nas profile --space SPACE --device {target.name}"
            )
        self._correction = self._table.calibration or self._table.typical_correction()
        self._values: dict[Entry, float] = {}

    def predict(self, architecture: Architecture, parts: Sequence[Component]) -> float:
        """The milliseconds of a network of these components."""
        total = sum(self._value(architecture, part) for part in parts)
        return self._correction.offset_ms + self._correction.scale * total

    def table(self, space: SearchSpace) -> AdditiveTable:
        """The milliseconds of every network of ``space``."""
        if self._interpolate:
            self._fill(space)

        def cost(spec: ModuleSpec, size: int) -> float:
            return self._value(space.largest, Component("a component", spec, size))

        line = self._correction
        return AdditiveTable.build(
            space, self._num_classes, cost, scale=line.scale, offset=line.offset_ms
        )

    def provenance(self) -> str:
        """The origin and the conditions of the latencies, for people."""
        return f"{provenance(self._table)}; {self._table.conditions}"

    def expected_error(self, architectures: Sequence[Architecture]) -> float | None:
        """The relative error to expect: half of the range of estimates, or the table's mean.

        None where the table was never compared with whole networks.
        """
        conditions = self._table.conditions
        if conditions.estimated:
            before = range_of(conditions).error
        elif self._table.corrections:
            before = self._table.typical_correction().expected_error
        else:
            return None
        calibration = self._table.calibration
        return before if calibration is None else calibration.expected_error(before)

    def _value(self, architecture: Architecture, part: Component) -> float:
        entry = (part.spec, part.in_size)
        if entry not in self._values:
            self._values[entry] = self._find(architecture, part, entry)
        return self._values[entry]

    def _find(self, architecture: Architecture, part: Component, entry: Entry) -> float:
        latency = self._table.entries.get(entry)
        if latency is None and self._table.conditions.estimated:
            latency = estimate_entry(self._table.conditions, entry)
        if latency is None and self._interpolate:
            self._fill(_space_of(architecture))
            latency = self._table.entries[entry]
        if latency is None:
            raise MissingLatencyError(
                f"the latency table of {self.target.name!r} lacks {part.path} of network "
                f"{architecture}: {part.spec} on a {part.in_size}-pixel input. Fill its gaps "
                "from measured shapes with --interpolate, or measure a space that contains the "
                f"family with: nas profile --space SPACE --device {self.target.name}"
            )
        return latency.latency_ms

    def _fill(self, space: SearchSpace) -> None:
        """Add the entries that ``space`` lacks, and the error of their interpolation."""
        filled = interpolated(self._table, space, self._num_classes)
        corrections = {**self._table.corrections, **filled.corrections}
        self._table = replace(self._table, entries=filled.entries, corrections=corrections)


def _space_of(architecture: Architecture) -> SearchSpace:
    """A space that contains ``architecture`` and little else."""
    stages = tuple(
        StageSpace((s.width,), (s.depth,), tuple((block,) for block in s.blocks), s.stride)
        for s in architecture.stages
    )
    return SearchSpace("SPACE", architecture.macro, (architecture.resolution,), stages)
