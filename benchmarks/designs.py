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
from predictors.proxies.deepmad import effectiveness_of_ends
from predictors.proxies.space_tables import SpaceScores, architecture_ends, score_architecture
from results.charts import format_metric, metric_title, thousands
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


@dataclass(frozen=True)
class Effort:
    """Runs of an evolution, and the generations of each."""

    seeds: int = 1
    generations: int = 150


NAS_SEARCH, LONG, SHORT = Effort(), Effort(3, 450), Effort(1, 300)


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
FINDINGS = (
    (
        "By counts the default score designs deeper FocalNets.",
        "At Swin-T’s 4.5 G MACs it puts focal modulation into most blocks or all, with wide MLPs "
        "and depths at the ceiling of the space; at ConvNeXt-T’s, 25 blocks of mixed "
        "kinds at 256 px. On the A100 that is estimated at 1.7 to 2.0 times Swin-T’s latency and "
        "2.9 to 3.7 times ConvNeXt-T’s.",
    ),
    (
        "It chooses mixers by how many narrow layers they chain.",
        "In Swin-T’s shape the score runs from −1.28 (pooling) over −0.42 (windows) to 0.40 (focal "
        "modulation), and a 3×3 depthwise kernel is worth more than a 7×7 one, because a depthwise "
        "layer is k² wide and ρ is depth over width. Between published networks of this size such "
        "a difference means little: ConvNeXt-T and FocalNet-T (LRF) are 0.66 apart by score and "
        "0.1 points by accuracy.",
    ),
    (
        "Its figures leave what they were checked on.",
        "The best design at ConvNeXt-T’s counts scores 0.99, between FocalNet-S (SRF) at 0.92 and "
        "FocalNet-S (LRF) at 1.09 (83.4 and 83.5 % top-1), with half of their MACs and a quarter "
        "of their parameters. Parameters are in no part of the score, so the dear last stage "
        "shrinks: 12 to 24 M of 28 M are used.",
    ),
    (
        "The score takes ρ of the whole network, since a narrow first stage gamed the largest.",
        "DeepMAD takes the largest ρ of those after each stage. The 20 known designs hardly tell "
        "the two apart: the largest comes in the third or last stage, at most 1.4 % above the "
        "last. A search did: within Swin-T’s latency, by the score of an earlier edition of this "
        "page, a first stage of 32 channels with three gnConv blocks stood for the network with "
        "0.77, which ended at 0.37. Now ρ grows from stage to stage within both latencies, and "
        "the first stage has 96 or 128 channels. Early activations still pay: at ConvNeXt-T’s "
        "latency half of the ten blocks come before the third stage.",
    ),
    (
        "DeepMAD’s optimum is sensible once and extreme otherwise.",
        "At Swin-T’s counts it is Swin-T’s widths with 3-3-6-3 blocks of gnConv, in effect a small "
        "HorNet, at 1.28 times the latency: the design of this page most worth training. In base "
        "it gives up pixels (192 px) for 18 blocks. Within a latency it saves on all that the "
        "score does not count: MLPs of ×2, a third to a half fewer MACs, and at ConvNeXt-T’s "
        "latency one stage of 18 blocks between stages of one.",
    ),
    (
        "Scaling to a number of parameters is not scaling to a size.",
        "Compound scaling takes 3.4 to 3.5 times the MACs of the reference (416 px), deepmad 1.7 "
        "to 2.6 times, with deep early stages where parameters are cheap. Held to the MACs too, "
        "compound ends with 10 to 12 M parameters; deepmad and contract use up both budgets at "
        "Swin-T’s counts, contract nearly so at ConvNeXt-T’s.",
    ),
    (
        "A latency on an A100 at batch 1 is a budget of kernels.",
        "By the estimate, launches are 78 % of Swin-T’s latency there and 26 % on orin. So fast "
        "scaling may take 27 G MACs and 135 M parameters within ConvNeXt-T’s latency, and contract "
        "ends at 1.4 G. On orin these two differ by a factor of 3.8.",
    ),
    (
        "The large GPUs agree on the order; small devices do not.",
        "At Swin-T’s counts H200, H100 and A100 order the nine designs alike, while the order on "
        "L4 and orin has a Kendall τ of 0.61 with theirs. All of it comes from compute and "
        "bandwidth, since the estimates charge every device the same for a launch.",
    ),
    (
        "By counts the default evolution stops early.",
        "Nine times its effort, without the second objective, gains 0.08 to 0.09 of the score over "
        "nas search’s own run by counts, and 0.02 or nothing within a latency. In base by counts "
        "even such long runs end anywhere from 0.89 to 0.99, and the default’s design has ten "
        "kinds of block in one stage: where a search happened to stand, not design.",
    ),
    (
        "The ceilings of the presets shape more than the rules do.",
        "The rule on shapes changed two designs of eight, both by the combined score (a last stage "
        "of 320 behind one of 384, a second of 64 behind one of 96), and cannot be broken in base "
        "at all. The bound on ρ decided both of DeepMAD’s designs by "
        "counts and neither of those by latency. Where counts were the budget, all stages but the "
        "last have as many blocks as the preset offers.",
    ),
)
NOTES = (
    "Nothing here was trained. The sentences judge shapes by what is known to work; which design "
    "is the most accurate, nobody knows.",
    "Every latency is an estimate from datasheets with an expected error of 60 %: fp16, batch 1, "
    "CUDA graphs, PyTorch’s kernels counted one by one, 4.9 µs a launch on every device. Ratios of "
    "designs of different mixers below about 1.6 prove nothing. nas search would stay below a "
    "budget by that error; here it does not, since the budget is an estimate of the same kind.",
    "as-vit is left out: it runs networks to score them and takes many minutes.",
    "Families are grown from seeds that were made by hand; other seeds give other families. Where "
    "a stage has one block of windows, they are never shifted, and growth cannot mend that "
    "before the stage has two.",
    "An exact optimum says how many blocks of each kind a stage has, not their order: lighter ones "
    "are put first.",
)
JUDGEMENTS: dict[str, dict[str, tuple[str, str]]] = {
    "swin_t-counts": {
        "combined": (
            "51a370323996",
            "A FocalNet-T with a third block in the first two stages; doubling widths and wide "
            "MLPs are sensible. Odd are three stray blocks, a gnConv in the first stage and a 3×3 "
            "depthwise one in each of the last two: the search had not ended. 9 M of the "
            "parameters stay unused, which the score does not see.",
        ),
        "combined_long": (
            "604e3fbf561a",
            "All three runs end at this score, so this is what the score wants: three-level focal "
            "modulation everywhere and all depths at the ceiling, six of 15 blocks before the "
            "third stage. One mixer throughout is at least a network that people know how to "
            "train. 402 kernels against Swin-T’s 184 make it twice as slow.",
        ),
        "deepmad": (
            "5393e0bae700",
            "The one to train: Swin-T’s widths, a block more in three stages, gnConv throughout, "
            "and the MACs for it taken from the MLPs. That these get narrower with depth, ×4 to "
            "×2, is odd, and front-loaded. ρ stands at its bound of 0.50; without the bound this "
            "would be focal modulation everywhere too.",
        ),
        "scale_compound": (
            "6143fa65d359",
            "Swin-T’s very shape at 416 px, with 3.5 times its MACs: a good network for another "
            "budget. Widths in steps of 32, as heads need, leave no finer way; the windows of 7 "
            "fit none of its maps (104, 52, 26 and 13 positions) without padding.",
        ),
        "scale_fast": (
            "028515d58b98",
            "Wide and shallow as its rule says: seven blocks, fewer than any known design has. "
            "Few kernels make it the fastest on the large GPUs, and no faster than Swin-T from the "
            "T4 down. With one block of windows in three stages nothing is shifted there, which a "
            "Swin cannot do without.",
        ),
        "scale_resnet-rs": (
            "6e852814082e",
            "The seed’s narrow widths and more than twice Swin-T’s blocks, 4-4-13-4: usual "
            "proportions, slim and long. Sensible for long training, which the rule is made for; "
            "439 kernels make it one of the slowest here.",
        ),
        "scale_deepmad": (
            "6caa49306634",
            "Front-loaded: six blocks of 160 channels on the largest maps, and widths that hardly "
            "grow (160-192-256). Parameters are cheap there and nothing else was counted, so it "
            "takes 2.6 times the MACs and 3.3 times the activations. With MACs held it is "
            "64-128-256-512 × 1-6-16-4.",
        ),
        "scale_contract": (
            "bf8f3a0c018c",
            "Swin-S’s 24 blocks, with the third stage narrowed to 256 and the MLPs of the last to "
            "×2.5. The step from 256 to 768 looks odd and comes from the weight of 8 that the "
            "score gives the last stage; the rest is a plausible slim Swin-S, 12 % above the MACs.",
        ),
    },
    "swin_t-latency": {
        "combined": (
            "868350c42368",
            "Plausible in front, Swin-T’s widths with gnConv, and 3 to 5 % faster than Swin-T on "
            "every device. But the last stage is three 3×3 depthwise blocks of 512 channels with "
            "MLP ×2, and half of the parameters are unused; the longer search takes 768 there, "
            "with MLP ×4. Odd too are two stray blocks of other kinds.",
        ),
        "combined_long": (
            "20d28bb48b55",
            "Plausible: Swin-T’s widths with a block more in three stages, mostly gnConv and focal "
            "modulation in front, plain depthwise blocks with MLP ×4 behind, within 6 % of Swin-T "
            "on every device. Odd are the 3×3 kernels, chosen because a smaller kernel counts as "
            "a narrower layer, and the order: hybrids put plain convolutions in front.",
        ),
        "deepmad": (
            "daf4182e39d4",
            "Plausible in shape: 3-3-6-3, depthwise in front and gnConv behind. But nearly all "
            "MLPs are ×2 and only 3.0 G MACs are left, since a launch costs the same whatever it "
            "computes and the score counts layers. Neither rule touched it.",
        ),
        "scale_compound": (
            "3e14b03748f6",
            "A quarter of the budget is unused: the next step would add a block to every stage "
            "at once. What is left is the seed, wider, at 320 px, with unshifted windows in "
            "three stages: too shallow for its pixels.",
        ),
        "scale_fast": (
            "0aed7fc6463b",
            "Seven blocks of up to 1472 channels: 62 M parameters and 13 G MACs at Swin-T’s "
            "latency on an A100, and 1.5 to 1.7 times its latency from the T4 down. The rule at "
            "its purest; the flaw of unshifted windows remains.",
        ),
        "scale_resnet-rs": (
            "85b36023c9e3",
            "Swin-T at two thirds of its widths with a block less: nothing odd, nothing gained. "
            "16 % of the budget is unused. Narrow layers launch as many kernels as wide ones, so "
            "on this device the slimness is for nothing.",
        ),
        "scale_deepmad": (
            "e8d5d5fb8f35",
            "Odd: 64-192-288-960 × 1-1-9-2, widths in steps of 3, 1.5 and 3.3. The weight of 8 on "
            "the last stage buys its 960 channels; two stages of one block of windows are what "
            "pays for the nine in the third.",
        ),
        "scale_contract": (
            "1a1cf2f22967",
            "It took away nearly all that is no layer: MLPs of ×1 and ×1.5, 32 and 64 channels "
            "and one block each in front. Narrower layers save almost nothing on an A100, so it "
            "had to go on until 2.0 of 8.8 G MACs were left. Not to be trained.",
        ),
    },
    "convnext_t-counts": {
        "combined": (
            "3349f3e115c5",
            "As many pixels and blocks as the space has, on slim widths; the last stage is one "
            "3×3 depthwise block of 512. The third has ten kinds of block in 18, in no order: the "
            "score hardly tells them apart and the search had not ended. ρ is above the cap, where "
            "more counts for nothing. Less than half of the parameters are used.",
        ),
        "combined_long": (
            "2a58454f0c4a",
            "The same, tidied: focal modulation, windows of 14 and gnConv, nearly all with MLP ×2, "
            "ρ at the cap of 1.32, then activations, 2.7 times ConvNeXt-T’s, from 256 px. A last "
            "stage of one 3×3 depthwise block is no stage. 571 kernels: the slowest of the page "
            "against its reference. Its score is not credible at 12.5 M parameters.",
        ),
        "deepmad": (
            "4c9732256199",
            "Trades pixels for depth: 192 px and 18 blocks, all parameters used. The front is wide "
            "(128, 256) and its first block is pooling because both lower ρ, which stands at its "
            "bound. MLPs of ×2 nearly everywhere and gnConv mixed with windows look like "
            "bookkeeping; 487 kernels make it 3 times as slow.",
        ),
        "scale_compound": (
            "2499c3989c9b",
            "A regular ConvNeXt, 112 to 896 channels and 2-2-7-2 blocks, at 416 px: sensible, at "
            "3.4 times the MACs. Only 13 % slower on an A100, almost twice as slow on orin.",
        ),
        "scale_fast": (
            "e0566c44aa92",
            "Seven blocks where ConvNeXt-T has 18: half the latency on the large GPUs for 1.3 "
            "times the MACs. Sensible by its rule, too shallow by every other standard; both "
            "scores put it last here.",
        ),
        "scale_resnet-rs": (
            "05c781d923f1",
            "ConvNeXt-T’s proportions, slimmer and nearly twice as deep, at 288 px: the most "
            "regular of the families. 1.6 times the MACs.",
        ),
        "scale_deepmad": (
            "09f6a34e6c81",
            "A plausible deep ConvNeXt but for its front: six blocks of 120 and six of 240 "
            "channels, then hardly a step to 288. 1.7 times the MACs come from there. With MACs "
            "held the front keeps its blocks and narrows to 72 and 144.",
        ),
        "scale_contract": (
            "5da7d396ec60",
            "ConvNeXt-S with all widths and blocks, and MLPs of ×1.5 in its 27-block stage: close "
            "to both budgets (MACs 6 % above) and to what has been trained, though so thin an "
            "inverted bottleneck is untried. The most sensible design of this case, 1.7 times as "
            "slow.",
        ),
    },
    "convnext_t-latency": {
        "combined": (
            "382ab67ca0cb",
            "Front-loaded: five of ten blocks before the third stage, which has the four that the "
            "space demands, and behind it a single 3×3 depthwise block of 512 with MLP ×2. The "
            "score pays for early activations at 256 px, 1.8 times ConvNeXt-T’s, and uses a third "
            "of the parameters; a quarter slower on orin. Not to be trained.",
        ),
        "combined_long": (
            "382ab67ca0cb",
            "The same design: all three runs end at it, so this is what the score wants within "
            "that latency, not where a search stood. The fourth-order gnConv in a first stage of "
            "128 channels no longer stands for the network, ρ grows to 0.39 at the end, but "
            "nothing in the score asks for a last stage.",
        ),
        "deepmad": (
            "f5f2b62a0236",
            "Extreme: 18 blocks in one stage and one in each of the others, MLP ×2, half of "
            "ConvNeXt-T’s MACs. Each launch buys a layer at the best price of width, and no rule "
            "asks for more than one block elsewhere. The score’s weakness rather than a design; "
            "a third faster on orin.",
        ),
        "scale_compound": (
            "d255c277fedb",
            "A regular, shallow ConvNeXt at 384 px: sensible on the large GPUs, with 2.4 times the "
            "MACs and hence 1.5 times the latency on orin.",
        ),
        "scale_fast": (
            "1e6109c57e76",
            "135 M parameters and 27 G MACs in seven blocks of up to 2616 channels. It follows "
            "from the budget, but at the far end of a model that was never checked there; twice "
            "as slow from the T4 down.",
        ),
        "scale_resnet-rs": (
            "c91041e04cc1",
            "ConvNeXt-T’s own depths at three quarters of its widths and 256 px: the most sensible "
            "design of this case, with 57 % of the parameters, and faster on every device.",
        ),
        "scale_deepmad": (
            "39068b977eb4",
            "Three good stages, 72-144-288 × 3-4-11, and an odd last one: a single block of 1248 "
            "channels, bought by the weight of 8 on that stage.",
        ),
        "scale_contract": (
            "53ec69169d96",
            "The exact optimum’s shape from the other side: 19 blocks in one stage, one in each of "
            "the others, 192 px, a third of the MACs. The lowest combined score of all designs. "
            "Not to be trained, though the fastest on orin.",
        ),
    },
}
ASIDE_NOTES = {
    "swin_t-counts": "In tiny the rule on shapes prevented one thing, a last stage of 320 channels "
    "behind one of 384; DeepMAD’s optimum is the same without it. The bound on ρ prevented focal "
    "modulation throughout, at twice Swin-T’s latency. Nearly every stage has all blocks that the "
    "preset offers; in base they take 18 in the third, on fewer channels. With the MACs held as "
    "well, compound (3.7 G) and fast remain the seed, wider; the others spend the MACs on depth.",
    "swin_t-latency": "Neither rule touched DeepMAD’s optimum. For the combined score the rule on "
    "shapes prevented a second stage of 64 channels between one of 96 and one of 384, which gains "
    "0.004. In base both have more depth or pixels to take.",
    "convnext_t-counts": "base cannot break the rule on shapes: no width of a stage is above those "
    "of the next, and its third stage has at least four blocks. The bound on ρ prevented 256 px "
    "and gnConv nearly throughout with ρ 1.75, beyond any known design (HorNet-T has 1.41). "
    "At 224 px the combined score ends 0.08 lower, no more than the long runs differ among "
    "themselves.",
    "convnext_t-latency": "The bound on ρ is idle at 0.31. At 224 px the combined score ends 0.13 "
    "lower, and its third stage still has the fewest blocks that the preset allows: within a "
    "latency it prefers early activations to depth. In tiny, with 224 px and a first stage of "
    "96 at most, it ends 0.16 lower.",
}


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

    def evolved(
        self,
        limits: dict[str, float],
        effort: Effort,
        *,
        shape_rule: bool = True,
        latency: bool = False,
    ) -> tuple[Architecture, list[float]]:
        """The best by the combined score, and the best score of each run.

        ``latency`` is a second objective in ``nas search``; a search that wants the best alone
        does better without it.
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
            return self.scores.predict("combined", genes)

        found: list[tuple[float, Genes]] = []
        for seed in range(effort.seeds):
            front = scored_front(
                problem, score, seed=seed, generations=effort.generations, sample=0
            )
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

    found, runs, seconds = timed(lambda: preset.evolved(limits, NAS_SEARCH, latency=True))
    yield Made(
        "combined",
        "combined score",
        f"Evolution over {space} as nas search does it: 512 × 150, score and latency, seed 0.",
        found,
        seconds,
        {"best_of_runs": runs},
    )
    found, runs, seconds = timed(lambda: preset.evolved(limits, LONG))
    yield Made(
        "combined_long",
        "combined score, searched longer",
        f"The same for the score alone, the best of {LONG.seeds} runs of 512 × "
        f"{LONG.generations}; they reached {', '.join(f'{run:.3f}' for run in runs)}.",
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
        rule = family.rule.partition(" Depths are rounded")[0]
        yield Made(
            f"scale_{method}",
            title,
            f"{what} in {steps} step{'s' if steps != 1 else ''}. {rule}",
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
    yield combined, f"space {other.space.name}", other.evolved(limits, SHORT)[0]
    if max(preset.space.resolutions) > 224:
        at_224 = Preset(replace(preset.space, resolutions=(224,)), yardstick)
        yield combined, f"{own} at 224 px only", at_224.evolved(limits, SHORT)[0]
    if preset.can_break_rule:
        found, _ = preset.evolved(limits, SHORT, shape_rule=False)
        yield combined, f"{own} without the rule on shapes", found
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
        thousands(round(figures["deepmad"])),
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
    """Only by counts: where a latency is the budget, many designs are equally fast there."""
    names = {
        case["key"]: titles[case["reference"]]
        for case in stored["cases"]
        if case["variant"] == "counts"
    }
    return TextTable(
        caption="Do the devices order the nine designs by counts alike? Kendall’s τ with the "
        f"order on {BUDGET_DEVICE}.",
        columns=["counts of", *DEVICES],
        rows=[
            [name, *(f"{stored['device_agreement'][key][device]:.2f}" for device in DEVICES)]
            for key, name in names.items()
        ],
    )


def _dump(stored: dict[str, Any]) -> str:
    """JSON with a line for each item of the lists on top."""

    def dumped(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    parts = []
    for key, value in stored.items():
        text = dumped(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join(map(dumped, value)) + "\n]"
        parts.append(f"{dumped(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--page-only", action="store_true", help="Only write the page again.")
    if parser.parse_args().page_only:
        stored = json.loads(OUT.read_text("utf-8"))
    else:
        stored = measured()
        OUT.parent.mkdir(parents=True, exist_ok=True)
        OUT.write_text(_dump(stored), "utf-8")
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    write_designs_page(PAGE, page(stored))
    print(f"written to {OUT} and {PAGE}; {stored['seconds']} s")


if __name__ == "__main__":
    main()
