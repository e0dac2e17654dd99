"""Cost tables that this program makes itself: energy, and the time of secure computation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from predictors.estimates.energy import energy_joules
from predictors.estimates.secure import NETWORKS, secure_seconds
from predictors.measuring.bench import Progress
from predictors.measuring.energy import Counters, measure_energy
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import AdditiveTable, Entry, entries
from predictors.tables.cost_table import save_costs
from search_space import SearchSpace
from search_space.metrics import unit_of


@dataclass(frozen=True)
class Written:
    """A cost table that was written: where its values come from, and what networks cost."""

    entries: int
    source: str
    least: str
    most: str
    middle: str


def write_costs(
    name: str,
    file: Path,
    space: SearchSpace,
    num_classes: int,
    *,
    network: str = "wan",
    modelled: bool = False,
    progress: Progress | None = None,
) -> Written:
    """Writes the cost table of every component of a space.

    Args:
        name: ``energy`` (millijoules) or ``mpc`` (seconds of secure computation).
        file: Parquet file to write.
        space: Whose components it is for.
        num_classes: Classes of the head.
        network: Of ``mpc``, the name of one of ``NETWORKS``.
        modelled: Whether ``energy`` is modelled even where it can be measured.
        progress: Called while components are measured.

    Raises:
        UsageError: The model of secure computation does not know one of the operators.
    """
    wanted = entries(space, num_classes)
    counters = Counters()
    unit, factor = ("s", 1.0) if name == "mpc" else ("mJ", 1e3)
    values: dict[Entry, float]
    if name == "mpc":
        values = {entry: secure_seconds(*entry, NETWORKS[network]) for entry in wanted}
        source = f"modelled from rounds and bytes between two parties ({network})"
    elif counters and not modelled:
        conditions = local_conditions()
        values = measure_energy(wanted, conditions, counters, progress=progress)
        source = f"measured by the processor's counters, {conditions}"
    else:
        values = {entry: energy_joules(*entry) for entry in wanted}
        missing = "" if modelled else "; the processor's counters cannot be read here"
        source = f"modelled from operations and bytes{missing}"
    values = {entry: factor * value for entry, value in values.items()}
    save_costs(file, f"{name}_{unit}", values)
    table = AdditiveTable.build(space, num_classes, lambda spec, size: values[spec, size])
    least, most = table.predict(np.stack([table.argmin(), table.argmax()]))
    shown = unit_of(unit)
    middle = shown.typed((least + most) / 2, digits=3)
    return Written(len(wanted), source, shown.format(least), shown.format(most), middle)
