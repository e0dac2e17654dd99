"""The structure that closed-form proxies score: layers and the longest path through them.

Each linear layer and convolution has a width ``w = c_in · k² / groups`` (Shen et al. 2023,
DeepMAD); a tensor remembers the path with the largest ``Σ ½·log w`` from the image to it. Gated
mixers have several branches that are multiplied: only the longest one counts, since counting them
all would make gates look like depth. A residual sum continues the longer of its two paths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from predictors.operators import Operand, Operator
from predictors.operators import trace as trace_operators

_POOLS = {
    *("mean", "sum", "amax", "max", "avg_pool2d", "max_pool2d_with_indices"),
    *("_adaptive_avg_pool2d", "adaptive_max_pool2d"),
}


@dataclass(frozen=True)
class Path:
    """A path from the input: the half log widths of its layers added up, and their number."""

    entropy: float = 0.0
    layers: int = 0


@dataclass(frozen=True)
class Layer:
    """One linear layer or convolution as it was called, and the longest path to its output.

    ``width`` is ``c_in · k² / groups``; ``positions`` are those of the output of one image (the
    product of its sides).
    """

    width: int
    channels: int
    positions: int
    path: Path


@dataclass(frozen=True)
class Structure:
    """Layers in the order of their calls, the longest path to the output, and counts.

    ``macs`` and ``activations`` are for one image; ``num_params`` are all parameters of the module.
    """

    layers: tuple[Layer, ...]
    path: Path
    num_params: int
    macs: int
    activations: int


def trace(module: nn.Module, shape: Sequence[int]) -> Structure:
    """Traces ``module``, which lies on the meta device, with one input of ``shape``.

    Layers that see a whole map pooled to one position, as squeeze-and-excitation and most
    classifiers do, are left out, as in DeepMAD; so is a last layer of one position.
    """
    launched, image, outputs = trace_operators(lambda: module, shape)
    paths = _Paths(image)
    for operator in launched:
        paths.follow(operator)
    layers, path = paths.layers, paths.joined(outputs).path
    classifies = len(outputs) == 1 and len(outputs[0].shape) == 2
    if classifies and layers and layers[-1].positions == 1 and layers[-1].path == path:
        *layers, last = layers  # a classifier behind maps of one position
        path = Path(path.entropy - 0.5 * math.log(last.width), path.layers - 1)
    num_params = sum(parameter.numel() for parameter in module.parameters())
    return Structure(
        tuple(layers),
        path,
        num_params,
        macs=sum(operator.macs for operator in launched),
        activations=sum(operator.activations for operator in launched),
    )


@dataclass(frozen=True)
class _State:
    """Memory of a tensor: its path, the positions of its map, and whether they were pooled."""

    path: Path = Path()
    positions: int = 0
    pooled: bool = False


class _Paths:
    """The states of all storages that the image leads to, operator by operator."""

    def __init__(self, image: Operand) -> None:
        self.layers: list[Layer] = []
        positions = math.prod(image.shape) // image.shape[1]
        self._states = {image.storage: _State(positions=positions)}

    def joined(self, operands: Iterable[Operand]) -> _State:
        """The longest path to any of ``operands``; pooled where all that vary are."""
        states = [self._states[x.storage] for x in operands if x.storage in self._states]
        best = max(states, key=lambda state: state.path.entropy, default=_State())
        return replace(best, pooled=bool(states) and all(state.pooled for state in states))

    def follow(self, operator: Operator) -> None:
        """Takes one more operator, which counts where something of the image goes into it."""
        read, written = operator.reads, operator.writes
        if not any(x.storage in self._states for x in read):
            return
        state = self.joined(read)
        if operator.layer and read[1].storage not in self._states:
            state = self._extended(state, read[1].shape, math.prod(written[0].shape))
        elif operator.name in _POOLS:
            ratio = math.prod(read[0].shape) // max(1, math.prod(written[0].shape))
            if ratio >= state.positions > 1:
                state = replace(state, pooled=True)
        for x in written:
            known = self._states.get(x.storage)
            if known is None or state.path.entropy >= known.path.entropy:
                self._states[x.storage] = state

    def _extended(self, state: _State, weight: tuple[int, ...], outputs: int) -> _State:
        width, channels = math.prod(weight[1:]), weight[0]
        positions = outputs // channels
        if state.pooled and positions == 1:
            return state
        path = Path(state.path.entropy + 0.5 * math.log(width), state.path.layers + 1)
        self.layers.append(Layer(width, channels, positions, path))
        return _State(path, positions)
