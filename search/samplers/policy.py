"""The policy of N2N (Ashok et al. 2018): which layers go, and how much is left of the others.

A bidirectional LSTM reads the layers of the largest network and says of each whether it is removed;
an autoregressive one reads what was decided and chooses among what may be left. Published are fixed
factors; here a choice is scored by its description, so that places may differ in what they offer.
Neither network has a size that a space decides: what is learnt on one space serves another.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from search_space.blocks import BLOCKS, SKIP, Block
from search_space.components import block_spec
from search_space.mixers import MIXERS
from search_space.registry import ParamValue, is_number
from search_space.space import SearchSpace
from search_space.stage_space import Genes

Values = npt.NDArray[np.float64]
HIDDEN, LAYERS = 30, 2
NAME = 16  # signs that stand for a name
NUMBERS = 4  # of a layer besides its kind: kernel, stride, channels in and out
SHARES = 4  # of a choice besides its kind: what is left of widths and of the rest, and their logs


@cache
def code(name: str) -> Values:
    """A name as a vector of random signs of length 1, shape (NAME,).

    Whatever is registered later changes neither a policy's size nor what a seed gives.
    """
    return np.random.default_rng(zlib.crc32(name.encode())).choice([-0.25, 0.25], NAME)


@dataclass(frozen=True)
class Layers:
    """The places where a space leaves a choice, in the order of genes, as a policy reads them.

    Attributes:
        genes: columns of the space's rows, shape (T,).
        layers: the largest network's layer there, shape (T, features).
        choices: each of the gene's values, shape (T, C, features); 0 where it has fewer.
        offered: whether a gene has a value that is not ``skip``, shape (T, C).
        skips: the value that removes the layer, −1 where there is none; shape (T,).
    """

    genes: Genes
    layers: torch.Tensor
    choices: torch.Tensor
    offered: npt.NDArray[np.bool_]
    skips: Genes

    @classmethod
    def of(cls, space: SearchSpace) -> Layers:
        """The places of a space."""
        places = [p for p in _places(space) if len(p.choices) > 1]
        most = max((len(place.choices) for place in places), default=1)
        count = len(places)
        layers = np.zeros((count, NAME + NUMBERS))
        choices = np.zeros((count, most, NAME + SHARES))
        offered = np.zeros((count, most), dtype=bool)
        skips = np.full(count, -1, dtype=np.int64)
        for t, place in enumerate(places):
            layers[t] = [*code(place.kind), *place.numbers]
            for c, (kind, widths, rest) in enumerate(place.choices):
                shares = (widths, rest, math.log(widths), math.log(rest))
                choices[t, c] = [*code(kind), *shares]
                if kind == SKIP:
                    skips[t] = c
                else:
                    offered[t, c] = True
        genes = np.array([place.gene for place in places], dtype=np.int64)
        described = torch.from_numpy(layers).float(), torch.from_numpy(choices).float()
        return cls(genes, *described, offered, skips)


@dataclass(frozen=True)
class _Place:
    """A gene: its layer's kind and numbers; of each choice the kind and two parts of the whole."""

    gene: int
    kind: str
    numbers: tuple[float, float, float, float]
    choices: list[tuple[str, float, float]]


def _places(space: SearchSpace) -> Iterator[_Place]:
    def sized(gene: int, kind: str, values: tuple[int, ...]) -> _Place:
        parts = [(kind, value / values[-1], 1.0) for value in values]
        return _Place(gene, kind, (0.0, 0.0, 0.0, math.log2(values[-1]) / 8), parts)

    yield sized(0, "resolution", space.resolutions)
    for i, stage in enumerate(space.stages):
        column, start = int(space.width_columns[i]), space.block_columns(i).start
        yield sized(column, "width", stage.widths)
        yield sized(column + 1, "depth", stage.depths)
        width, before = stage.widths[-1], space.widths_before[i][-1]
        for j, choices in enumerate(stage.positions):
            own, entry = choices[-1], space.enters_by_block and j == 0
            width_in, stride = (before, space.strides[i]) if entry else (width, 1)
            spec = block_spec(space.macro, width, own, j, width_in, stride)
            sides = spec.as_dict() if spec else {}
            sides |= dict(sides.get("params", ()))
            side = float(sides.get("kernel", sides.get("window", 1)))
            numbers = (side / 7, stride / 2, math.log2(width_in) / 8, math.log2(width) / 8)
            parts = [(block.label, *_parts(block, own)) for block in choices]
            yield _Place(start + j, own.label, numbers, parts)


def _parts(block: Block, own: Block) -> tuple[float, float]:
    """What a block has of another's inner widths, and of its other numbers."""
    if block.skipped or own.skipped or block.label != own.label:
        return 1.0, 1.0
    ratios = {*BLOCKS[own.kind].ratios, *(MIXERS[own.mixer.name].ratios if own.mixer else ())}
    mine, whole = block.traits, own.traits
    widths = rest = 1.0
    for key in mine.keys() & whole.keys():
        part = _part(mine[key], whole[key])
        widths, rest = (widths * part, rest) if key in ratios else (widths, rest * part)
    return widths, rest


def _part(value: ParamValue, whole: ParamValue) -> float:
    if not (is_number(value) and is_number(whole) and float(value) > 0 and float(whole) > 0):
        return 1.0
    return float(value) / float(whole)


class Policy(nn.Module):
    """Removes and shrinks the layers of any space.

    Example:
        >>> policy, layers = Policy(seed=0), Layers.of(space)
        >>> rows = policy.sample(layers, space.encode([space.largest]), 5, rng)
    """

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__()
            layer, choice = NAME + NUMBERS, NAME + SHARES
            self.reads = nn.LSTM(layer, HIDDEN, LAYERS, batch_first=True, bidirectional=True)
            self.removes = nn.Linear(2 * HIDDEN, 1)
            self.follows = nn.LSTM(layer + 1 + choice, HIDDEN, LAYERS, batch_first=True)
            self.shrinks = nn.Linear(HIDDEN, choice)

    @property
    def removal(self) -> list[nn.Parameter]:
        """Weights of the first part."""
        return [*self.reads.parameters(), *self.removes.parameters()]

    @property
    def shrinkage(self) -> list[nn.Parameter]:
        """Weights of the second part."""
        return [*self.follows.parameters(), *self.shrinks.parameters()]

    def log_probabilities(self, layers: Layers, genes: Genes) -> torch.Tensor:
        """Of rows (n, genes) the logarithm of each decision's probability, shape (n, T)."""
        chosen = genes[:, layers.genes]
        removed = torch.from_numpy((chosen == layers.skips) & (layers.skips >= 0))
        result = self._removal(layers, removed)
        steps = self._inputs(layers, removed.float())
        index = torch.from_numpy(np.maximum(chosen, 0))
        of_chosen = layers.choices[torch.arange(len(layers.genes)), index]
        before = torch.cat([torch.zeros_like(of_chosen[:, :1]), of_chosen[:, :-1]], dim=1)
        states, _ = self.follows(torch.cat([steps, before], dim=2))
        scores = torch.einsum("ntf,tcf->ntc", self.shrinks(states), layers.choices)
        scores = scores.masked_fill(~torch.from_numpy(layers.offered), -math.inf)
        logs = scores.log_softmax(dim=2).gather(2, index[:, :, None])[:, :, 0]
        return result + torch.where(removed, torch.zeros_like(logs), logs)

    @torch.no_grad()
    def sample(self, layers: Layers, largest: Genes, n: int, rng: np.random.Generator) -> Genes:
        """Draws ``n`` rows, shape (n, genes); ``largest`` (1, genes) says what is no choice."""
        rows = np.repeat(largest, n, axis=0)
        count = len(layers.genes)
        gone = torch.sigmoid(self._remove_logits(layers)).double().numpy()
        removed = (rng.random((n, count)) < gone) & (layers.skips >= 0)
        only = (layers.skips >= 0) & ~layers.offered.any(axis=1)
        removed |= only
        steps = self._inputs(layers, torch.from_numpy(removed).float())
        before, state = torch.zeros(n, 1, layers.choices.shape[2]), None
        for t in range(count):
            hidden, state = self.follows(torch.cat([steps[:, t : t + 1], before], dim=2), state)
            scores = self.shrinks(hidden[:, 0]) @ layers.choices[t].T
            scores = scores.masked_fill(~torch.from_numpy(layers.offered[t]), -math.inf)
            below = scores.softmax(dim=1).double().cumsum(dim=1).numpy()
            drawn = (rng.random((n, 1)) * below[:, -1:] >= below).sum(axis=1)
            drawn = np.where(removed[:, t], layers.skips[t], drawn)
            rows[:, layers.genes[t]] = drawn
            before = layers.choices[t, torch.from_numpy(drawn)][:, None]
        return rows

    def _remove_logits(self, layers: Layers) -> torch.Tensor:
        return self.removes(self.reads(layers.layers[None])[0])[0, :, 0]

    def _removal(self, layers: Layers, removed: torch.Tensor) -> torch.Tensor:
        logits = self._remove_logits(layers)
        logs = nn.functional.logsigmoid(torch.where(removed, logits, -logits))
        return logs * torch.from_numpy(layers.skips >= 0)

    def _inputs(self, layers: Layers, removed: torch.Tensor) -> torch.Tensor:
        """Layers and whether they go, shape (n, T, features)."""
        return torch.cat([layers.layers.expand(len(removed), -1, -1), removed[:, :, None]], dim=2)
