"""Options that several commands share, and how commands print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from nas import bounds
from search_space.errors import UsageError


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option that the environment variable ``NAS_<NAME>`` can set too."""
    variable = "NAS_" + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


SEED = click.IntRange(0, bounds.SEED)
BATCH_SIZE = click.IntRange(1, bounds.BATCH_SIZE)
NUM_CLASSES = click.IntRange(1, bounds.NUM_CLASSES)


def image_sizes(least: int = 1) -> click.IntRange:
    """Sides of square images that a command takes."""
    return click.IntRange(least, 2048)


space_option = option("--space", metavar="NAME|FILE", help="Search space: a preset or a YAML file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Data as JSON on stdout.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Only warnings on stderr.")
latency_options = options(
    option("--batch-size", type=BATCH_SIZE, help="Images per forward pass (default 1)."),
    option("--precision", metavar="fp32|bf16|fp16", help="Default: what is usual on the device."),
    option(
        "--runtime",
        metavar="NAME",
        help="eager, cudagraph, inductor, onnxruntime or tensorrt (default: the device's usual).",
    ),
    option(
        "--threads", type=click.IntRange(1, bounds.THREADS), help="CPU threads (default: torch's)."
    ),
)
run_options = options(
    click.option("--config", metavar="FILE", help="YAML file of options; flags override it."),
    option(
        "--data",
        metavar="SOURCE",
        help="digits, an image folder, Parquet files, or a name that timm opens.",
    ),
    space_option,
    option("--name", help="Name of the run (default: from data and budget)."),
    option("--runs", metavar="DIR", default="runs", show_default=True, help="Folder of runs."),
    option("--seed", type=SEED, help="Default 0."),
    option("--epochs", type=click.IntRange(1), help="Epochs of supernet training."),
    option("--train-batch-size", type=BATCH_SIZE, help="Images per training step."),
    option("--lr", type=float, help="Peak learning rate of supernet training."),
    option(
        "--strategy",
        metavar="NAME",
        help="Which subnets a step trains (default multi_architecture).",
    ),
    option("--shrinking", metavar="NAME", help="When: none, delayed or progressive."),
    option("--teacher", metavar="NAME|FOLDER", help="A timm model or an export to learn from."),
    option("--teacher-weights", metavar="FILE", help="Its weights, where it is a timm model."),
    option("--loader-workers", type=click.IntRange(0), help="Data-loading processes (default 0)."),
    option("--workers", type=click.IntRange(1), help="Workers that train, by Ray (default 1)."),
    option(
        "--gpus-per-worker",
        type=click.FloatRange(0),
        help="GPUs of each worker (default: 1 where the cluster has any).",
    ),
    option(
        "--address",
        metavar="auto|HOST",
        help="Ray cluster to train on (default: start one on this machine).",
    ),
    option(
        "--storage",
        metavar="URL|FOLDER",
        help="Where all workers find checkpoints (default: the run's folder).",
    ),
    option("--image-column", help="Parquet column of images (default: image)."),
    option("--label-column", help="Column of labels, of Parquet or labels.csv (default: label)."),
    option("--data-root", metavar="DIR", help="Folder of a data set that timm opens."),
    option("--data-download", is_flag=True, default=None, help="Let timm download it."),
    option(
        "--fit",
        type=click.Choice(["crop", "squeeze", "pad"]),
        help="How images become squares (default crop: the ends are cut off).",
    ),
    option("--mirror/--no-mirror", default=None, help="Mirror images at random (default: yes)."),
    click.option("--resume", is_flag=True, help="Continue the run of this name."),
    click.option("--dry-run", is_flag=True, help="Show what would be done and stop."),
    json_option,
    quiet_option,
)


def print_json(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    click.echo(text.encode(errors="backslashreplace").decode())  # names need not be UTF-8


def console(options: dict[str, Any]) -> Any:
    from contextlib import nullcontext

    from nas.cli.console import Console

    return nullcontext(Console(quiet=options["quiet"]))


def conditions_given(given: dict[str, Any]) -> dict[str, Any]:
    """Those of ``latency_options`` that were given."""
    names = ("batch_size", "precision", "runtime", "threads")
    return {name: given[name] for name in names if given[name] is not None}


def options_after(context: click.Context) -> None:
    """Refuse options of a group that were written before its subcommand, where they do nothing."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(
            f"{given[0]} stands before {context.invoked_subcommand!r} and would do nothing there; "
            "write options after it."
        )


def check_compute_device(flag: str, device: str) -> None:
    """Raises UsageError for a device that torch cannot compute on here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{flag} {device!r} cannot be used: {reason}") from None
