"""Scaling methods: what every method promises, and the exponents of the papers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from scaling_cases import COSTS, SEEDS, contract_by_size, grown, grows_width, network, params

from predictors.counts import count_architecture
from search.scaling.as_vit import AsViT
from search.scaling.base import ScalingMethod, ScalingOptions, ScalingTask, scaling_method
from search.scaling.contract import Contract
from search.scaling.exponents import Compound, ExponentialMethod, FastCompound, Rates, ResNetRS
from search.scaling.shapes import width_multiple
from search_space import Architecture, known
from search_space.errors import InfeasibleError, UnknownNameError, UsageError

GROWING: dict[str, Callable[[], ScalingMethod]] = {
    "compound": Compound,
    "fast": FastCompound,
    "resnet-rs, depth": lambda: ResNetRS(epochs=350),
    "resnet-rs, width": lambda: ResNetRS(epochs=10),
    "as-vit": lambda: AsViT(grows_width),
}


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize("make", GROWING.values(), ids=GROWING)
def test_growing_methods_fill_ascending_budgets(
    make: Callable[[], ScalingMethod], seed: Architecture
) -> None:
    family = grown(make(), seed, 2, 6, 1.2)
    assert [m.budget / params(seed) for m in family.members] == pytest.approx([1.2, 2, 6])
    assert family.path[0].architecture == seed
    assert all(step.costs["num_params"] <= family.members[-1].budget for step in family.path)
    sizes = [params(m.architecture) for m in family.members]
    assert sizes == sorted(sizes)
    for member in family.members:
        assert family.path[member.index] is member.step
        within = [s.costs["num_params"] for s in family.path]
        assert member.costs["num_params"] == max(c for c in within if c <= member.budget)
        assert member.costs == COSTS(member.architecture)
    assert sizes[-1] > 0.55 * family.members[-1].budget
    for before, after in itertools.pairwise(step.architecture for step in family.path):
        assert after != before
        assert all(a <= b for a, b in zip(before.depths, after.depths, strict=True))
        assert all(a <= b for a, b in zip(before.widths, after.widths, strict=True))
        assert before.resolution <= after.resolution
    for step in family.path:
        for stage, own in zip(step.architecture.stages, seed.stages, strict=True):
            assert stage.width == own.width or stage.width % width_multiple(stage) == 0


@pytest.mark.parametrize(
    "method", [Compound(), FastCompound(), ResNetRS(350), ResNetRS(10)], ids=lambda m: m.name
)
def test_no_phi_gives_a_larger_network_within_the_budget(method: ExponentialMethod) -> None:
    seed = SEEDS["conv"]
    family = grown(method, seed, 1.3, 3)
    rates = method.rates()
    every = {rates.shape(seed, i / 500).apply(seed) for i in range(2000)}
    for member in family.members:
        fitting = [params(a) for a in every if params(a) <= member.budget]
        assert params(member.architecture) == max(fitting)


@pytest.mark.parametrize("make", [*GROWING.values(), contract_by_size], ids=[*GROWING, "contract"])
def test_a_latency_limit_holds_on_the_whole_family(make: Callable[[], ScalingMethod]) -> None:
    """Latency by a rule of its own: a millisecond a block, and one for the seed's MACs."""
    contracts = isinstance(make(), Contract)
    seed = network(depths=(2, 2, 4, 2)) if contracts else SEEDS["conv"]
    limit = 9.5  # between what the smallest budget needs and the seed or the largest has

    def costs(architecture: Architecture) -> dict[str, float]:
        own = COSTS(architecture)
        latency = sum(architecture.depths) + own["macs"] / COSTS(seed)["macs"]
        return {**own, "latency_ms@toy": latency}

    task = ScalingTask(
        seed=seed,
        by="num_params",
        budgets=tuple(params(seed) * factor for factor in ((0.7, 0.9) if contracts else (1.5, 9))),
        costs=costs,
        limits={"latency_ms@toy": limit},
    )
    family = make().scale(task)
    assert all(member.costs["latency_ms@toy"] <= limit for member in family.members)
    assert all(params(m.architecture) <= m.budget for m in family.members)
    free = make().scale(replace(task, limits={}))
    assert free.members[-1].costs["latency_ms@toy"] > limit


def test_members_that_a_limit_makes_equal_are_noted() -> None:
    task = ScalingTask(
        seed=SEEDS["conv"],
        by="num_params",
        budgets=(1e6, 2e6),
        costs=COSTS,
        limits={"macs": 1.5 * COSTS(SEEDS["conv"])["macs"]},
    )
    family = Compound().scale(task)
    assert family.members[0].architecture == family.members[1].architecture
    assert "1M and 2M are the same network" in family.notes[0]
    assert grown(Compound(), SEEDS["conv"], 2, 6).notes == ()


def test_budgets_that_cannot_be_met_are_refused() -> None:
    seed = SEEDS["conv"]

    def task(*budgets: float, **more: object) -> ScalingTask:
        return ScalingTask(seed=seed, by="num_params", budgets=budgets, costs=COSTS, **more)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=r"1k is below the seed's own .*--method contract"):
        Compound().scale(task(1000, 1e6))
    with pytest.raises(UsageError, match=r"1M is above the seed's own .*a method that grows"):
        Contract().scale(task(1000, 1e6))
    with pytest.raises(InfeasibleError, match=r"the seed's own MACs is .*above the limit of 1\.00"):
        Compound().scale(task(1e6, limits={"macs": 1000.0}))
    with pytest.raises(
        InfeasibleError, match=r"meets 1k and all limits; the closest is .*parameters"
    ):
        contract_by_size().scale(task(1000))
    with pytest.raises(UsageError, match="there twice"):
        task(1e6, 1e6)
    with pytest.raises(UsageError, match="no budget"):
        task()
    assert grown(Compound(), seed, 1).members[0].architecture == seed


def test_a_method_is_found_by_name_and_a_file_registers_it() -> None:
    assert all(map(scaling_method, ("as-vit", "compound", "contract", "deepmad")))
    assert scaling_method("fast") is FastCompound
    with pytest.raises(UnknownNameError, match="Did you mean 'compound'"):
        scaling_method("compond")
    made = scaling_method("resnet-rs").from_options(ScalingOptions(epochs=5))
    assert isinstance(made, ResNetRS)
    assert not made.scales_depth


def slope(before: float, after: float, phi: float) -> float:
    return (after / before) ** (1 / phi)


@pytest.mark.parametrize(
    ("rates", "depth", "width", "resolution"),
    [
        (Compound().rates(), 1.2, 1.1, 1.15),
        (FastCompound().rates(), 2**0.1, 2**0.4, 2**0.05),
        (ResNetRS(350).rates(), 2**0.8, 1.0, 2**0.1),
        (ResNetRS(10).rates(), 1.0, 2**0.4, 2**0.1),
    ],
    ids=["compound", "fast", "resnet-rs, depth", "resnet-rs, width"],
)
def test_exponents_are_recovered_from_large_shapes(
    rates: Rates, depth: float, width: float, resolution: float
) -> None:
    """Rounding is below half a percent of shapes as large as these."""
    seed = network(widths=(1600, 2400, 3200, 4000), depths=(400,) * 4, resolution=8192)
    for phi in (0.5, 1.0, 3.0):
        shape = rates.shape(seed, phi)
        assert slope(400, shape.depths[2], phi) == pytest.approx(depth, rel=0.005)
        assert slope(3200, shape.widths[2], phi) == pytest.approx(width, rel=0.005)
        assert slope(8192, shape.resolution, phi) == pytest.approx(resolution, rel=0.005)


def test_every_shape_between_two_phis_is_found_once_in_order() -> None:
    seed = SEEDS["conv"]
    rates = Compound().rates()
    found = rates.shapes(seed, 0.0, 4.0)
    sampled = list(dict.fromkeys(rates.shape(seed, i / 1000) for i in range(4001)))
    shapes = [shape for _, shape in found]
    assert [shape for shape in shapes if shape in set(sampled)] == sampled
    assert len(set(shapes)) == len(shapes) < len(sampled) + 3
    assert [phi for phi, _ in found] == sorted(phi for phi, _ in found)
    assert all(rates.shape(seed, phi) == shape for phi, shape in found)


def test_fast_scaling_grows_activations_slowly() -> None:
    seed, exponents = known("convnext_t"), {}
    for method in (Compound(), FastCompound(), ResNetRS(350)):
        grown_shape = method.rates().shape(seed, 4.0).apply(seed)
        before, after = count_architecture(seed), count_architecture(grown_shape)
        ratios = {name: math.log(after[name] / before[name]) for name in before}
        exponents[method.name] = ratios["activations"] / ratios["macs"]
    assert exponents["fast"] == pytest.approx(0.6, abs=0.06)
    assert exponents["compound"] > 0.75
    assert exponents["resnet-rs"] > 0.9
