"""What units give to whoever reads them, as images pass a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from supernet.inherit.importance.criteria import Units, readers, writers
from supernet.inherit.observing import by_channel, chain, observe
from supernet.network.axes import StaticModule
from supernet.network.backbone import Backbone
from supernet.training.evaluation import at_trained_resolution


@dataclass(frozen=True)
class Feed:
    """What units give to one layer.

    Attributes:
        layer: Its name in the module.
        dim: 1 if it reads the units, of its weight's dimensions, and 0 if it writes them.
        values: What it reads or writes in a batch.
    """

    layer: str
    dim: int
    values: Tensor

    def rows(self, module: StaticModule, values: Tensor, images: int) -> Tensor:
        """Puts tensors like ``values`` as (images, positions, channels), float64."""
        return (
            by_channel(module.get_submodule(self.layer), values)
            .detach()
            .double()
            .reshape(images, -1, module.get_parameter(f"{self.layer}.weight").shape[self.dim])
        )


def consumers(module: StaticModule, names: frozenset[str]) -> list[tuple[str, int]]:
    """Lists the layers by which units are judged, with the dimension of their weights.

    It is the last that reads them, after activations, depthwise convolutions and gates; where none
    does, as with channels of keys, all that write them.
    """
    reading = readers(module, names)
    return [(reading[-1], 1)] if reading else [(layer, 0) for layer in writers(module, names)]


def pass_images(
    network: Backbone, units: Sequence[Units], images: Tensor
) -> tuple[Tensor, dict[Units, list[Feed]]]:
    """Passes images through a network, and keeps what units feed to their consumers.

    Returns:
        Logits, and by units' axis what its consumers get.
    """
    x, feeds = at_trained_resolution(network, images), {}
    for path, module in chain(network):
        here = {one: consumers(module, one.names) for one in units if one.path == path}
        x, seen = observe(module, x, {layer for watched in here.values() for layer, _ in watched})
        for one, watched in here.items():
            feeds[one] = [Feed(layer, dim, seen[layer][1 - dim]) for layer, dim in watched]
    return x, feeds
