"""The latency table: measured components, the conditions they hold under, and a correction.

One file per conditions holds the entries of every space that was profiled under them, so that
spaces share entries. Sums of entries are turned into end-to-end latencies by an affine
correction that is fitted, per space, on whole check networks; its expected error is that of
predicting each check network from the others. Parquet, with all provenance in the schema
metadata: any data tool can read it.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from predictors.tables.additive import AdditiveTable, Entry, entries
from predictors.tables.conditions import Conditions
from predictors.tables.correction import (
    Calibration,
    Correction,
    calibration_from_dict,
    correction_from_dict,
)
from search_space import ModuleSpec, SearchSpace
from search_space.errors import CorruptFileError, NasError

SCHEMA_VERSION = 2
ORIGINS = ("measured", "interpolated", "estimated")
MEASURE_AGAIN = "Delete the file and run `nas profile` to measure it again."
_METADATA_KEY = b"nas.latency_table"
_SCHEMA = pa.schema(
    [
        ("spec", pa.string()),
        ("in_size", pa.int64()),
        ("latency_ms", pa.float64()),
        ("low_ms", pa.float64()),
        ("high_ms", pa.float64()),
        ("runs", pa.int64()),
        ("origin", pa.string()),
    ]
)


class MissingLatencyError(NasError, LookupError):
    """A table lacks what a space asks for; the message names it and the command to measure it."""


@dataclass(frozen=True)
class EntryLatency:
    """Milliseconds of one entry, and where they come from.

    Args:
        latency_ms: the statistic, or the estimate.
        low_ms, high_ms: 10th and 90th percentile; an estimate's range.
        runs: number of timed runs, 0 where nothing was measured.
        origin: ``measured``, ``interpolated`` between measured entries, or ``estimated``.
    """

    latency_ms: float
    low_ms: float
    high_ms: float
    runs: int
    origin: str = "measured"

    @classmethod
    def of(cls, samples: Sequence[float], latency_ms: float) -> EntryLatency:
        low, high = np.percentile(samples, [10, 90])
        return cls(latency_ms, min(float(low), latency_ms), float(high), len(samples))


@dataclass(frozen=True)
class LatencyTable:
    """Entries, their conditions, and corrections by the digest of their space.

    Args:
        name: what people call the device; empty for this machine's own tables.
        created: when the last entry was measured, UTC, ISO 8601; empty where none was.
    """

    conditions: Conditions
    entries: Mapping[Entry, EntryLatency]
    corrections: Mapping[str, Correction]
    calibration: Calibration | None = None
    name: str = ""
    created: str = ""

    def missing(self, space: SearchSpace, num_classes: int = 1000) -> list[Entry]:
        """Entries that ``space`` asks for and this table lacks."""
        return [entry for entry in entries(space, num_classes) if entry not in self.entries]

    def complete(self, space: SearchSpace, num_classes: int = 1000) -> bool:
        """Whether ``compile`` would succeed."""
        return space.digest in self.corrections and not self.missing(space, num_classes)

    def correction(self, space: SearchSpace) -> Correction:
        """Correction of ``space``; raises MissingLatencyError."""
        if space.digest not in self.corrections:
            raise MissingLatencyError(
                f"the latency table of {self.conditions.device} has no end-to-end correction for "
                f"space {space.name!r}; measure it with: {self._command(space)}"
            )
        return self.corrections[space.digest]

    def typical_correction(self, space: SearchSpace | None = None) -> Correction:
        """The correction of ``space``; without one, what those of other spaces have in common.

        That is their median, expected to err like the worst of them; where there are none, the
        plain sum.
        """
        if space is not None and space.digest in self.corrections:
            return self.corrections[space.digest]
        known = list(self.corrections.values())
        return Correction(
            space="" if space is None else space.name,
            scale=float(np.median([c.scale for c in known])) if known else 1.0,
            offset_ms=float(np.median([c.offset_ms for c in known])) if known else 0.0,
            expected_error=max((c.expected_error for c in known), default=0.0),
            checks=(),
            rounds=0,
            seconds=0.0,
            stopped="interpolated",
        )

    def expected_error(self, space: SearchSpace) -> float:
        """Mean relative error to expect of whole networks of ``space``; MissingLatencyError."""
        before = self.correction(space).expected_error
        return before if self.calibration is None else self.calibration.expected_error(before)

    def compile(self, space: SearchSpace, num_classes: int = 1000) -> AdditiveTable:
        """Additive table that predicts milliseconds of whole networks.

        Raises MissingLatencyError that names the first missing entry and the command.
        """
        missing = self.missing(space, num_classes)
        if missing:
            (spec, in_size), more = missing[0], len(missing) - 1
            raise MissingLatencyError(
                f"the latency table of {self.conditions.device} lacks {spec} on a {in_size}-pixel "
                f"input{f' and {more} more entries' if more else ''} of space {space.name!r}; "
                f"measure what is missing with: {self._command(space, num_classes)}"
            )
        correction = self.correction(space)
        scale, offset = correction.scale, correction.offset_ms
        if self.calibration is not None:
            scale, offset = self.calibration.scale, self.calibration.offset_ms
        return AdditiveTable.build(
            space,
            num_classes,
            lambda spec, size: self.entries[spec, size].latency_ms,
            scale=scale,
            offset=offset,
        )

    def _command(self, space: SearchSpace, num_classes: int | None = None) -> str:
        c = self.conditions
        classes = "" if num_classes is None else f" --num-classes {num_classes}"
        threads = f" --threads {c.threads}" if c.device.kind == "cpu" else ""
        there = f", run on {self.name}" if self.name else ""
        return (
            f"nas profile --space {space.name} --device {c.device.kind}{classes} --runtime "
            f"{c.runtime} --precision {c.precision} --batch-size {c.batch_size}{threads}{there}"
        )

    def with_session(
        self,
        measured: Mapping[Entry, EntryLatency],
        corrections: Mapping[str, Correction] | None = None,
    ) -> LatencyTable:
        """The table with more entries and corrections; entries that are there already stay."""
        new = any(value.origin == "measured" for value in measured.values())
        return replace(
            self,
            created=datetime.now(UTC).isoformat(timespec="seconds") if new else self.created,
            entries={**measured, **self.entries},
            corrections={**self.corrections, **(corrections or {})},
        )

    # Files ------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Replace ``path`` atomically by this table."""
        rows = sorted(self.entries.items(), key=lambda item: (str(item[0][0]), item[0][1]))
        columns: dict[str, list[Any]] = {
            "spec": [spec_to_json(spec) for (spec, _), _ in rows],
            "in_size": [size for (_, size), _ in rows],
        }
        for field in fields(EntryLatency):
            columns[field.name] = [getattr(measured, field.name) for _, measured in rows]
        metadata = {
            "schema_version": SCHEMA_VERSION,
            "conditions": self.conditions.to_dict(),
            "conditions_digest": self.conditions.digest,
            "statistic": "25th percentile of cold interleaved runs, milliseconds",
            "name": self.name,
            "created": self.created,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "corrections": {key: asdict(value) for key, value in self.corrections.items()},
        }
        write_parquet(path, pa.table(columns, schema=_SCHEMA), _METADATA_KEY, metadata)

    @classmethod
    def load(cls, path: Path, fix: str = MEASURE_AGAIN) -> LatencyTable:
        """Table in ``path``; ``fix`` is what an error advises.

        Raises CorruptFileError where the file is missing, cut short, of another schema version,
        or holds cells that no measurement gives.
        """
        try:
            data, metadata = read_parquet(path, _METADATA_KEY, _SCHEMA)
            conditions = Conditions.from_dict(metadata.get("conditions"))
            if metadata.get("conditions_digest") != conditions.digest:
                raise CorruptFileError("the conditions were altered: their digest differs.")
            raw = metadata.get("corrections")
            if not isinstance(raw, dict):
                raise CorruptFileError("corrections must be a mapping.")
            corrections = {key: correction_from_dict(value) for key, value in raw.items()}
            measured: dict[Entry, EntryLatency] = {}
            for row in data.to_pylist():
                entry, value = _entry_from_row(row)
                if entry in measured:
                    raise CorruptFileError(f"{entry[0]} on {entry[1]} pixels is there twice.")
                measured[entry] = value
            calibration = calibration_from_dict(metadata.get("calibration"))
            name, created = metadata.get("name"), metadata.get("created")
            if not isinstance(name, str) or not isinstance(created, str):
                raise CorruptFileError("name and created must be text.")
        except NasError as error:
            raise CorruptFileError(f"{path}: {error} {fix}") from None
        return cls(conditions, measured, corrections, calibration, name, created)


def spec_to_json(spec: ModuleSpec) -> str:
    """One line of JSON; ``spec_from_json`` inverts it."""
    options = {k: dict(v) if isinstance(v, tuple) else v for k, v in spec.options}
    return json.dumps({"kind": spec.kind, **options}, sort_keys=True, separators=(",", ":"))


def spec_from_json(text: str) -> ModuleSpec:
    """Raises CorruptFileError where ``text`` is no spec."""
    try:
        options = json.loads(text)
        kind = options.pop("kind")
        return ModuleSpec.of(
            kind,
            **{
                k: tuple(sorted(v.items())) if isinstance(v, dict) else v
                for k, v in options.items()
            },
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CorruptFileError(f"{str(text)[:80]!r} is not the spec of a module.") from None


def write_parquet(path: Path, table: pa.Table, key: bytes, metadata: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``table`` with ``metadata`` as JSON in its schema: all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metadata, sort_keys=True, allow_nan=False).encode()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            pq.write_table(
                table.replace_schema_metadata({key: text}), file, write_page_checksum=True
            )
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_parquet(path: Path, key: bytes, schema: pa.Schema) -> tuple[pa.Table, dict[str, Any]]:
    """Table and metadata; raises CorruptFileError where it is not what ``write_parquet`` wrote."""
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise CorruptFileError("there is no such file.") from None
    except (pa.ArrowException, OSError) as error:
        raise CorruptFileError(
            f"not a readable Parquet file ({' '.join(str(error).split())[:120]})."
        ) from None
    try:
        metadata = json.loads((table.schema.metadata or {})[key])
    except (KeyError, ValueError):
        raise CorruptFileError("it carries no provenance, so it is no table of ours.") from None
    version = metadata.get("schema_version") if isinstance(metadata, dict) else None
    if version != SCHEMA_VERSION:
        raise CorruptFileError(
            f"it has schema version {version}, this program reads version {SCHEMA_VERSION}."
        )
    found = table.schema.remove_metadata()
    if not found.equals(schema):
        wanted = ", ".join(f"{f.name}: {f.type}" for f in schema)
        raise CorruptFileError(f"its columns are not {wanted}.")
    return table, metadata


def _entry_from_row(row: Mapping[str, Any]) -> tuple[Entry, EntryLatency]:
    spec, in_size = spec_from_json(row["spec"]), row["in_size"]
    where = f"{spec} on {in_size} pixels"
    if row["origin"] not in ORIGINS:
        raise CorruptFileError(
            f"{where}: origin={row['origin']!r} is none of {', '.join(ORIGINS)}."
        )
    measured = ("runs",) if row["origin"] == "measured" else ()
    for name in ("latency_ms", "low_ms", "high_ms", *measured):
        value = row[name]
        if value is None or not math.isfinite(value) or value <= 0:
            raise CorruptFileError(f"{where}: {name}={value} must be a positive number.")
    if row["runs"] is None or row["runs"] < 0:
        raise CorruptFileError(f"{where}: runs={row['runs']} must not be negative.")
    if in_size is None or in_size < 1:
        raise CorruptFileError(f"{where}: in_size must be positive.")
    return (spec, in_size), EntryLatency(*(row[field.name] for field in fields(EntryLatency)))
