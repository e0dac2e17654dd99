"""Trained networks of one family and the layers between them, as one module."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_space.architecture import Architecture
from search_space.components import components
from search_space.errors import InvalidArchitectureError, UsageError
from search_space.stitched import Origin, Stitched, stitched
from search_space.stitches import Route, Stitch
from supernet.inherit.stitching.fit import least_squares
from supernet.network.axes import StaticModule
from supernet.network.backbone import Backbone, build
from supernet.network.modules import drop_path_rates
from supernet.network.norms import has_batch_norms
from supernet.network.supernet import Subnets
from supernet.training.evaluation import Batches


class StitchLayer(nn.Module):
    """A linear map of each position from one network's channels to another's.

    With a rank, the matrix stays as it was fitted and what is learnt is added to it: B A with B
    zero at first (LoRA, Hu et al. 2022, as the second edition of SN-Net has it).

    Args:
        dim: Channels of the front.
        out_dim: Channels of the end.
        rank: Of the change that is learnt; 0 to learn the matrix itself.
    """

    def __init__(self, dim: int, out_dim: int, rank: int = 0) -> None:
        super().__init__()
        weight = torch.zeros(out_dim, dim)
        nn.init.trunc_normal_(weight, std=1 / math.sqrt(dim))
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.rank = rank
        if rank:
            self.register_buffer("weight", weight)
            self.down = nn.Parameter(torch.empty(rank, dim))
            self.up = nn.Parameter(torch.zeros(out_dim, rank))
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        else:
            self.weight = nn.Parameter(weight)

    @property
    def matrix(self) -> Tensor:
        """The map as it is now, (out_dim, dim)."""
        return self.weight + self.up @ self.down if self.rank else self.weight

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, height, width, dim), by the convolution that an extracted network has."""
        weight = self.matrix[:, :, None, None]
        return F.conv2d(x.permute(0, 3, 1, 2), weight, self.bias).permute(0, 2, 3, 1)


class StitchedNet(Subnets):
    """Parents and all networks that routes through them are, in one set of weights.

    Routes share their parents' blocks, and layers as their stitches say. Averages of batch norms
    are the parents': recalibrate what is extracted.

    Example:
        All networks between two, without any training::

            parents = [small, large]
            net = StitchedNet(parents, one_way([p.architecture.depths for p in parents]))
            net.fit(batches)
            networks = [net.extract(architecture) for architecture in net.architectures]

    Args:
        parents: Trained networks of one family and the same classes, from small to large; copied.
        routes: Routes through them, see ``search_space.stitches``.
        rank: Of what stitches learn in training, see ``StitchLayer``.

    Attributes:
        networks: Routes by architecture, in the order given.
        origins: Where each architecture's modules come from.

    Raises:
        UsageError: The parents have different classes or are of no family, or two routes are one
            architecture.
    """

    def __init__(self, parents: Sequence[Backbone], routes: Sequence[Route], rank: int = 0) -> None:
        super().__init__()
        classes = [parent.num_classes for parent in parents]
        if len(set(classes)) != 1:
            raise UsageError(f"parents have {classes} classes; give networks of the same ones.")
        self.num_classes = classes[0]
        self.parents = nn.ModuleList(copy.deepcopy(parent) for parent in parents)
        self.layers = nn.ModuleDict()
        self.networks: dict[Architecture, Route] = {}
        self._made: dict[Architecture, Stitched] = {}
        values = [parent.architecture for parent in parents]
        for route in routes:
            made = stitched(values, route)
            if made.architecture in self.networks:
                raise UsageError(
                    f"routes {self.networks[made.architecture]} and {route} are one architecture "
                    "with different weights; give parents that differ in widths or depths."
                )
            self.networks[made.architecture], self._made[made.architecture] = route, made
            for s in route.stitches:
                if _name(s) not in self.layers:
                    dims = values[s.front].widths[s.stage], values[s.end].widths[s.stage]
                    self.layers[_name(s)] = StitchLayer(*dims, rank)

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """The networks, in the order of the routes."""
        return tuple(self.networks)

    @property
    def needs_images(self) -> bool:
        """Whether the parents have, so that what is extracted must be recalibrated."""
        return has_batch_norms(self)

    @torch.no_grad()
    def fit(self, batches: Batches) -> None:
        """Sets all stitching layers by least squares, as ``least_squares``."""
        parents = [parent for parent in self.parents if isinstance(parent, Backbone)]
        fitted = least_squares(parents, list(self.networks.values()), batches)
        for stitch in {s for route in self.networks.values() for s in route.stitches}:
            layer = self._layer(stitch)
            weight, bias = fitted[stitch.shared]
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
            if layer.rank:
                layer.up.zero_()

    def forward(
        self, images: Tensor, architecture: Architecture, drop_path_rate: float = 0.0
    ) -> Tensor:
        """Computes logits (batch, num_classes) of one of the networks, as ``Supernet.forward``.

        Raises:
            InvalidArchitectureError: The architecture is none of them.
        """
        made = self._of(architecture)
        chain = components(architecture, self.num_classes)
        blocks = sum(item.spec.kind == "block" for item in chain)
        rates = iter(drop_path_rates(drop_path_rate, blocks))
        x = images
        for item in chain:
            module = self._module(made.origins[item.path])
            if item.spec.kind == "block":
                rate = next(rates)
                if isinstance(module, StaticModule):
                    module.drop_path_rate = rate
            x = module(x)
        return x

    @torch.no_grad()
    def extract(self, architecture: Architecture, **options: object) -> Backbone:
        """Makes a static network of copies of the weights, as ``Supernet.extract``."""
        made = self._of(architecture)
        network = build(architecture, self.num_classes, **options)
        for item in components(architecture, self.num_classes):
            origin, target = made.origins[item.path], network.get_submodule(item.path)
            if isinstance(origin, Stitch):
                layer = self._layer(origin)
                target.load_state_dict(
                    {"conv.weight": layer.matrix[:, :, None, None], "conv.bias": layer.bias}
                )
            else:
                target.load_state_dict(self._module(origin).state_dict())
        return network.to(next(self.parameters()).device).train(self.training)

    def _of(self, architecture: Architecture) -> Stitched:
        if architecture not in self._made:
            raise InvalidArchitectureError(
                f"{architecture.digest} is none of the {len(self._made)} networks that are "
                "stitched here; take one of them."
            )
        return self._made[architecture]

    def _module(self, origin: Origin) -> nn.Module:
        if isinstance(origin, Stitch):
            return self._layer(origin)
        parent, path = origin
        return self.parents[parent].get_submodule(path)

    def _layer(self, stitch: Stitch) -> StitchLayer:
        layer = self.layers[_name(stitch)]
        assert isinstance(layer, StitchLayer)
        return layer


def _name(stitch: Stitch) -> str:
    return "_".join(map(str, stitch.shared))


def assemble(parents: Sequence[Backbone], route: Route, batches: Batches) -> Backbone:
    """Makes one network of parts of trained ones, stitched by least squares.

    Args:
        parents: Trained networks of one family and the same classes.
        route: Which of their blocks it has.
        batches: Images that its stitches are fitted to, as for ``least_squares``.

    Returns:
        A network of its own architecture; recalibrate it where it has batch norms.

    Raises:
        UsageError, DataError: As ``StitchedNet`` and ``least_squares``.
    """
    net = StitchedNet(parents, [route])
    net.fit(batches)
    return net.eval().extract(net.architectures[0])
