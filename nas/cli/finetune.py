"""``nas finetune``: final candidates of a finished search, trained as trials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.cli import options as opt
from nas.workflows.finetune_config import FinetuneConfig
from search_space.names import check_run_name

if TYPE_CHECKING:
    from nas.workflows.finished_search import FinishedSearch
    from results.report.data import ReportData
    from supernet.cluster.trials import Trial


FLAGS = opt.FlagSet(FinetuneConfig, without=("search",))  # the search has its own


@click.command()
@click.argument("run", type=opt.PATH)
@opt.option(
    "--networks",
    metavar="chosen|front|DIGEST,…",
    help="What to train (default: the network that the search chose).",
)
@FLAGS
@click.option("--name", help="Name of the fine-tuning (default: the search's, and -finetuned).")
@opt.option("--runs", metavar="DIR", help="Folder of runs (default: the one that RUN is in).")
@click.option("--resume", is_flag=True, help="Continue the fine-tuning of this name.")
@click.option("--dry-run", is_flag=True, help="Show what would be done and stop.")
@opt.json_option
@opt.quiet_option
def finetune(run: Path, **options: Any) -> None:
    """Train networks of the finished search RUN on, and export the best.

    Learning rate, weight decay, regularisation and augmentation are searched around the search's
    own settings, which are tried first; trials that fall behind are stopped early.
    """
    from nas.workflows.finished_search import FinishedSearch, resolve_finetuning, stored_finetuning

    flags = {**FLAGS.take(options), "networks": options["networks"]}
    if options["name"] is not None:
        check_run_name(options["name"])
    source = FinishedSearch.open(run)
    folder = run.parent if options["runs"] is None else Path(options["runs"])
    name = options["name"] or f"{source.path.name}-finetuned"
    check_run_name(name)
    path = folder / name
    stored = stored_finetuning(path) if options["resume"] else None
    config = resolve_finetuning(source, flags, stored)
    if options["dry_run"]:
        _dry_run(config, source, path, options["as_json"])
        return
    from nas.workflows.finetuning import run_finetuning, summary

    data, trials = run_finetuning(config, source, path, **opt.run_settings(options))
    opt.answer(options["as_json"], summary(data, trials, path), _lines(data, trials, path))


def _dry_run(config: FinetuneConfig, source: FinishedSearch, path: Path, as_json: bool) -> None:
    from search_space.metrics import LATENCY, format_metric
    from supernet.training.hyperparameters import ranges

    evaluations = source.evaluations()
    networks = {digest: dict(evaluations[digest].metrics) for digest in config.networks}
    searched = {
        name: {"low": span.low, "recipe": span.recipe, "high": span.high, "log": span.log}
        for name, span in ranges(config.recipe).items()
    }
    plan = {
        "run": str(path),
        "exists": path.exists(),
        "networks": networks,
        "hyperparameters": searched,
        "config": config.to_dict(),
    }
    lines = [opt.run_line(path)]
    lines += [
        f"network {digest}: validation accuracy {metrics['accuracy']:.2%} inherited, "
        f"{format_metric(LATENCY, metrics[LATENCY])}"
        for digest, metrics in networks.items()
    ]
    lines.append(f"{config.trials} trials of {config.epochs} epochs, {config.workers} at a time")
    lines += [
        f"  {name:15} {span['low']:.4g} to {span['high']:.4g}, first {span['recipe']:.4g}"
        for name, span in searched.items()
    ]
    opt.answer(as_json, plan, lines)


def _lines(data: ReportData, trials: list[Trial], path: Path) -> Iterator[str]:
    """A line a trial, best first; then the chosen network as of a search."""
    from nas.cli.printing import result_lines

    names = list(dict.fromkeys(name for trial in trials for name in trial.hyperparameters))
    heads = [re.sub(r"_(rate|smoothing)$", "", name) for name in names]
    rows: list[list[object]] = [["trial", "network", "status", "epochs", "val. loss", *heads]]
    # no order among losses of different epochs: those trained to their end come first
    order = {"finished": 0, "stopped": 1}
    for trial in sorted(trials, key=lambda t: (order.get(t.status, 2), t.validation_loss)):
        figures = (f"{trial.hyperparameters[name]:.4g}" for name in names)
        known = (trial.number, trial.network, trial.status, len(trial.epochs))
        rows.append([*known, f"{trial.validation_loss:.4f}", *figures])
    yield from opt.columns(rows, left=(1, 2))
    yield from result_lines(data, path)
