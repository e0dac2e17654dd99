"""Reading back what a bundle measured on another device.

Nothing in the files is trusted: the bundle must be the one that was measured, every file must
have the checksum that the manifest states, and every sample must be a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from predictors.bundles import runner as bundle_runner
from predictors.measuring.bench import split_half_disagreement, statistic
from predictors.measuring.entry_plan import without_cost
from predictors.tables.additive import Entry
from predictors.tables.conditions import Conditions, DeviceIdentity
from predictors.tables.correction import CheckNetwork, correction_of
from predictors.tables.latency_table import EntryLatency, LatencyTable, spec_from_json
from search_space.errors import CorruptFileError, NasError, UsageError

_LEAST_ROUNDS = 3


def import_bundle(results: Path, bundle: Path, name: str) -> LatencyTable:
    """Latency table of the device that ``bundle`` was run on.

    Args:
        results: what ``run.py`` wrote.
        bundle: the folder that ``write_bundle`` wrote.
        name: what the device shall be called.

    Raises CorruptFileError where files are missing, altered or hold what no measurement gives,
    UsageError where the measurement is not finished or is of another bundle.
    """
    manifest = _read_manifest(bundle)
    return _combine(manifest, _read_results(results, manifest), name)


@dataclass(frozen=True)
class _Portion:
    entries: list[int]
    samples_ms: list[list[float]]
    seconds: float
    stopped: str
    warnings: list[str]


@dataclass(frozen=True)
class _Measured:
    conditions: Conditions
    created: str
    portions: list[_Portion]


@dataclass(frozen=True)
class _Check:
    digest: str
    components: list[Entry]


@dataclass(frozen=True)
class _Manifest:
    digest: str
    space_name: str
    space_digest: str
    precision: str
    batch_size: int
    layout: str
    protocol: str
    implementation: str
    entries: list[Entry]
    checks: list[_Check]


def _read_manifest(folder: Path) -> _Manifest:
    try:
        data, digest = bundle_runner.read_manifest(folder)
        entries = [(spec_from_json(e["spec"]), int(e["in_size"])) for e in data["entries"]]
        checks = [
            _Check(
                str(check["digest"]),
                [(spec_from_json(text), int(size)) for text, size in check["components"]],
            )
            for check in data["checks"]
        ]
        if not {entry for check in checks for entry in check.components} <= set(entries):
            raise ValueError("check networks have components that are no entries")
        return _Manifest(
            digest=digest,
            space_name=str(data["space"]["name"]),
            space_digest=str(data["space"]["digest"]),
            precision=str(data["precision"]),
            batch_size=int(data["batch_size"]),
            layout=str(data["layout"]),
            protocol=str(data["protocol"]),
            implementation=str(data["implementation"]),
            entries=entries,
            checks=checks,
        )
    except bundle_runner.BundleError as error:
        raise CorruptFileError(f"{error} Write the bundle again if need be.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{folder}: the manifest is not what this program writes ({error}); write the bundle "
            "again."
        ) from None


def _read_results(path: Path, manifest: _Manifest) -> _Measured:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFileError(
            f"{path} cannot be read ({error}); copy it from the device again."
        ) from None
    if not isinstance(data, dict) or data.get("format") != bundle_runner.FORMAT:
        version = data.get("format") if isinstance(data, dict) else None
        raise CorruptFileError(
            f"{path} has format {version}, this program reads {bundle_runner.FORMAT}; write the "
            "bundle and measure it with this version."
        )
    if data.get("sha256") != bundle_runner.checksum(data):
        raise CorruptFileError(
            f"{path} was altered: its checksum does not fit; copy it from the device again."
        )
    if data.get("bundle") != manifest.digest:
        raise UsageError(
            f"{path} was measured with another bundle than the one given; give the folder whose "
            "run.py wrote it."
        )
    try:
        return _Measured(
            _conditions(data, manifest), str(data["created"]), _portions(data, manifest)
        )
    except NasError as error:
        raise error.located(path) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(
            f"{path} is not what run.py writes ({error!r}); measure the bundle again."
        ) from None


def _conditions(data: Mapping[str, Any], manifest: _Manifest) -> Conditions:
    return Conditions(
        device=DeviceIdentity(
            kind=str(data["device"]["kind"]),
            model=str(data["device"]["model"]),
            cores=int(data["device"]["cores"]),
            capability=str(data["device"]["capability"]),
        ),
        runtime="onnxruntime",
        precision=manifest.precision,
        batch_size=manifest.batch_size,
        threads=data["threads"],
        runtime_version=str(data["runtime_version"]),
        layout=manifest.layout,
        implementation=manifest.implementation,
        protocol=manifest.protocol,
    )


def _portions(data: Mapping[str, Any], manifest: _Manifest) -> list[_Portion]:
    portions = [_Portion(**item) for item in data["portions"]]
    if not portions or not all(portion.stopped for portion in portions):
        done = sum(bool(portion.stopped) for portion in portions)
        raise UsageError(
            f"{done} of {len(portions)} portions are measured; run run.py on the device again, "
            "it continues."
        )
    numbers = [number for portion in portions for number in portion.entries]
    if sorted(numbers) != list(range(len(manifest.entries))):
        lacking = sorted(set(range(len(manifest.entries))) - set(numbers))
        which = (
            str(manifest.entries[lacking[0]][0]) if lacking else "none, but some are there twice"
        )
        raise CorruptFileError(
            f"entries are missing: {len(lacking)} of {len(manifest.entries)} ({which}); measure "
            "the bundle again."
        )
    for portion in portions:
        names = [str(manifest.entries[i][0]) for i in portion.entries]
        names += ["the empty network", *(f"network {check.digest}" for check in manifest.checks)]
        if len(portion.samples_ms) != len(names):
            raise CorruptFileError(
                f"{len(portion.samples_ms)} models were measured and not {len(names)}; measure "
                "the bundle again."
            )
        rounds = {len(samples) for samples in portion.samples_ms}
        for model, samples in zip(names, portion.samples_ms, strict=True):
            values = np.array(samples, dtype=np.float64)
            wrong = values[~(np.isfinite(values) & (values > 0))]
            if len(wrong):
                raise CorruptFileError(
                    f"{model} took {wrong[0]} ms, but times are positive numbers; measure the "
                    "bundle again."
                )
        if len(rounds) != 1 or min(rounds) < _LEAST_ROUNDS:
            raise CorruptFileError(
                f"models were run between {min(rounds)} and {max(rounds)} times, but all must be "
                f"run equally often and at least {_LEAST_ROUNDS} times; measure the bundle again."
            )
    return portions


def _combine(manifest: _Manifest, measured: _Measured, name: str) -> LatencyTable:
    """All portions at the level of the first one, by what the check networks took in each."""
    portions, count = measured.portions, len(manifest.checks)
    runs = [portion.samples_ms[-count:] for portion in portions]
    level = [statistic(samples) for samples in runs[0]]
    entries: dict[Entry, EntryLatency] = {}
    for portion, own in zip(portions, runs, strict=True):
        drift = float(np.median(np.array(level) / [statistic(samples) for samples in own]))
        empty = statistic(portion.samples_ms[len(portion.entries)])
        for number, samples in zip(portion.entries, portion.samples_ms, strict=False):
            values = [drift * value for value in without_cost(samples, empty)]
            entries[manifest.entries[number]] = EntryLatency.of(values, statistic(values))
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
        manifest.space_name,
        checks,
        halves=max(map(split_half_disagreement, runs[0])),
        rounds=len(runs[0][0]),
        seconds=sum(portion.seconds for portion in portions),
        stopped="converged" if {p.stopped for p in portions} == {"converged"} else "rounds",
        warnings=list(dict.fromkeys(text for p in portions for text in p.warnings)),
    )
    return LatencyTable(
        measured.conditions,
        entries,
        {manifest.space_digest: correction},
        name=name,
        created=measured.created,
    )
