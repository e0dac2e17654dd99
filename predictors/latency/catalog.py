"""What a device's name stands for: this machine, a named table, or a datasheet.

Every command that takes ``--device`` asks here. Tables lie in one folder, one file per
conditions; a table's name is a label inside it, so a file copied from another machine is known
there by the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from predictors.latency.datasheets import datasheet_names, datasheet_of
from predictors.latency.devices import (
    Conditions,
    DeviceIdentity,
    identify,
    local_conditions,
    local_device_names,
)
from predictors.latency.estimate import estimate, estimated_conditions, is_estimated
from predictors.latency.interpolate import interpolated
from predictors.latency.profile import cache_folder, profile, table_path
from predictors.latency.table import LatencyTable
from search_space import SearchSpace
from search_space.errors import CorruptFileError, NasError, UnknownNameError, UsageError

Progress = Callable[[int, int, float], None]
_NAME_RULE = "a name has letters, digits, '-', '_' and '.', and begins with a letter"


@dataclass(frozen=True)
class Target:
    """A device under given conditions.

    Args:
        name: what the user calls it.
        conditions: what its latencies are true under.
        kind: ``local`` (this machine measures), ``table`` (another machine's measurements) or
            ``datasheet`` (estimated).
        path: of its table, which need not exist yet.
    """

    name: str
    conditions: Conditions
    kind: Literal["local", "table", "datasheet"]
    path: Path

    @property
    def at_hand(self) -> bool:
        """Whether networks can be measured on it here."""
        return self.kind == "local"

    @property
    def provenance(self) -> str:
        """How its latencies came about, in a sentence for people."""
        return {
            "local": "measured block by block on this device, corrected on whole networks",
            "table": "measured block by block on another machine, corrected on whole networks",
            "datasheet": "estimated from datasheet figures, not measured",
        }[self.kind]


@dataclass(frozen=True)
class Known:
    """A table on disk; ``problem`` says why it cannot be read."""

    path: Path
    table: LatencyTable | None
    problem: str = ""


def known_tables(folder: Path | None = None) -> list[Known]:
    """Every latency table in the folder of tables, by file name."""
    result = []
    for path in sorted((folder or cache_folder()).glob("*.parquet")):
        if ".partial" in path.name:
            continue
        try:
            result.append(Known(path, LatencyTable.load(path)))
        except NasError as error:
            result.append(Known(path, None, str(error)))
    return result


def device_names(folder: Path | None = None) -> list[str]:
    """Every name that ``--device`` takes: this machine's, those of tables, datasheets."""
    named = {k.table.name for k in known_tables(folder) if k.table is not None and k.table.name}
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
    """What ``name`` stands for; options that are None take the device's usual value.

    Raises UnknownNameError for a name that nothing has, UsageError where the tables of that name
    hold under other conditions than asked, or under several.
    """
    given: dict[str, Any] = {
        key: value
        for key, value in (
            ("runtime", runtime),
            ("precision", precision),
            ("batch_size", batch_size),
            ("threads", threads),
        )
        if value is not None
    }
    if name in local_device_names():
        conditions = local_conditions(name, **given)
        return Target(name, conditions, "local", table_path(conditions, folder))
    if name in datasheet_names():
        given.pop("threads", None)
        conditions = estimated_conditions(name, **given)
        return Target(name, conditions, "datasheet", table_path(conditions, folder))
    named = [k for k in known_tables(folder) if k.table is not None and k.table.name == name]
    if not named:
        raise UnknownNameError("device", name, device_names(folder))
    return _named_target(name, named, given)


def _named_target(name: str, known: list[Known], given: Mapping[str, Any]) -> Target:
    tables = [(k.path, k.table) for k in known if k.table is not None]
    fitting = [
        (path, table)
        for path, table in tables
        if all(getattr(table.conditions, key) == value for key, value in given.items())
    ]
    listed = "; ".join(_short(table.conditions) for _, table in tables)
    if not fitting:
        asked = ", ".join(f"{key}={value}" for key, value in given.items())
        raise UsageError(
            f"device {name!r} has no table for {asked}; it has: {listed}. Ask for one of these, "
            "or measure it there."
        )
    if len(fitting) > 1:
        raise UsageError(
            f"device {name!r} has several tables: {listed}. Say which by --runtime, --precision, "
            "--batch-size or --threads."
        )
    path, table = fitting[0]
    local = {identify(item) for item in local_device_names()}
    here = table.conditions.device in local and table.conditions == _as_of_today(table.conditions)
    return Target(name, table.conditions, "local" if here else "table", path)


def _as_of_today(conditions: Conditions) -> Conditions | None:
    """The same conditions with this machine's versions of everything."""
    names = [n for n in local_device_names() if identify(n) == conditions.device]
    try:
        return local_conditions(
            names[0],
            threads=conditions.threads,
            batch_size=conditions.batch_size,
            precision=conditions.precision,
            runtime=conditions.runtime,
        )
    except NasError:  # the runtime is not installed here
        return None


def _short(conditions: Conditions) -> str:
    return (
        f"{conditions.runtime}, {conditions.precision}, batch {conditions.batch_size}, "
        f"{conditions.threads} threads"
    )


def check_name(name: str, device: DeviceIdentity, folder: Path | None = None) -> None:
    """Refuse a name that is malformed or stands for something else already; UsageError."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    if not (name[:1].isalpha() and plain.isalnum() and plain.isascii()):
        raise UsageError(f"device name {name!r} cannot be used: {_NAME_RULE}.")
    if name in ("cpu", "cuda") or name in datasheet_names() or name.startswith("cuda."):
        raise UsageError(
            f"device name {name!r} stands for something else already; choose another --name."
        )
    for known in known_tables(folder):
        table = known.table
        if table is not None and table.name == name and table.conditions.device != device:
            raise UsageError(
                f"device name {name!r} is taken by the table of another device "
                f"({table.conditions.device}; {known.path}). Choose another --name, or delete "
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
    """Table of ``target`` that can ``compile(space, num_classes)``.

    What this machine can measure is measured, what a datasheet gives is estimated. With
    ``interpolate`` missing entries of another machine's table, or of this one's, are interpolated
    between its measured ones. Raises MissingLatencyError where a table of another machine lacks
    entries, CorruptFileError where it cannot be read.
    """
    stored, folder = _stored(target), target.path.parent
    if target.kind == "datasheet":
        table = estimate(
            target.conditions, space, num_classes, measured=_comparable(target.conditions, folder)
        )
        return table if stored is None else replace(table, calibration=stored.calibration)
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
    """A measured table of another GPU that an estimate can be transferred from, the largest."""
    same = ("runtime", "precision", "batch_size")
    tables = [
        k.table
        for k in known_tables(folder)
        if k.table is not None
        and k.table.entries
        and not is_estimated(k.table.conditions)
        and datasheet_of(k.table.conditions.device) is not None
        and all(getattr(k.table.conditions, n) == getattr(conditions, n) for n in same)
    ]
    return max(tables, key=lambda table: len(table.entries), default=None)


def _stored(target: Target) -> LatencyTable | None:
    return LatencyTable.load(target.path) if target.path.exists() else None
