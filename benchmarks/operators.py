"""What each mixer costs here: milliseconds by width, side of the map and runtime.

Mixers with their defaults, alone (the block's norms and MLP are the same for all), batch norms
folded, one image, one thread. All entries of a runtime are timed in turn, in a new random order
each round, so that other work on the machine hits them alike; the statistic is the 25th percentile.

    python benchmarks/operators.py [--rounds 30]

Figures go to ``benchmarks/results/operators.json``, and the table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch

from predictors.measuring.bench import Bench, Subject, WeightPool, statistic, steady
from predictors.measuring.this_machine import local_conditions
from search_space import MIXERS
from supernet.network.mixers import build_mixer

OUT = Path(__file__).parent / "results" / "operators.json"
WIDTHS, SIDES, RUNTIMES = (64, 128, 256), (7, 14, 28), ("eager", "onnxruntime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    places = [(n, w, s) for n in MIXERS.names() for w in WIDTHS for s in SIDES]
    load = [os.getloadavg()[0]]
    rows, versions = [], {}
    for runtime in RUNTIMES:
        conditions = local_conditions(threads=1, runtime=runtime)
        pool, subjects = WeightPool(conditions), []
        for name, width, side in places:
            with torch.device("meta"):
                mixer = build_mixer(name, width)
            subjects.append(Subject(pool.fill(mixer), pool.take((1, side, side, width))))
        bench = Bench(subjects, conditions)
        with steady(conditions):
            bench.warm_up()
            for _ in range(rounds):
                bench.round()
        versions[runtime] = conditions.to_dict()
        rows += [
            {"runtime": runtime, "mixer": n, "width": w, "side": s, "ms": round(statistic(ms), 4)}
            for (n, w, s), ms in zip(places, bench.samples, strict=True)
        ]
        load.append(os.getloadavg()[0])
    data = {"rounds": rounds, "load": load, "conditions": versions, "rows": rows}
    OUT.write_text(json.dumps(data, indent=1) + "\n")
    found = {(r["runtime"], r["mixer"], r["width"], r["side"]): r["ms"] for r in rows}
    for name in MIXERS.names():
        cells = (
            " / ".join(f"{found[runtime, name, w, s]:.2f}" for s in SIDES)
            for runtime in RUNTIMES
            for w in WIDTHS
        )
        print(f"| `{name}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
