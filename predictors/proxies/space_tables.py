"""Closed-form proxies of a whole space: additive tables, and what is made from their stage sums.

The longest path through a chain of components is the sum of those through each, so entropy and
layers are additive tables. DeepMAD's score and ρ, and the default score, are functions of those
tables' sums up to each stage, and so as fast as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from predictors.counts import count_architecture
from predictors.counts import counts as count_tables
from predictors.proxies.combined import combined_score
from predictors.proxies.deepmad import (
    LAST_WEIGHT,
    StageEnd,
    effectiveness_of_ends,
    final_effectiveness,
    score_of_ends,
)
from predictors.proxies.structure import Path, trace
from predictors.tables.additive import AdditiveTable
from search_space import Architecture, Genes, ModuleSpec, SearchSpace, components
from search_space.errors import UnknownNameError
from search_space.macro import feature_sizes
from search_space.metrics import MACS, PARAMS
from supernet.network.blocks.metaformer import Mlp
from supernet.network.mixers import build_mixer
from supernet.network.modules import build_module

Values = npt.NDArray[np.float64]
_SIDE = 8  # any map that is larger than one position gives the same paths


def component_path(spec: ModuleSpec) -> Path:
    """Finds the longest path through one component, without a head's classifier."""
    spec = spec.in_float
    options = spec.as_dict()
    if spec.kind == "stem":
        side = 2 * int(options["kernel"])
        return _path(build_module, (1, 3, side, side), spec)
    dim = options["dim"]
    shape = (1, _SIDE, _SIDE, dim)
    if options["style"] != "metaformer":
        return _path(build_module, shape, spec)
    params = tuple((k, v) for k, v in options["params"] if k != "shifted")
    mixer = _path(_mixer, shape, options["mixer"], dim, params)
    rest = _path(Mlp, shape, dim, options["hidden"], options["activation"])
    return Path(mixer.entropy + rest.entropy, mixer.layers + rest.layers)


@lru_cache(maxsize=8192)
def _path(make: Callable[..., nn.Module], shape: tuple[int, ...], *options: Any) -> Path:
    with torch.device("meta"):
        module = make(*options).eval()
    return trace(module, shape).path


def _mixer(name: str, dim: int, params: tuple[tuple[str, Any], ...]) -> nn.Module:
    return build_mixer(name, dim, **dict(params))


def architecture_ends(architecture: Architecture) -> list[StageEnd]:
    """Finds the ends of an architecture's stages without building the network."""
    last = len(architecture.stages) - 1
    outer = {"stem": 0, "head": last}  # they count to the first and the last stage
    sums = [Path() for _ in architecture.stages]
    for component in components(architecture):
        path, place = component_path(component.spec), component.path
        stage = outer[place] if place in outer else int(place.split(".")[1])
        sums[stage] = Path(sums[stage].entropy + path.entropy, sums[stage].layers + path.layers)
    ends: list[StageEnd] = []
    entropy, layers = 0.0, 0
    for i, path in enumerate(sums):
        entropy, layers = entropy + path.entropy, layers + path.layers
        if i in scale_ends(architecture.strides):
            width = architecture.widths[i]
            channels = architecture.macro.head_width or width if i == last else width
            ends.append(StageEnd(channels, architecture.sizes[i] ** 2, entropy, layers))
    return ends


def scale_ends(strides: Sequence[int]) -> list[int]:
    """Lists the stages that are the last ones of their map's size, of all stages' strides."""
    return [i for i, after in enumerate((*strides[1:], 2)) if after > 1]


@dataclass(frozen=True, eq=False)
class PathTables:
    """The longest path through the architectures of a space, as tables.

    Args:
        space: The space whose rows they predict.
        entropy: Σ ½·log w of the path's layers.
        layers: Their number.
        factors: ``α · log(c · r²)`` at each stage's end, shape (R, W) per stage; 0 where the next
            stage has maps of the same size.
    """

    space: SearchSpace
    entropy: AdditiveTable
    layers: AdditiveTable
    factors: tuple[Values, ...]

    @property
    def ends(self) -> list[int]:
        """The stages at whose ends the formulas are evaluated."""
        return scale_ends(self.space.strides)

    @classmethod
    def build(cls, space: SearchSpace, num_classes: int = 1000) -> PathTables:
        """Builds the tables of ``space``; the number of classes changes nothing."""

        def table(value: Callable[[Path], float]) -> AdditiveTable:
            return AdditiveTable.build(
                space, num_classes, lambda spec, size: value(component_path(spec))
            )

        sizes = np.array(
            [feature_sizes(space.macro, space.strides, side) for side in space.resolutions]
        )
        last, ends, factors = len(space.stages) - 1, scale_ends(space.strides), []
        for i, stage in enumerate(space.stages):
            channels = np.array(stage.widths, dtype=np.float64)
            if i == last and space.macro.head_width:
                channels[:] = space.macro.head_width
            weight = (LAST_WEIGHT if i == last else 1.0) if i in ends else 0.0
            factors.append(weight * np.log(np.multiply.outer(sizes[:, i] ** 2.0, channels)))
        return cls(
            space,
            table(lambda path: path.entropy),
            table(lambda path: path.layers),
            tuple(factors),
        )

    def score(self, genes: Genes) -> Values:
        """Computes DeepMAD's score of rows, shape (n, genes) to (n,)."""
        entropy = self.entropy.stage_sums(genes).cumsum(axis=1)
        total = np.zeros(len(genes))
        for i, column in enumerate(self.space.width_columns):
            total += self.factors[i][genes[:, 0], genes[:, column]] * entropy[:, i]
        return total

    def effectiveness(self, genes: Genes) -> Values:
        """Computes ρ of rows, the largest over their scales, shape (n, genes) to (n,)."""
        entropy = self.entropy.stage_sums(genes).cumsum(axis=1)[:, self.ends]
        layers = self.layers.stage_sums(genes).cumsum(axis=1)[:, self.ends]
        result: Values = (layers * np.exp(-2 * entropy / layers)).max(axis=1)
        return result

    def final_effectiveness(self, genes: Genes) -> Values:
        """Computes ρ of rows at the end of the last stage, shape (n, genes) to (n,)."""
        entropy, layers = self.entropy.predict(genes), self.layers.predict(genes)
        result: Values = layers * np.exp(-2 * entropy / layers)
        return result


CLOSED_FORMS = ("combined", "deepmad", "effectiveness")
SUMS = ("entropy", "params", "macs")
"""Scores that add up over components: Σ ½·log w of the longest path, parameters, MACs."""
_COUNTS = {"params": PARAMS, "macs": MACS}


@dataclass(frozen=True, eq=False)
class SpaceScores:
    """Closed-form scores of whole populations, by the names in ``CLOSED_FORMS`` and ``SUMS``."""

    paths: PathTables
    counts: Mapping[str, AdditiveTable]

    @classmethod
    def build(
        cls, space: SearchSpace, counts: Mapping[str, AdditiveTable] | None = None
    ) -> SpaceScores:
        """Builds the tables of ``space``; ``counts`` are its tables of counts where known."""
        return cls(PathTables.build(space), count_tables(space) if counts is None else counts)

    def additive(self, name: str) -> AdditiveTable | PathTables | None:
        """Returns what exact search maximises for a score; None where it does not add up."""
        if name == "deepmad":
            return self.paths
        if name == "entropy":
            return self.paths.entropy
        return self.counts[_COUNTS[name]] if name in _COUNTS else None

    def predict(self, name: str, genes: Genes) -> Values:
        """Computes scores of a population.

        Args:
            name: One of ``CLOSED_FORMS`` and ``SUMS``.
            genes: Valid rows, shape (n, genes).

        Returns:
            Scores, shape (n,).

        Raises:
            UnknownNameError: There is no such score.
        """
        match name:
            case "deepmad":
                return self.paths.score(genes)
            case "effectiveness":
                return self.paths.effectiveness(genes)
            case "combined":
                return combined_score(
                    self.counts["num_params"].predict(genes),
                    self.counts["activations"].predict(genes),
                    self.paths.final_effectiveness(genes),
                )
        if isinstance(table := self.additive(name), AdditiveTable):
            return table.predict(genes)
        raise UnknownNameError("closed-form score", name, (*CLOSED_FORMS, *SUMS))


def score_architecture(name: str, architecture: Architecture, num_classes: int = 1000) -> float:
    """Computes the score ``name`` of one architecture of any space.

    Raises:
        UnknownNameError: There is no such score.
    """
    ends = architecture_ends(architecture)
    match name:
        case "deepmad":
            return score_of_ends(ends)
        case "effectiveness":
            return effectiveness_of_ends(ends)
        case "combined":
            counts = count_architecture(architecture, num_classes)
            sizes = (float(counts["num_params"]), float(counts["activations"]))
            return float(combined_score(*map(np.array, (*sizes, final_effectiveness(ends)))))
        case "entropy":
            return ends[-1].entropy
        case "params" | "macs":
            return float(count_architecture(architecture, num_classes)[_COUNTS[name]])
    raise UnknownNameError("closed-form score", name, (*CLOSED_FORMS, *SUMS))
