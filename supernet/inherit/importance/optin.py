"""Importance by the distance of features and logits (Khaki & Plataniotis, OPTIN, ICLR 2024).

    I_j = Σ_i ‖M(F_i) − M(F_i^(j))‖² + κ T² KL_T(logits ‖ logits^(j)),   M(F) = F̂ F̂ᵀ

with F_i the output of module i, from the unit's own on, F^(j) the same when unit j alone gives
nothing, and F̂ its positions as vectors of length 1, the same sample of all images' for both. κ is
the power of ten that makes the second term a tenth of the first, on average over an axis' units.
It takes a pass of the network for each unit, so only the first images are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.data.evaluation_batches import moved
from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.inherit.importance.feeds import consumers
from supernet.inherit.observing import chain
from supernet.network.axes import StaticModule, entries
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches, at_trained_resolution

IMAGES = 32
ROWS = 768  # positions of all images that a manifold is of
TEMPERATURE = 4.0
LAMBDA = 10.0


@criterion("optin")
@torch.no_grad()
def optin(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Measures how far features and logits of the first images move without each unit."""
    images = next(iter(moved(batches, next(network.parameters()).device)))[0][:IMAGES]
    maps = [at_trained_resolution(network, images)]  # what each module gets, and the logits
    modules = dict(chain(network))
    for module in modules.values():
        maps.append(module(maps[-1]))
    places = {path: index for index, path in enumerate(modules)}
    result = {}
    for one in units:
        first = places[one.path]
        rest = list(modules.values())[first:]
        moves: list[float] = []
        losses: list[float] = []
        for unit in range(len(one.zeros(rest[0]))):
            x, move = maps[first], 0.0
            for index, module in enumerate(rest, first + 1):
                x = _without(module, x, one, unit) if index == first + 1 else module(x)
                if index < len(maps) - 1:
                    move += (_manifold(x) - _manifold(maps[index])).square().sum().item()
            moves.append(move)
            losses.append(_divergence(maps[-1], x))
        result[one] = _together(
            *(torch.tensor(each, dtype=torch.float64) for each in (moves, losses))
        )
    return result


def _without(module: StaticModule, x: Tensor, one: Units, unit: int) -> Tensor:
    """Runs a module in which a unit gives nothing to its consumers."""
    handles = []
    for name, dim in consumers(module, one.names):
        layer, axis = module.get_submodule(name), module.axes()[f"{name}.weight"][dim]
        of = torch.tensor([entries(axis, module.sizes(), each) for each in one.names])
        kept = (of != unit).all(0).to(x)
        if isinstance(layer, nn.Conv2d):
            kept = kept[:, None, None]
        if dim == 1:
            handles.append(layer.register_forward_pre_hook(_masking_input(kept)))
        else:
            handles.append(layer.register_forward_hook(_masking_output(kept)))
    try:
        return module(x)
    finally:
        for handle in handles:
            handle.remove()


def _masking_input(kept: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor]]:
    return lambda layer, inputs: (inputs[0] * kept,)


def _masking_output(kept: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda layer, inputs, output: output * kept


def _manifold(maps: Tensor) -> Tensor:
    """M of maps (batch, height, width, dim): (rows, rows)."""
    rows = maps.flatten(0, 2)
    if len(rows) > ROWS:
        chosen = np.random.default_rng(len(rows)).permutation(len(rows))[:ROWS]
        rows = rows[torch.from_numpy(chosen).to(rows.device)]
    unit = F.normalize(rows.double(), dim=1)
    return unit @ unit.T


def _divergence(before: Tensor, after: Tensor) -> float:
    """T² KL(before ‖ after) of logits, the mean over images."""
    p, q = ((logits.double() / TEMPERATURE).log_softmax(1) for logits in (before, after))
    return TEMPERATURE**2 * F.kl_div(q, p, log_target=True, reduction="batchmean").item()


def _together(moves: Tensor, losses: Tensor) -> Tensor:
    """The sum of both terms, κ the power of ten that makes the second 1/λ of the first."""
    ratio = moves.mean() / (LAMBDA * losses.mean())
    usable = ratio > 0 and math.isfinite(ratio)
    return moves + (10.0 ** round(math.log10(ratio)) if usable else 1.0) * losses
