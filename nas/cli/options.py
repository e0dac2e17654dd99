"""Options that several commands share, and how commands print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource
from pydantic import BaseModel

from nas import flags
from nas.cli.endings import this_command
from nas.config import RunConfig
from nas.config_parts import LatencyConfig
from nas.flags import Declared, declared
from search_space.errors import UsageError

if TYPE_CHECKING:
    from nas.cli.console import Console


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option that the environment variable ``NAS_<NAME>`` can set too."""
    variable = "NAS_" + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


def options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several decorators as one, in the order in which they are written."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def count_option(*names: str, default: int, least: int = 1, **settings: Any) -> Any:
    """An option that takes a whole number of at least ``least``."""
    kind = click.IntRange(least)
    return option(*names, type=kind, default=default, show_default=True, **settings)


PATH = click.Path(path_type=Path)
SEED = click.IntRange(0, flags.SEED)
BATCH_SIZE = click.IntRange(1, flags.BATCH_SIZE)
NUM_CLASSES = click.IntRange(1, flags.NUM_CLASSES)


class FlagSet:
    """The flags that configurations declare, as options of a command; decorates its function.

    Example:
        >>> FLAGS = FlagSet(FinetuneConfig)
        >>> @click.command()
        ... @FLAGS
        ... def finetune(**options): resolve(FLAGS.take(options))

    Args:
        models: Their flags; one that several have is the same option.
        without: Paths of fields that the command has nothing to do with.
    """

    def __init__(self, *models: type[BaseModel], without: Sequence[str] = ()) -> None:
        self._by_name: dict[str, Declared] = {}
        for item in (item for model in models for item in declared(model)):
            parents = item.path.split(".")
            if not any(".".join(parents[: i + 1]) in without for i in range(len(parents))):
                self._by_name[item.flag.name.removeprefix("--").replace("-", "_")] = item

    def __call__(self, function: Any) -> Any:
        return options(*map(_option, self._by_name.values()))(function)

    def take(self, options: dict[str, Any]) -> dict[str, Any]:
        """Values by path in the configuration, of flags that were used; out of ``options``."""
        taken = {item.path: options.pop(name) for name, item in self._by_name.items()}
        for item in self._by_name.values():
            if item.is_assigned:
                taken[item.path] = assigned(item.flag.name, taken[item.path])
        return {path: value for path, value in taken.items() if value not in (None, (), {})}


def _option(item: Declared) -> Callable[[Any], Any]:
    """The click option of a flag: its type and bounds are those of the field."""
    settings: dict[str, Any] = {"metavar": item.flag.metavar, "help": item.flag.help}
    limits = {
        key: getattr(bound, key)
        for bound in item.bounds
        for key in ("ge", "gt", "le", "lt")
        if hasattr(bound, key)
    }
    if item.type is bool:
        settings |= {"is_flag": True, "default": None}
    elif item.type in (int, float) and not limits:
        settings["type"] = item.type
    elif item.type in (int, float):
        of_range = click.IntRange if item.type is int else click.FloatRange
        settings["type"] = of_range(
            limits.get("ge", limits.get("gt")),
            limits.get("le", limits.get("lt")),
            min_open="gt" in limits,
            max_open="lt" in limits,
        )
    elif get_origin(item.type) is Literal:
        settings["type"] = click.Choice(get_args(item.type))
    elif item.is_assigned or get_origin(item.type) is tuple:
        settings["multiple"] = True
    return option(item.flag.name, **settings)


def assigned(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """``METRIC=LIMIT`` texts as a mapping; their values are checked with the configuration."""
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            example = "energy=table.parquet" if flag == "--cost" else "params=5M"
            raise UsageError(f"{flag} {text!r} must be NAME=VALUE, as in {flag} {example}.")
        if key in result:
            raise UsageError(f"{flag} {key} is given twice; give it once.")
        result[key] = value
    return result


def listed(name: str, text: str) -> list[str]:
    """The entries of an option's text, with commas between; raises UsageError for an empty one."""
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise UsageError(f"{name} {text!r} has an empty entry; write it as in A,B without gaps.")
    return items


def image_sizes(least: int = 1) -> click.IntRange:
    """Sides of square images that a command takes."""
    return click.IntRange(least, 2048)


space_option = FlagSet(RunConfig, without=[f for f in RunConfig.model_fields if f != "space"])
latency_options = FlagSet(LatencyConfig, without=("interpolate", "margin", "confidence"))
json_option = click.option("--json", "as_json", is_flag=True, help="Data as JSON on stdout.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Only warnings on stderr.")
run_options = options(
    click.option("--config", metavar="FILE", help="YAML file of options; flags override it."),
    option("--name", help="Name of the run (default: from data and budget)."),
    option("--runs", metavar="DIR", default="runs", show_default=True, help="Folder of runs."),
    click.option("--resume", is_flag=True, help="Continue the run of this name."),
    click.option("--dry-run", is_flag=True, help="Show what would be done and stop."),
    json_option,
    quiet_option,
)


def print_json(value: Any) -> None:
    """Print ``value`` as strict JSON on standard output."""
    from results.files import as_plain

    text = json.dumps(as_plain(value), ensure_ascii=False, allow_nan=False)
    click.echo(text.encode(errors="backslashreplace").decode())  # names need not be UTF-8


def answer(as_json: bool, data: Any, lines: Iterable[str]) -> None:
    """Print what a command has to say: as JSON, or as lines for people."""
    if as_json:
        print_json(data)
        return
    for line in lines:
        click.echo(line)


def columns(
    rows: Sequence[Sequence[object]], left: Sequence[int] = (0,), indent: str = ""
) -> Iterator[str]:
    """Rows as aligned columns; those that ``left`` numbers stand to the left, others right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    at_left = {number % len(widths) for number in left}
    for row in cells:
        padded = (
            cell.ljust(width) if i in at_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield (indent + "  ".join(padded)).rstrip()


def run_line(path: Path) -> str:
    """The folder of a run that is only planned."""
    return f"run: {path}{' (exists: needs --resume)' if path.exists() else ''}"


def console(options: dict[str, Any]) -> Console:
    """The console that ``--quiet`` asks for."""
    from nas.cli.console import Console

    return Console(quiet=options["quiet"])


def run_settings(options: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a run's function beside its configuration and folder, from ``run_options``."""
    return {"resume": options["resume"], "command": this_command(), "console": console(options)}


def conditions_given(options: dict[str, Any]) -> dict[str, Any]:
    """Values of those ``latency_options`` that were used."""
    return latency_options.take(dict(options))


def options_after(context: click.Context) -> None:
    """Refuses options of a group that stand before its subcommand, where they do nothing."""
    early = [
        parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
    ]
    if early:
        raise UsageError(
            f"{early[0]} stands before {context.invoked_subcommand!r} and would do nothing there; "
            "write options after it."
        )


def check_compute_device(flag: str, device: str) -> None:
    """Refuses a device that torch cannot compute on here.

    Raises:
        UsageError: With torch's reason.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{flag} {device!r} cannot be used: {reason}") from None
