"""The ``nas`` command. Thin: it reads options, calls the pipeline, prints, sets exit codes.

Heavy packages are imported inside the commands, so that ``nas --help`` answers at once. Data goes
to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas import bounds
from nas.cli import endings
from nas.cli.devices import calibrate, devices, profile
from nas.cli.finetune import finetune
from nas.cli.options import (
    NUM_CLASSES,
    conditions_given,
    console,
    json_option,
    latency_options,
    option,
    print_json,
    quiet_option,
    run_options,
)
from nas.cli.proxies import proxies
from nas.cli.scale import scale, seed
from search_space.errors import UsageError
from search_space.names import check_run_name
from search_space.units import parse_latency, parse_throughput

if TYPE_CHECKING:
    from nas.config import RunConfig


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nas")
def cli() -> None:
    """From images, a device and a latency budget to the vision backbone that fits.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no feasible architecture, 130 interrupted, 141
    nobody reads the output.
    """


@cli.command()
@run_options
@latency_options
@option("--target-latency", metavar="5ms", help="Upper limit of the latency, with a unit.")
@option("--device", metavar="NAME", help="Device that the latency is for (default cpu).")
@option("--target-throughput", metavar="2000/s", help="Lower limit of images per second.")
@option(
    "--max",
    "maxima",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="Upper limit of params, macs, activations, memory or latency@DEVICE, as in params=5M.",
)
@option(
    "--min",
    "minima",
    multiple=True,
    metavar="METRIC=LIMIT",
    help="Lower limit of the same, or of latency, as in latency=3ms.",
)
@option(
    "--maximize",
    type=click.Choice(["accuracy", "balanced_accuracy"]),
    help="Search for validation accuracy, or its mean over classes (default: for the smallest "
    "validation loss).",
)
@option(
    "--minimize",
    multiple=True,
    metavar="METRIC",
    help="What the front trades quality for (default latency); may be given several times.",
)
@option(
    "--margin",
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the latency budget to leave free (default: the expected error of a table "
    "that cannot be checked here).",
)
@option("--interpolate", is_flag=True, default=None, help="Fill a table's gaps from its shapes.")
@option("--evaluations", type=click.IntRange(1), help="Architectures to evaluate.")
@option("--sampler", metavar="NAME", help="Who proposes them: nsga2, optuna-TPE, random, …")
@option(
    "--population",
    type=click.IntRange(4, bounds.POPULATION),
    help="Candidates that the sampler begins with.",
)
@option("--optuna-storage", metavar="URL|FILE", help="Database or journal of Optuna's study.")
@option(
    "--warm-start",
    multiple=True,
    metavar="RUN",
    help="Evaluate the front of this run over the same space first; may be given several times.",
)
@option(
    "--halvings",
    type=click.IntRange(0, 10),
    help="Give up bad candidates early: all of a batch see a part of the validation images, the "
    "better half twice as many, and so on, this often (default 0).",
)
@option("--finalists", type=click.IntRange(1), help="Front members to fine-tune (default 3).")
@option("--finetune-epochs", type=click.IntRange(1), help="Epochs for each finalist.")
@option("--supernet", metavar="RUN", help="Use the supernet that this run trained.")
@option("--num-classes", type=NUM_CLASSES, help="Classes, without --data (default 1000).")
@option(
    "--score",
    type=click.Choice(["combined", "deepmad"]),
    help="What to maximise without --data (default combined).",
)
@option("--max-effectiveness", type=float, help="Largest ρ with --score deepmad (default 0.5).")
@option(
    "--rerank",
    type=click.IntRange(0),
    help="Order so many by ranks of score, κ and L^E, without --data.",
)
def search(**options: Any) -> None:
    """Find, re-measure, fine-tune and export the network for a budget.

    Without --data nothing is trained: networks are found by a score of their structure, in
    seconds, and exported untrained.
    """
    from nas.cli.printing import print_result
    from nas.workflows.pipeline import run_search
    from nas.workflows.reporting import summary

    config, path = _resolve(options)
    if options["dry_run"]:
        _dry_run(config, path, options["as_json"])
        return
    with console(options) as screen:
        data = run_search(
            config, path, resume=options["resume"], command=endings.this_command(), console=screen
        )
    if options["as_json"]:
        print_json(summary(data, path))
    else:
        print_result(data, path)


@cli.command()
@run_options
@option("--architecture", metavar="NAME|FILE", help="Train and export this one network instead.")
def train(**options: Any) -> None:
    """Only train a supernet; ``nas search --supernet RUN`` then uses it for any budget."""
    from nas.cli.printing import print_result
    from nas.workflows.pipeline import run_training
    from nas.workflows.reporting import summary

    config, path = _resolve(options, with_budget=False)
    if options["dry_run"]:
        _dry_run(config, path, options["as_json"])
        return
    with console(options) as screen:
        data = run_training(
            config, path, resume=options["resume"], command=endings.this_command(), console=screen
        )
    if config.architecture is not None:
        if options["as_json"]:
            print_json(summary(data, path))
        else:
            print_result(data, path)
        return
    last = data.training[-1]
    if options["as_json"]:
        print_json({"run": str(path), "status": data.status, "epochs": len(data.training)})
    else:
        click.echo(
            f"trained for {last.epoch + 1} epochs; use it with: nas search --supernet {path}"
        )


@cli.command()
@click.argument("name", required=False)
@json_option
def spaces(name: str | None, as_json: bool) -> None:
    """Preset search spaces, or the choices of one."""
    from search_space import load_space, space_names

    if name is None:
        rows = [load_space(item) for item in space_names()]
        if as_json:
            print_json([{"name": s.name, "size": s.size, "digest": s.digest} for s in rows])
            return
        for space in rows:
            sides = ", ".join(map(str, space.resolutions))
            click.echo(f"{space.name:8} {space.size:9.1e} architectures, {sides} px")
        return
    space = load_space(name)
    if as_json:
        print_json({**space.to_dict(), "size": space.size, "digest": space.digest})
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
@option("--num-classes", type=NUM_CLASSES, default=1000, show_default=True)
@option("--device", metavar="NAME", help="Also show the latency measured on this device.")
@latency_options
@json_option
def show(name: str, num_classes: int, device: str | None, as_json: bool, **options: Any) -> None:
    """A network as a table: a known design, a YAML or JSON file, or an export's config.json."""
    from nas.cli.printing import print_network
    from nas.workflows.show import describe
    from search_space import load_architecture

    given = conditions_given(options)
    described = describe(load_architecture(name), num_classes, device, given)
    if as_json:
        print_json(described)
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

    from nas.workflows.exporting import export_from_run

    with console(options) as screen:
        exported = export_from_run(run, digest, output, screen)
    if options["as_json"]:
        print_json([asdict(item) for item in exported])
        return
    for item in exported:
        click.echo(f"{item.path}\n  {item.load}")


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
def report(run: Path) -> None:
    """Write the report of a finished run again."""
    from nas.workflows.reporting import rebuild_report

    rebuild_report(run)
    click.echo(run / "report.html")


def _resolve(options: dict[str, Any], *, with_budget: bool = True) -> tuple[RunConfig, Path]:
    """Configuration and run directory; quantities are checked before anything heavy loads."""
    if options.get("target_latency") is not None:
        parse_latency(options["target_latency"])
    if options.get("target_throughput") is not None:
        parse_throughput(options["target_throughput"])
    maxima = _limits("--max", options.get("maxima") or ())
    minima = _limits("--min", options.get("minima") or ())
    from nas.config import resolve

    given = {
        key: options.get(key)
        for key in (
            "data",
            "space",
            "device",
            "target_latency",
            "target_throughput",
            "seed",
            "loader_workers",
            "workers",
            "gpus_per_worker",
            "address",
            "storage",
            "image_column",
            "label_column",
            "supernet",
            "num_classes",
        )
    }
    if options.get("architecture") is not None:
        from search_space import load_architecture

        given["architecture"] = load_architecture(options["architecture"]).to_dict()
    given |= {
        "train.epochs": options.get("epochs"),
        "train.batch_size": options.get("train_batch_size"),
        "train.lr": options.get("lr"),
        "search.evaluations": options.get("evaluations"),
        "train.strategy": options.get("strategy"),
        "train.shrinking": options.get("shrinking"),
        "train.teacher": options.get("teacher"),
        "train.teacher_weights": options.get("teacher_weights"),
        "search.objective": options.get("maximize"),
        "search.sampler": options.get("sampler"),
        "search.population": options.get("population"),
        "search.optuna_storage": options.get("optuna_storage"),
        "search.warm_start": options.get("warm_start") or None,
        "search.halvings": options.get("halvings"),
        "search.finalists": options.get("finalists"),
        "search.score": options.get("score"),
        "search.max_effectiveness": options.get("max_effectiveness"),
        "search.rerank": options.get("rerank"),
        "finetune.epochs": options.get("finetune_epochs"),
        **{
            f"latency.{key}": options.get(key)
            for key in ("batch_size", "precision", "runtime", "threads", "margin", "interpolate")
        },
        "max": maxima or None,
        "min": minima or None,
        "minimize": options.get("minimize") or None,
    }
    name = options["name"]
    if name is not None:
        check_run_name(name)
    folder = Path(options["runs"])
    if name is None:
        name = _default_name(resolve(given, options["config"], with_budget=with_budget))
        check_run_name(name)
    file, stored = options["config"], folder / name / "config.yaml"
    if options["resume"]:
        from results.store import check_resumable

        check_resumable(folder / name)
        if file is None and stored.exists():
            file = str(stored)  # only what is asked anew is compared, not the defaults of today
    return resolve(given, file, with_budget=with_budget), folder / name


def _limits(flag: str, texts: Sequence[str]) -> dict[str, str]:
    """``--max`` or ``--min`` by metric; their values are checked with the configuration."""
    result = {}
    for text in texts:
        metric, equals, limit = text.partition("=")
        if not equals or not metric or not limit:
            raise UsageError(f"{flag} {text!r} must be METRIC=LIMIT, as in {flag} params=5M.")
        if metric in result:
            raise UsageError(f"{flag} {metric} is given twice; give it once.")
        result[metric] = limit
    return result


def _default_name(config: RunConfig) -> str:
    space = config.space if isinstance(config.space, str) else config.space["name"]
    source = "" if config.data is None else Path(config.data.rstrip("/")).name
    if config.architecture is not None:
        from search_space import Architecture

        return f"{source}-{Architecture.from_dict(config.architecture).digest}"
    parts = [*([source] if source else []), *([space] if space != source else [])]
    own = config.max.get("latency") or config.max.get(f"latency@{config.device}")
    budget = config.target_latency or config.target_throughput or own
    others = [f"{metric}-{limit}" for metric, limit in {**config.max, **config.min}.items()]
    limits = [budget] if budget else others
    parts += [config.device, *limits] if limits else ["supernet"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")


def _dry_run(config: RunConfig, path: Path, as_json: bool) -> None:
    from predictors.devices import find_device

    find_device(config.device, **config.latency.model_dump(exclude={"interpolate", "margin"}))
    for metric in config.limits():
        if metric.startswith("latency_ms@"):
            find_device(metric.partition("@")[2])
    if config.data is not None:
        from supernet.training.named_optimizer import check_optimizer

        check_optimizer(config.train)
        check_optimizer(config.finetune)
    space = config.search_space()
    plan = {
        "run": str(path),
        "exists": path.exists(),
        "space": {"name": space.name, "size": space.size, "digest": space.digest},
        "config": config.to_dict(),
    }
    if as_json:
        print_json(plan)
        return
    import yaml

    click.echo(f"run: {path}{' (exists: needs --resume)' if path.exists() else ''}")
    click.echo(f"space: {space.name}, {space.size:.2e} architectures")
    click.echo(yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip())


for command in (finetune, profile, devices, calibrate, scale, seed, proxies):
    cli.add_command(command)


def main() -> None:
    """Entry point: every error that a user can mend is one message, not a traceback."""
    # OpenMP's threads wait for each other by spinning, for milliseconds as libgomp has it: where
    # other work holds a core, the one that is waited for then gets none. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    endings.run(cli)


if __name__ == "__main__":
    main()
