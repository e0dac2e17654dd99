"""What do the training-free methods design at Swin-T's and ConvNeXt-T's size, and at what cost?

For each of the two, within its parameters and MACs, and within its estimated latency on an A100:
the search by the ``combined`` score, as ``nas search`` does it and with far more effort; DeepMAD's
score, maximised exactly; a seed of a quarter of the size scaled up to the reference's parameters
(or latency) by every method that runs no network; and the next larger design contracted down to it.
Each design is costed on every GPU with a datasheet. Beside them stands what the same methods design
in the other preset, or without the rules that keep the search inside what was ever tested.

    python benchmarks/designs.py

Takes a few minutes and trains nothing. Writes ``benchmarks/results/designs.json`` and
``docs/designs.html``. The judgements below are an engineer's, of the digests that stand beside
them; where a design has changed since, the page says that its sentence is of an earlier one.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from predictors.additive import AdditiveTable
from predictors.counts import counts
from predictors.latency.anchors import constants, expected_error
from predictors.latency.catalog import find_device
from predictors.latency.datasheets import datasheet
from predictors.latency.estimate import estimate_entry
from predictors.latency.operators import operators
from predictors.proxies.combined import combined_score
from predictors.proxies.deepmad import effectiveness_of_ends
from predictors.proxies.space_tables import SpaceScores, architecture_ends, score_architecture
from results.charts import format_metric, metric_title
from results.designs_page import (
    Aside,
    Case,
    Design,
    DesignsPage,
    Finding,
    TextTable,
    shape_text,
    write_designs_page,
)
from search import Constraint, Objective, Problem
from search.closed_form import scored_front
from search.exact import optimise
from search.problem import Table
from search.scaling.base import Family, ScalingOptions, ScalingTask, scaling_method
from search.scaling.cost import NetworkCosts
from search.scaling.quantities import latency_metric
from search.shape import SHAPE, ShapeRule
from search_space import (
    Architecture,
    Block,
    Genes,
    Mixer,
    SearchSpace,
    Stage,
    components,
    known,
    load_space,
)
from search_space.known import known_names

HERE = Path(__file__).parent
OUT, PAGE = HERE / "results" / "designs.json", HERE.parent / "docs" / "designs.html"
ACCURACIES = HERE / "data" / "imagenet_accuracy.csv"

BUDGET_DEVICE = "a100"
DEVICES = ("h200", "h100", "a100", "rtx4090", "rtx3090", "t4", "l4", "orin")  # fastest first
MAX_EFFECTIVENESS = 0.5
SCALED = (
    ("compound", "scaled, compound"),
    ("fast", "scaled, fast"),
    ("resnet-rs", "scaled, resnet-rs"),
    ("deepmad", "scaled, deepmad"),
    ("contract", "contract"),
)
LONG = {"seeds": 3, "generations": 450}  # of the long evolution; the other has nas search's own
ASIDE = {"seeds": 1, "generations": 300}


@dataclass(frozen=True)
class Reference:
    """A known design, and what is needed to arrive at its size.

    Args:
        name, title: of the design.
        space: the smaller preset that has its widths and depths; ``other`` is the other one.
        seed_widths, seed_depths: of the small seed, made by hand; seed_words says how.
        larger: the next larger design of the family.
    """

    name: str
    title: str
    space: str
    other: str
    seed_widths: tuple[int, ...]
    seed_depths: tuple[int, ...]
    seed_words: str
    larger: str

    def seed(self) -> Architecture:
        design = known(self.name)
        stages = zip(design.stages, self.seed_widths, self.seed_depths, strict=True)
        return replace(
            design, stages=tuple(Stage(w, stage.blocks[:depth]) for stage, w, depth in stages)
        )


REFERENCES = (
    Reference(
        name="swin_t",
        title="Swin-T",
        space="tiny",
        other="base",
        seed_widths=(64, 128, 256, 512),
        seed_depths=(1, 1, 3, 1),
        seed_words="two thirds of its widths, half of its blocks",
        larger="swin_s",
    ),
    Reference(
        name="convnext_t",
        title="ConvNeXt-T",
        space="base",
        other="tiny",
        seed_widths=(72, 144, 288, 576),
        seed_depths=(1, 1, 3, 1),
        seed_words="three quarters of its widths, a third of its blocks",
        larger="convnext_s",
    ),
)


# Judgements, each with the digest of the design that it was written about ------------------------

JUDGED_ON = "2026-11-21"
FINDINGS: tuple[tuple[str, str], ...] = ()
NOTES: tuple[str, ...] = ()
JUDGEMENTS: dict[str, dict[str, tuple[str, str]]] = {
    "swin_t-counts": {},
    "swin_t-latency": {},
    "convnext_t-counts": {},
    "convnext_t-latency": {},
}
ASIDE_NOTES = dict.fromkeys(JUDGEMENTS, "")


# Costs and scores ---------------------------------------------------------------------------------


class Yardstick:
    """Everything that is known of an architecture without training, from datasheets alone."""

    def __init__(self) -> None:
        # an empty folder: neither tables nor calibrations of this machine change the figures
        folder = Path(tempfile.mkdtemp(prefix="designs-"))
        self.targets = {name: find_device(name, folder=folder) for name in DEVICES}
        self.costs = NetworkCosts(list(self.targets.values()))

    def figures(self, architecture: Architecture) -> dict[str, Any]:
        """Counts, scores, ρ by stage and latencies, in plain form."""
        costs = self.costs(architecture)
        ends = architecture_ends(architecture)
        conditions = self.targets[BUDGET_DEVICE].conditions
        launched = sum(
            len(operators(p.spec, p.in_size, conditions.batch_size, conditions.precision))
            for p in components(architecture, self.costs.num_classes)
        )
        return {
            "digest": architecture.digest,
            "resolution": architecture.resolution,
            "widths": list(architecture.widths),
            "depths": list(architecture.depths),
            "num_params": costs["num_params"],
            "macs": costs["macs"],
            "activations": costs["activations"],
            "launches": launched,
            "layers": ends[-1].layers,
            "combined": score_architecture("combined", architecture),
            "deepmad": score_architecture("deepmad", architecture),
            "effectiveness": effectiveness_of_ends(ends),
            "effectiveness_by_stage": [effectiveness_of_ends([end]) for end in ends],
            "latency_ms": {name: costs[latency_metric(name)] for name in DEVICES},
        }

    def by_component(self, architecture: Architecture) -> dict[str, float]:
        """Milliseconds of each component on the budget's device."""
        conditions = self.targets[BUDGET_DEVICE].conditions
        return {
            part.path: estimate_entry(conditions, (part.spec, part.in_size)).latency_ms
            for part in components(architecture, self.costs.num_classes)
        }


class Preset:
    """A space with its tables and scores."""

    def __init__(self, space: SearchSpace, yardstick: Yardstick) -> None:
        self.space = space
        metric = latency_metric(BUDGET_DEVICE)
        self.tables: dict[str, AdditiveTable] = {
            **counts(space),
            metric: yardstick.costs.table(metric, space),
        }
        self.scores = SpaceScores.build(space, self.tables)
        self.rule = ShapeRule(space)

    @property
    def can_break_rule(self) -> bool:
        """Whether the space has an architecture that breaks the rule on shapes."""
        return bool(self.rule.predict(self.rule.argmax()[None])[0] > 0)

    def effectiveness_at_end(self, genes: Genes) -> np.ndarray:
        """ρ after the last stage, shape (n, genes) to (n,)."""
        paths = self.scores.paths
        entropy = paths.entropy.stage_sums(genes).sum(axis=1)
        layers = paths.layers.stage_sums(genes).sum(axis=1)
        return np.asarray(layers * np.exp(-2 * entropy / layers))

    def evolved(
        self,
        limits: dict[str, float],
        *,
        seeds: int = 1,
        generations: int = 150,
        shape_rule: bool = True,
        latency: bool = False,
        at_end: bool = False,
    ) -> tuple[Architecture, list[float]]:
        """The best by the combined score, and the best score of each run.

        ``latency`` is a second objective in ``nas search``; a search that wants the best alone
        does better without it. With ``at_end`` the score takes ρ after the last stage, not the
        largest of all stages.
        """
        rules: dict[str, Table] = {SHAPE: self.rule} if shape_rule else {}
        objectives = [Objective("score", "maximize")]
        if latency:
            objectives.append(Objective(latency_metric(BUDGET_DEVICE), "minimize"))
        problem = Problem(
            self.space,
            tuple(objectives),
            tuple(
                Constraint(m, maximum=most)
                for m, most in (limits | dict.fromkeys(rules, 0.0)).items()
            ),
            {**self.tables, **rules},
            evaluated=("score",),
        )

        def score(genes: Genes) -> np.ndarray:
            if at_end:
                macs, activations = (self.tables[m].predict(genes) for m in ("macs", "activations"))
                return combined_score(macs, activations, self.effectiveness_at_end(genes))
            return self.scores.predict("combined", genes)

        found: list[tuple[float, Genes]] = []
        for seed in range(seeds):
            front = scored_front(problem, score, seed=seed, generations=generations, sample=0)
            best = int(front.objectives[:, 0].argmin())
            found.append((-float(front.objectives[best, 0]), front.genes[best]))
        row = max(found, key=lambda pair: pair[0])[1]
        return self.space.decode(row[None])[0], [value for value, _ in found]

    def optimal(
        self,
        limits: dict[str, float],
        *,
        effectiveness: float | None = MAX_EFFECTIVENESS,
        shape_rule: bool = True,
    ) -> tuple[Architecture, str]:
        """The best by DeepMAD's score, and what is proven of it."""
        optimum = optimise(
            self.space,
            self.scores.paths,
            [Constraint(metric, maximum=most) for metric, most in limits.items()],
            self.tables,
            paths=self.scores.paths,
            effectiveness=effectiveness,
            shape_rule=shape_rule,
        )
        proof = (
            f"proven within {optimum.proof.gap:.2%} of the largest score of "
            f"{self.space.size:.1e} architectures"
        )
        return self.space.decode(optimum.genes[None])[0], proof


# The designs of a case ----------------------------------------------------------------------------


@dataclass
class Made:
    """A design as a method made it."""

    key: str
    title: str
    how: str
    architecture: Architecture
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)


def designs(
    reference: Reference, preset: Preset, yardstick: Yardstick, limits: dict[str, float], by: str
) -> Iterator[Made]:
    """What every method makes of a budget, the reference first."""
    own = known(reference.name)
    name, space = reference.title, preset.space.name
    yield Made("reference", name, "The reference, as published.", own)

    def timed(make: Callable[[], tuple[Architecture, Any]]) -> tuple[Architecture, Any, float]:
        begin = time.monotonic()
        architecture, extra = make()
        return architecture, extra, time.monotonic() - begin

    found, runs, seconds = timed(lambda: preset.evolved(limits, latency=True))
    yield Made(
        "combined",
        "combined score",
        f"Evolution over {space} as nas search does it: 512 × 150, score and latency, seed 0.",
        found,
        seconds,
        {"best_of_runs": runs},
    )
    found, runs, seconds = timed(lambda: preset.evolved(limits, **LONG))
    yield Made(
        "combined_long",
        "combined score, searched longer",
        f"The same for the score alone, the best of {LONG['seeds']} runs of 512 × "
        f"{LONG['generations']}; they reached {', '.join(f'{run:.3f}' for run in runs)}.",
        found,
        seconds,
        {"best_of_runs": runs},
    )
    found, proof, seconds = timed(lambda: preset.optimal(limits))
    yield Made(
        "deepmad",
        "DeepMAD, exact",
        f"Integer programming over {space} with ρ ≤ {MAX_EFFECTIVENESS}: {proof}.",
        found,
        seconds,
    )
    for method, title in SCALED:
        begin = time.monotonic()
        family = scaled(reference, method, {by: limits[by]}, by, yardstick)
        what = f"Down from {reference.larger}" if method == "contract" else "Up from the seed"
        steps = family.members[0].index
        yield Made(
            f"scale_{method}",
            title,
            f"{what} in {steps} step{'s' if steps != 1 else ''}. {family.rule}",
            family.members[0].architecture,
            time.monotonic() - begin,
        )


def scaled(
    reference: Reference,
    method: str,
    limits: dict[str, float],
    by: str,
    yardstick: Yardstick,
) -> Family:
    """The family with one member, from the seed or from the larger design."""
    task = ScalingTask(
        seed=known(reference.larger) if method == "contract" else reference.seed(),
        by=by,
        budgets=(limits[by],),
        limits={metric: most for metric, most in limits.items() if metric != by},
        costs=yardstick.costs,
    )
    return scaling_method(method).from_options(ScalingOptions()).scale(task)


def asides(
    reference: Reference,
    presets: dict[str, Preset],
    limits: dict[str, float],
    by: str,
    yardstick: Yardstick,
) -> Iterator[tuple[str, str, Architecture]]:
    """What the space and the rules decided: method, what was changed, the design."""
    preset, other = presets[reference.space], presets[reference.other]
    own, combined, deepmad = preset.space.name, "combined", "DeepMAD"
    yield combined, f"space {other.space.name}", other.evolved(limits, **ASIDE)[0]
    if max(preset.space.resolutions) > 224:
        at_224 = Preset(replace(preset.space, resolutions=(224,)), yardstick)
        yield combined, f"{own} at 224 px only", at_224.evolved(limits, **ASIDE)[0]
    if preset.can_break_rule:
        found, _ = preset.evolved(limits, shape_rule=False, **ASIDE)
        yield combined, f"{own} without the rule on shapes", found
    found, _ = preset.evolved(limits, at_end=True, **ASIDE)
    yield combined, f"{own}, with ρ taken after the last stage", found
    yield deepmad, f"space {other.space.name}", other.optimal(limits)[0]
    if preset.can_break_rule:
        yield (
            deepmad,
            f"{own} without the rule on shapes",
            preset.optimal(limits, shape_rule=False)[0],
        )
    yield deepmad, f"{own} without the bound on ρ", preset.optimal(limits, effectiveness=None)[0]
    if "macs" in limits:
        for method, name in SCALED:
            family = scaled(reference, method, limits, by, yardstick)
            yield name, "MACs held too", family.members[0].architecture


# Figures ------------------------------------------------------------------------------------------


def cases(yardstick: Yardstick) -> Iterator[dict[str, Any]]:
    """Every reference under every budget: designs and asides with their figures."""
    presets = {name: Preset(load_space(name), yardstick) for name in ("tiny", "base")}
    metric = latency_metric(BUDGET_DEVICE)
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
        block = Block(Mixer.of(name, **params), 4.0)
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
            "overhead_ms": constants(target.runtime, target.precision).overhead_ms,
            "expected_error": max(
                expected_error(
                    datasheet(name), target.runtime, target.precision, "window_attention"
                ).error
                for name in DEVICES
            ),
        },
        "cases": found,
        "seeds": {r.name: yardstick.figures(r.seed()) for r in REFERENCES},
        "known": {name: yardstick.figures(known(name)) for name in known_names()},
        "top1": published(),
        "mixers": mixers(yardstick),
        "device_agreement": device_agreement(found),
        "seconds": round(time.monotonic() - begin),
    }


# The page -----------------------------------------------------------------------------------------


def page(stored: dict[str, Any]) -> DesignsPage:
    """Figures and judgements together."""
    titles = {reference.name: reference.title for reference in REFERENCES}
    conditions = stored["conditions"]
    return DesignsPage(
        title="What the training-free methods design",
        question="At Swin-T’s and ConvNeXt-T’s counts or latency, what do the training-free "
        "methods design, and what does each cost on the devices known?",
        findings=[Finding(title=title, text=text) for title, text in FINDINGS],
        judged_on=JUDGED_ON,
        notes=NOTES,
        cases=[_case(stored, case, titles[case["reference"]]) for case in stored["cases"]],
        devices=DEVICES,
        budget_device=BUDGET_DEVICE,
        yardsticks=[_known_table(stored), _mixer_table(stored), _agreement_table(stored, titles)],
        summary={
            "references": ", ".join(titles.values()),
            "classes": conditions["num_classes"],
            "latencies": f"estimated, {conditions['runtime']} {conditions['precision']}, batch "
            f"{conditions['batch_size']}, ±{conditions['expected_error']:.0%}",
        },
        facts={
            "took": f"{stored['seconds']} s on two shared CPU cores",
            "latency of a launch": f"{1e3 * conditions['overhead_ms']:.1f} µs in every estimate",
            **{
                f"seed of {titles[name]}": f"{figures['digest']}, {shape_text(figures)}, "
                f"{format_metric('num_params', figures['num_params'])} parameters"
                for name, figures in stored["seeds"].items()
            },
        },
        command="python benchmarks/designs.py",
        created=stored["created"],
    )


def _case(stored: dict[str, Any], case: dict[str, Any], title: str) -> Case:
    reference = next(r for r in REFERENCES if r.name == case["reference"])
    words = {
        "counts": f"{title}, by counts",
        "latency": f"{title}, by latency on {BUDGET_DEVICE}",
    }
    limits = " and ".join(
        f"{format_metric(metric.partition('@')[0], limit)} "
        f"{'on ' + BUDGET_DEVICE if '@' in metric else metric_title(metric)}"
        for metric, limit in case["limits"].items()
    )
    grown = "parameters alone" if case["variant"] == "counts" else "that latency"
    seed = stored["seeds"][reference.name]
    judged = JUDGEMENTS[case["key"]]
    return Case(
        key=case["key"],
        title=words[case["variant"]],
        lead=f"The budget is {title}’s own: {limits}. Searches are over the preset "
        f"{case['space']}, the smaller one that has {title}’s widths and depths. Families grow to "
        f"{grown} from a seed with {reference.seed_words} "
        f"({format_metric('num_params', seed['num_params'])} parameters), or shrink from "
        f"{reference.larger}.",
        limits=case["limits"],
        designs=[
            Design(
                key=row["key"],
                title=row["title"],
                how=row["how"],
                architecture=row["architecture"],
                figures=row["figures"],
                component_latency_ms=row["component_latency_ms"],
                judged=judged.get(row["key"], ("", ""))[0],
                judgement=judged.get(row["key"], ("", ""))[1],
            )
            for row in case["designs"]
        ],
        asides=[
            Aside(score=aside["score"], changed=aside["changed"], figures=aside["figures"])
            for aside in case["asides"]
        ],
        asides_note=ASIDE_NOTES[case["key"]],
    )


def _score_cells(figures: dict[str, Any]) -> list[str]:
    return [
        format_metric("score", figures["combined"]),
        format_metric("score", figures["deepmad"]),
        " ".join(f"{rho:.2f}" for rho in figures["effectiveness_by_stage"]),
        format_metric("latency_ms", figures["latency_ms"][BUDGET_DEVICE]),
    ]


def _known_table(stored: dict[str, Any]) -> TextTable:
    counted = ("num_params", "macs", "activations")
    rows = [
        [
            name,
            *(format_metric(metric, figures[metric]) for metric in counted),
            *_score_cells(figures),
            f"{stored['top1'][name]:.1f}\u00a0%" if name in stored["top1"] else "–",
        ]
        for name, figures in stored["known"].items()
    ]
    return TextTable(
        caption="Known designs by the same scores, with their top-1 accuracy on ImageNet as "
        "published with timm.",
        columns=[
            "design",
            *(metric_title(metric) for metric in counted),
            "combined",
            "DeepMAD",
            "ρ after each stage",
            f"latency, {BUDGET_DEVICE}",
            "top-1",
        ],
        rows=rows,
    )


def _mixer_table(stored: dict[str, Any]) -> TextTable:
    rows = []
    for row in stored["mixers"]:
        figures = row["figures"]
        settings = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in row["params"].items())
        rows.append(
            [
                f"{row['mixer'].replace('_', ' ')} ({settings})",
                format_metric("macs", figures["macs"]),
                format_metric("activations", figures["activations"]),
                str(figures["layers"]),
                str(figures["launches"]),
                *_score_cells(figures),
            ]
        )
    return TextTable(
        caption="What a mixer counts for: Swin-T’s widths and depths with one mixer in all blocks. "
        "Layers are those on the longest path, where a depthwise convolution counts as one that "
        "is only k² wide.",
        columns=[
            "mixer",
            "MACs",
            "activations",
            "layers",
            "kernels launched",
            "combined",
            "DeepMAD",
            "ρ after each stage",
            f"latency, {BUDGET_DEVICE}",
        ],
        rows=rows,
    )


def _agreement_table(stored: dict[str, Any], titles: dict[str, str]) -> TextTable:
    names = {
        case["key"]: f"{titles[case['reference']]}, by {case['variant']}"
        for case in stored["cases"]
    }
    return TextTable(
        caption=f"Do the devices order the nine designs of a case alike? Kendall’s τ with the "
        f"order on {BUDGET_DEVICE}; where latency is the budget, several designs are equally fast "
        "there by construction.",
        columns=["case", *DEVICES],
        rows=[
            [names[key], *(f"{row[device]:.2f}" for device in DEVICES)]
            for key, row in stored["device_agreement"].items()
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--page-only", action="store_true", help="Only write the page again.")
    if parser.parse_args().page_only:
        stored = json.loads(OUT.read_text("utf-8"))
    else:
        stored = measured()
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(
            json.dumps(stored, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8"
        )
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    write_designs_page(PAGE, page(stored))
    print(f"written to {OUT} and {PAGE}; {stored['seconds']} s")


if __name__ == "__main__":
    main()
