"""Is it worth keeping decoded images? Time of a pass, decoded again and kept.

A search judges each candidate by the same images. Those of a coarse noise, stored as JPEG of
256 px, are read at 224 px: decoded in each pass, kept in memory, and kept in a file that is mapped,
by limits of memory and a folder as a search gives them. Passes take turns.

    python benchmarks/evaluation_batches.py [--images 400] [--passes 5]

It takes about a minute of one core. Figures go to ``benchmarks/results/evaluation_batches.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from supernet.data import splits
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import EvalBatches, eval_batches

SIDE, RESOLUTION = 256, 224
RESULT = Path(__file__).parent / "results" / "evaluation_batches.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--passes", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _draw(Path(folder) / "images", options.images)
        split = open_data(f"{folder}/images", RESOLUTION, validation_fraction=0.5).validation
        split.in_memory = False  # as one of more than its limit
        limit = splits.MEMORY_LIMIT_BYTES
        places = {"decoded again": (0, None), "memory": (limit, None), "file": (0, folder)}
        batches = {name: eval_batches(split, 64, folder=place[1]) for name, place in places.items()}
        seconds: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(options.passes + 1):
            for name, (most, _) in places.items():
                splits.MEMORY_LIMIT_BYTES = most
                seconds[name].append(_pass(batches[name]))
        count = len(split)
    figures = {
        name: {
            "first_ms_an_image": round(1e3 * values[0] / count, 3),
            "later_ms_an_image": round(1e3 * statistics.median(values[1:]) / count, 3),
        }
        for name, values in seconds.items()
    }
    conditions = {"machine": platform.machine(), "torch": torch.__version__, "threads": 1}
    result = {"images": count, "resolution": RESOLUTION, "conditions": conditions} | figures
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(RESULT.read_text())


def _draw(root: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for k in range(count):
        folder = root / ("even", "odd")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE)).save(folder / f"{k}.jpg", quality=90)


def _pass(batches: EvalBatches) -> float:
    started = time.perf_counter()
    for images, _ in batches:
        images.sum()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
