"""A bank of weights: one module for each alternative at each place of a network.

Around a trained network, its parent, alternatives share no weights: what is left when a block is
cut is fitted to what was cut off, and another mixer learns what the parent's computes. The bank
holds a static module for each, and a network is assembled of them. To whatever trains, judges and
extracts subnets it is a supernet.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from search_space.architecture import Architecture
from search_space.components import Component, ModuleSpec, components
from search_space.errors import InvalidArchitectureError
from search_space.precision import in_precision
from search_space.registry import FLOAT
from search_space.space import SearchSpace
from supernet.network.axes import StaticModule
from supernet.network.backbone import Backbone, build
from supernet.network.modules import build_module, drop_path_rates
from supernet.network.supernet import Subnets, modules_of

Entry = tuple[str, ModuleSpec]
"""An alternative: the path of its place, and its spec."""


def entry_name(entry: Entry) -> str:
    """Returns a name for an alternative that is fit for a file or a module: place and digest."""
    path, spec = entry
    return f"{path.replace('.', '_')}-{hashlib.sha256(str(spec).encode()).hexdigest()[:12]}"


class WeightBank(Subnets):
    """Networks around a parent, assembled of modules that have weights of their own.

    Example:
        The parent itself, out of the bank, and one that the space holds beside it::

            bank = WeightBank(around(parent.architecture), parent)
            for entry in bank.missing():
                bank.put(entry, ...)
            network = bank.extract(architecture)

    Args:
        space: A space that holds the parent's architecture at one of its resolutions, in whatever
            precisions.
        parent: The trained network, in float; it is copied, and its modules are the first entries.

    Attributes:
        entries: All alternatives in float.
        quantised: Those in int8, which ``quantise_alternatives`` makes of them.
        parent: The parent's architecture.
        base: The same with stem, transitions and head in the precision of the space.

    Raises:
        InvalidArchitectureError: The parent's modules are none of the space's.
    """

    def __init__(self, space: SearchSpace, parent: Backbone) -> None:
        super().__init__()
        self.space, self.num_classes = space, parent.num_classes
        every = tuple(dict.fromkeys(modules_of(space, parent.num_classes)))
        self.entries = tuple(dict.fromkeys((path, spec.in_float) for path, spec in every))
        self.quantised = tuple(entry for entry in every if entry[1].quantised)
        self.names = {entry: entry_name(entry) for entry in (*self.entries, *self.quantised)}
        # in this order whenever they come, as sums over all parameters have to be
        self.members = nn.ModuleDict()
        for name in self.names.values():
            self.members.add_module(name, None)
        self.parent = parent.architecture
        self.base = replace(self.parent, macro=space.macro)
        self._parent_specs: dict[str, ModuleSpec] = {}
        for item in components(parent.architecture, parent.num_classes):
            entry = item.path, item.spec
            if entry not in self.names:
                raise InvalidArchitectureError(
                    f"{item.path} of the parent is {item.spec}, which space {space.name!r} does "
                    "not hold; take a space around this parent."
                )
            module = parent.get_submodule(item.path)
            assert isinstance(module, StaticModule)
            self.put(entry, copy.deepcopy(module))
            self._parent_specs[item.path] = item.spec

    def __contains__(self, entry: object) -> bool:
        return entry in self.names and self.members[self.names[entry]] is not None

    def __getitem__(self, entry: Entry) -> StaticModule:
        """Returns the module of an alternative.

        Raises:
            InvalidArchitectureError: The space does not hold it, or it has no weights yet.
        """
        if entry not in self:
            path, spec = entry
            raise InvalidArchitectureError(
                f"{path} needs {spec}, for which there are no weights; take an architecture of "
                f"space {self.space.name!r}, and put weights of all its modules into the bank."
            )
        module = self.members[self.names[entry]]
        assert isinstance(module, StaticModule)
        return module

    def put(self, entry: Entry, module: StaticModule) -> None:
        """Makes ``module`` that of an alternative, in place of what was there."""
        module.drop_path_rate = 0.0
        self.members[self.names[entry]] = module.train(self.training)

    def missing(self) -> list[Entry]:
        """Lists float alternatives of the space that have no weights yet, in its order."""
        return [entry for entry in self.entries if entry not in self]

    def fresh(self, entry: Entry) -> StaticModule:
        """Builds the module of an alternative with initial weights, on the bank's device."""
        return build_module(entry[1]).to(next(self.parameters()).device)

    def parent_module(self, path: str) -> StaticModule:
        """Returns the parent's module at a path.

        Raises:
            KeyError: The parent has none there.
        """
        return self[path, self._parent_specs[path]]

    def chain(self, architecture: Architecture) -> Iterator[tuple[Component, StaticModule]]:
        """Yields the components of an architecture with their modules, as an image passes them.

        Raises:
            InvalidArchitectureError: One has no weights here.
        """
        for item in components(architecture, self.num_classes):
            yield item, self[item.path, item.spec]

    def forward(
        self, images: Tensor, architecture: Architecture, drop_path_rate: float = 0.0
    ) -> Tensor:
        """Computes logits (batch, num_classes) of an architecture, as ``Supernet.forward``.

        What is in int8 computes in float here, as in a supernet.

        In evaluation batch norms normalise by the averages that their modules came with; extract
        the network and recalibrate it for its own.
        """
        chain = list(self.chain(in_precision(architecture, FLOAT)))
        blocks = sum(item.spec.kind == "block" for item, _ in chain)
        rates = iter(drop_path_rates(drop_path_rate, blocks))
        x = images
        for item, module in chain:
            if item.spec.kind == "block":
                module.drop_path_rate = next(rates)
            x = module(x)
        return x

    @torch.no_grad()
    def extract(self, architecture: Architecture, **options: object) -> Backbone:
        """Makes a static network of copies of the modules, as ``Supernet.extract``."""
        architecture = in_precision(architecture, FLOAT)
        network = build(architecture, self.num_classes, **options)
        for item, module in self.chain(architecture):
            network.get_submodule(item.path).load_state_dict(module.state_dict())
        return network.to(next(self.parameters()).device).train(self.training)
