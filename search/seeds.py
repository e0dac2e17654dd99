"""Search for a seed of scaling without training (Chen et al., As-ViT, 2022).

A seed has one block in each stage and a width of 32 that doubles from stage to stage. Good seeds
have a small κ (condition number of the neural tangent kernel) and a large L^E (expected length
distortion), see ``search.scaling.two_criteria``. The published search is REINFORCE on independent
categoricals; regularised evolution (Real et al. 2019) is an alternative of this project.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from search.scaling.two_criteria import TwoScores, best, rank_sums
from search_space import MIXERS, Architecture, Macro, Mixer, Stage, metaformer
from search_space.errors import UnknownNameError, UsageError
from search_space.macro import feature_sizes

Topology = tuple[int, ...]
"""Index of the choice of each gene: stem kernel, downsampling kernel, number of heads, then mixer
and MLP ratio of each stage."""
Evaluate = Callable[[Architecture], TwoScores]
Progress = Callable[[int, int, str], None]
Values = npt.NDArray[np.float64]

ATTENTION = "window_attention"
WIDTH = 32
STEM_KERNELS, STEM_STRIDE = (4, 5, 6, 7, 8), 4
DOWNSAMPLE_KERNELS = (2, 3, 4)
MLP_RATIOS = (2, 3, 4, 5, 6)
WINDOWS_PER_SIDE = ((8, 4, 2), (4, 2, 1), (2, 1), (1,))
HEADS = (16, 32, 64)  # of the last stage
STEPS = 500
NUM_STAGES = 4


# The space ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeedSpace:
    """The space of seeds: kernels of stem and downsampling, mixer and MLP ratio of each stage.

    Attention is described as published: by the number of windows along a side of the feature map
    (``WINDOWS_PER_SIDE``) and by the number of heads of the last stage (``HEADS``), which halves
    towards the first, so that all heads have 16, 8 or 4 channels. Transitions normalise their
    patches before a linear layer. Unlike in the published space one downsampling kernel serves all
    stages, as ``Macro`` has it.

        space = SeedSpace(224, ("window_attention", "pooling"))
        architecture = space.architecture(space.sample(rng))

    Args:
        image_size: side of the square images, in pixels.

    Raises:
        UnknownNameError: There is no such mixer.
        UsageError: There is no mixer or one twice, or the images are too small for four stages.
    """

    image_size: int = 224
    mixers: tuple[str, ...] = (ATTENTION,)

    def __post_init__(self) -> None:
        for name in self.mixers:
            if name not in MIXERS.names():
                raise UnknownNameError("mixer", name, MIXERS.names())
        if not self.mixers or len(set(self.mixers)) != len(self.mixers):
            raise UsageError(
                f"mixers {', '.join(self.mixers) or '(none)'} must be distinct and at least one."
            )
        least = STEM_STRIDE * 2 ** (NUM_STAGES - 1)
        if self.image_size < least:
            small = f"images of {self.image_size} px are too small for four stages"
            raise UsageError(f"{small}; take at least {least}.")

    @cached_property
    def choices(self) -> tuple[int, ...]:
        """The number of choices of each gene."""
        per_stage = ((len(blocks), len(MLP_RATIOS)) for blocks in self._mixers)
        heads = len(HEADS) if ATTENTION in self.mixers else 1
        return (len(STEM_KERNELS), len(DOWNSAMPLE_KERNELS), heads, *itertools.chain(*per_stage))

    @property
    def size(self) -> int:
        """The number of topologies."""
        return math.prod(self.choices)

    @cached_property
    def _mixers(self) -> tuple[tuple[Mixer, ...], ...]:
        """The mixers to choose from by stage, attention with any number of heads."""
        macro = _macro(STEM_KERNELS[0], DOWNSAMPLE_KERNELS[0])
        strides = (1, *(2,) * (NUM_STAGES - 1))
        sides = feature_sizes(macro, strides, self.image_size)
        return tuple(
            tuple(itertools.chain(*(_mixers_of(name, i, sides[i]) for name in self.mixers)))
            for i in range(NUM_STAGES)
        )

    def architecture(self, topology: Topology) -> Architecture:
        """The network of a topology."""
        stages = []
        for i, mixers in enumerate(self._mixers):
            mixer, ratio = mixers[topology[3 + 2 * i]], MLP_RATIOS[topology[4 + 2 * i]]
            if mixer.name == ATTENTION:
                head_dim = WIDTH * 2 ** (NUM_STAGES - 1) // HEADS[topology[2]]
                mixer = Mixer.of(ATTENTION, window=mixer["window"], head_dim=head_dim)
            stages.append(Stage(WIDTH * 2**i, (metaformer(mixer, ratio),)))
        macro = _macro(STEM_KERNELS[topology[0]], DOWNSAMPLE_KERNELS[topology[1]])
        return Architecture(macro, self.image_size, tuple(stages))

    def sample(self, rng: np.random.Generator) -> Topology:
        """A topology, each gene uniform over its choices."""
        return tuple(int(gene) for gene in rng.integers(0, self.choices))

    def mutate(self, topology: Topology, rng: np.random.Generator) -> Topology:
        """``topology`` with another value of one gene."""
        mutable = [i for i, count in enumerate(self.choices) if count > 1]
        gene = int(rng.choice(mutable))
        value = (topology[gene] + int(rng.integers(1, self.choices[gene]))) % self.choices[gene]
        return (*topology[:gene], value, *topology[gene + 1 :])


def _macro(stem_kernel: int, downsample_kernel: int) -> Macro:
    return Macro(
        stem_kernel=stem_kernel,
        stem_stride=STEM_STRIDE,
        downsample="patch_merging",
        downsample_kernel=downsample_kernel,
        head_norm="before_pool",
    )


def _mixers_of(name: str, stage: int, side: int) -> list[Mixer]:
    """The variants of a mixer in a stage whose feature map has this side; kernels fit the map."""
    kernels = [kernel for kernel in (3, 5, 7) if kernel == 3 or kernel <= side]
    match name:
        case "window_attention":
            windows = dict.fromkeys(-(-side // count) for count in WINDOWS_PER_SIDE[stage])
            return [Mixer.of(name, window=window) for window in windows]
        case "focal_modulation":
            return [Mixer.of(name, levels=n, window=w) for n in (2, 3) for w in (3, 5)]
        case "gnconv":
            return [Mixer.of(name, order=n, kernel=k) for n in (2, 3, 4, 5) for k in kernels]
        case "depthwise_conv" | "pooling":
            return [Mixer.of(name, kernel=k) for k in kernels]
    return [Mixer.of(name)]


# Samplers ----------------------------------------------------------------------------------------


class SeedSampler(Protocol):
    """Proposes topologies one at a time and learns from their scores; deterministic for a seed."""

    def ask(self) -> Topology:
        """The next topology to score."""
        ...

    def tell(self, topology: Topology, scores: TwoScores) -> None:
        """The scores of the topology that was asked for last."""
        ...

    def last(self) -> Topology | None:
        """A topology that the sampler would end with, to be scored once more at the end."""
        ...


class Reinforce:
    """Samples from independent categoricals that REINFORCE updates with Adam.

    The reward is ``−Δκ / range₂₀(κ) + ΔL^E / range₂₀(L^E)``: differences to the sample before over
    the range of the last twenty. A score that is not finite is a whole range worse than the one
    before, and is left out of the ranges.

    Args:
        learning_rate: of Adam.
        decay: of the moving average of rewards, which is the baseline.
    """

    WINDOW = 20

    def __init__(
        self, space: SeedSpace, seed: int = 0, learning_rate: float = 0.08, decay: float = 0.9
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._decay, self._baseline = decay, 0.0
        self._logits = [
            torch.zeros(count, dtype=torch.float64, requires_grad=True) for count in space.choices
        ]
        self._adam = torch.optim.Adam(self._logits, lr=learning_rate)
        self._kappa: deque[float] = deque(maxlen=self.WINDOW)
        self._length: deque[float] = deque(maxlen=self.WINDOW)
        self._told = 0

    def probabilities(self) -> list[Values]:
        """The probabilities of each gene's choices, shape (choices,) each."""
        return [torch.softmax(logits.detach(), 0).numpy() for logits in self._logits]

    def ask(self) -> Topology:
        return tuple(int(self._rng.choice(len(p), p=p)) for p in self.probabilities())

    def tell(self, topology: Topology, scores: TwoScores) -> None:
        reward = _change(self._length, scores.length, -1.0)
        reward -= _change(self._kappa, scores.kappa, 1.0)
        self._told += 1
        if self._told == 1:  # nothing to compare with
            return
        self._baseline = self._decay * self._baseline + (1 - self._decay) * reward
        pairs = zip(self._logits, topology, strict=True)
        log_p = torch.stack([torch.log_softmax(logits, 0)[choice] for logits, choice in pairs])
        self._adam.zero_grad()
        ((self._baseline - reward) * log_p.sum()).backward()
        self._adam.step()

    def last(self) -> Topology:
        """The most probable topology."""
        return tuple(int(logits.argmax()) for logits in self._logits)


def _change(recent: deque[float], value: float, worst: float) -> float:
    """The difference of ``value`` to the one before, over the range of the recent values with it.

    It is ``worst`` where the value is not finite, and 0 where there is nothing to compare with.
    """
    if not math.isfinite(value):
        return worst
    before = recent[-1] if recent else value
    recent.append(value)
    span = max(recent) - min(recent)
    return (value - before) / span if span > 0 else 0.0


class Evolution:
    """Mutates the best of a few and lets the oldest die: regularised evolution.

    Fitness is the sum of the ranks of κ and L^E among everything seen, so it needs neither units
    nor weights. What was seen is not proposed again while mutations find something new.

    Args:
        population: how many of the latest topologies may be mutated.
        tournament: how many of them compete.
    """

    TRIES = 100

    def __init__(
        self, space: SeedSpace, seed: int = 0, population: int = 32, tournament: int = 8
    ) -> None:
        self._space, self._rng = space, np.random.default_rng(seed)
        self._population: deque[Topology] = deque(maxlen=population)
        self._tournament = tournament
        self._seen: dict[Topology, TwoScores] = {}

    def ask(self) -> Topology:
        parent = self._parent() if len(self._population) == self._population.maxlen else None
        space, rng = self._space, self._rng
        for _ in range(self.TRIES):
            topology = space.sample(rng) if parent is None else space.mutate(parent, rng)
            if topology not in self._seen:
                return topology
        return space.sample(rng)

    def _parent(self) -> Topology:
        """The fittest of a few random members of the population, of equal ones the older."""
        sums = rank_sums(list(self._seen.values()))
        fitness = dict(zip(self._seen, sums.tolist(), strict=True))
        count = min(self._tournament, len(self._population))
        drawn = self._rng.choice(len(self._population), size=count, replace=False)
        return min((self._population[i] for i in sorted(drawn)), key=lambda t: fitness[t])

    def tell(self, topology: Topology, scores: TwoScores) -> None:
        self._seen[topology] = scores
        self._population.append(topology)

    def last(self) -> None:
        """No topology."""


# The search --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredSeed:
    """A topology, its network and its scores."""

    topology: Topology
    architecture: Architecture
    scores: TwoScores


@dataclass(frozen=True)
class SeedResult:
    """The result of a search for seeds.

    Args:
        best: the smallest sum of the ranks of κ and L^E among ``seen`` (``two_criteria.best``).
        seen: every distinct topology, in order.
        steps: number of topologies proposed, repetitions counted.
    """

    method: str
    best: ScoredSeed
    seen: tuple[ScoredSeed, ...] = field(repr=False)
    steps: int


SAMPLERS: dict[str, Callable[[SeedSpace, int], SeedSampler]] = {
    "reinforce": Reinforce,
    "evolution": Evolution,
}


def seed_sampler(name: str, space: SeedSpace, seed: int = 0) -> SeedSampler:
    """The sampler ``name``; UnknownNameError names the nearest where there is none."""
    if name not in SAMPLERS:
        raise UnknownNameError("seed search", name, SAMPLERS)
    return SAMPLERS[name](space, seed)


def search_seed(
    space: SeedSpace,
    evaluate: Evaluate,
    *,
    method: str = "reinforce",
    steps: int = STEPS,
    seed: int = 0,
    progress: Progress = lambda done, total, text: None,
) -> SeedResult:
    """Searches for the best topology; deterministic for a ``seed``.

        result = search_seed(SeedSpace(224), TwoScorer(), steps=100)

    Args:
        evaluate: gives κ and L^E; called once for each distinct network.
        method: one of ``SAMPLERS``. With REINFORCE the most probable topology is scored at the end.
        progress: is told the steps done, all steps, and a text.

    Raises:
        UnknownNameError: There is no such method.
    """
    sampler = seed_sampler(method, space, seed)
    seen: dict[str, ScoredSeed] = {}

    def score(topology: Topology) -> TwoScores:
        architecture = space.architecture(topology)
        if architecture.digest not in seen:
            seen[architecture.digest] = ScoredSeed(topology, architecture, evaluate(architecture))
        return seen[architecture.digest].scores

    for done in range(steps):
        progress(done, steps, f"{len(seen)} distinct topologies")
        topology = sampler.ask()
        sampler.tell(topology, score(topology))
    if (last := sampler.last()) is not None:
        score(last)
    every = tuple(seen.values())
    winner = every[best([item.scores for item in every])]
    return SeedResult(method, winner, every, steps)
