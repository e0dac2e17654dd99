"""Scaling and the search for seeds as commands: from options to files.

A family's folder holds ``task.yaml`` (all that decides the result), ``family.json``, a YAML file a
member, ``report.html``, and the scores of networks as they were found, so that a command that was
killed goes on where it stopped when it is given again.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from nas.cli.console import Console
from nas.workflows.kept_weights import export_members
from predictors.devices import Target, find_device
from predictors.measuring.remeasure import measure_networks
from predictors.proxies import ScoreSettings
from results.files import atomic_write, check_parents
from results.journal import Evaluation, Journal, read_journal
from results.report.family_report import render_family_report
from search.scaling.base import Family, Member, ScalingOptions, ScalingTask, scaling_method
from search.scaling.cost import NetworkCosts
from search.scaling.two_criteria import TwoScorer
from search.seeds import SeedResult, SeedSpace, search_seed, seed_sampler
from search_space import Architecture, dump_architecture
from search_space.errors import RunError, UsageError
from search_space.files import read_mapping
from search_space.metrics import device_of, title_of, typed
from search_space.units import format_count
from supernet.inherit.parents import Parent

Record = Callable[[Architecture, Mapping[str, float], float], None]
TASK, FAMILY, MEMBERS, REPORT = "task.yaml", "family.json", "members", "report.html"


@dataclass(frozen=True, kw_only=True)
class ScaleRequest:
    """Options of ``nas scale``.

    Args:
        name: What the user calls the seed.
        seed, by, budgets, limits: See ``ScalingTask``.
        method, options: Name of the method, and its options.
        folder: Where the family goes.
        device: Also wanted for the report.
        conditions: Options of ``find_device`` for all devices.
        num_classes: Of the head.
        interpolate: Fill the gaps of measured tables.
        measure: Measure the members on devices that are at hand.
        parent: The trained network that the seed is, whose weights the members keep.
    """

    name: str
    seed: Architecture
    by: str
    budgets: tuple[float, ...]
    limits: Mapping[str, float]
    method: str
    options: ScalingOptions
    folder: Path
    device: str | None
    conditions: Mapping[str, Any]
    num_classes: int
    interpolate: bool
    measure: bool
    parent: Parent | None = None

    def decisive(self) -> dict[str, Any]:
        """All that decides the family, as plain data."""
        return {
            "seed": {"name": self.name, "digest": self.seed.digest},
            "method": self.method,
            "by": self.by,
            "budgets": [typed(self.by, b, digits=12) for b in sorted(self.budgets)],
            "limits": {m: typed(m, limit, digits=12) for m, limit in self.limits.items()},
            "conditions": dict(self.conditions),
            "num_classes": self.num_classes,
            "interpolate": self.interpolate,
            "epochs": self.options.epochs,
            "proxy": self.options.proxy,
            "score": asdict(self.options.score),
            "weights": None
            if self.parent is None
            else {"of": self.parent.name, "fingerprint": self.parent.fingerprint()},
        }


@dataclass(frozen=True)
class ScaledFamily:
    """A family and what was written of it; ``measured_ms`` by device and member name.

    ``exports`` are folders of members that kept the weights of a parent.
    """

    family: Family
    folder: Path
    files: Mapping[str, Path]
    latencies: Mapping[str, Mapping[str, str]]
    measured_ms: Mapping[str, Mapping[str, float]]
    exports: Mapping[str, Path] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The family in plain form: members with their files and measured latencies."""
        members = [
            {
                **member.to_dict(),
                "file": str(self.files[member.name]),
                "measured_ms": {d: by[member.name] for d, by in self.measured_ms.items()},
                "export": str(self.exports[member.name]) if self.exports else None,
            }
            for member in self.family.members
        ]
        latencies = {name: dict(facts) for name, facts in self.latencies.items()}
        return {**self.family.to_dict(), "members": members, "latencies": latencies}

    def summary(self) -> dict[str, Any]:
        """What ``--json`` prints: members and where everything is; the path is in the folder."""
        plain = self.to_dict()
        steps = len(plain.pop("path")) - 1
        places = {"folder": str(self.folder), "report": str(self.folder / REPORT)}
        return {**plain, "steps": steps, **places}


def scale_family(request: ScaleRequest, command: str, console: Console) -> ScaledFamily:
    """Make the family and write its folder.

    Raises:
        RunError: The folder holds something else.
        NasError: What methods, devices and tables raise.
    """
    network = None
    if request.parent is not None:
        with console.phase(f"loading {request.parent.name}"):
            network = request.parent.load()
        request = replace(request, num_classes=network.num_classes)
    method = scaling_method(request.method)
    guiding = [d for m in (request.by, *request.limits) if (d := device_of(m)) is not None]
    names = dict.fromkeys([*guiding, *([request.device] if request.device else [])])
    targets = {name: find_device(name, **request.conditions) for name in names}
    # what only the report wants and this machine measures needs no table
    predicted = [t for name, t in targets.items() if name in guiding or not t.at_hand]
    costs = NetworkCosts(predicted, request.num_classes, interpolate=request.interpolate)
    _check_folder(request)
    scored = request.options
    scoring = {"method": request.method, "proxy": scored.proxy, **asdict(scored.score)}
    with (
        stored_scores(request.folder / "scores", scoring, console) as (known, record),
        console.phase(f"{request.method} from {request.name}") as progress,
    ):
        options = replace(request.options, known_scores=known, record=record)
        task = ScalingTask(
            seed=request.seed,
            by=request.by,
            budgets=request.budgets,
            costs=costs,
            limits=request.limits,
            progress=lambda done, total, text: progress(100 * done / total, 100, text),
        )
        family = method.from_options(options).scale(task)
    measured = {}
    if request.measure:
        for name, target in targets.items():
            if target.at_hand:
                measured[name] = _measured_ms(family.members, target, request, console)
    latencies = {name: _provenance(costs, target, family) for name, target in targets.items()}
    files = {m.name: request.folder / MEMBERS / f"{m.name}.yaml" for m in family.members}
    exports = {}
    if network is not None and request.parent is not None:
        with console.phase("members with the weights of the parent"):
            exports = export_members(request.parent, network, family, request.folder / MEMBERS)
    result = ScaledFamily(family, request.folder, files, latencies, measured, exports)
    _write(request, result, command)
    return result


def _provenance(costs: NetworkCosts, target: Target, family: Family) -> dict[str, str]:
    if target.name not in costs.latencies:
        return {"predicted": "no", "measured": f"whole members; {target.conditions}"}
    latency = costs.latencies[target.name]
    error = latency.expected_error([member.architecture for member in family.members])
    shown = "unknown" if error is None else f"±{error:.0%}"
    return {"predicted": latency.provenance(), "expected error": shown}


def _measured_ms(
    members: Sequence[Member], target: Target, request: ScaleRequest, console: Console
) -> dict[str, float]:
    distinct = {member.architecture.digest: member.architecture for member in members}
    with console.phase(f"measuring {len(distinct)} members on {target.name}") as progress:
        measurements = measure_networks(
            list(distinct.values()),
            request.num_classes,
            target.conditions,
            progress=progress.rounds,
        )
    for warning in dict.fromkeys(w for measurement in measurements for w in measurement.warnings):
        console.warn(warning)
    by_digest = dict(zip(distinct, measurements, strict=True))
    return {m.name: by_digest[m.architecture.digest].latency_ms for m in members}


# Files -------------------------------------------------------------------------------------------


def _check_folder(request: ScaleRequest) -> None:
    """Refuse a folder that holds something else, before anything is computed."""
    folder, fix = request.folder, "choose another --out, or delete it."
    check_parents(folder, fix)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, not a folder; {fix}")
    if not (folder / TASK).exists():
        if any(path.name[:6] != "scores" for path in folder.iterdir()):
            raise RunError(f"{folder} exists and holds no family; {fix}")
        return
    stored, wanted = read_mapping(folder / TASK), _plain(request.decisive())
    different = [key for key in wanted if stored.get(key) != wanted[key]]
    if different:
        listed = "; ".join(f"{key} {stored.get(key)}, now {wanted[key]}" for key in different)
        raise RunError(f"{folder} holds another family ({listed}); {fix}")


def _write(request: ScaleRequest, result: ScaledFamily, command: str) -> None:
    folder, family = request.folder, result.family
    (folder / MEMBERS).mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(_plain(request.decisive()), sort_keys=False, allow_unicode=True)
    atomic_write(folder / TASK, text)
    for member in family.members:
        atomic_write(result.files[member.name], dump_architecture(member.architecture))
    data = result.to_dict()
    atomic_write(folder / FAMILY, json.dumps(_plain(data), indent=1, ensure_ascii=False))
    page = {
        **data,
        "name": f"{request.name} by {family.method}",
        "members": [{**m, "file": f"{MEMBERS}/{Path(m['file']).name}"} for m in data["members"]],
        "summary": {
            "seed": f"{request.name} ({family.seed.digest})",
            "method": family.method,
            "budgets": f"{', '.join(m.name for m in family.members)} {title_of(family.by)}",
            "image size": f"{family.seed.resolution} px for the seed",
            "classes": request.num_classes,
            "seed MACs": format_count(family.path[0].costs["macs"]),
            **({"weights": "those of the seed, cut"} if result.exports else {}),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "settings": _settings(request),
    }
    atomic_write(folder / REPORT, render_family_report(page))


def _settings(request: ScaleRequest) -> dict[str, Any]:
    facts: dict[str, Any] = {"Python": sys.version.split()[0]}
    if scaling_method(request.method).scores_networks(request.options):
        score = request.options.score
        side = score.image_size or request.seed.resolution
        facts |= {
            "random seed": score.seed,
            "repeats a score": score.repeats,
            "images a repeat": f"{score.batch_size} of {side} px",
            "scored on": score.device,
        }
    return facts


def _plain(value: Any) -> Any:
    """Mappings as dicts and sequences as lists, as YAML and JSON give them back."""
    return json.loads(json.dumps(value, default=dict))


@contextmanager
def stored_scores(
    base: Path, settings: Mapping[str, Any], console: Console
) -> Iterator[tuple[dict[str, Mapping[str, float]], Record]]:
    """Scores of networks in a file beside ``base``: those known by digest, and what keeps another.

    Each is on the disk as soon as it is known. The file's name carries the settings, so that scores
    of others are never taken for these; it is made with the first score.
    """
    text = json.dumps(dict(settings), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    path = base.with_name(f"{base.name}-{key}.jsonl")
    stored = read_journal(path) if path.exists() else ()
    known = {entry.digest: entry.metrics for entry in stored}
    if known:
        console.say(f"  {len(known)} scores are known already, from {path}")
    with ExitStack() as stack:
        journals: list[Journal] = []

        def record(architecture: Architecture, values: Mapping[str, float], seconds: float) -> None:
            if not journals:
                path.parent.mkdir(parents=True, exist_ok=True)
                journals.append(stack.enter_context(Journal(path)))
            (journal,) = journals
            journal.append(Evaluation.of(architecture, values, len(journal), seconds=seconds))

        yield known, record


# Seeds -------------------------------------------------------------------------------------------


def find_seed(
    space: SeedSpace,
    *,
    method: str,
    steps: int,
    settings: ScoreSettings,
    output: Path,
    console: Console,
) -> SeedResult:
    """Search a seed and write it to ``output``; scores are kept beside it as they are found.

    Raises:
        UsageError: ``output`` exists.
        UnknownNameError: There is no such method.
    """
    if output.exists():
        raise UsageError(f"{output} exists; choose another --out, or delete it.")
    check_parents(output, "choose another --out.")
    seed_sampler(method, space)
    output.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with (
        stored_scores(output.with_suffix(".scores"), asdict(settings), console) as (known, record),
        console.phase(f"{method} over {space.size:.2e} topologies") as progress,
    ):
        scorer = TwoScorer(settings=settings, known=known, record=record)
        result = search_seed(
            space, scorer, method=method, steps=steps, seed=settings.seed, progress=progress
        )
    scores = result.best.scores
    header = (
        f"# Seed found by {method}: {steps} steps, {len(result.seen)} topologies scored in "
        f"{time.monotonic() - started:.0f} s.\n"
        f"# NTK condition number {scores.kappa:.4g}, expected length distortion "
        f"{scores.length:.4g}.\n"
    )
    atomic_write(output, header + dump_architecture(result.best.architecture))
    return result
