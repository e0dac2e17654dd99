"""The ``nas`` command. Thin: it reads options, calls the pipeline, prints, sets exit codes.

Heavy packages are imported inside the commands, so that ``nas --help`` answers at once. Data goes
to standard output, everything else to standard error.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.cli import endings
from nas.cli import options as opt
from nas.cli.devices import calibrate, devices, profile
from nas.cli.finetune import finetune
from nas.cli.proxies import proxies
from nas.cli.scale import scale, seed
from nas.cli.spaces import facts, spaces
from nas.cli.zoo import zoo
from nas.config import RunConfig, TrainedConfig, TrainingFreeConfig
from results.export import OPSETS
from search_space.metrics import device_of
from search_space.names import check_run_name

if TYPE_CHECKING:
    from results.report.data import ReportData

SEARCH = opt.FlagSet(TrainedConfig, TrainingFreeConfig, without=("architecture",))
# a training alone has no budget, and nothing that it is searched with
TRAIN = opt.FlagSet(
    TrainedConfig,
    without=(
        *("device", "target_latency", "target_throughput", "max", "min", "costs", "minimize"),
        *("latency", "search", "finetune", "supernet"),
    ),
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nas")
def cli() -> None:
    """From images, a device and a latency budget to the vision backbone that fits.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no feasible architecture, 130 interrupted, 141
    nobody reads the output.
    """


@cli.command()
@SEARCH
@opt.run_options
def search(**options: Any) -> None:
    """Find, re-measure, fine-tune and export the network for a budget.

    Without --data nothing is trained: networks are found by a score of their structure, in
    seconds, and exported untrained.
    """
    from nas.workflows.pipeline import run_search

    config, path = _resolve(SEARCH.take(options), options)
    if options["dry_run"]:
        _dry_run(config, path, options["as_json"])
        return
    data = run_search(config, path, **opt.run_settings(options))
    _print(data, path, options["as_json"])


@cli.command()
@TRAIN
@opt.run_options
def train(**options: Any) -> None:
    """Only train a supernet; ``nas search --supernet RUN`` then uses it for any budget."""
    from nas.workflows.pipeline import run_training

    config, path = _resolve(TRAIN.take(options), options, with_budget=False)
    assert isinstance(config, TrainedConfig)
    if options["dry_run"]:
        _dry_run(config, path, options["as_json"])
        return
    data = run_training(config, path, **opt.run_settings(options))
    if config.architecture is not None:
        _print(data, path, options["as_json"])
        return
    plain = {"run": str(path), "status": data.status, "epochs": len(data.training)}
    epochs = data.training[-1].epoch + 1
    line = f"trained for {epochs} epochs; use it with: nas search --supernet {path}"
    opt.answer(options["as_json"], plain, [line])


def _print(data: ReportData, path: Path, as_json: bool) -> None:
    from nas.cli.printing import result_lines
    from nas.workflows.reporting import summary

    opt.answer(as_json, summary(data, path), result_lines(data, path))


@cli.command()
@click.argument("name", metavar="NAME_OR_FILE")
@opt.option("--num-classes", type=opt.NUM_CLASSES, default=1000, show_default=True)
@opt.option("--device", metavar="NAME", help="Also show the latency measured on this device.")
@opt.latency_options
@opt.json_option
def show(name: str, num_classes: int, device: str | None, as_json: bool, **options: Any) -> None:
    """A network as a table: a known design, a YAML or JSON file, or an export's config.json."""
    from nas.cli.printing import network_lines
    from nas.workflows.show import describe
    from search_space import load_architecture

    conditions = opt.conditions_given(options)
    described = describe(load_architecture(name), num_classes, device, conditions)
    opt.answer(as_json, described, network_lines(described))


@cli.command()
@click.argument("run", type=opt.PATH)
@click.argument("digest", required=False)
@click.option("--output", type=opt.PATH, help="Folder (default: in the run).")
@opt.option("--opset", type=click.IntRange(*OPSETS), help="Of the ONNX file (default: the run's).")
@opt.json_option
@opt.quiet_option
def export(run: Path, digest: str | None, output: Path | None, **options: Any) -> None:
    """Export any evaluated architecture of a run with inherited weights, or the chosen one.

    DIGEST may be shortened. Without it, the chosen and fine-tuned network is exported again.
    """
    from dataclasses import asdict

    from nas.workflows.exporting import export_from_run

    exported = export_from_run(run, digest, output, opt.console(options), options["opset"])
    lines = (f"{item.path}\n  {item.load}" for item in exported)
    opt.answer(options["as_json"], [asdict(item) for item in exported], lines)


@cli.command()
@click.argument("run", type=opt.PATH)
def report(run: Path) -> None:
    """Write the report of a finished run again."""
    from nas.workflows.reporting import rebuild_report

    rebuild_report(run)
    click.echo(run / "report.html")


def _resolve(
    flags: dict[str, Any], options: dict[str, Any], *, with_budget: bool = True
) -> tuple[RunConfig, Path]:
    """Configuration and run directory, from the flags of a configuration and the other options."""
    from nas.resolving import resolve

    if "architecture" in flags:
        from search_space import load_architecture

        flags["architecture"] = load_architecture(flags["architecture"]).to_dict()
    name, file = options["name"], options["config"]
    say = None if options["quiet"] else lambda text: click.echo(text, err=True)
    config = None
    if name is None:
        config = resolve(flags, file, with_budget=with_budget, say=say)
        name = _default_name(config)
    check_run_name(name)
    path = Path(options["runs"]) / name
    if options["resume"]:
        from results.store import check_resumable

        check_resumable(path)
        if file is None and (path / "config.yaml").exists():
            # these options are compared with the run's own, not the defaults of today
            return resolve(flags, str(path / "config.yaml"), with_budget=with_budget), path
    return config or resolve(flags, file, with_budget=with_budget, say=say), path


def _default_name(config: RunConfig) -> str:
    space = config.space if isinstance(config.space, str) else config.space["name"]
    source = [] if config.data is None else [Path(config.data).name]
    if isinstance(config, TrainedConfig) and config.architecture is not None:
        from search_space import Architecture

        return f"{source[0]}-{Architecture.from_dict(config.architecture).digest}"
    parts = [*source, *([] if [space] == source else [space])]
    of_device = config.max.get("latency") or config.max.get(f"latency@{config.device}")
    budget = config.target_latency or config.target_throughput or of_device
    others = [f"{metric}-{limit}" for metric, limit in {**config.max, **config.min}.items()]
    limits = [budget] if budget else others
    parts += [config.device, *limits] if limits else ["supernet"]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(parts)).strip("-")


def _dry_run(config: RunConfig, path: Path, as_json: bool) -> None:
    import yaml

    from predictors.devices import find_device

    find_device(config.device, **config.latency.conditions())
    for metric in config.limits():
        if (device := device_of(metric)) is not None:
            find_device(device)
    if isinstance(config, TrainedConfig):
        from supernet.training.optimizer import check_optimizer

        check_optimizer(config.train)
        check_optimizer(config.finetune)
    space = config.search_space()
    plan = {
        "run": str(path),
        "exists": path.exists(),
        "space": facts(space),
        "config": config.to_dict(),
    }
    lines = (
        opt.run_line(path),
        f"space: {space.name}, {space.size:.2e} architectures",
        yaml.safe_dump(config.to_dict(), sort_keys=False).rstrip(),
    )
    opt.answer(as_json, plan, lines)


for command in (finetune, profile, devices, calibrate, scale, seed, proxies, spaces, zoo):
    cli.add_command(command)


def main() -> None:
    """Entry point: every error that a user can fix is one message, not a traceback."""
    # OpenMP's threads wait for each other by spinning, for milliseconds as libgomp has it: where
    # other work holds a core, the one that is waited for then gets none. Read when torch loads.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    endings.run(cli)


if __name__ == "__main__":
    main()
