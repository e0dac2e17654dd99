"""Scaling methods: members within budgets, the rules of the papers, costs of any network."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import search.scaling.cost as cost_module
from predictors.counts import count_architecture
from predictors.latency.calibrate import predict_network
from predictors.latency.catalog import Target, find_device
from predictors.latency.correction import Correction
from predictors.latency.devices import local_conditions
from predictors.latency.table import EntryLatency, LatencyTable, MissingLatencyError
from predictors.proxies import (
    Network,
    Proxy,
    Score,
    ScoreSettings,
    UndefinedProxyError,
    proxy,
)
from predictors.proxies.base import ClosedFormProxy
from predictors.proxies.structure import Structure
from search.scaling.as_vit import WIDTH_FACTORS, AsViT, Growth, scored_form
from search.scaling.base import (
    Family,
    ScalingMethod,
    ScalingOptions,
    ScalingTask,
    method_names,
    scaling_method,
)
from search.scaling.compound import Compound
from search.scaling.contract import (
    Contract,
    entropy_score,
    proxy_score,
    reductions,
    width_notches,
)
from search.scaling.cost import NetworkCosts
from search.scaling.exponents import ExponentialMethod, Rates
from search.scaling.fast import FastCompound
from search.scaling.resnet_rs import ResNetRS
from search.scaling.shapes import Shape, width_multiple
from search.scaling.two_criteria import TwoScorer, TwoScores, best, rank_sums
from search_space import Architecture, Block, Macro, Mixer, Stage, components, known
from search_space.errors import InfeasibleError, UnknownNameError, UsageError

COSTS = NetworkCosts(num_classes=10)
CONV = Mixer.of("depthwise_conv", kernel=7)
ATTENTION = Mixer.of("window_attention", window=4, head_dim=16)


def network(
    widths: Sequence[int] = (16, 16, 24, 32),
    depths: Sequence[int] = (1, 1, 2, 1),
    mixer: Mixer = CONV,
    resolution: int = 32,
) -> Architecture:
    stages = tuple(
        Stage(width, (Block(mixer, 3.0),) * depth)
        for width, depth in zip(widths, depths, strict=True)
    )
    return Architecture(Macro(stem_kernel=2, stem_stride=2), resolution, stages)


SEEDS = {
    "conv": network(),
    "odd width": network(widths=(12, 20, 24, 36)),
    "attention": network(widths=(16, 16, 32, 32), mixer=ATTENTION),
    "gnconv": network(widths=(16, 16, 32, 48), mixer=Mixer.of("gnconv", order=5, kernel=3)),
}


def params(architecture: Architecture) -> float:
    return COSTS(architecture)["num_params"]


def grows_width(architecture: Architecture) -> TwoScores:
    """κ and L^E that like wide last stages and shallow first ones."""
    return TwoScores(architecture.depths[0] + 1.0, float(architecture.widths[-1]))


def size(architecture: Architecture) -> float:
    """A score that wants depth times width in every stage."""
    stages = zip(architecture.depths, architecture.widths, strict=True)
    return sum(depth * width for depth, width in stages) * architecture.resolution


def contract_by_size() -> Contract:
    return Contract(size, "size")


GROWING: dict[str, Callable[[], ScalingMethod]] = {
    "compound": Compound,
    "fast": FastCompound,
    "resnet-rs, depth": lambda: ResNetRS(epochs=350),
    "resnet-rs, width": lambda: ResNetRS(epochs=10),
    "as-vit": lambda: AsViT(grows_width),
}


def grown(method: ScalingMethod, seed: Architecture, *factors: float) -> Family:
    budgets = tuple(params(seed) * factor for factor in factors)
    return method.scale(ScalingTask(seed=seed, by="num_params", budgets=budgets, costs=COSTS))


# What every method promises -----------------------------------------------------------------------


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
    assert {"as-vit", "compound", "fast", "resnet-rs", "contract"} <= set(method_names())
    assert scaling_method("fast") is FastCompound
    with pytest.raises(UnknownNameError, match="Did you mean 'compound'"):
        scaling_method("compond")
    made = scaling_method("resnet-rs").from_options(ScalingOptions(epochs=5))
    assert isinstance(made, ResNetRS)
    assert not made.scales_depth


# Exponents ----------------------------------------------------------------------------------------


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


# As-ViT -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "winner", "sums"),
    [
        # κ ascending, L^E descending
        ([(3.0, 1.0), (1.0, 3.0), (2.0, 2.0)], 1, [4, 0, 2]),
        # equal values share a rank and the next value has the next: ranks with gaps would give
        # the winner 3 + 0 against 0 + 2 of the first three
        ([(1.0, 5.0), (1.0, 5.0), (1.0, 5.0), (2.0, 7.0), (3.0, 6.0)], 3, [2, 2, 2, 1, 3]),
        # rank sums tie; κ spreads by 100 % of its mean and L^E by 1 %: κ decides, for the second
        ([(3.0, 1.01), (1.0, 1.00)], 1, [1, 1]),
        # the other way round L^E decides, for the first
        ([(1.01, 3.0), (1.00, 1.0)], 0, [1, 1]),
        # nothing decides: the first
        ([(1.0, 1.0), (1.0, 1.0)], 0, [0, 0]),
        # undefined is worst, no part of the range, and loses ties
        ([(math.inf, 9.0), (2.0, 8.0), (1.0, -math.inf)], 1, [2, 2, 2]),
        ([(math.inf, -math.inf), (5.0, 1e-3)], 1, [2, 0]),
    ],
)
def test_the_smallest_sum_of_dense_ranks_wins(
    table: list[tuple[float, float]], winner: int, sums: list[int]
) -> None:
    scores = [TwoScores(kappa, length) for kappa, length in table]
    assert rank_sums(scores).tolist() == sums
    assert best(scores) == winner


def test_a_step_adds_one_block_and_widens_everything() -> None:
    start = Growth.of(SEEDS["conv"])
    steps = start.candidates()
    assert len(steps) == 16
    added = {
        (tuple(a - b for a, b in zip(g.depths, start.depths, strict=True)), g.factor) for g in steps
    }
    units = [tuple(int(i == stage) for i in range(4)) for stage in range(4)]
    assert added == set(itertools.product(units, WIDTH_FACTORS))


def test_small_widenings_add_up_instead_of_being_rounded_away() -> None:
    growth = Growth.of(network(widths=(32, 32, 32, 32)))
    widths = []
    for _ in range(5):
        growth = growth.candidates()[0]  # × 1.05, which is 32 again when rounded
        widths.append(growth.architecture.widths[0])
    assert widths == [32, 32, 40, 40, 40]
    assert growth.factor == pytest.approx(1.05**5)


def test_candidates_are_scored_at_a_quarter_of_their_width() -> None:
    wide = network(widths=(64, 96, 128, 192), mixer=Mixer.of("window_attention", head_dim=32))
    narrow = scored_form(wide)
    assert narrow.widths == (16, 24, 32, 48)
    for stage, scored in zip(wide.stages, narrow.stages, strict=True):
        head_dim = int(scored.blocks[0].mixer["head_dim"])
        assert scored.width // head_dim == stage.width // 32
    horny = network(widths=(64, 64, 64, 64), mixer=Mixer.of("gnconv", order=6))
    assert scored_form(horny).widths == (32,) * 4  # the least that this mixer allows
    assert narrow.depths == wide.depths


def test_each_step_of_as_vit_is_the_best_of_its_candidates() -> None:
    seen: list[Architecture] = []

    def score(architecture: Architecture) -> TwoScores:
        seen.append(architecture)
        text = int(architecture.digest, 16)
        return TwoScores(1.0 + text % 97, float(text % 89))

    seed = SEEDS["attention"]
    family = grown(AsViT(score), seed, 4)
    assert len(family.path) > 4
    growth, at = Growth.of(seed), 0
    for step in family.path[1:]:
        fitting = [
            g for g in growth.candidates() if params(g.architecture) <= family.members[0].budget
        ]
        asked, at = seen[at : at + len(fitting)], at + len(fitting)
        assert asked == [scored_form(g.architecture) for g in fitting]
        growth = fitting[best([score(a) for a in asked])]
        del seen[len(seen) - len(fitting) :]
        assert step.architecture == growth.architecture
        assert step.scores == score(scored_form(step.architecture)).to_dict()
        seen.pop()
    assert at == len(seen)
    last = [g for g in growth.candidates() if params(g.architecture) <= family.members[0].budget]
    assert not last


class Counting(Proxy):
    """A proxy that knows how often it was asked."""

    name = "counting"
    summary = applies = ""

    def __init__(self, *values: float | None) -> None:
        self.values, self.asked = list(values), 0

    def score(self, network: Network, settings: ScoreSettings | None = None) -> Score:
        assert settings == ScoreSettings(seed=3)
        self.asked += 1
        return Score(self.values[(self.asked - 1) % len(self.values)])


def test_scores_are_asked_once_recorded_and_taken_from_an_earlier_run() -> None:
    kappa, length = Counting(2.0, None, math.nan), Counting(0.5, math.inf)
    recorded: list[tuple[str, dict[str, float]]] = []
    scorer = TwoScorer(
        kappa,
        length,
        ScoreSettings(seed=3),
        {SEEDS["gnconv"].digest: {"ntk_condition": 7.0, "length_distortion": 0.1}},
        lambda a, values, seconds: recorded.append((a.digest, dict(values))),
    )
    first, second, third = SEEDS["conv"], SEEDS["attention"], SEEDS["odd width"]
    assert scorer(first) == scorer(first) == TwoScores(2.0, 0.5)
    assert scorer(second) == TwoScores(math.inf, -math.inf)
    assert scorer(third) == TwoScores(math.inf, 0.5)
    assert scorer(SEEDS["gnconv"]) == TwoScores(7.0, 0.1)
    assert kappa.asked == length.asked == 3
    assert [digest for digest, _ in recorded] == [a.digest for a in (first, second, third)]
    assert recorded[0][1] == {"ntk_condition": 2.0, "length_distortion": 0.5}


@pytest.mark.usefixtures("one_thread")
def test_as_vit_grows_a_network_by_the_real_proxies() -> None:
    settings = ScoreSettings(repeats=1, batch_size=4)
    seed = network(widths=(16, 16, 32, 32), depths=(1, 1, 1, 1), mixer=ATTENTION)
    step = grown(AsViT(TwoScorer(settings=settings)), seed, 1.6).path[1]
    assert step.scores["ntk_condition"] > 1
    assert step.scores["length_distortion"] > 0
    again = TwoScorer(settings=settings)(scored_form(step.architecture))
    assert again.to_dict() == step.scores


# Contraction --------------------------------------------------------------------------------------


def flat(architecture: Architecture) -> list[tuple[int | float, ...]]:
    """Everything that a contraction may reduce."""
    return [
        architecture.depths,
        architecture.widths,
        (architecture.resolution,),
        *(
            (s.blocks[0].mlp_ratio, *map(int, dict(s.blocks[0].mixer.params).values()))
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
        stages=tuple(Stage(s.width, (Block(s.blocks[0].mixer, 1.25),)) for s in least.stages),
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


# Costs --------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_counts_and_of_the_latency_models() -> None:
    target = find_device("a100")
    costs = NetworkCosts([target], num_classes=10)
    table = LatencyTable(target.conditions, {}, {})
    for seed in SEEDS.values():
        found = costs(seed)
        assert found.pop("latency_ms@a100") == pytest.approx(predict_network(table, seed, 10))
        assert found == count_architecture(seed, 10)
    assert costs.metrics == ("num_params", "macs", "activations", "latency_ms@a100")
    assert costs.latencies["a100"].expected_error(list(SEEDS.values())) > 0.1
    assert "estimated from datasheet" in costs.latencies["a100"].provenance()


def test_a_component_is_costed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    count = cost_module.count_entry

    def counting(spec: object, size: int) -> object:
        asked.append((spec, size))
        return count(spec, size)  # type: ignore[arg-type]

    monkeypatch.setattr(cost_module, "count_entry", counting)
    costs = NetworkCosts(num_classes=10)
    seed = SEEDS["conv"]
    costs(seed)
    first = len(asked)
    assert (
        first
        == len({(c.spec, c.in_size) for c in components(seed, 10)})
        < len(components(seed, 10))
    )
    deeper = Shape((1, 1, 7, 1), seed.widths, 32).apply(seed)
    assert costs(deeper)["num_params"] > costs(seed)["num_params"]
    assert len(asked) == first


def measured_table(*seeds: Architecture) -> LatencyTable:
    """Latencies in proportion to the parameters, under this machine's conditions."""
    entries = {
        (c.spec, c.in_size): EntryLatency(value, value, value, 9)
        for seed in seeds
        for c in components(seed, 10)
        for value in [1.0 + 1e-3 * cost_module.count_entry(c.spec, c.in_size).num_params]
    }
    correction = Correction(
        space="known",
        scale=2.0,
        offset_ms=0.5,
        expected_error=0.04,
        checks=(),
        rounds=1,
        seconds=1.0,
        stopped="converged",
    )
    return LatencyTable(local_conditions(), entries, {"0" * 12: correction}, name="board")


def board(folder: Path, *seeds: Architecture) -> Target:
    path = folder / "board.parquet"
    measured_table(*seeds).save(path)
    return Target("board", local_conditions(), "table", path)


def test_a_measured_table_answers_for_what_it_has(tmp_path: Path) -> None:
    seed = SEEDS["conv"]
    target = board(tmp_path, seed)
    costs = NetworkCosts([target], num_classes=10)
    expected = predict_network(LatencyTable.load(target.path), seed, 10)
    assert costs(seed)["latency_ms@board"] == pytest.approx(expected)
    assert costs.latencies["board"].expected_error([seed]) == 0.04
    wider = network(widths=(16, 16, 24, 40))
    with pytest.raises(
        MissingLatencyError,
        match=r"'board' lacks stages\.3\.downsample of network .*downsample\(.* --interpolate.*"
        r"nas profile --space SPACE --device board",
    ):
        costs(wider)
    with pytest.raises(MissingLatencyError, match="'board' has no latency table"):
        NetworkCosts([replace(target, path=tmp_path / "none.parquet")])


def test_gaps_of_a_measured_table_are_interpolated(tmp_path: Path) -> None:
    widths = [(8, 8, 8, 8), (16, 16, 16, 16), (24, 24, 24, 24), (40, 40, 40, 40)]
    target = board(tmp_path, *(network(widths=w, depths=(1, 1, 1, 1)) for w in widths))
    costs = NetworkCosts([target], num_classes=10, interpolate=True)
    asked = network(widths=(32, 32, 32, 32), depths=(1, 1, 1, 1))
    total = sum(
        1 + 1e-3 * cost_module.count_entry(c.spec, c.in_size).num_params
        for c in components(asked, 10)
    )
    assert costs(asked)["latency_ms@board"] == pytest.approx(0.5 + 2 * total, rel=0.1)
    assert "interpolated" in costs.latencies["board"].provenance()
    task = ScalingTask(
        seed=network(widths=widths[0], depths=(1, 1, 1, 1)),
        by="latency_ms@board",
        budgets=(35.0, 45.0),
        costs=costs,
    )
    family = FastCompound().scale(task)
    assert [m.name for m in family.members] == ["35ms", "45ms"]
    assert all(m.costs["latency_ms@board"] <= m.budget for m in family.members)
