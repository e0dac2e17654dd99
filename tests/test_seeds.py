"""The search for seeds: its space, REINFORCE and evolution on objectives with known answers."""

from __future__ import annotations

import itertools
import json
import math
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_job import USAGE, nas

from search.scaling.two_criteria import TwoScores
from search.seeds import (
    SAMPLERS,
    Evolution,
    Reinforce,
    SeedSpace,
    _change,
    search_seed,
)
from search_space import (
    MIXERS,
    Architecture,
    Macro,
    Mixer,
    SearchSpace,
    StageSpace,
    load_architecture,
    metaformer,
)
from search_space.errors import UnknownNameError, UsageError
from supernet import Supernet
from supernet.network.transitions import PatchMerging

SPACE = SeedSpace(64)
BEST = tuple(count // 2 for count in SPACE.choices)  # in the middle, so that nothing is favoured
TARGET = SPACE.architecture(BEST)


def traits(architecture: Architecture) -> list[object]:
    """What the genes decide."""
    blocks = [stage.blocks[0] for stage in architecture.stages]
    return [
        architecture.macro.stem_kernel,
        architecture.macro.downsample_kernel,
        *(block.mixer for block in blocks),
        *(block["mlp_ratio"] for block in blocks),
    ]


def known_best(architecture: Architecture) -> TwoScores:
    """κ and L^E that are best at ``TARGET`` and say how many genes are wrong."""
    pairs = zip(traits(architecture), traits(TARGET), strict=True)
    wrong = sum(a != b for a, b in pairs)
    return TwoScores(1.0 + wrong, 5.0 - 0.5 * wrong)


# The space -------------------------------------------------------------------------------


def test_the_space_is_the_published_one_but_for_two_kernels() -> None:
    """4.56 M topologies, with a kernel for each of the three downsamplings where ours have one."""
    space = SeedSpace(224)
    assert space.size * 3**2 == 5 * 3**3 * (3 * 3 * 2 * 1) * 3 * 5**4 == 4_556_250
    for choice, heads in enumerate((16, 32, 64)):
        architecture = space.architecture((0, 0, choice) + (0,) * 8)
        per_stage = [
            stage.width // stage.blocks[0].mixer["head_dim"] for stage in architecture.stages
        ]
        assert per_stage == [heads // 8, heads // 4, heads // 2, heads]
    sides = (56, 28, 14, 7)
    for i, splits in enumerate([(8, 4, 2), (4, 2, 1), (2, 1), (1,)]):
        windows = {mixer["window"] for mixer in space._mixers[i]}
        assert windows == {sides[i] // split for split in splits}


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_transitions_normalise_patches_before_the_linear_layer(kernel: int) -> None:
    """As published: unfold, norm over all k²·C values, linear; here position by position."""
    torch.manual_seed(0)
    module = PatchMerging(6, 10, kernel, 2, "layer_norm", 1e-6)
    x = torch.randn(2, 8, 8, 6)
    patches = torch.zeros(2, 4, 4, kernel**2 * 6)
    padded = F.pad(x, (0, 0, 1, 1, 1, 1)) if kernel > 2 else x
    for row, column in itertools.product(range(4), repeat=2):
        patch = padded[:, 2 * row :, 2 * column :][:, :kernel, :kernel]
        if kernel == 2:  # Swin's order, columns before rows
            patch = patch.transpose(1, 2)
        patches[:, row, column] = patch.flatten(1)
    patches = F.layer_norm(patches, patches.shape[-1:], module.norm.weight, module.norm.bias, 1e-6)
    assert torch.allclose(module(x), patches @ module.reduction.weight.T, atol=1e-6)


def test_transitions_share_weights_bit_for_bit() -> None:
    block = metaformer(Mixer.of("pooling"), 2)
    stages = tuple(StageSpace((8 * 2**i, 16 * 2**i), (1,), (block,)) for i in range(4))
    macro = Macro(stem_kernel=4, downsample="patch_merging", downsample_kernel=3)
    space = SearchSpace("transitions", macro, (64,), stages)
    supernet, images = Supernet(space, 3).eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for architecture in space.decode(space.sample(np.random.default_rng(0), 4)):
            network = supernet.extract(architecture).eval()
            assert torch.equal(supernet(images, architecture), network(images))


@pytest.mark.parametrize("mixers", [*((name,) for name in MIXERS.names()), tuple(MIXERS.names())])
def test_every_topology_is_a_network_of_one_block_a_stage(mixers: tuple[str, ...]) -> None:
    space, rng = SeedSpace(32, mixers), np.random.default_rng(0)
    extremes = [tuple(0 for _ in space.choices), tuple(count - 1 for count in space.choices)]
    for topology in [*extremes, *(space.sample(rng) for _ in range(30))]:
        architecture = space.architecture(topology)
        assert architecture.widths == (32, 64, 128, 256)
        assert architecture.depths == (1, 1, 1, 1)
        assert {s.blocks[0].mixer.name for s in architecture.stages} <= set(mixers)
        child = space.mutate(topology, rng)
        assert sum(a != b for a, b in zip(topology, child, strict=True)) == 1
        assert all(0 <= gene < count for gene, count in zip(child, space.choices, strict=True))


def test_a_wrong_space_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'pooling'"):
        SeedSpace(224, ("poling",))
    with pytest.raises(UsageError, match="16 px are too small for four stages; take at least 32"):
        SeedSpace(16)
    with pytest.raises(UsageError, match="must be distinct"):
        SeedSpace(224, ("pooling", "pooling"))


# Samplers -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", SAMPLERS)
def test_a_known_best_topology_is_found(method: str, seed: int) -> None:
    asked: list[str] = []

    def evaluate(architecture: Architecture) -> TwoScores:
        asked.append(architecture.digest)
        return known_best(architecture)

    result = search_seed(SPACE, evaluate, method=method, seed=seed)
    assert result.best.architecture == TARGET
    assert len(asked) == len(set(asked)) == len(result.seen)
    assert [item.architecture.digest for item in result.seen] == asked
    rng = np.random.default_rng(seed)  # as many blind samples end far from it
    blind = [known_best(SPACE.architecture(SPACE.sample(rng))).kappa for _ in range(500)]
    assert min(blind) > 2


def test_reinforce_ends_sure_of_the_best() -> None:
    sampler = Reinforce(SPACE, seed=1)
    for _ in range(600):
        topology = sampler.ask()
        sampler.tell(topology, known_best(SPACE.architecture(topology)))
    assert sampler.last() == BEST
    sure = [p[best] for p, best in zip(sampler.probabilities(), BEST, strict=True)]
    assert min(sure) > 0.5


@pytest.mark.parametrize("method", SAMPLERS)
def test_the_same_seed_finds_the_same(method: str) -> None:
    def seen(seed: int) -> list[str]:
        result = search_seed(SPACE, known_best, method=method, steps=80, seed=seed)
        return [item.architecture.digest for item in result.seen]

    assert seen(5) == seen(5) != seen(6)


def test_the_change_is_over_the_range_of_the_last_twenty() -> None:
    recent: deque[float] = deque(maxlen=3)
    assert _change(recent, 10.0, 1.0) == 0  # nothing before
    assert _change(recent, 12.0, 1.0) == 1.0  # 2 over a range of 2
    assert _change(recent, 11.0, 1.0) == -0.5
    assert _change(recent, math.inf, 1.0) == 1.0  # worst, and forgotten
    assert _change(recent, 11.5, 1.0) == 0.5  # the first value is out: the range is 1
    assert Reinforce.WINDOW == 20


def test_reinforce_is_the_gradient_that_autograd_gives() -> None:
    """A few updates against the published loss, −(reward − baseline) · log p, and torch's Adam."""
    sampler, rng = Reinforce(SPACE, seed=0), np.random.default_rng(1)
    logits = [torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in SPACE.choices]
    optimiser = torch.optim.Adam(logits, lr=0.08)
    kappas, lengths, baseline = [2.0], [1.0], 0.0
    sampler.tell(sampler.ask(), TwoScores(kappas[0], lengths[0]))
    for _ in range(6):
        topology = sampler.ask()
        kappas.append(float(rng.normal()))
        lengths.append(float(rng.normal()))
        sampler.tell(topology, TwoScores(kappas[-1], lengths[-1]))
        reward = (lengths[-1] - lengths[-2]) / np.ptp(lengths) - (kappas[-1] - kappas[-2]) / np.ptp(
            kappas
        )
        baseline = 0.9 * baseline + 0.1 * reward
        optimiser.zero_grad()
        log_p = sum(
            torch.log_softmax(gene, 0)[choice]
            for gene, choice in zip(logits, topology, strict=True)
        )
        (-(reward - baseline) * log_p).backward()
        optimiser.step()
    for mine, theirs in zip(sampler.probabilities(), logits, strict=True):
        assert mine == pytest.approx(torch.softmax(theirs, 0).detach().numpy())


def test_evolution_forgets_the_oldest_and_repeats_nothing() -> None:
    sampler, asked = Evolution(SPACE, seed=2, population=4, tournament=4), []
    for _ in range(60):
        topology = sampler.ask()
        asked.append(topology)
        sampler.tell(topology, known_best(SPACE.architecture(topology)))
    assert len(set(asked)) == len(asked)
    for i, child in enumerate(asked[4:], 4):  # with everyone in the tournament, of the fittest
        population = asked[i - 4 : i]
        scored = [known_best(SPACE.architecture(topology)).kappa for topology in population]
        parent = population[scored.index(min(scored))]
        assert sum(a != b for a, b in zip(parent, child, strict=True)) == 1


def test_undefined_scores_are_survived() -> None:
    def evaluate(architecture: Architecture) -> TwoScores:
        found = known_best(architecture)
        undefined = architecture.macro.stem_kernel != TARGET.macro.stem_kernel
        return TwoScores(math.inf, -math.inf) if undefined else found

    for method in SAMPLERS:
        best = search_seed(SPACE, evaluate, method=method, steps=150).best
        assert math.isfinite(best.scores.kappa)
    nothing = search_seed(SPACE, lambda a: TwoScores(math.inf, -math.inf), steps=5)
    assert nothing.best.architecture == nothing.seen[0].architecture


# The command -------------------------------------------------------------------------------


def test_a_seed_is_searched_written_and_taken_up_again(job: Path) -> None:
    options = ("--image-size", 32, "--repeats", 1, "--score-images", 2, "--mixers", "pooling")
    command = ("seed", *options, "--method", "evolution", "--json")
    ran = nas(*command, "--steps", 3)
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert load_architecture("seed.yaml").digest == found["digest"]
    assert (found["steps"], found["scored"]) == (3, 3)
    assert found["ntk_condition"] >= 1
    assert found["length_distortion"] > 0
    assert Path("seed.yaml").read_text().startswith("# Seed found by evolution: 3 steps, 3 topol")
    again = nas(*command, "--steps", 4)
    assert again.code == USAGE
    assert "seed.yaml exists; choose another --out" in again.err
    Path("seed.yaml").unlink()
    longer = nas(*command, "--steps", 4)
    assert "3 scores are known already" in longer.err
    assert json.loads(longer.out)["scored"] == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--method", "reinforced"], ["seed search 'reinforced'", "Did you mean 'reinforce'"]),
        (["--mixers", "convolution"], ["unknown mixer 'convolution'"]),
        (["--mixers", "pooling,"], ["--mixers 'pooling,' has an empty entry"]),
        (["--image-size", "8"], ["8 px are too small", "at least 32"]),
        (["--steps", "0"], ["--steps", "x>=1"]),
    ],
)
def test_wrong_options_are_answered(job: Path, options: list[str], expected: list[str]) -> None:
    ran = nas("seed", *options)
    assert ran.code == USAGE
    assert all(text in ran.err for text in expected), ran.err
    assert sorted(path.name for path in job.iterdir()) == ["pebble.yaml"]
