"""Predicted against measured latency on this GPU: by its own table, and by the estimate without it.

    python benchmarks/on_gpu_latency.py OUT [--device cuda] [--runtime cudagraph] [--batch-size 1]
        [--space tiny] [--choices all] [--networks 40] [--seconds 8]

One runtime and batch size a call, see ``on_gpu.sh``: profiles the space, measures random networks
that no correction has seen, and compares. ``--choices`` cuts the space, since a compiler needs
seconds for every entry: ``largest_resolution`` keeps one resolution, ``few`` also one width, one
block a mixer and two depths a stage. Rounds go on for ``--seconds`` at least and, where figures do
not stand still, for twice that or twelve rounds. Table and figures are left in the folder OUT.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency_fidelity import Values, agreement, fresh_architectures, show
from on_gpu import add_part, machine

from predictors.estimates.datasheets import datasheet_of
from predictors.estimates.estimate import estimate, estimated_conditions
from predictors.measuring.bench import Bench, Limits, WeightPool, network_subject, steady
from predictors.measuring.entry_plan import EntryPlan
from predictors.measuring.profile import check_architectures, profile
from predictors.measuring.remeasure import measure_networks
from predictors.measuring.this_machine import local_conditions
from predictors.tables.additive import entries
from predictors.tables.conditions import Conditions
from search_space import Architecture, SearchSpace, load_space
from search_space.errors import NasError
from search_space.stage_space import StageSpace

CHOICES = ("all", "largest_resolution", "few")
CLASSES = 1000


def with_choices(space: SearchSpace, choices: str) -> SearchSpace:
    """``space``, or a part of it with fewer entries."""
    if choices == "all":
        return space
    name = f"{space.name}-{choices}"
    space = replace(space, name=name, resolutions=space.resolutions[-1:])
    if choices == "largest_resolution":
        return space
    return replace(space, stages=tuple(map(_few, space.stages)))


def _few(stage: StageSpace) -> StageSpace:
    blocks = {block.label: block for block in stage.blocks}  # the heaviest of each mixer
    return StageSpace(stage.widths[-1:], stage.depths[:2], tuple(blocks.values()))


def compile_ahead(space: SearchSpace, networks: list[Architecture], conditions: Conditions) -> None:
    """Fills the compiler's cache on disk by as many processes as there are cores for."""
    processes = max(1, min(12, (os.cpu_count() or 1) - 2))
    work = partial(_compile_share, processes, space, networks, conditions)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        list(pool.map(work, range(processes)))


def _compile_share(
    size: int, space: SearchSpace, networks: list[Architecture], conditions: Conditions, rank: int
) -> None:
    import torch._inductor.config as compiler

    compiler.compile_threads = 1
    plan = EntryPlan(entries(space, CLASSES)[rank::size], conditions)
    pool = WeightPool(conditions)
    whole = [network_subject(a, CLASSES, conditions, pool) for a in networks[rank::size]]
    with steady(conditions):
        Bench([*plan.subjects(pool), *whole], conditions).warm_up()


def compared(predicted: Values, measured: Values) -> dict[str, Any]:
    """Agreement, and what is left of the error after one factor for all networks."""
    ratio = measured / predicted
    low, middle, high = np.percentile(ratio, [10, 50, 90])
    return {
        **agreement(predicted, measured),
        "bias": float(np.mean(1 / ratio - 1)),
        "measured_over_predicted": {"10 %": low, "50 %": middle, "90 %": high},
        "mape_with_one_factor": float(np.abs(middle / ratio - 1).mean()),
    }


def estimated(
    name: str, conditions: Conditions, space: SearchSpace, networks: list[Architecture]
) -> tuple[Values, float]:
    """Milliseconds of networks by the estimate for a GPU that is not at hand; its stated error."""
    target = estimated_conditions(
        name,
        batch_size=conditions.batch_size,
        precision=conditions.precision,
        runtime=conditions.runtime,
    )
    table = estimate(target, space, CLASSES)
    predicted = table.compile(space, CLASSES).predict(space.encode(networks))
    return predicted, table.expected_error(space)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Profiles, measures and compares; leaves the table in the folder of results."""
    conditions = local_conditions(
        options.device,
        runtime=options.runtime,
        precision=options.precision,
        batch_size=options.batch_size,
    )
    print(conditions, flush=True)
    space = with_choices(load_space(options.space), options.choices)
    networks, begin = fresh_architectures(space, options.networks, seed=2026), time.monotonic()
    if options.runtime == "inductor":
        compile_ahead(space, [*check_architectures(space), *networks], conditions)
        print(f"compiled ahead in {time.monotonic() - begin:.0f} s", flush=True)
    limits = Limits(min_rounds=6, max_rounds=12, min_seconds=options.seconds)
    table = profile(
        space, CLASSES, conditions, options.out, limits=limits, progress=show("profile")
    )
    profiled = time.monotonic() - begin
    measured = measure_networks(networks, CLASSES, conditions, limits=limits)
    times = np.array([m.latency_ms for m in measured])
    correction = table.correction(space)
    predicted = table.compile(space, CLASSES).predict(space.encode(networks))
    sums = (predicted - correction.offset_ms) / correction.scale
    sheet = options.estimate or getattr(datasheet_of(conditions.device), "name", None)
    result = {
        "conditions": conditions.to_dict(),
        "space": space.name,
        "entries": len(table.entries),
        "seconds": {
            "profile": round(profiled, 1),
            "of these rounds": round(correction.seconds, 1),
            "all": round(time.monotonic() - begin, 1),
        },
        "rounds": {"profile": correction.rounds, "stopped": correction.stopped},
        "correction": {"scale": correction.scale, "offset_ms": correction.offset_ms},
        "expected_error": correction.expected_error,
        "by table": compared(predicted, times),
        "by table, uncorrected": compared(sums, times),
        "halves differ by": float(np.median([m.split_half_disagreement for m in measured])),
        "warnings": sorted({*correction.warnings, *(w for m in measured for w in m.warnings)}),
        "peak_memory_bytes": _peak_memory(options.device),
        "networks": [
            {"digest": a.digest, "measured_ms": float(ms), "by_table_ms": float(guess)}
            for a, ms, guess in zip(networks, times, predicted, strict=True)
        ],
        "architectures": {a.digest: a.to_dict() for a in networks},
    }
    if sheet is not None:
        try:
            guesses, stated = estimated(sheet, conditions, space, networks)
        except NasError as error:
            return result | {"by estimate": {"left out": str(error)}}
        result["by estimate"] = compared(guesses, times) | {"device": sheet, "stated": stated}
        for row, guess in zip(result["networks"], guesses, strict=True):
            row["by_estimate_ms"] = float(guess)
    return result


def _peak_memory(device: str) -> int | None:
    return int(torch.cuda.max_memory_reserved()) if device.startswith("cuda") else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runtime", default="cudagraph")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--choices", default="all", choices=CHOICES)
    parser.add_argument("--networks", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--estimate", help="a device's name; by default this GPU's datasheet")
    options = parser.parse_args()
    result = machine(options.device) | measure(options)
    add_part(options.out, f"{options.space}-{options.runtime}-{options.batch_size}", result)


if __name__ == "__main__":
    main()
