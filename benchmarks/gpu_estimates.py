"""Fits the model of GPUs on published figures, and says how far it misses what it has not seen.

    python benchmarks/gpu_estimates.py --data FOLDER [--cache FILE] [--write]

FOLDER holds ``timm/`` (results of huggingface/pytorch-image-models at aa4b5850) and
``aiconfigurator/`` (GEMM grids of ai-dynamo/aiconfigurator at 095f58a5). Networks of timm are
traced without data, which takes six minutes; ``--cache`` keeps that. ``--write`` replaces the
constants of the package. Results go to ``benchmarks/results/gpu_estimates.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import pickle
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import timm
import torch
from scipy.stats import kendalltau
from timm.models import _registry

from predictors.estimates.anchors import anchors
from predictors.estimates.datasheets import datasheet
from predictors.estimates.kernels import Demand, Kernels, product_us
from predictors.estimates.model import Constants, Fitted, Range, batches, fit
from predictors.operators import trace

TIMM = {  # device and runtime of each file of results
    "pt240-cu124-rtx3090": ("rtx3090", "eager"),
    "pt240-cu124-rtx4090": ("rtx4090", "eager"),
    "pt240-cu124-rtx4090-dynamo": ("rtx4090", "inductor"),
    "pt291-cu128-4090": ("rtx4090", "eager"),
    "pt291-cu128-4090-dynamo": ("rtx4090", "inductor"),
}
GEMM = {
    "a100-80gb": "a100_sxm_gemm_vllm_0.14.0",
    "h100": "h100_sxm_gemm_vllm_0.24.0",
    "l40s": "l40s_gemm_vllm_0.24.0",
}
A_FAMILY, FEW, DRAWS = 6, 3, 20
# linear pointwise convolution grouped batched attention | norm elementwise copy pooling reduction
USUAL = Constants(
    (0.8, 1.0, 1.2, 1.0, 0.62, 0.62, 0.9, 0.35, 0.3, 0.3, 0.3),
    (0.35, 0.5, 0.5, 0.77, 0.35, 0.5, 0.5, 1.0, 0.43, 0.2, 0.5),
    2.5,
    8.0,
)
COMPILED = Constants(
    (1.0, 1.0, 0.7, 1.0, 0.7, 0.7, 1.0, 0.1, 0.1, 0.3, 0.3),
    (0.4, 0.5, 0.6, 0.7, 0.4, 0.5, 0.8, 5.0, 1.5, 0.4, 0.8),
    2.5,
    fused=True,
)


@dataclass(frozen=True, eq=False)
class Figure:
    """One published latency, with what the network asks of the device."""

    device: str
    runtime: str
    batch: int
    family: str
    network: str
    implementation: str
    latency_ms: float
    demand: Demand

    @property
    def group(self) -> tuple[str, str]:
        return self.runtime, batches(self.batch)


# Data ---------------------------------------------------------------------------------------------


def published() -> list[Figure]:
    """Figures that the package quotes, but those of timm, which come in larger numbers below."""
    return [
        Figure(
            *(a.device, a.runtime, a.batch_size, a.mixer, a.network),
            *(f"{a.implementation} {a.number_format}", a.latency_ms, a.demand),
        )
        for a in anchors()
        if not a.implementation.startswith("timm")
    ]


def of_timm(folder: Path) -> list[Figure]:
    """Figures of up to six models of each family of timm, traced at the batch of each figure."""
    rows: dict[str, list[tuple[str, int, int, float]]] = defaultdict(list)
    for name in TIMM:
        with (folder / f"benchmark-infer-amp-nchw-{name}.csv").open() as file:
            for row in csv.DictReader(file):
                if row["infer_step_time"]:
                    batch, size = int(float(row["infer_batch_size"])), int(row["infer_img_size"])
                    ms = 1e3 * batch / float(row["infer_samples_per_sec"])
                    rows[row["model"]].append((name, batch, size, ms))
    families = defaultdict(list)
    for model, found in rows.items():
        family = _registry._model_to_module.get(model.split(".")[0])
        if family and len({name for name, *_ in found}) == len(TIMM) and found[0][2] <= 288:
            families[family].append(model)
    figures = []
    for family, models in sorted(families.items()):
        for model in random.Random(0).sample(models, min(A_FAMILY, len(models))):
            traced: dict[tuple[int, int], Any] = {}
            for name, batch, size, ms in rows[model]:
                device, runtime = TIMM[name]
                try:
                    if (batch, size) not in traced:
                        shape = (batch, 3, size, size)
                        build = lambda model=model: timm.create_model(model.split(".")[0])  # noqa: E731
                        traced[batch, size] = trace(build, shape, torch.float16)[0]
                except Exception as error:  # some models cannot run without data
                    print(model, type(error).__name__)
                    break
                demand = Demand.of(traced[batch, size], datasheet(device), "fp16")
                figures.append(Figure(device, runtime, batch, family, model, name, ms, demand))
    return figures


# Fits and what they miss --------------------------------------------------------------------------


def fitted_on(figures: Iterable[Figure], usual: Constants) -> Constants:
    """Fits constants; every device and implementation counts as the square root of its figures."""
    figures = list(figures)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for f in figures:
        sizes[f.device, f.implementation] += 1
    weights = [(30 / sizes[f.device, f.implementation]) ** 0.5 for f in figures]
    spread = 0.25 if {f.runtime for f in figures} == {"tensorrt"} else 0.5  # one family of networks
    latencies = [f.latency_ms for f in figures]
    return fit([f.demand for f in figures], latencies, usual, weights=weights, spread=spread)


def usable(figure: Figure) -> bool:
    """Whether constants may be fitted on it: traced networks have old kernels and hosts."""
    return "torch.jit.trace" not in figure.implementation


def left_out(
    figures: list[Figure], usual: Constants, by: Callable[[Figure], str]
) -> list[tuple[Figure, float]]:
    """Measured over predicted of each figure, by a fit on those of other ``by``."""
    result = []
    for value in sorted({by(f) for f in figures}):
        constants = fitted_on([f for f in figures if by(f) != value and usable(f)], usual)
        result += [
            (f, f.latency_ms / constants.latency_ms(f.demand)) for f in figures if by(f) == value
        ]
    return result


def scaled(ratios: list[tuple[Figure, float]], few: int | None) -> list[tuple[Figure, float]]:
    """Ratios after a device's scalar from ``few`` figures of other families, or from all these."""
    rng, result = np.random.default_rng(0), []
    for f, ratio in ratios:
        same = [
            (g, r)
            for g, r in ratios
            if (g.device, g.implementation, g.group) == (f.device, f.implementation, f.group)
        ]
        others = [r for g, r in same if g.family != f.family]
        others = others or [r for g, r in same if (g.network, g.batch) != (f.network, f.batch)]
        if len(others) < FEW:
            continue
        for _ in range(DRAWS if few else 1):
            chosen = rng.choice(others, few, replace=False) if few else others
            result.append((f, ratio / float(np.median(chosen))))
    return result


def summary(ratios: list[tuple[Figure, float]], stated: list[float]) -> list[dict[str, Any]]:
    """Error, bias, ranks, and the share inside a range that other devices state, by device."""
    groups = defaultdict(list)
    for f, ratio in ratios:
        groups[f.device, *f.group].append((f, ratio))
    rows = []
    for (device, runtime, batch), part in sorted(groups.items()):
        errors = np.array([1 / r - 1 for _, r in part])
        pool = [r for f, r in ratios if f.device != device and f.group == (runtime, batch)]
        low, high = np.quantile(pool or stated, [0.1, 0.9])
        measured = [f.latency_ms / f.batch for f, _ in part]
        predicted = [f.latency_ms / f.batch / r for f, r in part]
        rows.append(
            {
                "device": device,
                "runtime": runtime,
                "batches": batch,
                "n": len(part),
                "error": round(float(np.mean(np.abs(errors))), 4),
                "bias": round(float(np.median(errors)), 4),
                "inside": round(float(np.mean([low <= r <= high for _, r in part])), 3),
                "range_of_others": bool(pool),
                "tau": round(float(kendalltau(measured, predicted).statistic), 3)
                if len(part) > 2
                else None,
            }
        )
    return rows


def gemm_alone(folder: Path) -> list[dict[str, Any]]:
    """Errors of matrix products in bf16; no constant was fitted on the device but its limit."""
    rows = []
    for name, file in GEMM.items():
        data = pd.read_parquet(folder / f"{file}.parquet")
        data = data[(data.gemm_dtype == "bfloat16") & (data.m >= 16)]
        data = data.sample(min(3000, len(data)), random_state=0)
        m, n, k = (data[c].to_numpy(np.float64) for c in "mnk")
        one, moved = np.ones(len(m)), 2 * (m * k + k * n + m * n)
        for held_out in (False, True):
            sheet = datasheet(name)
            sheet = replace(sheet, sustained=()) if held_out else sheet
            computing = product_us(Kernels(0 * one, one, m, n, k, moved, m * n), sheet, "bf16")
            moving = moved / (0.8 * sheet.bandwidth_gb_s * 1e3)
            ratio = (np.maximum(computing, moving) + 1 / sheet.clock_ghz) / (1e3 * data.latency)
            rows.append(
                {
                    "device": name,
                    "device_left_out": held_out,
                    "n": len(ratio),
                    "error": round(float(np.mean(np.abs(ratio - 1))), 4),
                    "bias": round(float(np.median(ratio - 1)), 4),
                }
            )
    return rows


def stated(
    key: tuple[str, str], known: bool, ratios: Iterable[float], reason: str, promised: bool = True
) -> Range:
    """The distribution that is stated of estimates like these."""
    ratios = np.array(list(ratios))
    levels = tuple(np.round(np.quantile(ratios, np.arange(1, 20) / 20), 4).tolist())
    return Range(*key, known, len(ratios), levels, reason, promised)


def balanced(ratios: list[tuple[Figure, float]], key: tuple[str, str]) -> list[float]:
    """Ratios of a runtime and range of batches, as many of each device, or of all traced ones."""
    parts = defaultdict(list)
    for f, r in ratios:
        if f.group == key:
            parts[f.device if usable(f) else "traced"].append(r)
    return [x for part in parts.values() for x in np.quantile(part, np.linspace(0, 1, 41))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.cache and options.cache.exists():
        networks = pickle.loads(options.cache.read_bytes())
    else:
        networks = of_timm(options.data / "timm")
        if options.cache:
            options.cache.write_bytes(pickle.dumps(networks))
    figures = published() + networks
    eager = [f for f in figures if f.runtime == "eager"]
    compiled = [f for f in figures if f.runtime == "inductor"]
    fused = [f for f in figures if f.runtime == "tensorrt"]
    constants = {
        "eager": fitted_on([f for f in eager if usable(f)], USUAL),
        "inductor": fitted_on(compiled, COMPILED),
        "tensorrt": fitted_on(fused, COMPILED),
    }
    constants["cudagraph"] = replace(constants["eager"], host_us=0.0)
    print({k: (round(c.floor, 2), round(c.host_us, 2)) for k, c in constants.items()})
    of_eager = left_out(eager, USUAL, lambda f: f.device)
    of_families = left_out(compiled, COMPILED, lambda f: f.family)
    of_fused = left_out(fused, COMPILED, lambda f: f.device)
    graph = constants["cudagraph"]
    of_graph = [
        (replace(f, runtime="cudagraph"), f.latency_ms / graph.latency_ms(f.demand)) for f in fused
    ]
    sections = {
        "device left out": [*of_eager, *of_fused],
        "device left out, scalar of 3 networks of other families": scaled(
            [*of_eager, *of_fused], FEW
        ),
        "family left out, own device": [
            *scaled(of_eager, None),
            *of_families,
            *scaled(of_fused, None),
        ],
        "family left out, own device, scalar of 3 networks": scaled(of_families, FEW),
        "CUDA graphs against fused kernels": of_graph,
    }
    devices = {f.device for f, _ in of_eager if usable(f)}
    speeds = [
        float(np.median([r for f, r in of_eager if f.device == d and f.group == ("eager", "16-")]))
        for d in sorted(devices)
    ]
    combined = [r * s for _, r in of_families for s in speeds]
    few = "published figures of other devices"
    own = "figures of the device, each family from the others"
    ranges = []
    for batch in ("1", "2-15", "16-"):
        key = ("eager", batch)
        ranges.append(stated(key, False, balanced(of_eager, key), few, batch != "1"))
        if known := balanced(scaled(of_eager, None), key):
            ranges.append(stated(key, True, known, own, batch != "1"))
        key = ("tensorrt", batch)
        windows = f"{few}, all of window attention"  # nothing is known of other mixers
        ranges.append(stated(key, False, balanced(of_fused, key), windows))
        others = balanced(of_graph, ("cudagraph", batch)) + (balanced(of_eager, ("eager", "16-")))
        graphs = "fused kernels and eager networks of large batches, as nobody published others"
        ranges.append(stated(("cudagraph", batch), False, others, graphs))
    many = "families of networks on an RTX 4090"
    ranges.append(stated(("inductor", "16-"), True, [r for _, r in of_families], many))
    both = f"{many}, and the speeds of other devices in eager execution"
    ranges.append(stated(("inductor", "16-"), False, combined, both))
    wide = [*combined, *balanced(of_graph, ("cudagraph", "1"))]
    for batch in ("1", "2-15"):
        reason = f"{both}, and fused kernels at batch 1, as nobody published others"
        ranges.append(stated(("inductor", batch), False, wide, reason))
    result = {
        "figures": {"published": len(published()), "timm": len(networks)},
        "sections": {name: summary(rows, [r for _, r in rows]) for name, rows in sections.items()},
        "gemm_alone": gemm_alone(options.data / "aiconfigurator"),
        "ranges": [asdict(r) for r in ranges],
    }
    for name, rows in result["sections"].items():
        print(name)
        for row in rows:
            print("  ", *row.values())
    print(*result["gemm_alone"], sep="\n")
    for r in ranges:
        print(
            r.runtime,
            r.batches,
            r.known,
            r.n,
            r.quantile(0.1),
            r.quantile(0.5),
            r.quantile(0.8),
            r.quantile(0.9),
        )
    path = Path(__file__).parent / "results" / "gpu_estimates.json"
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if options.write:
        rounded = {name: _rounded(c) for name, c in constants.items()}
        how = (
            "benchmarks/gpu_estimates.py, from anchors.csv and the benchmarks of "
            "huggingface/pytorch-image-models at aa4b5850"
        )
        import predictors.estimates

        file = Path(predictors.estimates.__file__).parent / "constants.json"
        file.write_text(json.dumps(asdict(Fitted(how, rounded, tuple(ranges)))) + "\n", "utf-8")


def _rounded(c: Constants) -> Constants:
    compute, memory = (tuple(round(x, 4) for x in each) for each in (c.compute, c.memory))
    return replace(
        c, compute=compute, memory=memory, floor=round(c.floor, 3), host_us=round(c.host_us, 3)
    )


if __name__ == "__main__":
    main()
