"""Growth by DeepMAD's score: brute force over the same space, and what a family must be."""

from __future__ import annotations

import pytest
from synthetic_search import every_row

from predictors.proxies.space_tables import PathTables, score_architecture
from search.scaling.base import ScalingTask, scaling_method
from search.scaling.cost import NetworkCosts
from search.scaling.deepmad import MAX_EFFECTIVENESS, space_around
from search.shape import ShapeRule
from search_space import Architecture, Macro, Mixer, Stage, known, metaformer
from search_space.errors import InfeasibleError, UsageError


@pytest.fixture(scope="module")
def seed() -> Architecture:
    block = metaformer(Mixer.of("depthwise_conv", kernel=3), 2.0)
    stages = tuple(Stage(width, (block,)) for width in (8, 16, 24, 32))
    return Architecture(Macro(stem_kernel=2, stem_stride=2), 32, stages)


def test_members_have_the_largest_score_that_contains_the_one_before(seed: Architecture) -> None:
    costs = NetworkCosts(num_classes=10)
    own = costs(seed)["macs"]
    budgets = (1.5 * own, 2.2 * own)
    task = ScalingTask(
        seed=seed, by="macs", budgets=budgets, costs=costs, limits={"num_params": 25_000}
    )
    family = scaling_method("deepmad")().scale(task)
    bound = max(MAX_EFFECTIVENESS, score_architecture("effectiveness", seed))
    before = seed
    for member, budget in zip(family.members, budgets, strict=True):
        space = space_around(seed, budget / own, before)
        rows = every_row(space)
        paths = PathTables.build(space)
        macs, params = (costs.table(m, space).predict(rows) for m in ("macs", "num_params"))
        meets = (macs <= budget) & (params <= 25_000)
        meets &= paths.effectiveness(rows) <= bound * (1 + 1e-9)
        meets &= ShapeRule(space).predict(rows) == 0
        found = score_architecture("deepmad", member.architecture)
        assert found == pytest.approx(paths.score(rows)[meets].max(), rel=1.1e-3)
        assert member.costs["macs"] <= budget
        assert member.costs["num_params"] <= 25_000
        for extents in ("widths", "depths"):
            smaller, larger = getattr(before, extents), getattr(member.architecture, extents)
            assert all(a <= b for a, b in zip(smaller, larger, strict=True))
        before = member.architecture
    assert len(family.path) == 3
    assert f"ρ ≤ {bound:.3g}" in family.rule


def test_a_member_does_not_depend_on_larger_budgets(seed: Architecture) -> None:
    costs = NetworkCosts(num_classes=10)
    own = costs(seed)["num_params"]

    def members(*factors: float) -> list[str]:
        budgets = tuple(factor * own for factor in factors)
        task = ScalingTask(seed=seed, by="num_params", budgets=budgets, costs=costs)
        return [m.architecture.digest for m in scaling_method("deepmad")().scale(task).members]

    assert members(1.5, 3.0)[0] == members(1.5)[0]


def test_a_seed_that_is_deep_already_keeps_its_own_bound() -> None:
    seed = known("hornet_t")
    costs = NetworkCosts()
    task = ScalingTask(
        seed=seed, by="num_params", budgets=(1.05 * costs(seed)["num_params"],), costs=costs
    )
    family = scaling_method("deepmad")().scale(task)
    before = score_architecture("effectiveness", seed)
    after = score_architecture("effectiveness", family.members[0].architecture)
    assert after <= before * (1 + 1e-6)
    assert before > MAX_EFFECTIVENESS


def test_limits_that_nothing_meets_are_named(seed: Architecture) -> None:
    costs = NetworkCosts(num_classes=10)
    own = costs(seed)
    task = ScalingTask(
        seed=seed,
        by="macs",
        budgets=(2 * own["macs"],),
        costs=costs,
        limits={"num_params": own["num_params"] - 1},
    )
    with pytest.raises(InfeasibleError, match=r"num_params|parameters"):
        scaling_method("deepmad")().scale(task)
    bare = ScalingTask(seed=seed, by="macs", budgets=(2 * own["macs"],), costs=lambda a: costs(a))
    with pytest.raises(UsageError, match="NetworkCosts"):
        scaling_method("deepmad")().scale(bare)
