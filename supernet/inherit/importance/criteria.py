"""What criteria of importance share: units, their weights, and who reads them.

Units are the entries of a named axis inside a module: hidden channels, heads, channels of a head. A
criterion gives each a number, the larger the more it matters; numbers are compared within one axis
of one module only. Another package adds a criterion by an entry point in ``nas.importance``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_space.registry import Functions
from supernet.inherit.observing import is_layer, static
from supernet.network.axes import Axis, StaticModule, entries
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches


@dataclass(frozen=True)
class Units:
    """The units of one module along names that go together.

    Attributes:
        path: Of the module in its network.
        names: In the module's axes, all of one size.
    """

    path: str
    names: frozenset[str]

    def module(self, network: nn.Module) -> StaticModule:
        return static(network, self.path)

    def sums(self, module: StaticModule, values: Mapping[str, Tensor]) -> Tensor:
        """Sums over all that belongs to each unit.

        Args:
            module: The module, or a copy.
            values: By parameter, a tensor of its shape, or whatever has its dimensions.

        Returns:
            One sum a unit: (units,), float64, on the CPU. What lies at a unit's row and its column
            of one parameter counts twice.
        """
        axes, total = module.axes(), self.zeros(module)
        for parameter, value in values.items():
            for dim in range(value.ndim):
                rows = value.detach().unsqueeze(-1).movedim(dim, 0).flatten(1)
                sums = rows.sum(1, dtype=torch.float64)
                total += self.along(module, axes[parameter][dim], sums)
        return total

    def along(self, module: StaticModule, axis: Axis, values: Tensor) -> Tensor:
        """Sums numbers (…, extent) along a dimension of ``axis`` by unit: (…, units), float64."""
        total = self.zeros(module)
        for name in self.names:
            of = torch.tensor(entries(axis, module.sizes(), name))
            inside = values.cpu().double()[..., of >= 0]
            total = total.expand(*inside.shape[:-1], -1).index_add(-1, of[of >= 0], inside)
        return total

    def zeros(self, module: StaticModule) -> Tensor:
        return torch.zeros(module.sizes()[min(self.names)], dtype=torch.float64)


Scores = dict[Units, Tensor]
Measure = Callable[[Backbone, Sequence[Units], Batches], Scores]
"""Given a network in evaluation, units, and batches of images and labels as ``evaluate`` takes
them, returns for each units' axis (units,) float64, larger for those to keep. It leaves the network
as it is."""


CRITERIA: Functions[Measure] = Functions("importance criterion", "nas.importance")
criterion = CRITERIA.register


def readers(module: StaticModule, names: frozenset[str]) -> list[str]:
    """Lists the linear layers and full convolutions whose inputs are units, in their order."""
    return _layers(module, names, 1)


def writers(module: StaticModule, names: frozenset[str]) -> list[str]:
    """Lists the linear layers and convolutions whose outputs are units, in their order."""
    return _layers(module, names, 0)


def _layers(module: StaticModule, names: frozenset[str], dim: int) -> list[str]:
    axes, sizes = module.axes(), module.sizes()
    return [
        layer
        for layer, part in module.named_modules()
        if is_layer(part)
        and any(max(entries(axes[f"{layer}.weight"][dim], sizes, name)) >= 0 for name in names)
    ]
