"""Growth by trainability and complexity (Chen et al., As-ViT, 2022).

Each step adds one block to one of the four stages and multiplies all widths by one of four
factors; of the sixteen candidates the one with the smallest sum of ranks of κ and L^E is taken
(``two_criteria``). Candidates are scored at a quarter of their width. Widths along the way are real
numbers, rounded for each candidate anew, so that small factors add up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

from search.scaling.base import (
    Family,
    ScalingMethod,
    ScalingOptions,
    ScalingTask,
    Step,
    register_method,
)
from search.scaling.shapes import Shape, describe_change, grown_widths, nearest
from search.scaling.two_criteria import TwoScorer, TwoScores, best
from search_space import Architecture, Mixer, Stage

WIDTH_FACTORS = (1.05, 1.10, 1.15, 1.20)
SCORED_SHARE = 4  # candidates are scored at one over this of their width


@dataclass(frozen=True)
class Growth:
    """The state of a growth.

    Args:
        seed: its first architecture.
        depths: blocks by stage.
        factor: real-valued ratio of the widths to the seed's.
    """

    seed: Architecture
    depths: tuple[int, ...]
    factor: float = 1.0

    @classmethod
    def of(cls, seed: Architecture) -> Growth:
        return cls(seed, seed.depths)

    @property
    def shape(self) -> Shape:
        widths = grown_widths(self.seed, self.factor)
        return Shape(self.depths, widths, self.seed.resolution)

    @property
    def architecture(self) -> Architecture:
        return self.shape.apply(self.seed)

    def candidates(self) -> list[Growth]:
        """The states with one more block in a stage, for each width factor; small factors first."""
        deeper = [
            tuple(d + (i == stage) for i, d in enumerate(self.depths))
            for stage in range(len(self.depths))
        ]
        return [Growth(self.seed, d, self.factor * f) for f in WIDTH_FACTORS for d in deeper]


def scored_form(architecture: Architecture) -> Architecture:
    """``architecture`` at a quarter of its width.

    Attention keeps its number of heads, each of a quarter of the size; where a mixer does not
    allow a quarter, the nearest width that it does.
    """
    stages = []
    for stage in architecture.stages:
        blocks = tuple(
            b if b.mixer is None else replace(b, mixer=_narrow_heads(b.mixer)) for b in stage.blocks
        )
        multiple = math.lcm(*(block.width_multiple for block in blocks))
        width = nearest(stage.width / SCORED_SHARE, multiple)
        stages.append(Stage(width, blocks, stage.stride))
    return replace(architecture, stages=tuple(stages))


def _narrow_heads(mixer: Mixer) -> Mixer:
    params = dict(mixer.params)
    head_dim = int(params.get("head_dim", 0))
    if head_dim % SCORED_SHARE or head_dim == 0:
        return mixer
    return Mixer.of(mixer.name, **{**params, "head_dim": head_dim // SCORED_SHARE})


@register_method
class AsViT(ScalingMethod):
    """Grows by the ranks of κ and L^E.

    Candidates beyond the largest budget or a limit are dropped; the growth ends when none is left.
    Of candidates that rounding makes equal, the first is taken.

    Args:
        scorer: gives κ and L^E of the narrow forms.
    """

    name = "as-vit"
    summary = "one block and 5 to 20 % width a step, by NTK condition and length distortion"

    def __init__(self, scorer: Callable[[Architecture], TwoScores] | None = None) -> None:
        self.scorer = scorer or TwoScorer()

    @classmethod
    def from_options(cls, options: ScalingOptions) -> Self:
        return cls(
            TwoScorer(settings=options.score, known=options.known_scores, record=options.record)
        )

    @classmethod
    def scores_networks(cls, options: ScalingOptions) -> bool:
        return True

    def scale(self, task: ScalingTask) -> Family:
        path, growth = [task.growing_from()], Growth.of(task.seed)
        total = math.log(task.budgets[-1] / path[0].costs[task.by]) or 1.0
        while True:
            fitting = [g for g in growth.candidates() if task.allows(task.costs(g.architecture))]
            if not fitting:
                break
            done = math.log(path[-1].costs[task.by] / path[0].costs[task.by])
            scores = []
            for number, candidate in enumerate(fitting, 1):
                task.progress(
                    done, total, f"step {len(path)}, candidate {number} of {len(fitting)}"
                )
                scores.append(self.scorer(scored_form(candidate.architecture)))
            chosen = best(scores)
            before, growth = growth, fitting[chosen]
            architecture = growth.architecture
            change = f"width ×{growth.factor / before.factor:.2f}; "
            change += describe_change(before.shape, growth.shape)
            costs = task.costs(architecture)
            path.append(Step(architecture, costs, change, scores[chosen].to_dict()))
        rule = (
            "Each step adds a block to one stage and widens all by 5, 10, 15 or 20 %: the one of "
            "sixteen with the smallest sum of the ranks of κ (ascending) and L^E (descending), "
            "scored at a quarter of the width. Widths are rounded to the nearest multiple of 8 "
            "that the mixers allow."
        )
        return task.family_of(self.name, rule, path)
