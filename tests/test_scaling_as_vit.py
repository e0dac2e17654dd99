"""As-ViT's growth: dense ranks, steps, scores asked once."""

from __future__ import annotations

import itertools
import math

import pytest
from scaling_cases import (
    ATTENTION,
    SEEDS,
    grown,
    network,
    params,
)

from predictors.proxies import (
    Network,
    Proxy,
    Score,
    ScoreSettings,
)
from search.scaling.as_vit import WIDTH_FACTORS, AsViT, Growth, scored_form
from search.scaling.two_criteria import TwoScorer, TwoScores, best, rank_sums
from search_space import Architecture, Mixer


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
