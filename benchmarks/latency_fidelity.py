"""Is the predicted latency the measured one? Random networks that no correction has seen.

For each space: profile this machine, predict 30 random architectures, measure them twice, and
print the prediction's error beside the machine's own repeatability, that is the error of the
first measurement as a prediction of the second.

    python benchmarks/latency_fidelity.py [--spaces digits,cifar] [--networks 30] [--threads N]

Run it on an idle machine. Figures go to ``benchmarks/results/latency_fidelity.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau

from predictors.latency.devices import Conditions, local_conditions
from predictors.latency.measure import Limits, LoadMeter
from predictors.latency.profile import check_architectures, profile
from predictors.latency.remeasure import measure_networks
from search_space import Architecture, SearchSpace, load_space

Values = npt.NDArray[np.float64]


def agreement(predicted: Values, measured: Values) -> dict[str, float]:
    """Mean absolute percentage error, shares within ±5 and ±10 %, Kendall's τ."""
    errors = np.abs(predicted / measured - 1)
    return {
        "mape": float(errors.mean()),
        "within_5_percent": float((errors <= 0.05).mean()),
        "within_10_percent": float((errors <= 0.10).mean()),
        "kendall_tau": float(kendalltau(predicted, measured).statistic),
    }


def fresh_architectures(space: SearchSpace, n: int, seed: int) -> list[Architecture]:
    """``n`` random architectures that the correction is not fitted on."""
    seen = {architecture.digest for architecture in check_architectures(space)}
    rng = np.random.default_rng(seed)
    drawn = space.decode(space.sample(rng, 2 * n))
    return [a for a in dict.fromkeys(drawn) if a.digest not in seen][:n]


def run(
    space: SearchSpace, n: int, classes: int, conditions: Conditions, folder: Path
) -> dict[str, Any]:
    load = LoadMeter()
    begin = time.monotonic()
    table = profile(space, classes, conditions, folder, progress=show(f"{space.name}: profile"))
    profiled = time.monotonic() - begin
    architectures = fresh_architectures(space, n, seed=2026)
    genes = space.encode(architectures)
    predicted = table.compile(space, classes).predict(genes)
    limits = Limits(min_seconds=10.0)
    passes = [
        measure_networks(
            architectures,
            classes,
            conditions,
            seed=seed,
            limits=limits,
            progress=show(f"{space.name}: measurement {seed + 1}"),
        )
        for seed in range(2)
    ]
    first, second = (np.array([m.latency_ms for m in results]) for results in passes)
    sums = np.array(
        [(p - table.correction(space).offset_ms) / table.correction(space).scale for p in predicted]
    )
    correction = table.correction(space)
    return {
        "space": space.name,
        "networks": len(architectures),
        "entries": len(table.entries),
        "profile_seconds": round(profiled, 1),
        "profile_rounds": correction.rounds,
        "profile_stopped": correction.stopped,
        "expected_error": correction.expected_error,
        "scale": correction.scale,
        "offset_ms": correction.offset_ms,
        "latency_ms_range": [float(first.min()), float(first.max())],
        "prediction": agreement(predicted, first),
        "prediction_of_second": agreement(predicted, second),
        "uncorrected": agreement(sums, first),
        "repeatability": agreement(first, second),
        "load_of_others": load.others(),
        "warnings": sorted({*correction.warnings, *(w for m in passes[0] for w in m.warnings)}),
        "predicted_ms": predicted.tolist(),
        "measured_ms": first.tolist(),
        "measured_again_ms": second.tolist(),
    }


def show(what: str) -> Any:
    last = 0.0

    def progress(done: int, total: int, eta_s: float) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            print(f"\r{what}: round {done}, at most {eta_s:.0f} s left   ", end="", file=sys.stderr)

    return progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spaces", default="digits,cifar")
    parser.add_argument("--networks", type=int, default=30)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", default="benchmarks/results/latency_fidelity.json")
    options = parser.parse_args()
    conditions = local_conditions(options.device, threads=options.threads)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.spaces.split(","):
            space = load_space(name)
            results.append(run(space, options.networks, options.classes, conditions, Path(folder)))
    print(f"\r{conditions}", " " * 20)
    print(f"{'space':8} {'':22} {'MAPE':>6} {'±5 %':>6} {'±10 %':>6} {'τ':>6}")
    for result in results:
        for row in ("prediction", "uncorrected", "repeatability"):
            figures = result[row]
            print(
                f"{result['space']:8} {row:22} {figures['mape']:6.1%} "
                f"{figures['within_5_percent']:6.0%} {figures['within_10_percent']:6.0%} "
                f"{figures['kendall_tau']:6.3f}"
            )
        limit = max(0.08, 1.5 * result["repeatability"]["mape"])
        good = result["prediction"]["mape"] <= limit
        good = good and result["prediction"]["kendall_tau"] >= 0.9
        print(
            f"{result['space']:8} aim (MAPE ≤ {limit:.1%}, τ ≥ 0.9): {'met' if good else 'MISSED'}"
        )
        for warning in result["warnings"]:
            print(f"{result['space']:8} warning: {warning}")
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "conditions": conditions.to_dict(),
        "results": results,
    }
    path = Path(options.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
