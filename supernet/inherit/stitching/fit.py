"""Stitching layers by least squares.

A layer is fitted to what both parents have of the same images: with x what the front has after its
block, y what the end has before its own, and both centred by their means m,

    W = (Σ y xᵀ)(Σ x xᵀ)⁺,   b = m_y − W m_x,

which is the pseudo-inverse of SN-Net with the bias among the unknowns, of sums that one pass makes.
Stitches that share a layer are fitted each for itself and averaged, as published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from search_space.errors import DataError
from search_space.stitches import Route, Stitch
from supernet.data.evaluation_batches import moved
from supernet.network.backbone import Backbone, Stage
from supernet.training.evaluation import Batches, at_trained_resolution, evaluation_mode

Shared = tuple[int, int, int, int]
"""What names a layer, see ``Stitch.shared``."""
Place = tuple[int, int]
"""A stage, and the number of its blocks that are done."""
_LEAST = 1e-12  # of the largest eigenvalue: below it there is nothing but rounding of float32


class _Sums:
    """Sums over positions of images: of a map, or of products of two maps' channels."""

    def __init__(self) -> None:
        self.count = 0
        self.x: Tensor | float = 0.0
        self.y: Tensor | float = 0.0
        self.products: Tensor | float = 0.0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds maps (batch, height, width, channels) of two networks, or twice the same."""
        x, y = x.flatten(0, -2).double(), y.flatten(0, -2).double()
        self.count += len(x)
        self.x, self.y = self.x + x.sum(0), self.y + y.sum(0)
        self.products = self.products + y.mT @ x

    def covariance(self) -> Tensor:
        """Of the second map's channels, by row, with the first one's."""
        assert isinstance(self.x, Tensor)
        assert isinstance(self.y, Tensor)
        assert isinstance(self.products, Tensor)
        return self.products / self.count - torch.outer(self.y, self.x) / self.count**2


@torch.no_grad()
def least_squares(
    parents: Sequence[Backbone], routes: Sequence[Route], batches: Batches
) -> dict[Shared, tuple[Tensor, Tensor]]:
    """Fits all layers of routes in one pass of the parents over images.

    Args:
        parents: Networks of one family, on one device; they are run in evaluation mode.
        routes: Which stitches there are.
        batches: As for ``evaluate``; about a hundred images are enough.

    Returns:
        Weights (out, in) and biases (out,) by layer, float32.

    Raises:
        DataError: There are no images.
    """
    stitches = list(dict.fromkeys(stitch for route in routes for stitch in route.stitches))
    wanted: defaultdict[int, set[Place]] = defaultdict(set)
    for stitch in stitches:
        wanted[stitch.front].add((stitch.stage, stitch.leave + 1))
        wanted[stitch.end].add((stitch.stage, stitch.enter))
    inputs: defaultdict[tuple[int, Place], _Sums] = defaultdict(_Sums)
    pairs: defaultdict[Stitch, _Sums] = defaultdict(_Sums)
    for images, _ in moved(batches, next(parents[0].parameters()).device):
        maps = {
            parent: _maps_of(parents[parent], images, places) for parent, places in wanted.items()
        }
        for parent, place in {(s.front, (s.stage, s.leave + 1)) for s in stitches}:
            inputs[parent, place].add(maps[parent][place], maps[parent][place])
        for s in stitches:
            pairs[s].add(maps[s.front][s.stage, s.leave + 1], maps[s.end][s.stage, s.enter])
    if stitches and not pairs:
        raise DataError("stitches are fitted to images, and there are none; give about a hundred.")
    inverses = {
        key: torch.linalg.pinv(sums.covariance(), rtol=_LEAST, hermitian=True)
        for key, sums in inputs.items()
    }
    found: defaultdict[Shared, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for s in stitches:
        sums = pairs[s]
        weight = sums.covariance() @ inverses[s.front, (s.stage, s.leave + 1)]
        found[s.shared].append((weight, (sums.y - weight @ sums.x) / sums.count))
    return {key: _mean(candidates) for key, candidates in found.items()}


def _mean(candidates: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    weights, biases = (
        torch.stack(parts).mean(0).float() for parts in zip(*candidates, strict=True)
    )
    return weights, biases


def _maps_of(
    network: Backbone, images: Tensor, places: Collection[Place]
) -> Mapping[Place, Tensor]:
    """What a network has at some places of images."""
    found: dict[Place, Tensor] = {}
    with evaluation_mode(network):
        x = network.stem(at_trained_resolution(network, images))
        for i, (stage, depth) in enumerate(
            zip(network.stages, network.architecture.depths, strict=True)
        ):
            assert isinstance(stage, Stage)
            x = stage.downsample(x)
            blocks = dict(stage.blocks.named_children())
            for done in range(depth + 1):
                if (i, done) in places:
                    found[i, done] = x
                if str(done) in blocks:
                    x = blocks[str(done)](x)
            if len(found) == len(places):
                break
    return found
