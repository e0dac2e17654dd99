"""Would compiling the supernet's static modules pay?

A step runs the modules of its subnets, each of a kind, size and map that few other steps have; a
compiled one must be built once for each. For a sample of the modules that random subnets use:
forward and backward in eager mode against ``torch.compile``, in interleaved pairs after warm-up,
and the seconds that compiling took. From the rates at which random subnets meet modules follows
after how many steps of one subnet each the compiled ones would have paid for themselves.

    python benchmarks/compiled_templates.py [--space digits] [--batch-size 64] [--modules 8]
        [--device cuda]

Figures go to ``benchmarks/results/compiled_templates.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from weight_sharing import compare

from search_space import load_space
from search_space.components import ModuleSpec, components, input_shape
from supernet.network.modules import build_module

OUT = Path(__file__).parent / "results" / "compiled_templates.json"
DRAWN = 2000  # subnets, for the rates


def used_modules(space_name: str, num_classes: int) -> tuple[Counter[tuple[ModuleSpec, int]], int]:
    """How often random subnets use each module and map size, and how many subnets that were."""
    space = load_space(space_name)
    drawn = space.decode(space.sample(np.random.default_rng(0), DRAWN))
    used: Counter[tuple[ModuleSpec, int]] = Counter()
    for architecture in drawn:
        used.update((c.spec, c.in_size) for c in components(architecture, num_classes))
    return used, len(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="digits")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--modules", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    used, subnets = used_modules(options.space, 10)
    blocks = sorted((key for key in used if key[0].kind == "block"), key=repr)
    picks = np.random.default_rng(0).choice(len(blocks), options.modules, replace=False)
    rows = []
    for spec, size in (blocks[i] for i in picks):
        torch.manual_seed(0)
        plain = build_module(spec).to(options.device)
        for p in plain.parameters():
            nn.init.normal_(p, std=0.05)
        x = torch.randn(input_shape(spec, size, options.batch_size), device=options.device)
        x.requires_grad_(True)
        compiled = torch.compile(plain, fullgraph=True, dynamic=False)
        plain(x).sum().backward()
        begin = time.perf_counter()
        compiled(x).sum().backward()
        seconds = time.perf_counter() - begin
        taken = compare(partial(compiled, x), partial(plain, x), options.pairs)
        compiled_ms, eager_ms = (1e3 * float(np.median(times)) for times in taken)
        rows.append(
            {
                "module": str(spec),
                "size": size,
                "compile_seconds": round(seconds, 2),
                "eager_ms": round(eager_ms, 3),
                "compiled_ms": round(compiled_ms, 3),
                "ratio": round(compiled_ms / eager_ms, 3),
            }
        )
        print(rows[-1], flush=True)
    saved = float(np.mean([row["eager_ms"] - row["compiled_ms"] for row in rows])) / 1e3
    cost = float(np.mean([row["compile_seconds"] for row in rows]))
    per_subnet = sum(used[key] for key in blocks) / subnets
    steps = cost * len(blocks) / (saved * per_subnet) if saved > 0 else None
    result = {
        "space": options.space,
        "batch_size": options.batch_size,
        "device": options.device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "distinct_blocks": len(blocks),
        "blocks_per_subnet": round(per_subnet, 2),
        "median_ratio": float(np.median([row["ratio"] for row in rows])),
        "compile_seconds_of_all": round(cost * len(blocks)),
        "saved_ms_per_subnet_step": round(1e3 * saved * per_subnet, 2),
        "subnet_steps_to_pay": None if steps is None else round(steps),
        "rows": rows,
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print({k: v for k, v in result.items() if k != "rows"})


if __name__ == "__main__":
    main()
