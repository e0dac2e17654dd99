"""Progressive contraction of a large design (Wu et al., TinyViT, 2022).

Each step tries every reduction by one notch: a stage's width, depth, MLP ratio, window or
kernel, and the resolution. A few of the best are kept, by score per cost, until the budget and
all limits are met; of those that meet them the one with the best score is the member, and the
next smaller budget goes on from it. So each member is contained in the next larger one. A
candidate that scores no better than one that meets the limits is dropped, since taking more
away is not expected to raise a score.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from predictors.proxies import Network, Proxy, proxy
from predictors.proxies.space_tables import CLOSED_FORMS, score_architecture
from search.scaling.base import (
    Costs,
    Family,
    ScalingMethod,
    ScalingOptions,
    ScalingTask,
    Step,
    register_method,
)
from search.scaling.shapes import nearest, total_stride, width_multiple
from search_space import BLOCKS, Architecture, Block, Mixer, Stage
from search_space.errors import InfeasibleError, InvalidArchitectureError
from search_space.metrics import format_metric, title_of, typed

BEAM = 4
ENTROPY = "deepmad"
WIDTH_NOTCHES = 16  # a notch is about the seed's width over this
MLP_NOTCH, MIN_MLP_RATIO = 0.5, 1.0
KERNEL_NOTCH, MIN_KERNEL = 2, 3

ScoreOf = Callable[[Architecture], float]
"""A score, larger is better; −∞ where there is none."""

entropy_score: ScoreOf = partial(score_architecture, ENTROPY)


def proxy_score(chosen: Proxy, options: ScalingOptions | None = None) -> ScoreOf:
    """A proxy as a score: larger is better, −∞ where it is not defined.

    Scores of proxies that run networks are taken from ``options.known_scores`` or recorded.
    """
    if chosen.name in CLOSED_FORMS:
        return partial(score_architecture, chosen.name)
    options = options or ScalingOptions()
    worst = -math.inf if chosen.larger_is_better else math.inf
    known = {digest: values[chosen.name] for digest, values in options.known_scores.items()}

    def score(architecture: Architecture) -> float:
        digest = architecture.digest
        if digest not in known:
            begin = time.monotonic()
            value = chosen.score(Network.of_architecture(architecture), options.score).value
            known[digest] = worst if value is None else value
            if not chosen.closed_form:
                values = {chosen.name: known[digest]}
                options.record(architecture, values, time.monotonic() - begin)
        return known[digest] if chosen.larger_is_better else -known[digest]

    return score


def reductions(
    architecture: Architecture, notches: tuple[int, ...]
) -> Iterator[tuple[str, Architecture]]:
    """Every architecture that is one notch smaller, with a description of the change.

    Widths do not fall below that of the stage before, depths below 1, MLP ratios below 1, kernels
    and windows below 3, nor the resolution below the total stride.

    Args:
        notches: by how many channels the width of each stage is reduced.
    """
    for i, stage in enumerate(architecture.stages):
        floor = architecture.widths[i - 1] if i > 0 else notches[0]
        width = stage.width - notches[i]
        smaller: list[tuple[str, Stage]] = []
        if width >= floor:
            smaller.append((f"width {stage.width} → {width}", replace(stage, width=width)))
        if stage.depth > 1:
            text = f"{stage.depth} → {stage.depth - 1} blocks"
            smaller.append((text, replace(stage, blocks=stage.blocks[:-1])))
        for what, narrow in (("MLP ratio", _narrower_mlp), ("kernel", _smaller_mixer)):
            blocks = tuple(map(narrow, stage.blocks))
            if blocks != stage.blocks:
                smaller.append((f"smaller {what}", replace(stage, blocks=blocks)))
        for text, changed in smaller:
            stages = (*architecture.stages[:i], changed, *architecture.stages[i + 1 :])
            with suppress(InvalidArchitectureError):  # a first block that cannot change the width
                yield f"stage {i + 1}: {text}", replace(architecture, stages=stages)
    side = architecture.resolution - total_stride(architecture)
    if side >= total_stride(architecture):
        yield f"{architecture.resolution} → {side} px", replace(architecture, resolution=side)


def width_notches(seed: Architecture) -> tuple[int, ...]:
    """The allowed multiple of widths nearest to a sixteenth of the seed's width, by stage."""
    return tuple(nearest(s.width / WIDTH_NOTCHES, width_multiple(s)) for s in seed.stages)


def _narrower_mlp(block: Block) -> Block:
    name = next(iter(BLOCKS[block.kind].ratios), None)
    if name is None:
        return block
    ratio = float(block[name]) - MLP_NOTCH
    return block.replaced(**{name: ratio}) if ratio >= MIN_MLP_RATIO else block


def _smaller_mixer(block: Block) -> Block:
    smaller = {
        key: int(value) - KERNEL_NOTCH
        for key, value in block.traits.items()
        if key in ("kernel", "window") and int(value) - KERNEL_NOTCH >= MIN_KERNEL
    }
    if block.mixer is None:
        return block.replaced(**smaller)
    params = {**dict(block.mixer.params), **smaller}
    return replace(block, mixer=Mixer.of(block.mixer.name, **params))


@dataclass(frozen=True)
class _State:
    """A step, the state before it, its score, and its excess over the limits."""

    step: Step
    origin: _State | None
    score: float
    excess: float

    @property
    def order(self) -> float:
        """The score per cost; a negative score times cost, so that cheaper is better there too."""
        return self.score / self.excess if self.score > 0 else self.score * self.excess

    def way(self) -> list[Step]:
        """The steps from the first state to this one, without the first."""
        steps, state = [], self
        while state.origin is not None:
            steps.append(state.step)
            state = state.origin
        return steps[::-1]


@register_method
class Contract(ScalingMethod):
    """Takes away from a large design by progressive contraction.

    Args:
        score: what to keep as high as possible; DeepMAD's entropy by default.
        name_of_score: its name in the path.
        beam: how many candidates a step keeps.
    """

    name = "contract"
    summary = "takes away from a large design, notch by notch (TinyViT)"

    def __init__(
        self, score: ScoreOf = entropy_score, name_of_score: str = ENTROPY, beam: int = BEAM
    ) -> None:
        self.score, self.name_of_score, self.beam = score, name_of_score, beam

    @classmethod
    def from_options(cls, options: ScalingOptions) -> Self:
        return cls(proxy_score(proxy(options.proxy), options), options.proxy)

    @classmethod
    def scores_networks(cls, options: ScalingOptions) -> bool:
        return not proxy(options.proxy).closed_form

    def scale(self, task: ScalingTask) -> Family:
        first = task.contracting_from()
        path = [replace(first, scores={self.name_of_score: self.score(task.seed)})]
        notches = width_notches(task.seed)
        for budget in reversed(task.budgets):
            start = _State(path[-1], None, path[-1].scores[self.name_of_score], 1.0)
            path += self._meet(task, budget, start, notches).way()
        rule = (
            f"Every reduction by one notch (a width by about {1 / WIDTH_NOTCHES:.0%} of the "
            f"seed's, a block, MLP ratio by {MLP_NOTCH}, kernel or window by {KERNEL_NOTCH}, "
            f"resolution by the total stride); the {self.beam} best by {self.name_of_score} per "
            "cost go on."
        )
        return task.family_of(self.name, rule, path)

    def _meet(
        self, task: ScalingTask, budget: float, start: _State, notches: tuple[int, ...]
    ) -> _State:
        """The best state that meets the budget.

        Raises:
            InfeasibleError: No contraction meets the budget and all limits.
        """
        limits = {**task.limits, task.by: budget}
        if task.allows(start.step.costs, budget):
            return start
        beam, met = [start], {}
        while beam:
            seen: dict[Architecture, _State] = {}
            for state in beam:
                for change, architecture in reductions(state.step.architecture, notches):
                    if architecture not in seen and architecture not in met:
                        reduced = self._reduced(task, state, architecture, change, limits)
                        if reduced is not None:
                            seen[architecture] = reduced
            closest = min(beam, key=lambda state: state.excess)
            unmet = []
            for state in sorted(seen.values(), key=lambda state: -state.order):
                if task.allows(state.step.costs, budget):
                    met[state.step.architecture] = state
                else:
                    unmet.append(state)
            reached = max((state.score for state in met.values()), default=-math.inf)
            beam = [state for state in unmet if not met or state.score > reached][: self.beam]
            if not beam and not met:
                raise InfeasibleError(_closest(task, budget, closest.step))
            whole = task.costs(task.seed)[task.by]
            total = math.log(whole / task.budgets[0]) or 1.0
            done = min(total, math.log(whole / closest.step.costs[task.by]))
            text = f"to {typed(task.by, budget, digits=12)}: {closest.step.architecture}"
            task.progress(done, total, text)
        return max(met.values(), key=lambda state: state.score)

    def _reduced(
        self,
        task: ScalingTask,
        state: _State,
        architecture: Architecture,
        change: str,
        limits: Costs,
    ) -> _State | None:
        """The reduced state; None where it comes no closer to a limit that is not met."""
        costs, before = task.costs(architecture), state.step.costs
        unmet = [metric for metric, limit in limits.items() if before[metric] > limit]
        if not any(costs[metric] < before[metric] for metric in unmet):
            return None
        score = self.score(architecture)
        excess = max(costs[metric] / limit for metric, limit in limits.items())
        step = Step(architecture, costs, change, {self.name_of_score: score})
        return _State(step, state, score, excess)


def _closest(task: ScalingTask, budget: float, step: Step) -> str:
    reached = ", ".join(
        f"{title_of(metric)} {format_metric(metric, step.costs[metric])}"
        for metric in (task.by, *task.limits)
    )
    return (
        f"no contraction of the seed meets {typed(task.by, budget, digits=12)} and all limits; the "
        f"closest is {step.architecture} with {reached}. Raise the budget or the limits, or give a "
        "smaller --seed."
    )
