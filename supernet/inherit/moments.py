"""Moments of what layers read, summed up in one pass of a network.

Features of a linear layer are its inputs; of a convolution they are the entries of the patches that
it reads, at a sample of positions, and of a grouped one each group has features of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.data.evaluation_batches import moved
from supernet.inherit.observing import chain, observe
from supernet.network.axes import StaticModule
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches, at_trained_resolution

POSITIONS = 64  # of each image at most, drawn once a batch, at which a layer's input is looked at
_CHUNK = 2**24  # numbers of patches that are made at once
_STREAM = 7  # of the seed: what is drawn here is drawn nowhere else


class Moments:
    """First and second moments of what a layer reads, and of what it reads in a variant.

    Attributes:
        count: How many positions were seen.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        self.features = math.prod(layer.weight.shape[1:])
        self.count = 0
        self._sums: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """At most, when they are summed up."""
        return 16 * self.groups * self.features**2

    def add(
        self,
        layer: nn.Linear | nn.Conv2d,
        before: Tensor,
        after: Tensor,
        rng: np.random.Generator,
    ) -> None:
        """Adds what the layer reads in a batch.

        Args:
            layer: The layer, of whatever weights.
            before: Its input, (batch, …, channels) or of a convolution (batch, channels, …).
            after: Its input in the variant, or the same tensor.
            rng: Of the positions that are looked at.
        """
        grid = _grid(layer, before)
        total = math.prod(grid)
        sample = np.arange(total) if total <= POSITIONS else rng.permutation(total)[:POSITIONS]
        chosen = torch.from_numpy(sample).to(before.device)
        step = max(1, _CHUNK // (self.groups * self.features * len(chosen)))
        for start in range(0, len(before), step):
            x = z = _rows(layer, before[start : start + step], grid, chosen)
            if after is not before:
                z = _rows(layer, after[start : start + step], grid, chosen)
            zz = z.mT @ z
            new = x.sum(1), z.sum(1), zz if z is x else x.mT @ z, zz
            old = self._sums or [torch.zeros_like(part) for part in new]
            self._sums = [a + b for a, b in zip(old, new, strict=True)]
            self.count += x.shape[1]

    def covariance(self, centred: bool = True) -> Tensor:
        """Returns that of what the variant reads: (groups, features, features), float64."""
        _, z, _, zz = (part / self.count for part in self._sums)
        return zz - z[:, :, None] * z[:, None] if centred else zz

    def regression(
        self, kept: Sequence[int], ridge: float, centred: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predicts all features from some of the variant's.

        Args:
            kept: Features of each group.
            ridge: λ as a part of the mean square, or variance, of the kept features.
            centred: Whether there is a constant c.

        Returns:
            A (groups, features, kept), c (groups, features), and mean (groups, kept) and covariance
            (groups, kept, kept) of the kept features; all float64.
        """
        of = torch.tensor(kept)
        x, z, xz, zz = (part / self.count for part in self._sums)
        x, z, xz, zz = x, z[:, of], xz[:, :, of], zz[:, of][:, :, of]
        outer = z[:, :, None] * z[:, None]
        covariance = zz - outer
        if centred:
            xz, zz = xz - x[:, :, None] * z[:, None], covariance
        scale = zz.diagonal(dim1=1, dim2=2).mean(1)
        scale = torch.where(scale > 0, ridge * scale, 1.0)
        regular = zz + torch.diag_embed(scale[:, None].expand_as(z))
        rest = xz.clone()
        rest[:, of] -= zz
        chosen = torch.linalg.solve(regular, rest.mT).mT
        chosen[:, of, torch.arange(len(of))] += 1
        constant = x - (chosen @ z[:, :, None])[..., 0] if centred else torch.zeros_like(x)
        return chosen, constant, z, covariance


@dataclass
class Watched:
    """Layers of a module at a path, compared with those of the network's module there.

    Attributes:
        path: Of the module.
        module: Is run on what the network's module gets; may be that one.
        moments: By layer, filled by ``sum_up``; with ``linear`` under ``""`` those of the network's
            module as a whole: of its output, and as what a variant reads of its input.
        linear: A convolution of one tap that is to compute that output; None for no such.
    """

    path: str
    module: StaticModule
    moments: dict[str, Moments] = field(default_factory=dict)
    linear: nn.Conv2d | None = None

    @classmethod
    def of(
        cls,
        path: str,
        module: StaticModule,
        layers: Sequence[str],
        linear: nn.Conv2d | None = None,
    ) -> Watched:
        moments = {name: Moments(_layer(module, name)) for name in layers}
        if linear is not None:
            moments[""] = Moments(linear)
        return cls(path, module, moments, linear)

    @property
    def num_bytes(self) -> int:
        """What the moments take when they are summed up."""
        return sum(moments.num_bytes for moments in self.moments.values())


@torch.no_grad()
def sum_up(network: Backbone, watched: Sequence[Watched], batches: Batches, seed: int = 0) -> None:
    """Sums up moments in one pass of a network over images.

    Layers whose kernels differ from the network's are compared with themselves.

    Args:
        network: In evaluation mode.
        watched: What to look at.
        batches: As for ``evaluate``.
        seed: Of the positions that are looked at.
    """
    here: dict[str, list[Watched]] = {}
    for one in watched:
        here.setdefault(one.path, []).append(one)
    for index, (images, _) in enumerate(moved(batches, next(network.parameters()).device)):
        x, left = at_trained_resolution(network, images), set(here)
        for path, module in chain(network):
            if not left:
                break
            left.discard(path)
            layers = {name for one in here.get(path, ()) for name in one.moments}
            maps, (x, seen) = x, observe(module, x, layers)
            for one in here.get(path, ()):
                theirs = seen
                if one.module is not module:
                    _, theirs = observe(one.module, maps, one.moments)
                for name, moments in one.moments.items():
                    rng = np.random.default_rng([seed, _STREAM, index])
                    if one.linear is not None and not name:
                        read, written = (values.movedim(-1, 1) for values in seen[name])
                        moments.add(one.linear, written, read, rng)
                        continue
                    layer, ours = _layer(one.module, name), seen
                    if layer.weight.shape != _layer(module, name).weight.shape:
                        ours = theirs
                    moments.add(layer, ours[name][0], theirs[name][0], rng)


def _layer(module: nn.Module, name: str) -> nn.Linear | nn.Conv2d:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    return layer


# What a layer reads at a position -----------------------------------------------------------------


def _grid(layer: nn.Linear | nn.Conv2d, x: Tensor) -> list[int]:
    """How many positions a layer computes of an input, by side."""
    if isinstance(layer, nn.Linear):
        return [math.prod(x.shape[1:-1])]
    geometry = zip(x.shape[2:], layer.kernel_size, layer.stride, *_margins(layer), strict=True)
    return [
        (length + 2 * margin - gap * (taps - 1) - 1) // stride + 1
        for length, taps, stride, margin, gap in geometry
    ]


def _margins(layer: nn.Conv2d) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Zeros on each side of a convolution's input, and the distances of its taps."""
    assert not isinstance(layer.padding, str)
    return layer.padding, layer.dilation


def _rows(layer: nn.Linear | nn.Conv2d, x: Tensor, grid: list[int], chosen: Tensor) -> Tensor:
    """What a layer reads at the ``chosen`` of its positions: (groups, rows, features), float64."""
    if isinstance(layer, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, chosen].flatten(0, 1)[None].double()
    (margin_h, margin_w), gaps = _margins(layer)
    x = F.pad(x, (margin_w, margin_w, margin_h, margin_h))
    at = torch.stack([chosen // grid[1], chosen % grid[1]])
    lines, columns = (
        one[:, None] * stride + gap * torch.arange(taps, device=x.device)
        for one, stride, gap, taps in zip(at, layer.stride, gaps, layer.kernel_size, strict=True)
    )  # (positions, taps) each
    patches = x[:, :, lines[:, :, None], columns[:, None]]  # (batch, channels, positions, taps …)
    patches = patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2, 4, 5)
    return patches.flatten(3).flatten(1, 2).double()
