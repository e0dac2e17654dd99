"""Contraction of a large design: budgets, order of the steps, scores."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
from scaling_cases import (
    COSTS,
    SEEDS,
    contract_by_size,
    network,
    params,
    size,
)

from predictors.proxies import (
    Network,
    UndefinedProxyError,
    proxy,
)
from predictors.proxies.base import ClosedFormProxy
from predictors.proxies.structure import Structure
from search.scaling.base import (
    ScalingOptions,
    ScalingTask,
)
from search.scaling.contract import (
    Contract,
    entropy_score,
    proxy_score,
    reductions,
    width_notches,
)
from search.scaling.shapes import Shape
from search_space import Architecture, Mixer, Stage, known, metaformer
from search_space.errors import UnknownNameError


def flat(architecture: Architecture) -> list[tuple[int | float, ...]]:
    """Everything that a contraction may reduce."""
    return [
        architecture.depths,
        architecture.widths,
        (architecture.resolution,),
        *(
            (
                s.blocks[0]["mlp_ratio"],
                *(int(v) for _, v in s.blocks[0].mixer.params if not isinstance(v, str)),
            )
            for s in architecture.stages
        ),
    ]


@pytest.mark.parametrize("name", ["conv", "attention", "gnconv"])
def test_contraction_meets_its_budgets_and_never_grows(name: str) -> None:
    big = SEEDS[name]
    big = Shape((2, 2, 3, 2), tuple(2 * w for w in big.widths), 64).apply(big)
    by_macs = COSTS(big)["macs"]
    task = ScalingTask(
        seed=big,
        by="macs",
        budgets=(by_macs * 0.2, by_macs * 0.5, by_macs),
        costs=COSTS,
        limits={"num_params": params(big) * 0.9},
    )
    family = contract_by_size().scale(task)
    assert [m.index for m in family.members] == sorted(m.index for m in family.members)[::-1]
    for member in family.members:
        assert member.costs["macs"] <= member.budget
        assert member.costs["num_params"] <= params(big) * 0.9
    assert family.members[0].costs["macs"] > 0.6 * family.members[0].budget
    for before, after in itertools.pairwise(step.architecture for step in family.path):
        changed = [(b, a) for b, a in zip(flat(before), flat(after), strict=True) if a != b]
        assert len(changed) == 1
        assert all(x >= y for x, y in zip(*changed[0], strict=True))
        assert list(after.widths) == sorted(after.widths)
        assert after in {a for _, a in reductions(before, width_notches(big))}


def test_contraction_goes_by_score_per_cost() -> None:
    """With one candidate kept, each step is the reduction with the largest score per parameter."""
    big = network(widths=(32, 48, 64, 96), depths=(2, 2, 4, 2))
    task = ScalingTask(seed=big, by="num_params", budgets=(params(big) * 0.6,), costs=COSTS)
    family = Contract(size, "size", beam=1).scale(task)
    assert len(family.path) > 3
    for before, after in itertools.pairwise(family.path[:-1]):
        every = [a for _, a in reductions(before.architecture, width_notches(big))]
        above = [a for a in every if params(a) > task.budgets[0]]
        assert size(after.architecture) / params(after.architecture) == max(
            size(a) / params(a) for a in above if params(a) < before.costs["num_params"]
        )
        assert after.scores == {"size": size(after.architecture)}


def test_a_reduction_keeps_widths_in_order_and_everything_above_its_least() -> None:
    least = network(widths=(8, 8, 8, 16), depths=(1, 1, 1, 1), mixer=Mixer.of("pooling"))
    least = replace(
        least,
        resolution=16,
        stages=tuple(Stage(s.width, (metaformer(s.blocks[0].mixer, 1.25),)) for s in least.stages),
    )
    found = list(reductions(least, width_notches(least)))
    assert [text for text, _ in found] == ["stage 4: width 16 → 8"]
    assert not list(reductions(found[0][1], width_notches(least)))
    wide = replace(least, resolution=40, stages=tuple(replace(s, width=16) for s in least.stages))
    assert [text for text, _ in reductions(wide, width_notches(least))] == [
        "stage 1: width 16 → 8",
        "40 → 24 px",
    ]
    assert width_notches(known("convnext_b")) == (8, 16, 32, 64)
    assert width_notches(known("swin_b")) == (32, 32, 32, 64)


def test_contraction_keeps_entropy_by_default() -> None:
    assert entropy_score(SEEDS["attention"]) == pytest.approx(
        proxy("deepmad").score(Network.of_architecture(SEEDS["attention"])).value
    )
    assert proxy_score(proxy("deepmad"))(SEEDS["conv"]) == pytest.approx(
        entropy_score(SEEDS["conv"])
    )
    family = Contract().scale(
        ScalingTask(
            seed=SEEDS["conv"],
            by="num_params",
            budgets=(params(SEEDS["conv"]) * 0.85,),
            costs=COSTS,
        )
    )
    assert family.path[-1].scores == {"deepmad": entropy_score(family.path[-1].architecture)}


class Small(ClosedFormProxy):
    """A proxy that is better when smaller, and not defined for large networks."""

    name = "small"
    summary = applies = ""
    larger_is_better = False

    def value(self, structure: Structure) -> float:
        if structure.num_params > 1e6:
            raise UndefinedProxyError("too large")
        return float(structure.num_params)


def test_a_proxy_as_a_score_is_larger_where_it_is_better() -> None:
    score = proxy_score(Small())
    assert score(SEEDS["conv"]) < 0
    assert score(known("poolformer_s12")) == -math.inf
    made = Contract.from_options(ScalingOptions(proxy="effectiveness"))
    assert made.name_of_score == "effectiveness"
    with pytest.raises(UnknownNameError, match="Did you mean 'effectiveness'"):
        Contract.from_options(ScalingOptions(proxy="efectiveness"))


def test_what_a_score_says_decides_what_is_kept() -> None:
    big = network(widths=(32, 32, 64, 64), depths=(2, 2, 4, 2))

    def contracted(score: Callable[[Architecture], float]) -> Architecture:
        budgets = (params(big) * 0.5,)
        task = ScalingTask(seed=big, by="num_params", budgets=budgets, costs=COSTS)
        return Contract(score).scale(task).members[0].architecture

    deep = contracted(lambda a: math.prod(a.depths))
    wide = contracted(lambda a: math.prod(a.widths))
    negative = contracted(lambda a: -1 / math.prod(a.widths))
    assert sum(deep.depths) > sum(wide.depths)
    assert sum(wide.widths) > sum(deep.widths)
    assert sum(negative.widths) > sum(deep.widths)


class Dear(Small):
    """The same, as if it ran networks."""

    closed_form = False


def test_scores_of_networks_are_recorded_and_taken_from_an_earlier_run() -> None:
    recorded: dict[str, dict[str, float]] = {}

    def record(architecture: Architecture, values: Mapping[str, float], seconds: float) -> None:
        assert architecture.digest not in recorded
        recorded[architecture.digest] = dict(values)

    score = proxy_score(Dear(), ScalingOptions(record=record))
    values = {name: score(SEEDS[name]) for name in ("conv", "gnconv", "conv")}
    assert recorded == {SEEDS[name].digest: {"small": -value} for name, value in values.items()}
    known = {digest: {"small": 7.0} for digest in recorded}
    again = proxy_score(Dear(), ScalingOptions(known_scores=known, record=record))
    assert again(SEEDS["conv"]) == -7.0
    assert Contract.scores_networks(ScalingOptions(proxy="ntk_condition"))
    assert not Contract.scores_networks(ScalingOptions())
