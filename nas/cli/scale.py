"""``nas scale`` and ``nas seed``: families of networks from one seed, and seeds to start from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nas.cli import options as opt
from nas.cli.endings import this_command
from search_space.errors import UsageError
from search_space.units import parse_latency

if TYPE_CHECKING:
    from nas.workflows.scaling import ScaledFamily
    from predictors.proxies import ScoreSettings

score_options = opt.options(
    opt.option("--random-seed", type=opt.SEED, default=0, show_default=True),
    opt.count_option("--repeats", default=5, help="Fresh weights that each score is the mean of."),
    opt.count_option("--score-images", default=16, least=2, help="Images of each repeat."),
    opt.option(
        "--score-size", type=opt.image_sizes(32), help="Side of these images (the network's own)."
    ),
    opt.option(
        "--score-device", default="cpu", show_default=True, help="Where networks are scored."
    ),
)


@click.command()
@click.option("--seed", "seed_name", metavar="ARCH", help="A design or a file.")
@click.option(
    "--from",
    "parent",
    metavar="NAME|FOLDER",
    help="A trained network as the seed: members of contract keep its weights.",
)
@click.option(
    "--from-weights", metavar="FILE", help="Its weights, where timm shall not fetch them."
)
@click.option("--to", required=True, metavar="5M,10M", help="Budgets, with units.")
@click.option(
    "--by",
    default="params",
    show_default=True,
    metavar="METRIC",
    help="What the budgets limit: params, macs, activations or latency@DEVICE.",
)
@click.option(
    "--method",
    default="compound",
    show_default=True,
    metavar="NAME",
    help="as-vit, compound, fast, resnet-rs and deepmad grow the seed, contract shrinks it.",
)
@click.option(
    "--max-latency",
    multiple=True,
    metavar="5ms@a100",
    help="Keep every member within this latency; may be given for several devices.",
)
@opt.option("--device", metavar="NAME", help="Also show the members' latency on this device.")
@opt.latency_options
@opt.option("--num-classes", type=opt.NUM_CLASSES, default=1000, show_default=True)
@click.option("--interpolate", is_flag=True, help="Fill a measured table's gaps from its shapes.")
@click.option("--no-measure", is_flag=True, help="Do not measure members on this machine.")
@opt.count_option(
    "--planned-epochs", "epochs", default=300, help="Planned epochs of training (resnet-rs)."
)
@click.option(
    "--score",
    default="deepmad",
    show_default=True,
    metavar="PROXY",
    help="What contract keeps as much of as it can.",
)
@score_options
@click.option("--out", type=opt.PATH, help="Folder (default: in runs).")
@opt.json_option
@opt.quiet_option
def scale(**values: Any) -> None:
    """Scale one network into a family: a member for each budget.

    Writes a folder with a YAML file a member (nas show FILE), family.json and report.html. The
    same command again goes on where it was interrupted.
    """
    from search_space import load_architecture
    from search_space.metrics import LATENCY, MEMORY, metric_of_option, on_device

    _check_used(values["method"])
    _check_seed(values)
    metric = metric_of_option(values["by"], "table")
    if metric.name == LATENCY:
        raise UsageError(f"--by {values['by']!r} names no device; write it as in latency@a100.")
    if metric.name == MEMORY:
        raise UsageError("--by memory does not add up; give params, macs or activations.")
    budgets = tuple(map(metric.unit.parse, opt.listed("--to", values["to"])))
    limits: dict[str, float] = {}
    for text in values["max_latency"]:
        quantity, _, device = text.partition("@")
        milliseconds = parse_latency(quantity)
        if not device:
            raise UsageError(f"{text!r} names no device; write it as in {quantity}@a100.")
        if on_device(LATENCY, device) in limits:
            raise UsageError(f"--max-latency {text!r}: its device is there twice; give it once.")
        limits[on_device(LATENCY, device)] = milliseconds
    seed = None if values["seed_name"] is None else load_architecture(values["seed_name"])
    # here heavy packages load: everything that is quick to refuse has been refused
    from nas.workflows.scaling import ScaleRequest, scale_family
    from search.scaling.base import ScalingOptions
    from supernet.inherit.parents import find_parent

    parent = None
    if seed is None:
        parent = find_parent(values["parent"], values["from_weights"])
        seed, name = parent.architecture, Path(parent.name).name
    else:
        name = Path(values["seed_name"]).stem
    if name == "config":  # an export's, as all of them are called
        name = seed.digest
    options = ScalingOptions(
        score=_score_settings(values), epochs=values["epochs"], proxy=values["score"]
    )
    request = ScaleRequest(
        name=name,
        seed=seed,
        by=metric.name,
        budgets=budgets,
        limits=limits,
        folder=values["out"] or Path("runs") / _folder_name(name, values),
        options=options,
        conditions=opt.conditions_given(values),
        measure=not values["no_measure"],
        parent=parent,
        **{key: values[key] for key in ("method", "device", "num_classes", "interpolate")},
    )
    result = scale_family(request, this_command(), opt.console(values))
    opt.answer(values["as_json"], result.summary(), _family_lines(result))


@click.command()
@click.option(
    "--method",
    default="reinforce",
    show_default=True,
    metavar="NAME",
    help="reinforce (as published) or evolution.",
)
@opt.count_option("--steps", default=500, help="Proposals.")
@click.option(
    "--mixers",
    default="window_attention",
    show_default=True,
    metavar="A,B",
    help="Mixers to choose from in each stage, or all.",
)
@opt.option("--image-size", type=opt.image_sizes(), default=224, show_default=True)
@score_options
@click.option(
    "--out",
    type=opt.PATH,
    default=Path("seed.yaml"),
    show_default=True,
    help="File of the seed found.",
)
@opt.json_option
@opt.quiet_option
def seed(**values: Any) -> None:
    """Search a seed to scale from, without training: one block a stage, 32 channels wide.

    The same command again goes on where it was interrupted.
    """
    from nas.workflows.scaling import find_seed
    from search.seeds import SeedSpace
    from search_space import MIXERS

    everything = values["mixers"] == "all"
    mixers = MIXERS.names() if everything else opt.listed("--mixers", values["mixers"])
    space = SeedSpace(values["image_size"], tuple(mixers))
    result = find_seed(
        space,
        method=values["method"],
        steps=values["steps"],
        settings=_score_settings(values),
        output=values["out"],
        console=opt.console(values),
    )
    best = result.best
    scores = {k: v if isfinite(v) else None for k, v in best.scores.to_dict().items()}
    data = {
        "method": result.method,
        "steps": result.steps,
        "scored": len(result.seen),
        "digest": best.architecture.digest,
        **scores,
        "architecture": best.architecture.to_dict(),
        "file": str(values["out"]),
    }
    lines = (
        f"{best.architecture}, of {len(result.seen)} topologies scored",
        f"NTK condition number {best.scores.kappa:.4g}, expected length distortion "
        f"{best.scores.length:.4g}",
        f"{values['out']}: scale it with: nas scale --seed {values['out']} --to 5M,10M",
    )
    opt.answer(values["as_json"], data, lines)


# Methods that an option concerns; all others would ignore it.
_CONCERNS = {
    "epochs": ("resnet-rs",),
    "score": ("contract",),
    "parent": ("contract",),
    **dict.fromkeys(
        ("random_seed", "repeats", "score_images", "score_size", "score_device"),
        ("as-vit", "contract"),
    ),
}


def _check_used(method: str) -> None:
    """Refuses an option on the command line that ``method`` would ignore."""
    context = click.get_current_context()
    for parameter in context.command.params:
        methods = _CONCERNS.get(parameter.name or "")
        source = context.get_parameter_source(parameter.name or "")
        if methods and method not in methods and source is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"{parameter.opts[0]} does nothing with --method {method}, only with "
                f"{' and '.join(methods)}; leave it out."
            )


def _check_seed(values: dict[str, Any]) -> None:
    """Refuses anything but one seed, and what a trained one decides itself."""
    given, trained = values["seed_name"], values["parent"]
    if (given is None) == (trained is None):
        raise UsageError(
            "--seed names a network without weights, --from a trained one, and one of them is "
            f"needed: {'neither is' if given is None else 'both are'} given. Give one."
        )
    if values["from_weights"] is not None and trained is None:
        raise UsageError("--from-weights does nothing without --from; give that, or leave it out.")
    source = click.get_current_context().get_parameter_source("num_classes")
    if trained is not None and source is ParameterSource.COMMANDLINE:
        raise UsageError(
            f"--num-classes {values['num_classes']} does nothing with --from, whose members have "
            "the classes of the trained network; leave it out."
        )


def _score_settings(values: dict[str, Any]) -> ScoreSettings:
    from predictors.proxies import ScoreSettings

    opt.check_compute_device("--score-device", values["score_device"])
    return ScoreSettings(
        seed=values["random_seed"],
        repeats=values["repeats"],
        batch_size=values["score_images"],
        device=values["score_device"],
        image_size=values["score_size"],
    )


def _folder_name(seed_name: str, values: dict[str, Any]) -> str:
    """From all that most commands differ in."""
    parts = [seed_name, values["method"], values["by"], values["to"], *values["max_latency"]]
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("-")


def _family_lines(result: ScaledFamily) -> Iterator[str]:
    """A line a member, and where the files are."""
    from search_space.metrics import LATENCY, format_metric, title_of

    family = result.family
    metrics = list(family.path[0].costs)
    heads = [title_of(metric) for metric in metrics]
    heads += [f"measured on {device}" for device in result.measured_ms]
    rows = [["member", "digest", *heads, "px", "width×depth"]]
    for member in family.members:
        cells = [format_metric(metric, member.costs[metric]) for metric in metrics]
        cells += [format_metric(LATENCY, of[member.name]) for of in result.measured_ms.values()]
        architecture = member.architecture
        shape = ", ".join(f"{s.width}×{s.depth}" for s in architecture.stages)
        rows.append([member.name, architecture.digest, *cells, str(architecture.resolution), shape])
    yield from opt.columns(rows, left=(1, -1))
    for device, facts in result.latencies.items():
        yield f"\nlatency on {device}: " + "; ".join(f"{k} {v}" for k, v in facts.items())
    for note in family.notes:
        yield f"\nnote: {note}"
    if result.exports:
        folder = next(iter(result.exports.values()))
        yield f"\nweights: a folder a member; train one on images with: nas search --from {folder}"
    yield f"\n{len(family.path) - 1} steps; report: {result.folder / 'report.html'}"
