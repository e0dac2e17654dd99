"""Import of what a bundle measured on another device: nothing in the files is trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from predictors.measuring import runner as bundle_runner
from predictors.measuring.bench import split_half_disagreement, statistic
from predictors.measuring.entry_plan import without_cost
from predictors.tables.additive import Entry
from predictors.tables.conditions import Conditions, DeviceIdentity
from predictors.tables.correction import CheckNetwork, NotNegative, Positive, correction_of
from predictors.tables.latency_table import MOST_PIXELS, EntryLatency, LatencyTable, Spec
from predictors.tables.parquet import MOST_ENTRIES
from search_space.boundary import parse_model, read_data
from search_space.errors import CorruptFileError, NasError, UsageError
from search_space.names import Digest, PlainName

_MOST_IMAGES = 2**16  # of a batch
_LEAST_ROUNDS = 3


def import_bundle(results: Path, bundle: Path, name: str) -> LatencyTable:
    """Imports the ``results`` that ``run.py`` wrote, as the table of a device called ``name``.

    ``bundle`` is the folder that ``write_bundle`` wrote.

    Raises:
        CorruptFileError: Files are missing, altered or hold what no measurement gives.
        UsageError: The measurement is not finished, or is of another bundle.
    """
    manifest, digest = _read_manifest(bundle)
    return _combine(manifest, _read_results(results, manifest, digest), name)


class _Entry(BaseModel):
    spec: Spec
    in_size: Annotated[int, Field(ge=1, le=MOST_PIXELS)]


class _Check(BaseModel):
    digest: Digest
    components: list[tuple[Spec, int]]


class _Space(BaseModel):
    name: PlainName
    digest: Digest


class _Manifest(BaseModel):
    space: _Space
    precision: Literal["fp32", "fp16"]
    batch_size: Annotated[int, Field(ge=1, le=_MOST_IMAGES)]
    layout: str
    protocol: str
    implementation: str
    entries: Annotated[list[_Entry], Field(min_length=1, max_length=MOST_ENTRIES)]
    checks: Annotated[list[_Check], Field(min_length=1, max_length=1000)]

    @model_validator(mode="after")
    def _checks_are_of_entries(self) -> Self:
        parts = {part for check in self.checks for part in check.components}
        if not parts <= set(self.wanted):
            raise ValueError("check networks have components that are no entries")
        return self

    @property
    def wanted(self) -> list[Entry]:
        return [(entry.spec, entry.in_size) for entry in self.entries]


class _Portion(BaseModel):
    entries: list[int]
    samples_ms: list[list[Positive]]
    seconds: NotNegative
    stopped: Literal["", "converged", "rounds"]
    warnings: list[str]


class _Results(BaseModel):
    device: DeviceIdentity
    threads: Annotated[int, Field(ge=1)]
    runtime_version: str
    created: str
    portions: list[_Portion]


def _read_manifest(folder: Path) -> tuple[_Manifest, str]:
    """Reads the manifest, and its SHA-256."""
    try:
        data, digest = bundle_runner.read_manifest(folder)
    except bundle_runner.BundleError as error:
        raise CorruptFileError(f"{error} Write the bundle again if need be.") from None
    try:
        return parse_model(data, _Manifest, folder / "manifest.json"), digest
    except CorruptFileError as error:
        raise CorruptFileError(f"{error} Write the bundle again.") from None


def _read_results(path: Path, manifest: _Manifest, digest: str) -> _Results:
    again = "copy it from the device again."
    try:
        data = read_data(path)
        sound = isinstance(data, dict) and data.get("sha256") == bundle_runner.checksum(data)
    except FileNotFoundError:
        raise CorruptFileError(f"{path} does not exist; {again}") from None
    except (CorruptFileError, RecursionError) as error:
        raise CorruptFileError(f"{path} cannot be read ({error}); {again}") from None
    version = data.get("format") if isinstance(data, dict) else None
    if version != bundle_runner.FORMAT:
        raise CorruptFileError(
            f"{path} has format {version!r:.40}, this program reads {bundle_runner.FORMAT}; write "
            "the bundle and measure it with this version."
        )
    if not sound:
        raise CorruptFileError(f"{path} was altered: its checksum does not fit; {again}")
    if data.get("bundle") != digest:
        raise UsageError(
            f"{path} was measured with another bundle than the one given; give the folder whose "
            "run.py wrote it."
        )
    try:
        results = parse_model(data, _Results, path)
    except CorruptFileError as error:
        raise CorruptFileError(f"{error} Measure the bundle again.") from None
    try:
        _check_portions(results.portions, manifest)
    except NasError as error:
        raise error.located(path) from None
    return results


def _check_portions(portions: list[_Portion], manifest: _Manifest) -> None:
    """Checks that every entry was measured once, and a portion's models equally often."""
    done = sum(bool(portion.stopped) for portion in portions)
    if not portions or done < len(portions):
        raise UsageError(
            f"{done} of {len(portions)} portions are measured; run run.py on the device again, "
            "it continues."
        )
    wanted, numbers = range(len(manifest.entries)), [n for p in portions for n in p.entries]
    if sorted(numbers) != list(wanted):
        lacking = sorted(set(wanted) - set(numbers))
        which = str(manifest.entries[lacking[0]].spec) if lacking else "none, but some are twice"
        raise CorruptFileError(
            f"entries are missing: {len(lacking)} of {len(manifest.entries)} ({which}); measure "
            "the bundle again."
        )
    for portion in portions:
        models = len(portion.entries) + 1 + len(manifest.checks)  # the empty network is one
        if len(portion.samples_ms) != models:
            raise CorruptFileError(
                f"{len(portion.samples_ms)} models were measured and not {models}; measure "
                "the bundle again."
            )
        rounds = {len(samples) for samples in portion.samples_ms}
        if len(rounds) != 1 or min(rounds) < _LEAST_ROUNDS:
            raise CorruptFileError(
                f"models were run between {min(rounds)} and {max(rounds)} times, but all must be "
                f"run equally often and at least {_LEAST_ROUNDS} times; measure the bundle again."
            )


def _combine(manifest: _Manifest, measured: _Results, name: str) -> LatencyTable:
    """Brings all portions to the level of the first, by what the check networks took in each."""
    portions, count, wanted = measured.portions, len(manifest.checks), manifest.wanted
    runs = [portion.samples_ms[-count:] for portion in portions]
    level = [statistic(samples) for samples in runs[0]]
    entries: dict[Entry, EntryLatency] = {}
    for portion, checked in zip(portions, runs, strict=True):
        drift = float(np.median(np.array(level) / [statistic(samples) for samples in checked]))
        empty = statistic(portion.samples_ms[len(portion.entries)])
        for number, samples in zip(portion.entries, portion.samples_ms, strict=False):
            values = [drift * value for value in without_cost(samples, empty)]
            entries[wanted[number]] = EntryLatency.of(values, statistic(values))
    checks = [
        CheckNetwork(
            check.digest,
            sum(entries[entry].latency_ms for entry in check.components),
            time_ms,
            len(samples),
        )
        for check, time_ms, samples in zip(manifest.checks, level, runs[0], strict=True)
    ]
    correction = correction_of(
        manifest.space.name,
        checks,
        halves=max(map(split_half_disagreement, runs[0])),
        rounds=len(runs[0][0]),
        seconds=sum(portion.seconds for portion in portions),
        stopped="converged" if {p.stopped for p in portions} == {"converged"} else "rounds",
        warnings=list(dict.fromkeys(text for p in portions for text in p.warnings)),
    )
    stated = ("precision", "batch_size", "layout", "implementation", "protocol")
    conditions = Conditions(
        device=measured.device,
        runtime="onnxruntime",
        threads=measured.threads,
        runtime_version=measured.runtime_version,
        **{key: getattr(manifest, key) for key in stated},
    )
    corrections = {manifest.space.digest: correction}
    return LatencyTable(conditions, entries, corrections, name=name, created=measured.created)
