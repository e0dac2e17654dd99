"""``nas zoo``: published networks within a budget, with their published accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from nas.cli import options as opt
from search_space.metrics import LATENCY, TABLE, format_metric, metric_of_option
from search_space.registry import INT8
from search_space.units import parse_latency

if TYPE_CHECKING:
    from nas.workflows.zoo import Zoo, ZooModel

_SHOWN = 20


@click.command()
@opt.option("--device", metavar="NAME", default="cpu", show_default=True, help="See nas devices.")
@opt.latency_options
@opt.option("--target-latency", metavar="5ms", help="The longest that one batch may take.")
@click.option(
    "--max",
    "limits",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="A further limit: params=5M, macs=1G. May be repeated.",
)
@click.option(
    "--names",
    default="*",
    metavar="PATTERN",
    help="Only models of these names, such as 'resnet*,convnext*'.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    help="Begin no further measurement after this time.",
)
@opt.json_option
@opt.quiet_option
def zoo(device: str, target_latency: str | None, **options: Any) -> None:
    """Published timm models within a budget, the most accurate on ImageNet first.

    Latencies are measured where the device is at hand, and estimated otherwise. What was measured
    is kept: the same command again goes on with what there was no time for. With --precision int8
    they run quantised, by onnxruntime unless --runtime says another; the accuracy is that of float.
    """
    limits: dict[str, float] = {}
    for name, text in opt.assigned("--max", options["limits"]).items():
        metric = metric_of_option(name, TABLE)
        limits[metric.name] = metric.unit.parse(text)
    if target_latency is not None:
        latency = parse_latency(target_latency)
        limits[LATENCY] = min(latency, limits.get(LATENCY, latency))
    # here heavy packages load: everything that is quick to refuse has been refused
    from dataclasses import asdict

    from nas.workflows.zoo import find_zoo
    from predictors.devices import find_device, provenance_of
    from predictors.zoo.published import source

    conditions = opt.conditions_given(options)
    int8 = conditions.get("precision") == INT8
    if int8:  # of what is between layers; inputs and outputs are float
        conditions = {"runtime": "onnxruntime", **conditions, "precision": "fp32"}
    target = find_device(device, **conditions)
    what = "measuring" if target.at_hand else "estimating"
    with opt.console(options).phase(f"{what} models of timm") as progress:
        found = find_zoo(
            target,
            limits,
            int8=int8,
            names=options["names"],
            seconds=options["seconds"],
            progress=lambda done, total, text: progress(done, total, text, total - done),
        )
    data = {
        "device": target.conditions.to_dict(),
        "precision": INT8 if int8 else target.conditions.precision,
        "source": source(),
        "models": [asdict(model) for model in found.models],
        "not_tried": found.not_tried,
        "problems": found.problems,
        "disturbed": found.disturbed,
    }
    head = f"{device}: {target.conditions}{'; networks in int8' if int8 else ''}"
    if not target.at_hand:
        head += f"; {provenance_of(target)} (nas devices show {device})"
    lines = [head, *_lines(found)]
    if int8:
        lines.append(
            "networks run in int8 as onnxruntime's quantiser makes them; the accuracy is that of "
            "float, of which int8 loses some"
        )
    opt.answer(options["as_json"], data, lines)


def _lines(found: Zoo) -> Iterator[str]:
    """The front and the most accurate of the others, then what is missing."""
    from predictors.zoo.published import source

    others = [model for model in found.models if not model.on_front][:_SHOWN]
    shown = [model for model in found.models if model.on_front or model in others]
    yield from opt.columns(
        [
            ("", "model", "px", "top-1", "latency", "params", "MACs", "design"),
            *map(_row, shown),
        ],
        left=(0, 1, -1),
    )
    yield "*: no other is both as fast and as accurate; design: a point of a space (nas show NAME)"
    if hidden := len(found.models) - len(shown):
        yield f"{hidden} less accurate ones are not shown; --json lists all"
    if found.not_tried:
        yield (
            f"{len(found.not_tried)} more may be within the budget and there was no time for them; "
            "the same command goes on, or give more --seconds"
        )
    if found.disturbed:
        yield (
            f"{found.disturbed} were measured while other work ran on this machine, which makes "
            "latencies longer"
        )
    for reason, count in Counter(found.problems.values()).most_common():
        yield f"{count} left out: {reason}"
    yield f"accuracy: {source()}"


def _row(model: ZooModel) -> tuple[object, ...]:
    return (
        "*" if model.on_front else "",
        model.full_name,
        model.image_size,
        f"{model.top1:.1f} %",
        format_metric(LATENCY, model.latency_ms),
        format_metric("num_params", model.num_params),
        format_metric("macs", model.macs),
        model.design or "",
    )
