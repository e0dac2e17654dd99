"""The latency table: measured components, the conditions they hold under, and corrections.

One file per conditions holds the entries of every space that was profiled under them, so that
spaces share entries. Parquet, with all provenance in the schema metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    InstanceOf,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
)

from predictors.tables.additive import AdditiveTable, Entry, entries
from predictors.tables.conditions import Conditions
from predictors.tables.correction import Calibration, Correction, Positive
from predictors.tables.parquet import LONGEST_TEXT, read_parquet, write_parquet
from search_space import ModuleSpec, SearchSpace
from search_space.boundary import parse_model
from search_space.errors import CorruptFileError, NasError
from search_space.names import Digest, PlainName
from search_space.parsing import parse_json

SCHEMA_VERSION = 2
MOST_PIXELS = 2**16
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
_Number = StrictBool | StrictInt | Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Plain = _Number | StrictStr
_OPTIONS = TypeAdapter(dict[str, _Plain | dict[str, _Plain]])


class MissingLatencyError(NasError, LookupError):
    """Raised where a table lacks an entry; the message names the command that measures it."""


@dataclass(frozen=True)
class EntryLatency:
    """Milliseconds of one entry: statistic, 10th and 90th percentile; or estimate and range.

    ``runs`` is 0 where nothing was measured; ``origin`` is ``measured``, ``interpolated`` between
    measured entries, or ``estimated``.
    """

    latency_ms: Positive
    low_ms: Positive
    high_ms: Positive
    runs: Annotated[int, Field(ge=0)]
    origin: Literal["measured", "interpolated", "estimated"] = "measured"

    def __post_init__(self) -> None:
        if self.origin == "measured" and not self.runs:
            raise ValueError("a measured entry has runs")

    @classmethod
    def of(cls, samples: Sequence[float], latency_ms: float) -> EntryLatency:
        """Makes a measured entry from its samples and their statistic, in milliseconds."""
        low, high = np.percentile(samples, [10, 90])
        return cls(latency_ms, min(float(low), latency_ms), float(high), len(samples))

    @classmethod
    def estimated(
        cls,
        latency_ms: float,
        error: float,
        origin: Literal["interpolated", "estimated"] = "estimated",
    ) -> EntryLatency:
        """Makes an entry that was not measured, with the range of a relative ``error``."""
        return cls(latency_ms, latency_ms / (1 + error), latency_ms * (1 + error), 0, origin)


@dataclass(frozen=True)
class LatencyTable:
    """Entries, their conditions, and corrections by the digest of their space.

    ``calibration`` takes the place of all corrections once the user has calibrated. ``name`` is
    what people call the device, empty for this machine's own tables; ``created`` when the last
    entry was measured, UTC, ISO 8601.

    Example:
        >>> table = profile(space, num_classes=10)
        >>> milliseconds = table.compile(space, num_classes=10).predict(genes)
    """

    conditions: Conditions
    entries: Mapping[Entry, EntryLatency]
    corrections: Mapping[str, Correction]
    calibration: Calibration | None = None
    name: str = ""
    created: str = ""

    def missing(self, space: SearchSpace, num_classes: int = 1000) -> list[Entry]:
        """Lists entries that ``space`` asks for and this table lacks."""
        return [entry for entry in entries(space, num_classes) if entry not in self.entries]

    def complete(self, space: SearchSpace, num_classes: int = 1000) -> bool:
        """Decides whether ``compile`` would succeed."""
        return space.digest in self.corrections and not self.missing(space, num_classes)

    def correction(self, space: SearchSpace) -> Correction:
        """Returns the correction of ``space``.

        Raises:
            MissingLatencyError: There is none; the message names the command that makes one.
        """
        if space.digest not in self.corrections:
            raise MissingLatencyError(
                f"the latency table of {self.conditions.device} has no end-to-end correction for "
                f"space {space.name!r}; measure it with: {self._command(space)}"
            )
        return self.corrections[space.digest]

    def typical_correction(self, space: SearchSpace | None = None) -> Correction:
        """Returns the correction of ``space``, or what those of other spaces have in common.

        Their median, expected to err like the worst of them; where there are none, the plain sum.
        """
        if space is not None and space.digest in self.corrections:
            return self.corrections[space.digest]
        known = list(self.corrections.values())
        return Correction(
            space="" if space is None else space.name,
            scale=float(np.median([c.scale for c in known])) if known else 1.0,
            offset_ms=float(np.median([c.offset_ms for c in known])) if known else 0.0,
            expected_error=max((c.expected_error for c in known), default=0.0),
            stopped="interpolated",
        )

    def expected_error(self, space: SearchSpace) -> float:
        """Returns the mean relative error to expect of whole networks of ``space``.

        Raises:
            MissingLatencyError: There is no correction of ``space``.
        """
        before = self.correction(space).expected_error
        return before if self.calibration is None else self.calibration.expected_error(before)

    def slowdown(self, space: SearchSpace, share: float) -> float:
        """Returns the measured over predicted latency that a ``share`` of networks stays below.

        Raises:
            MissingLatencyError: There is no correction of ``space``.
        """
        return self.correction(space).slowdown(share, self.expected_error(space))

    def compile(self, space: SearchSpace, num_classes: int = 1000) -> AdditiveTable:
        """Builds the additive table that predicts milliseconds of whole networks.

        Raises:
            MissingLatencyError: An entry is missing; the message names it and the command.
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
        affine = self.calibration or correction
        return AdditiveTable.build(
            space,
            num_classes,
            lambda spec, size: self.entries[spec, size].latency_ms,
            scale=affine.scale,
            offset=affine.offset_ms,
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
        """Adds entries and corrections; entries that are there already stay."""
        new = any(value.origin == "measured" for value in measured.values())
        return replace(
            self,
            created=datetime.now(UTC).isoformat(timespec="seconds") if new else self.created,
            entries={**measured, **self.entries},
            corrections={**self.corrections, **(corrections or {})},
        )

    def save(self, path: Path) -> None:
        """Replaces ``path`` atomically by this table."""
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
        """Loads a table that ``save`` wrote; ``fix`` is what an error advises.

        Raises:
            CorruptFileError: The file is missing, cut short, of another schema version, larger than
                any
                table, or holds what no measurement gives.
        """
        try:
            cells, metadata = read_parquet(path, _METADATA_KEY, _SCHEMA, SCHEMA_VERSION)
            stated = parse_model(metadata, _Provenance, path)
            if stated.conditions_digest != stated.conditions.digest:
                raise CorruptFileError(
                    f"{path}: the conditions were altered: their digest differs."
                )
            keys = parse_model(cells, list[_Key], path)
            values = parse_model(cells, list[EntryLatency], path)
        except CorruptFileError as error:
            raise CorruptFileError(f"{error} {fix}") from None
        measured = {(key.spec, key.in_size): v for key, v in zip(keys, values, strict=True)}
        if len(measured) < len(keys):
            raise CorruptFileError(f"{path}: entries are there twice. {fix}")
        known = {name: value for name, value in stated if name != "conditions_digest"}
        return cls(entries=measured, **known)


def spec_to_json(spec: ModuleSpec) -> str:
    """Writes a spec as a line of JSON, which ``spec_from_json`` reads."""
    options = {k: dict(v) if isinstance(v, tuple) else v for k, v in spec.options}
    return json.dumps({"kind": spec.kind, **options}, sort_keys=True, separators=(",", ":"))


def spec_from_json(text: str) -> ModuleSpec:
    """Reads a spec.

    Raises:
        CorruptFileError: ``text`` is no spec.
    """
    try:
        return _spec(text)
    except ValueError:
        raise CorruptFileError(f"{text!r:.80} is not the spec of a module.") from None


def _spec(text: str) -> ModuleSpec:
    if not isinstance(text, str) or len(text) > LONGEST_TEXT:
        raise ValueError("this is not the spec of a module")
    options = _OPTIONS.validate_python(parse_json(text))
    kind = options.pop("kind", None)
    if not isinstance(kind, str):
        raise ValueError("this is the spec of no kind of module")
    return ModuleSpec.of(
        kind,
        **{k: tuple(sorted(v.items())) if isinstance(v, dict) else v for k, v in options.items()},
    )


Spec = Annotated[ModuleSpec, InstanceOf, BeforeValidator(_spec)]
"""The spec of a module in a pydantic model, from its JSON."""


class _Key(BaseModel):
    spec: Spec
    in_size: Annotated[int, Field(ge=1, le=MOST_PIXELS)]


class _Provenance(BaseModel):
    conditions: Conditions
    conditions_digest: str
    name: PlainName | Literal[""]
    created: str
    calibration: Calibration | None
    corrections: dict[Digest, Correction]
