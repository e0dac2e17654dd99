"""Where int8 pays: latency in int8 over that in float, by kind of block, width, side and runtime.

Blocks around each mixer (defaults, MLP of ratio 4, layer norm, GELU) and blocks of each other kind
(defaults, batch norms folded, ReLU6), one image, one thread, weights and images of noise. All of
both precisions and both runtimes are timed in turn, in a new random order each round, so that the
machine's drift hits them alike: seconds of the processor, which other work does not lengthen but by
what it leaves in caches. The statistic is the 25th percentile less that of an empty network. Beside
that onnxruntime's own profile says where the time of a block in int8 goes.

    python benchmarks/int8_blocks.py [--rounds 30]

Figures go to ``benchmarks/results/int8_blocks.json``, and the table of ``docs/int8.md`` is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from predictors.measuring.bench import WeightPool, entry_subject, statistic, steady
from predictors.measuring.entry_plan import empty_subject
from predictors.measuring.runtimes import find_runtime
from predictors.measuring.runtimes.onnx_graph import INPUT, to_onnx
from predictors.measuring.this_machine import local_conditions
from search_space import BLOCKS, MIXERS, Mixer, ModuleSpec, load_space, metaformer
from search_space.blocks import SKIP, Block
from search_space.components import block_spec
from search_space.registry import FLOAT, INT8

OUT = Path(__file__).parent / "results" / "int8_blocks.json"
WIDTHS, SIDES, RUNTIMES = (64, 256), (7, 14, 28), ("onnxruntime", "openvino")
SHARED_WIDTH, SHARED_SIDE = 256, 14
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
INTEGER = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger")


def blocks(width: int) -> Iterator[tuple[str, ModuleSpec]]:
    """Names and specs, in float."""
    plain, convolutional = load_space("cifar").macro, load_space("mobile").macro
    found = [
        (f"`{n}` and MLP", block_spec(plain, width, metaformer(Mixer.of(n), 4), 0))
        for n in MIXERS.names()
    ]
    found += [
        (f"`{kind}`", block_spec(convolutional, width, Block.of(kind), 1))
        for kind in BLOCKS.names()
        if kind != SKIP and not BLOCKS[kind].has_mixer
    ]
    return ((name, spec) for name, spec in found if spec is not None)


def timed(rounds: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Milliseconds of every block, and the conditions by runtime."""
    conditions = {runtime: local_conditions(threads=1, runtime=runtime) for runtime in RUNTIMES}
    pool = WeightPool(conditions[RUNTIMES[0]])
    runs: dict[tuple[Any, ...], Any] = {}
    for runtime, settings in conditions.items():
        prepare = find_runtime(runtime).prepare
        with steady(settings):
            empty = empty_subject(settings, pool)
            runs[(runtime,)] = prepare(empty.module, empty.images, settings)
            for width in WIDTHS:
                for name, spec in blocks(width):
                    for side in SIDES:
                        for precision in (FLOAT, INT8):
                            made = entry_subject(spec.computing(precision), side, settings, pool)
                            run = prepare(made.module, made.images, settings)
                            runs[runtime, name, width, side, precision] = run
    samples: dict[tuple[Any, ...], list[float]] = {key: [] for key in runs}
    keys, rng = list(runs), np.random.default_rng(0)
    with steady(conditions[RUNTIMES[0]]):
        for number in range(rounds + 2):
            for i in rng.permutation(len(keys)).tolist():
                start = time.thread_time_ns()
                runs[keys[i]]()
                if number >= 2:  # the first two map memory and choose kernels
                    samples[keys[i]].append((time.thread_time_ns() - start) / 1e6)
    found = {key: statistic(values) for key, values in samples.items()}
    rows = [
        {
            **dict(zip(("runtime", "block", "width", "side", "precision"), key, strict=True)),
            "ms": round(ms - found[(key[0],)], 5),
        }
        for key, ms in found.items()
        if len(key) > 1
    ]
    return rows, {runtime: settings.to_dict() for runtime, settings in conditions.items()}


def shares() -> dict[str, dict[str, float]]:
    """Of the time of blocks in int8 on onnxruntime: integer products, conversions, float."""
    settings = local_conditions(threads=1, runtime="onnxruntime")
    pool, result = WeightPool(settings), {}
    for name, spec in blocks(SHARED_WIDTH):
        made = entry_subject(spec.computing(INT8), SHARED_SIDE, settings, pool)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = f"{folder}/profile"
            graph = to_onnx(made.module, made.images).SerializeToString()
            session = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
            for _ in range(40):
                session.run(None, {INPUT: made.images.numpy()})
            events = json.loads(Path(session.end_profiling()).read_text())
        runs = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                runs[event["name"], event["args"]["op_name"]].append(event["dur"])
        spent: dict[str, float] = defaultdict(float)
        for (_, operator), durations in runs.items():
            spent[_sort(operator)] += statistic(durations)
        whole = sum(spent.values())
        result[name] = {sort: round(us / whole, 3) for sort, us in spent.items()}
    return result


def _sort(operator: str) -> str:
    if operator in CONVERSIONS:
        return "conversions"
    return "integer" if operator.startswith(INTEGER) else "float"


def table(rows: list[dict[str, Any]], parts: dict[str, dict[str, float]]) -> Iterator[str]:
    """Ratios at all sides, and the three shares."""
    ms = {
        tuple(row[k] for k in ("runtime", "block", "width", "side", "precision")): row["ms"]
        for row in rows
    }
    for name in parts:
        cells = [
            " / ".join(f"{ms[r, name, w, s, INT8] / ms[r, name, w, s, FLOAT]:.2f}" for s in SIDES)
            for r in RUNTIMES
            for w in WIDTHS
        ]
        shared = " / ".join(
            f"{100 * parts[name].get(sort, 0):.0f}" for sort in ("integer", "conversions", "float")
        )
        yield f"| {name} | {' | '.join(cells)} | {shared} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds, load, begin = parser.parse_args().rounds, [os.getloadavg()[0]], time.monotonic()
    rows, conditions = timed(rounds)
    parts = shares()
    load.append(os.getloadavg()[0])
    data = {
        "rounds": rounds,
        "load": load,
        "seconds": round(time.monotonic() - begin),
        "conditions": conditions,
        "shares": {"width": SHARED_WIDTH, "side": SHARED_SIDE, "of": parts},
        "rows": rows,
    }
    OUT.write_text(json.dumps(data, indent=1) + "\n")
    print("\n".join(table(rows, parts)))


if __name__ == "__main__":
    main()
