"""The ``nas`` command. Thin: it reads options, calls the pipeline, prints, sets exit codes.

Heavy packages are imported inside the commands, so that ``nas --help`` answers at once. Data goes
to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from search_space.errors import (
    InfeasibleError,
    InvalidQuantityError,
    NasError,
    UnknownNameError,
    UsageError,
)
from search_space.units import (
    format_duration,
    parse_count,
    parse_latency,
)

if TYPE_CHECKING:
    from nas.config import RunConfig

FAILED, USAGE, INFEASIBLE, INTERRUPTED = 1, 2, 3, 130


def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
    """A click option that the environment variable ``NAS_<NAME>`` can set too."""
    variable = "NAS_" + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=False, **settings)


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


space_option = option("--space", metavar="NAME|FILE", help="Search space: a preset or a YAML file.")
json_option = click.option("--json", "as_json", is_flag=True, help="Data as JSON on stdout.")
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Only warnings on stderr.")
latency_options = _options(
    option("--batch-size", type=click.IntRange(1), help="Images per forward pass (default 1)."),
    option("--precision", metavar="fp32|bf16|fp16", help="Default fp32."),
    option("--threads", type=click.IntRange(1), help="CPU threads (default: torch's)."),
)
run_options = _options(
    click.option("--config", metavar="FILE", help="YAML file of options; flags override it."),
    option(
        "--data",
        metavar="SOURCE",
        help="digits, an image folder, Parquet files, or a name that timm opens.",
    ),
    space_option,
    option("--name", help="Name of the run (default: from data and budget)."),
    option("--runs", metavar="DIR", default="runs", show_default=True, help="Folder of runs."),
    option("--seed", type=click.IntRange(0), help="Default 0."),
    option("--epochs", type=click.IntRange(1), help="Epochs of supernet training."),
    option("--train-batch-size", type=click.IntRange(1), help="Images per training step."),
    option("--lr", type=float, help="Peak learning rate of supernet training."),
    option("--workers", type=click.IntRange(0), help="Data-loading processes."),
    option("--image-column", help="Parquet column of images (default: image)."),
    option("--label-column", help="Parquet column of labels (default: label)."),
    click.option("--resume", is_flag=True, help="Continue the run of this name."),
    click.option("--dry-run", is_flag=True, help="Show what would be done and stop."),
    json_option,
    quiet_option,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nas")
def cli() -> None:
    """From images, a device and a latency budget to the vision backbone that fits.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no feasible architecture, 130 interrupted.
    """


@cli.command()
@run_options
@latency_options
@option("--target-latency", metavar="5ms", help="Upper limit of the latency, with a unit.")
@option("--device", metavar="NAME", help="Device that the latency is for (default cpu).")
@option("--max-params", metavar="5M", help="Upper limit of the parameters.")
@option("--max-macs", metavar="500M", help="Upper limit of the multiply-adds.")
@option("--evaluations", type=click.IntRange(1), help="Architectures to evaluate.")
@option("--population", type=click.IntRange(4), help="Population of the evolution.")
@option("--finalists", type=click.IntRange(1), help="Front members to fine-tune (default 3).")
@option("--finetune-epochs", type=click.IntRange(1), help="Epochs for each finalist.")
@option("--supernet", metavar="RUN", help="Use the supernet that this run trained.")
def search(**options: Any) -> None:
    """Find, re-measure, fine-tune and export the network for a budget."""
    from nas.pipeline import run_search
    from nas.printing import print_result
    from nas.reporting import summary

    config, path = _resolve(options)
    if options["dry_run"]:
        _dry_run(config, path, options["as_json"])
        return
    with _console(options) as console:
        data = run_search(
            config, path, resume=options["resume"], command=_command(), console=console
        )
    if options["as_json"]:
        _print_json(summary(data, path))
    else:
        print_result(data, path)


@cli.command()
@run_options
def train(**options: Any) -> None:
    """Only train a supernet; ``nas search --supernet RUN`` then uses it for any budget."""
    from nas.pipeline import run_training

    config, path = _resolve(options, with_budget=False)
    if options["dry_run"]:
        _dry_run(config, path, options["as_json"])
        return
    with _console(options) as console:
        data = run_training(
            config, path, resume=options["resume"], command=_command(), console=console
        )
    last = data.training[-1]
    if options["as_json"]:
        _print_json({"run": str(path), "status": data.status, "epochs": len(data.training)})
    else:
        click.echo(
            f"trained for {last.epoch + 1} epochs; use it with: nas search --supernet {path}"
        )


@cli.command()
@space_option
@option("--device", default="cpu", show_default=True, help="Device of this machine.")
@option("--num-classes", type=click.IntRange(1), default=1000, show_default=True)
@latency_options
@click.option("--fresh", is_flag=True, help="Forget what was measured and measure again.")
@json_option
@quiet_option
def profile(space: str | None, device: str, num_classes: int, fresh: bool, **options: Any) -> None:
    """Measure the latency table of a space on this machine; only what is missing is measured."""
    from predictors.latency.devices import local_conditions
    from predictors.latency.profile import profile as measure
    from predictors.latency.profile import table_path
    from search_space import load_space

    chosen = load_space(space or "digits")
    given = {k: options[k] for k in ("batch_size", "precision", "threads") if options[k]}
    conditions = local_conditions(device, **given)
    path = table_path(conditions)
    if fresh:
        path.unlink(missing_ok=True)
    with _console(options) as console, console.phase(f"measuring {chosen.name}") as progress:
        table = measure(
            chosen,
            num_classes,
            conditions,
            progress=lambda done, total, left: progress(done, total, "rounds", left),
        )
    correction = table.correction(chosen)
    for warning in correction.warnings:
        console.warn(warning)
    if options["as_json"]:
        _print_json(
            {
                "device": conditions.to_dict(),
                "space": chosen.name,
                "entries": len(table.entries),
                "expected_error": correction.expected_error,
                "path": str(path),
                "warnings": list(correction.warnings),
            }
        )
        return
    click.echo(f"{len(table.entries)} entries for {conditions}")
    click.echo(
        f"error on whole networks left out: {correction.expected_error:.1%} "
        f"({len(correction.checks)} networks, {correction.rounds} rounds, "
        f"{format_duration(correction.seconds)})"
    )
    click.echo(f"table: {path}")


@cli.command()
@json_option
def devices(as_json: bool) -> None:
    """Devices of this machine and the latency tables measured so far."""
    from predictors.latency.devices import identify, local_device_names
    from predictors.latency.profile import cache_folder
    from predictors.latency.table import LatencyTable

    local = {name: str(identify(name)) for name in local_device_names()}
    tables: list[dict[str, Any]] = []
    for file in sorted(cache_folder().glob("*.parquet")):
        if ".partial" in file.name:
            continue
        try:
            table = LatencyTable.load(file)
        except NasError as error:
            click.echo(f"warning: {error}", err=True)
            continue
        errors = {c.space: c.expected_error for c in table.corrections.values()}
        tables.append(
            {
                "path": str(file),
                "conditions": str(table.conditions),
                "entries": len(table.entries),
                "expected_error": errors,
                "provenance": "measured",
            }
        )
    if as_json:
        _print_json({"devices": local, "tables": tables})
        return
    for name, identity in local.items():
        click.echo(f"{name}: {identity}")
    for item in tables:
        shown = ", ".join(
            f"{space} ±{error:.1%}" for space, error in item["expected_error"].items()
        )
        click.echo(f"\n{item['conditions']}\n  {item['entries']} entries, measured; {shown}")
        click.echo(f"  {item['path']}")
    if not tables:
        click.echo("\nno latency tables yet; measure one with: nas profile --space NAME")


@cli.command()
@click.argument("name", required=False)
@json_option
def spaces(name: str | None, as_json: bool) -> None:
    """Preset search spaces, or the choices of one."""
    from search_space import load_space, space_names

    if name is None:
        rows = [load_space(item) for item in space_names()]
        if as_json:
            _print_json([{"name": s.name, "size": s.size, "digest": s.digest} for s in rows])
            return
        for space in rows:
            sides = ", ".join(map(str, space.resolutions))
            click.echo(f"{space.name:8} {space.size:9.1e} architectures, {sides} px")
        return
    space = load_space(name)
    if as_json:
        _print_json({**space.to_dict(), "size": space.size, "digest": space.digest})
        return
    click.echo(f"{space.name}: {space.size:.2e} architectures, digest {space.digest}")
    click.echo(f"resolution {', '.join(map(str, space.resolutions))} px")
    for i, stage in enumerate(space.stages):
        mixers = dict.fromkeys(block.mixer.name for block in stage.blocks)
        click.echo(
            f"stage {i + 1}: width {list(stage.widths)}, depth {list(stage.depths)}, "
            f"{len(stage.blocks)} block choices of {', '.join(mixers)}"
        )


@cli.command()
@click.argument("name", metavar="NAME_OR_FILE")
@option("--num-classes", type=click.IntRange(1), default=1000, show_default=True)
@option("--device", metavar="NAME", help="Also show the latency measured on this device.")
@latency_options
@json_option
def show(name: str, num_classes: int, device: str | None, as_json: bool, **options: Any) -> None:
    """A network as a table: a known design, a YAML or JSON file, or an export's config.json."""
    from nas.printing import print_network
    from nas.show import describe
    from search_space import load_architecture

    given = {k: options[k] for k in ("batch_size", "precision", "threads") if options[k]}
    described = describe(load_architecture(name), num_classes, device, given)
    if as_json:
        _print_json(described)
        return
    print_network(described)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("digest", required=False)
@click.option("--output", type=click.Path(path_type=Path), help="Folder (default: in the run).")
@json_option
@quiet_option
def export(run: Path, digest: str | None, output: Path | None, **options: Any) -> None:
    """Export any evaluated architecture of a run with inherited weights, or the chosen one.

    DIGEST may be shortened. Without it, the chosen and fine-tuned network is exported again.
    """
    from dataclasses import asdict

    from nas.exporting import export_from_run

    with _console(options) as console:
        exported = export_from_run(run, digest, output, console)
    if options["as_json"]:
        _print_json([asdict(item) for item in exported])
        return
    for item in exported:
        click.echo(f"{item.path}\n  {item.load}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write the report of a finished run again."""
    from nas.reporting import rebuild_report

    rebuild_report(run)
    click.echo(run / "report.html")


def _resolve(options: dict[str, Any], *, with_budget: bool = True) -> tuple[RunConfig, Path]:
    """Configuration and run directory; quantities are checked before anything heavy loads."""
    if options.get("target_latency") is not None:
        parse_latency(options["target_latency"])
    for key in ("max_params", "max_macs"):
        if options.get(key) is not None:
            parse_count(options[key])
    from nas.config import resolve

    given = {
        key: options.get(key)
        for key in (
            "data",
            "space",
            "device",
            "target_latency",
            "max_params",
            "max_macs",
            "seed",
            "workers",
            "image_column",
            "label_column",
            "supernet",
        )
    }
    given |= {
        "train.epochs": options.get("epochs"),
        "train.batch_size": options.get("train_batch_size"),
        "train.lr": options.get("lr"),
        "search.evaluations": options.get("evaluations"),
        "search.population": options.get("population"),
        "search.finalists": options.get("finalists"),
        "finetune.epochs": options.get("finetune_epochs"),
        "latency.batch_size": options.get("batch_size"),
        "latency.precision": options.get("precision"),
        "latency.threads": options.get("threads"),
    }
    name = options["name"]
    if name is not None and (Path(name).name != name or name in ("", "..")):
        raise UsageError(f"--name {name!r} must be a plain name; the folder is --runs.")
    folder = Path(options["runs"])
    if name is None:
        name = _default_name(resolve(given, options["config"], with_budget=with_budget))
    file, stored = options["config"], folder / name / "config.yaml"
    if options["resume"] and file is None and stored.exists():
        file = str(stored)  # only what is asked anew is compared, not the defaults of today
    return resolve(given, file, with_budget=with_budget), folder / name


def _default_name(config: RunConfig) -> str:
    space = config.space if isinstance(config.space, str) else config.space["name"]
    source = Path(config.data.rstrip("/")).name
    parts = [source, *([space] if space != source else [])]
    budget = config.target_latency
    parts += ["supernet"] if budget is None else [config.device, budget]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")


def _dry_run(config: RunConfig, path: Path, as_json: bool) -> None:
    from predictors.latency.devices import identify

    identify(config.device)
    space = config.search_space()
    plan = {
        "run": str(path),
        "exists": path.exists(),
        "space": {"name": space.name, "size": space.size, "digest": space.digest},
        "config": config.to_dict(),
    }
    if as_json:
        _print_json(plan)
        return
    import yaml

    click.echo(f"run: {path}{' (exists: needs --resume)' if path.exists() else ''}")
    click.echo(f"space: {space.name}, {space.size:.2e} architectures")
    click.echo(yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip())


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


def _console(options: dict[str, Any]) -> Any:
    from contextlib import nullcontext

    from nas.console import Console

    return nullcontext(Console(quiet=options["quiet"]))


def _command() -> str:
    return shlex.join(["nas", *sys.argv[1:]])


def main() -> None:
    """Entry point: every error that a user can mend is one message, not a traceback."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say_interrupted()
        sys.exit(INTERRUPTED)
    except InfeasibleError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(INFEASIBLE)
    except NasError as error:
        click.echo(f"error: {error}", err=True)
        usage = isinstance(error, (InvalidQuantityError, UnknownNameError, UsageError))
        sys.exit(USAGE if usage else FAILED)
    except OSError as error:  # a full disk, a folder that may not be written
        click.echo(f"error: {error}", err=True)
        sys.exit(FAILED)


def _say_interrupted() -> None:
    message = "interrupted; everything finished so far is saved."
    if len(sys.argv) > 1 and sys.argv[1] in ("search", "train"):
        resume = "" if "--resume" in sys.argv else " --resume"
        message += f" Continue with: {_command()}{resume}"
    click.echo(f"\n{message}", err=True)


if __name__ == "__main__":
    main()
