"""How fast is a compiled latency table? A million architectures of ``tiny`` at once.

Beside it, in the same run, the plain way: components of one architecture after another looked up
and added. Uses the estimated table of a datasheet device, so nothing needs to be measured first.

    python benchmarks/prediction_speed.py [--count 1000000]

Figures go to ``benchmarks/results/prediction_speed.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from predictors.estimates.calibrate import predict_network
from predictors.estimates.estimate import estimate, estimated_conditions
from search_space import load_space

PLAIN = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    count = parser.parse_args().count
    space = load_space("tiny")
    table = estimate(estimated_conditions("a100"), space)
    genes = space.sample(np.random.default_rng(0), count)
    compiled = table.compile(space)
    some = space.decode(genes[:PLAIN])

    seconds, plain = [], []
    for _ in range(5):
        begin = time.perf_counter()
        predicted = compiled.predict(genes)
        seconds.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        summed = [predict_network(table, architecture) for architecture in some]
        plain.append((time.perf_counter() - begin) / PLAIN)
    assert np.allclose(predicted[:PLAIN], summed)
    result = {
        "space": space.name,
        "architectures": count,
        "threads": torch.get_num_threads(),
        "seconds": float(np.median(seconds)),
        "plain_seconds_per_architecture": float(np.median(plain)),
        "times_faster_than_plain": float(np.median(plain) * count / np.median(seconds)),
    }
    path = Path(__file__).parent / "results" / "prediction_speed.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
