"""Findings of a run as the data of its report and of ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.config import RunConfig
from nas.workflows.measuring import Measured
from predictors.tables.conditions import Conditions
from predictors.tables.folder import provenance
from predictors.tables.latency_table import LatencyTable
from results.files import WRITTEN_AGAIN
from results.journal import Evaluation
from results.report.chosen import beaten_by
from results.report.curves import latency_errors
from results.report.data import (
    Baseline,
    Chosen,
    Epoch,
    LatencyCheck,
    LatencyPair,
    Network,
    Phase,
    ReportData,
    read_result,
)
from results.report.page import write_report
from results.report.parent import parent_of, seconds_of
from results.report.tables import rank_rows
from results.store import RESULT, SUPERNET, RunDirectory, is_run
from search_space import Architecture, SearchSpace
from search_space.boundary import parse_model, read_bytes
from search_space.errors import CorruptFileError, RunError
from search_space.metrics import ACCURACY, LATENCY
from search_space.parsing import UnreadableTextError, parse_json

if TYPE_CHECKING:
    from nas.workflows.finetune_config import FinetuneConfig
    from nas.workflows.run import Run

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Findings:
    """Results of a run's phases; evaluations and measurements by digest."""

    evaluations: tuple[Evaluation, ...]
    front: Mapping[str, Evaluation]
    baselines: Mapping[str, Evaluation]
    measured: Mapping[str, Measured]
    chosen: Chosen
    notes: tuple[str, ...]


def assemble(run: Run[Any], table: LatencyTable, findings: Findings, **quality: Any) -> ReportData:
    """The data of a run's report.

    Args:
        run: The run.
        table: Latencies of the device that was searched for.
        findings: Results of the run's phases.
        quality: Fields of ReportData that say what networks are judged by, if not by accuracy.
    """
    architecture = Architecture.from_dict(findings.chosen.architecture)
    space = run.space
    latency = table.compile(space, run.num_classes)
    breakdown = dict(latency.breakdown(space.encode([architecture])[0]))
    return report_of(
        run,
        replace(findings, chosen=replace(findings.chosen, component_latency_ms=breakdown)),
        table.conditions,
        f"{space.name}, {space.size:.2g} architectures",
        latency=latency_check(findings.front, findings.measured, table, space),
        **quality,
    )


def report_of(
    run: Run[Any], findings: Findings, conditions: Conditions, space: str, **more: Any
) -> ReportData:
    """The data of a run's report, but for what only a table of a space tells.

    Args:
        run: The run.
        findings: Results of the run's phases.
        conditions: Of the latencies.
        space: What the networks were found in, in words.
        more: Further fields of ReportData.
    """
    evaluated = [e for e in findings.evaluations if e.status == "ok"]
    config, limits = run.config, run.limits
    judged_by = more.get("quality", ACCURACY)
    return ReportData(
        targets=limits,
        minima=config.lower_limits(),
        summary={
            "data": config.data or "none: networks are judged by a score, untrained",
            "space": space,
            "device": str(conditions),
        },
        chosen=findings.chosen,
        evaluated=tuple(
            Network(digest=e.digest, predicted=e.metrics, architecture=e.architecture)
            for e in evaluated
        ),
        front=tuple(Network(**_figures(findings, e)) for e in findings.front.values()),
        baselines=tuple(
            Baseline(name=name, note=_over(e.metrics, limits), **_figures(findings, e))
            for name, e in findings.baselines.items()
        ),
        ranking=rank_rows([e.metrics for e in evaluated], against=judged_by),
        training=curves(run.path),
        device=conditions.to_dict()["device"],
        notes=findings.notes,
        **facts(run.directory, config),
        **more,
    )


def facts(directory: RunDirectory, config: RunConfig | FinetuneConfig) -> dict[str, Any]:
    """Fields of ReportData that say how the run came about: configuration, versions, phases …"""
    manifest = directory.manifest
    return {
        "run": directory.path.name,
        "phases": phases(manifest),
        "config": config.to_dict(),
        "seed": config.seed,
        **{name: manifest[name] for name in ("created", "versions", "command")},
    }


def _figures(findings: Findings, evaluation: Evaluation) -> dict[str, Any]:
    measured = findings.measured.get(evaluation.digest)
    return {
        "digest": evaluation.digest,
        "architecture": evaluation.architecture,
        "predicted": evaluation.metrics,
        "measured": {} if measured is None else measured.metrics,
    }


def _over(metrics: Mapping[str, float], maxima: Mapping[str, float]) -> str:
    over = [name for name, limit in maxima.items() if metrics.get(name, 0.0) > limit]
    return f"over the limit of {', '.join(over)}" if over else ""


def latency_check(
    front: Mapping[str, Evaluation],
    measured: Mapping[str, Measured],
    table: LatencyTable,
    space: SearchSpace,
) -> LatencyCheck:
    """Predicted against measured on the front, beside the machine predicting itself."""
    known = {digest: measured[digest] for digest in front if digest in measured}
    pairs = tuple(
        LatencyPair(
            predicted_ms=front[digest].metrics[LATENCY],
            measured_ms=m.metrics[LATENCY],
            digest=digest,
        )
        for digest, m in known.items()
    )
    again = tuple(
        LatencyPair(predicted_ms=m.first.latency_ms, measured_ms=m.second.latency_ms)
        for m in known.values()
    )
    conditions = table.conditions.to_dict()
    device = conditions.pop("device")
    shown = {
        "kind": provenance(table),
        "device": device["model"],
        **conditions,
        "expected error": f"{table.expected_error(space):.1%} (leave-one-out)",
    }
    return LatencyCheck(
        pairs=pairs,
        provenance=shown,
        repeatability=latency_errors(LatencyCheck(pairs=again)) if measured else {},
    )


def curves(run: Path, folder: str = SUPERNET) -> tuple[Epoch, ...]:
    """Training curves of a run's supernet, or of what else ``folder`` keeps; empty for none."""
    file = run / folder / METRICS
    names = [field.name for field in fields(Epoch) if field.name != "epoch"]
    try:
        rows = [parse_json(line) for line in read_bytes(file).decode("utf-8").splitlines()]
    except FileNotFoundError:
        return ()
    except (UnicodeDecodeError, UnreadableTextError) as error:
        raise CorruptFileError(f"{file} {error} {WRITTEN_AGAIN}") from None
    figures = [
        {"epoch": row.get("epoch"), **{name: row.get(f"val_{name}") for name in names}}
        for row in parse_model(rows, list[dict[str, Any]], file)
    ]
    return tuple(parse_model(figures, list[Epoch], file))


def rebuild_report(path: Path) -> ReportData:
    """Write the report of a finished run anew from its ``result.json``.

    Raises:
        RunError: ``path`` is no run, or not finished.
        CorruptFileError: Its result is damaged.
    """
    if not is_run(path):
        raise RunError(f"{path} is no run; give the directory of one, such as runs/NAME.")
    if not (path / RESULT).exists():
        raise RunError(
            f"{path} has no result yet. Finish the run first: nas search --config "
            f"{path / 'config.yaml'} --name {path.name} --resume"
        )
    data = read_result(path / RESULT)
    write_report(path, data)
    return data


def summary(data: ReportData, path: Path) -> dict[str, Any]:
    """Plain data that ``nas search --json`` prints; keys are the metric names used everywhere."""
    best = None
    if data.chosen is not None:
        best = asdict(data.chosen)
        del best["component_latency_ms"], best["reason"]
    return {
        "run": str(path),
        "status": data.status,
        "best": best,
        "front": [asdict(member) for member in data.front],
        "beaten_by": [baseline.name for baseline in beaten_by(data)],
        **_of_parent(data),
    }


def _of_parent(data: ReportData) -> dict[str, Any]:
    """What a search from a trained network says besides: docs/pretrained.md names the keys."""
    inherited, parent = data.inherited, parent_of(data)
    if inherited is None or parent is None:
        return {}
    seconds = [seconds_of(step, data.phases) for step in inherited.steps]
    steps = [
        {
            "name": step.name,
            "validation_accuracy": step.validation_accuracy,
            "test_accuracy": step.test_accuracy,
            "seconds": took,
        }
        for step, took in zip(inherited.steps, seconds, strict=True)
    ]
    own = [took for step, took in zip(inherited.steps, seconds, strict=True) if step.of_parent]
    return {
        "parent": {
            "name": parent.name.removeprefix("parent "),
            "digest": parent.digest,
            "validation_accuracy": parent.predicted.get(ACCURACY),
            "test_accuracy": parent.test_accuracy,
            LATENCY: parent.figure(LATENCY),
            "latency_origin": "measured" if LATENCY in parent.measured else "predicted",
            "seconds": sum(took or 0.0 for took in own),
        },
        "steps": steps,
        "tried": [asdict(one) for one in inherited.tried],
    }


def phases(manifest: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Wall time by phase; the parts of a phase that was interrupted and continued add up."""
    total: dict[str, float] = {}
    for item in manifest["phases"]:
        total[item["name"]] = total.get(item["name"], 0.0) + item["seconds"]
    return tuple(Phase(name=name, seconds=seconds) for name, seconds in total.items())
