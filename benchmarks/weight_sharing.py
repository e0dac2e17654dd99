"""What does weight sharing cost? A subnet's training step over the same network's, extracted.

Forward and backward of the supernet's subnet and of its extracted static copy, in interleaved
pairs; the figure is the median of the ratios. Subnets: the space's largest, smallest and three
random ones.

    python benchmarks/weight_sharing.py [--space cifar] [--batch-size 32] [--pairs 60] [--side 96]

Run it on an idle machine. Figures go to ``benchmarks/results/weight_sharing.json``, by space. A
``--side`` below the networks' own is for spaces whose steps would take minutes.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from search_space import load_space
from supernet import Supernet


def compare(
    shared: Callable[[], Tensor], static: Callable[[], Tensor], pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of training steps of both, in pairs whose order alternates, after three warm-ups."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs + 3):
        for which in (0, 1) if i % 2 else (1, 0):
            start = time.perf_counter()
            (shared, static)[which]().sum().backward()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[which].append(time.perf_counter() - start)
    return np.array(seconds[0][3:]), np.array(seconds[1][3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="cifar")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--side", type=int, help="of the images, instead of the networks' own")
    options = parser.parse_args()
    torch.manual_seed(0)
    space = load_space(options.space)
    supernet = Supernet(space, 10).train()
    drawn = space.decode(space.sample(np.random.default_rng(0), 3))
    subnets = {"largest": space.largest, "smallest": space.smallest}
    subnets |= {f"random {i}": architecture for i, architecture in enumerate(drawn)}
    rows = []
    for batch_size in options.batch_size:
        for name, architecture in subnets.items():
            side = options.side or architecture.resolution
            images = torch.randn(batch_size, 3, side, side)
            network = supernet.extract(architecture)
            pairs = max(10, options.pairs * 32 // batch_size)
            shared, static = compare(
                partial(supernet, images, architecture), partial(network, images), pairs
            )
            ratios = shared / static
            low, median, high = np.percentile(ratios, [25, 50, 75])
            rows.append(
                {
                    "subnet": name,
                    "batch_size": batch_size,
                    "side": side,
                    "ratio": round(float(median), 3),
                    "quartiles": [round(float(low), 3), round(float(high), 3)],
                    "static_ms": round(float(np.median(static)) * 1e3, 1),
                    "pairs": pairs,
                }
            )
            print(
                f"batch {batch_size:4}  {name:9}  {median:.3f}  ({low:.3f} to {high:.3f})  "
                f"static step {rows[-1]['static_ms']:.0f} ms"
            )
    path = Path(__file__).parent / "results" / "weight_sharing.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[space.name] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
