"""Smaller networks out of a trained one, which keep its weights without looking at any images.

The trained network is the largest of a supernet whose others are the smaller ones. Channels, hidden
units and heads are sorted by the norms of the weights that write or read them, which changes none
of what the largest computes, and each smaller network has the first of all: less depth, narrower
stages and blocks, the middle of a kernel or window. TinyViT (Wu et al., 2022) contracts the designs
and trains them anew; these start from what the large one knows.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from search_space.architecture import Architecture
from search_space.blocks import Block
from search_space.errors import UsageError
from search_space.space import SearchSpace
from search_space.stage_space import StageSpace
from supernet.network.axes import STATISTICS
from supernet.network.backbone import Backbone
from supernet.network.channel_order import sort_channels
from supernet.network.layers import BatchNorm
from supernet.network.supernet import Supernet


@torch.no_grad()
def contracted(network: Backbone, members: Sequence[Architecture]) -> list[Backbone]:
    """Makes smaller networks of a trained one's weights.

    Example:
        Half of the last stage's blocks, and nothing else::

            stages = network.architecture.stages
            last = replace(stages[-1], blocks=stages[-1].blocks[: stages[-1].depth // 2])
            smaller = replace(network.architecture, stages=(*stages[:-1], last))
            (small,) = contracted(network, [smaller])

    Args:
        network: Trained; it stays as it is.
        members: Architectures with at most its widths and depths, and with its blocks, narrower
            inside or with smaller kernels and windows.

    Returns:
        One network for each, with averages of batch norms that are those of the same channels.

    Raises:
        UsageError: A member is larger than the network, or its blocks are of another kind.
    """
    seed = network.architecture
    for member in members:
        _check(member, seed)
    supernet = Supernet(_space((*members, seed)), network.num_classes).eval()
    averages = {}
    for name in STATISTICS:
        supernet.insert(seed, _with_averages(network, name))
        averages[name] = {k: p.detach().clone() for k, p in supernet.named_parameters()}
    supernet.insert(seed, network)
    parameters = dict(supernet.named_parameters())
    sort_channels(supernet, {key: {n: averages[n][key] for n in averages} for key in parameters})
    result = [supernet.extract(member).cpu() for member in members]
    for name, values in averages.items():
        for key, parameter in parameters.items():
            parameter.copy_(values[key])
        for small in result:
            theirs = dict(supernet.extract(small.architecture).named_modules())
            for path, norm in _norms(small).items():
                getattr(norm, name).copy_(theirs[path].weight)
    return result


def _space(networks: Sequence[Architecture]) -> SearchSpace:
    """The space of all mixtures of networks, of which the last is the largest."""
    largest = networks[-1]
    stages = []
    for i, stage in enumerate(largest.stages):
        here = [network.stages[i] for network in networks]
        positions: list[tuple[Block, ...]] = [
            tuple(dict.fromkeys(s.blocks[j] for s in here if j < s.depth))
            for j in range(stage.depth)
        ]
        widths, depths = ({getattr(s, name) for s in here} for name in ("width", "depth"))
        stages.append(
            StageSpace(tuple(sorted(widths)), tuple(sorted(depths)), tuple(positions), stage.stride)
        )
    resolutions = tuple(sorted({network.resolution for network in networks}))
    return SearchSpace(f"below-{largest.digest}", largest.macro, resolutions, tuple(stages))


def _check(member: Architecture, seed: Architecture) -> None:
    """Raises UsageError for a network that is no contraction of another."""

    def kinds(architecture: Architecture) -> list[list[tuple[str, str]]]:
        return [
            [(b.kind, "" if b.mixer is None else b.mixer.name) for b in stage.blocks]
            for stage in architecture.stages
        ]

    ours, theirs = kinds(member), kinds(seed)
    smaller = len(ours) == len(theirs) and all(
        mine == whole[: len(mine)] for mine, whole in zip(ours, theirs, strict=True)
    )
    narrower = smaller and all(
        mine <= whole for mine, whole in zip(member.widths, seed.widths, strict=True)
    )
    if not narrower or member.macro != seed.macro or member.strides != seed.strides:
        raise UsageError(
            f"{member.digest} is no smaller {seed.digest}: it must have the same stages and kinds "
            "of blocks, none wider and none more; contract the trained network itself."
        )


def _norms(network: nn.Module) -> dict[str, BatchNorm]:
    return {p: module for p, module in network.named_modules() if isinstance(module, BatchNorm)}


def _with_averages(network: Backbone, name: str) -> Backbone:
    """A copy whose batch norms have one of their averages as their weights."""
    result = copy.deepcopy(network)
    for norm in _norms(result).values():
        norm.weight.copy_(getattr(norm, name))
    return result
