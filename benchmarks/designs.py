"""What do the training-free methods design at Swin-T's and ConvNeXt-T's size, and at what cost?

For each of the two, within its parameters and MACs, and within its estimated latency on an A100:
the search by the ``combined`` score, as ``nas search`` does it and with far more effort; DeepMAD's
score, maximised exactly; a seed of a quarter of the size scaled up to the reference's parameters
(or latency) by every method that runs no network; and the next larger design contracted down to it.
Each design is costed on every GPU with a datasheet. Beside them stands what the same methods design
in the other preset, or without the rules that keep the search inside what was ever tested.

    python benchmarks/designs.py

Takes a few minutes and trains nothing. Writes ``benchmarks/results/designs.json`` and
``benchmarks/results/designs.html``. The judgements on the page are an engineer's, in
``benchmarks/data/designs_judged.yaml``.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from designs_cases import BUDGET_DEVICE, DEVICES, REFERENCES, Yardstick
from designs_made import Preset, asides, designs
from designs_page import write_designs_page
from designs_view import page
from scipy.stats import kendalltau

from predictors.estimates.datasheets import datasheet
from predictors.estimates.estimate import estimated_conditions, range_of
from predictors.estimates.model import constants_of
from search_space import Mixer, Stage, known, load_space, metaformer
from search_space.known import known_names
from search_space.metrics import LATENCY, on_device

HERE = Path(__file__).parent
OUT, PAGE = HERE / "results" / "designs.json", HERE / "results" / "designs.html"
ACCURACIES = HERE / "data" / "imagenet_accuracy.csv"


def cases(yardstick: Yardstick) -> Iterator[dict[str, Any]]:
    """Every reference under every budget: designs and asides with their figures."""
    presets = {name: Preset(load_space(name), yardstick) for name in ("tiny", "base")}
    metric = on_device(LATENCY, BUDGET_DEVICE)
    for reference in REFERENCES:
        own = yardstick.costs(known(reference.name))
        variants = {
            "counts": ({m: own[m] for m in ("num_params", "macs")}, "num_params"),
            "latency": ({metric: own[metric]}, metric),
        }
        for variant, (limits, by) in variants.items():
            preset = presets[reference.space]
            rows = []
            for made in designs(reference, preset, yardstick, limits, by):
                figures = yardstick.figures(made.architecture)
                rows.append(
                    {
                        "key": made.key,
                        "title": made.title,
                        "how": made.how,
                        "seconds": round(made.seconds, 1),
                        **made.facts,
                        "figures": figures,
                        "component_latency_ms": yardstick.by_component(made.architecture),
                        "architecture": made.architecture.to_dict(),
                    }
                )
                print(f"{reference.name} {variant} {made.key:16} {made.seconds:5.1f} s", end=" ")
                print(f"{figures['digest']} {figures['widths']} {figures['depths']}", flush=True)
            others = [
                {
                    "score": score,
                    "changed": changed,
                    "figures": yardstick.figures(architecture),
                    "architecture": architecture.to_dict(),
                }
                for score, changed, architecture in asides(
                    reference, presets, limits, by, yardstick
                )
            ]
            yield {
                "key": f"{reference.name}-{variant}",
                "reference": reference.name,
                "variant": variant,
                "space": reference.space,
                "rule_can_be_broken": preset.can_break_rule,
                "limits": limits,
                "designs": rows,
                "asides": others,
            }


def published() -> dict[str, float]:
    """Top-1 accuracy on ImageNet of known designs."""
    names = {"t": "tiny", "s": "small", "b": "base"}
    with ACCURACIES.open(encoding="utf-8") as file:
        rows = {row["model"].split(".")[0]: float(row["top1"]) for row in csv.DictReader(file)}
    found = {}
    for name in known_names():
        family, size, *field_ = name.split("_")
        model = {
            "swin": f"swin_{names.get(size)}_patch4_window7_224",
            "focalnet": "_".join(("focalnet", str(names.get(size)), *field_)),
            "convnext": f"convnext_{names.get(size)}",
            "poolformer": name,
        }.get(family)
        if model in rows:
            found[name] = rows[model]
    return found


def mixers(yardstick: Yardstick) -> list[dict[str, Any]]:
    """Swin-T's widths and depths with every mixer in all blocks."""
    settings: tuple[tuple[str, dict[str, Any]], ...] = (
        ("window_attention", {"window": 7, "head_dim": 32}),
        ("window_attention", {"window": 14, "head_dim": 32}),
        ("focal_modulation", {"levels": 2, "window": 3}),
        ("focal_modulation", {"levels": 3, "window": 3}),
        ("gnconv", {"order": 2, "kernel": 7}),
        ("gnconv", {"order": 3, "kernel": 7}),
        ("depthwise_conv", {"kernel": 3}),
        ("depthwise_conv", {"kernel": 7}),
        ("pooling", {"kernel": 3}),
    )
    swin, rows = known("swin_t"), []
    for name, params in settings:
        block = metaformer(Mixer.of(name, **params), 4.0)
        stages = tuple(Stage(stage.width, (block,) * stage.depth) for stage in swin.stages)
        figures = yardstick.figures(replace(swin, stages=stages))
        rows.append({"mixer": name, "params": params, "figures": figures})
    return rows


def device_agreement(found: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Kendall's τ of each device's order of a case's designs with that of the budget's device."""
    result = {}
    for case in found:
        by_device = {
            device: [row["figures"]["latency_ms"][device] for row in case["designs"]]
            for device in DEVICES
        }
        result[case["key"]] = {
            device: float(kendalltau(by_device[BUDGET_DEVICE], by_device[device]).statistic)
            for device in DEVICES
        }
    return result


def measured() -> dict[str, Any]:
    """All figures of the page."""
    begin = time.monotonic()
    yardstick = Yardstick()
    found = list(cases(yardstick))
    target = yardstick.targets[BUDGET_DEVICE].conditions
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "conditions": {
            "runtime": target.runtime,
            "precision": target.precision,
            "batch_size": target.batch_size,
            "num_classes": yardstick.costs.num_classes,
            "overhead_ms": constants_of(target.runtime).floor / datasheet("a100").clock_ghz / 1e3,
            "expected_error": max(range_of(estimated_conditions(name)).error for name in DEVICES),
        },
        "cases": found,
        "seeds": {r.name: yardstick.figures(r.seed()) for r in REFERENCES},
        "known": {name: yardstick.figures(known(name)) for name in known_names()},
        "top1": published(),
        "mixers": mixers(yardstick),
        "device_agreement": device_agreement(found),
        "seconds": round(time.monotonic() - begin),
    }


def _dump(stored: dict[str, Any]) -> str:
    """JSON with a line for each item of the lists on top."""

    def dumped(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    parts = []
    for key, value in stored.items():
        text = dumped(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(dumped, value)) + "\n]"
        parts.append(f"{dumped(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--page-only", action="store_true", help="Only write the page again.")
    if parser.parse_args().page_only:
        stored = json.loads(OUT.read_text("utf-8"))
    else:
        stored = measured()
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(_dump(stored), "utf-8")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    write_designs_page(PAGE, page(stored))
    print(f"written to {OUT} and {PAGE}; {stored['seconds']} s")


if __name__ == "__main__":
    main()
