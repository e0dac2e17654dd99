"""Devices by name: this machine, a named table of another one, or a datasheet.

Every command that takes ``--device`` looks names up here; the tables lie in one folder, see
``tables.folder``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from predictors.estimates.datasheets import datasheet_names, datasheet_of
from predictors.estimates.estimate import estimate, estimated_conditions
from predictors.estimates.interpolate import interpolated
from predictors.measuring.bench import Progress
from predictors.measuring.profile import profile
from predictors.measuring.this_machine import (
    identify,
    is_cuda,
    local_conditions,
    local_device_names,
)
from predictors.tables.conditions import Conditions, DeviceIdentity
from predictors.tables.folder import cache_folder, provenance, readable_tables, table_path, writable
from predictors.tables.latency_table import LatencyTable, MissingLatencyError
from search_space import SearchSpace
from search_space.errors import CorruptFileError, NasError, UnknownNameError, UsageError

Kind = Literal["local", "table", "datasheet"]
_NAME_RULE = "a name has letters, digits, '-', '_' and '.', and begins with a letter"


@dataclass(frozen=True)
class Target:
    """A device under given conditions, by the name that the user calls it.

    ``kind`` is ``local`` (this machine measures), ``table`` (another machine's measurements) or
    ``datasheet`` (estimated); the table's file at ``path`` need not exist yet.
    """

    name: str
    conditions: Conditions
    kind: Kind
    path: Path

    @property
    def at_hand(self) -> bool:
        """Whether networks can be measured on it here."""
        return self.kind == "local"


def provenance_of(target: Target) -> str:
    """Says in words how the latencies of ``target`` come about."""
    return provenance(_stored(target) or LatencyTable(target.conditions, {}, {}))


def device_names(folder: Path | None = None) -> list[str]:
    """Lists every name that ``--device`` takes: this machine's, those of tables, datasheets."""
    named = {table.name for _, table in readable_tables(folder) if table.name}
    return [*local_device_names(), *sorted(named), *datasheet_names()]


def find_device(
    name: str,
    *,
    runtime: str | None = None,
    precision: str | None = None,
    batch_size: int | None = None,
    threads: int | None = None,
    folder: Path | None = None,
) -> Target:
    """Finds the device that ``name`` stands for.

    What is None is the device's usual value, or ``cache_folder()``.

    Args:
        name: What the user calls it.
        runtime: What runs the networks.
        precision: Number format of weights and inputs.
        batch_size: Images per forward pass.
        threads: Threads of one operator, on CPUs.
        folder: The folder of tables.

    Raises:
        UnknownNameError: Nothing has that name.
        UsageError: The tables of that name hold under other conditions, or under several.
    """
    wanted: dict[str, Any] = {"runtime": runtime, "precision": precision}
    wanted |= {"batch_size": batch_size, "threads": threads}
    options = {key: value for key, value in wanted.items() if value is not None}
    if name in local_device_names() or is_cuda(name):
        conditions = local_conditions(name, **options)
        return Target(name, conditions, "local", table_path(conditions, folder))
    if name in datasheet_names():
        options.pop("threads", None)
        conditions = estimated_conditions(name, **options)
        return Target(name, conditions, "datasheet", table_path(conditions, folder))
    named = [known for known in readable_tables(folder) if known[1].name == name]
    if not name or not named:  # tables without a name are of no device that is asked for
        raise UnknownNameError("device", name, device_names(folder))
    return _named_target(name, named, options)


def _named_target(
    name: str, tables: list[tuple[Path, LatencyTable]], options: Mapping[str, Any]
) -> Target:
    fitting = [
        (path, table)
        for path, table in tables
        if all(getattr(table.conditions, key) == value for key, value in options.items())
    ]
    listed = "; ".join(_short(table.conditions) for _, table in tables)
    if not fitting:
        wanted = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UsageError(
            f"device {name!r} has no table for {wanted}; it has: {listed}. Ask for one of these, "
            "or measure it there."
        )
    devices = {table.conditions.device for _, table in tables}
    if len(devices) > 1:
        listed = "; ".join(f"{table.conditions.device} ({path})" for path, table in tables)
        raise UsageError(
            f"device {name!r} is the name of several devices: {listed}. Delete the files of all "
            "but one, or import them under names of their own."
        )
    if len({_short(table.conditions) for _, table in fitting}) > 1:
        raise UsageError(
            f"device {name!r} has several tables: {listed}. Say which by --runtime, --precision, "
            "--batch-size or --threads."
        )
    # the same but for versions: today's, otherwise the newest
    path, table = max(fitting, key=lambda item: (is_local(item[1].conditions), item[1].created))
    current = path == table_path(table.conditions, path.parent) and is_local(table.conditions)
    return Target(name, table.conditions, "local" if current else "table", path)


def stored_target(name: str, table: LatencyTable) -> Target:
    """Returns what ``name`` stood for when ``table`` was made for it."""
    kind: Kind = "local" if is_local(table.conditions) else "table"
    if table.conditions.estimated:
        kind = "datasheet"
    return Target(name, table.conditions, kind, table_path(table.conditions))


def is_local(conditions: Conditions) -> bool:
    """Decides whether this machine, as installed today, measures under ``conditions``."""
    names = ("threads", "batch_size", "precision", "runtime")
    options: dict[str, Any] = {name: getattr(conditions, name) for name in names}
    for device in local_device_names():
        if identify(device) == conditions.device:
            with suppress(NasError):  # the runtime is not installed here
                return conditions == local_conditions(device, **options)
    return False


def _short(conditions: Conditions) -> str:
    return (
        f"{conditions.runtime}, {conditions.precision}, batch {conditions.batch_size}, "
        f"{conditions.threads} threads"
    )


def check_name(name: str, device: DeviceIdentity, folder: Path | None = None) -> None:
    """Checks that a table of ``device`` may be called ``name``.

    Raises:
        UsageError: The name is malformed, or stands for something else already.
    """
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (name[:1].isalpha() and plain.isalnum() and plain.isascii()):
        raise UsageError(f"device name {name!r} cannot be used: {_NAME_RULE}.")
    if name in ("cpu", "cuda") or name in datasheet_names() or name.startswith("cuda."):
        raise UsageError(
            f"device name {name!r} stands for something else already; choose another --name."
        )
    for path, table in readable_tables(folder):
        if table.name == name and table.conditions.device != device:
            raise UsageError(
                f"device name {name!r} is taken by the table of another device "
                f"({table.conditions.device}; {path}). Choose another --name, or delete "
                "that file."
            )


def latency_table(
    target: Target,
    space: SearchSpace,
    num_classes: int = 1000,
    *,
    interpolate: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> LatencyTable:
    """Gets the table of ``target`` that can ``compile(space, num_classes)``.

    What this machine can measure is measured, in an order of visits by ``seed``; what a datasheet
    gives is estimated.

    Args:
        target: The device, from ``find_device``.
        space: The space whose entries are needed.
        num_classes: Classes of the head.
        interpolate: Whether missing entries are interpolated between the table's measured ones.
        seed: Seed of the order of visits.
        progress: Called after each round.

    Raises:
        MissingLatencyError: A table of another machine lacks entries.
        CorruptFileError: The table on disk cannot be read.
    """
    stored, folder = _stored(target), target.path.parent
    if target.kind == "datasheet":
        calibration = stored.calibration if stored else None
        if calibration is None:  # it is one of the roofline, not of another GPU's table
            measured = _comparable(target.conditions, folder)
            with suppress(MissingLatencyError):  # a table of too few components
                return estimate(target.conditions, space, num_classes, measured=measured)
        return replace(estimate(target.conditions, space, num_classes), calibration=calibration)
    if interpolate:
        if stored is None:
            raise UsageError(
                f"--interpolate needs a table of {target.name!r} to start from; measure one "
                "with: nas profile"
            )
        return interpolated(stored, space, num_classes)
    if target.kind == "local":
        return profile(
            space, num_classes, target.conditions, target.path.parent, seed=seed, progress=progress
        )
    if stored is None:
        raise CorruptFileError(f"{target.path} is gone; import the table again.")
    stored.compile(space, num_classes)  # says what is missing
    return stored


def _comparable(conditions: Conditions, folder: Path) -> LatencyTable | None:
    """Finds the largest measured table of another GPU that can be transferred."""
    tables = [
        table
        for _, table in readable_tables(folder)
        if not table.conditions.estimated
        and table.conditions.implementation == conditions.implementation
        and {value.origin for value in table.entries.values()} == {"measured"}
        and datasheet_of(table.conditions.device) is not None
        and not table.conditions.differences(conditions)
    ]
    return max(tables, key=lambda table: len(table.entries), default=None)


def take_in(table: LatencyTable, name: str, folder: Path | None = None) -> tuple[Path, list[str]]:
    """Keeps a table that was measured elsewhere, under ``name``; returns its file and notes.

    With a table of that name and these conditions it is merged: new figures win, but no
    interpolated one over a measured one; corrections and a calibration that stood on figures
    that have changed are dropped.

    Raises:
        UsageError: The table holds estimates, or the name cannot be used.
    """
    check_name(name, table.conditions.device, folder)
    origins = {value.origin for value in table.entries.values()}
    if table.conditions.estimated or "estimated" in origins:
        raise UsageError(
            f"the table of {table.conditions.device} holds estimates, and only measurements can "
            "be imported; the names of `nas devices` have estimates of their own."
        )
    file = f"{name}-{table.conditions.digest}.parquet"  # two boards of one kind may differ
    path, notes = writable(folder or cache_folder()) / file, []
    if path.exists():
        stored = LatencyTable.load(path)
        entries = {**stored.entries, **table.entries}
        for entry, value in stored.entries.items():
            if value.origin == "measured" and entries[entry].origin != "measured":
                entries[entry] = value
        corrections, calibration = table.corrections, table.calibration
        if all(entries[entry] == value for entry, value in stored.entries.items()):
            corrections = {**stored.corrections, **corrections}
            calibration = calibration or stored.calibration
        else:
            notes.append(f"figures of {name!r} that were known before were replaced.")
            if stored.calibration is not None and calibration is None:
                notes.append("its calibration stood on them and was dropped; calibrate again.")
        table = replace(table, entries=entries, corrections=corrections, calibration=calibration)
    replace(table, name=name).save(path)
    return path, notes


def _stored(target: Target) -> LatencyTable | None:
    return LatencyTable.load(target.path) if target.path.exists() else None
