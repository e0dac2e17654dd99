"""The weight-sharing supernet: one set of weights that every architecture of a space uses.

For each place in the network (stem, block 2 of stage 3 …) it holds every parameter once, as
large as any configuration needs it. A subnet's pass calls the static module of its
configuration, kept without weights as a template, on the slices that its axes declare; an
extracted network gets copies of the same slices. Subnet and extracted network therefore
compute bit for bit the same.

A mixer has weights of its own at each place; norms, MLP and layer scales of a block are shared
by all mixers (weight entanglement, Chen et al., AutoFormer, 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from search_space.architecture import Architecture
from search_space.components import (
    Component,
    ModuleSpec,
    block_spec,
    components,
    downsample_spec,
    head_spec,
    stem_spec,
)
from search_space.errors import InvalidArchitectureError
from search_space.space import SearchSpace
from supernet.network.axes import Axes, Slice, StaticModule, cut, shape
from supernet.network.backbone import Backbone, build
from supernet.network.modules import build_module, initialise_parameter


@lru_cache(maxsize=16384)
def template(spec: ModuleSpec) -> StaticModule:
    """The static module of ``spec`` without weights, to be called with slices."""
    with torch.device("meta"):
        return build_module(spec)


class _Template:
    """A static module that is called with weights given for one call.

    This is ``torch.func.functional_call`` without its checks for tied weights and names, which
    cost 8 µs per parameter, 1.5 % of a training step; the names are checked once, here.
    """

    def __init__(self, spec: ModuleSpec) -> None:
        self.module = template(spec)
        self.slots: list[tuple[dict[str, nn.Parameter | None], str]] = []
        for name in self.module.axes():
            holder, _, leaf = name.rpartition(".")
            self.slots.append((self.module.get_submodule(holder)._parameters, leaf))
        self.empty = [parameters[leaf] for parameters, leaf in self.slots]

    def __call__(self, weights: Sequence[Tensor], x: Tensor, training: bool) -> Tensor:
        """The module's output; ``weights`` in the order of its ``axes()``."""
        if self.module.training != training:
            self.module.train(training)
        self._set(weights)
        try:
            return self.module(x)
        finally:
            self._set(self.empty)

    def _set(self, weights: Sequence[Any]) -> None:
        for (parameters, leaf), weight in zip(self.slots, weights, strict=True):
            parameters[leaf] = weight


def shared_name(path: str, name: str, spec: ModuleSpec) -> str:
    """Name of the shared weight that parameter ``name`` of a module is cut from."""
    if spec.kind == "block" and name.startswith("mixer."):
        name = f"mixer.{spec.as_dict()['mixer']}.{name.removeprefix('mixer.')}"
    return f"{path}.{name}"


@dataclass(frozen=True)
class _Source:
    """Where one parameter of one component comes from: all of a shared weight, or a slice."""

    name: str
    holder: nn.Module
    leaf: str
    part: Slice | None

    def weight(self) -> nn.Parameter:
        weight = self.holder._parameters[self.leaf]
        assert weight is not None
        return weight


class Supernet(nn.Module):
    """All networks of ``space`` in one set of weights.

    Args:
        space: the search space.
        num_classes: outputs of the classifier.

    Shared weights start from truncated normal values; draw with a seeded global generator.

    Attributes:
        axes: of each shared weight by name.
        sizes: of the names in its axes, as large as any configuration needs them.
    """

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
        super().__init__()
        self.space, self.num_classes = space, num_classes
        self.axes: dict[str, Axes] = {}
        self.sizes: dict[str, dict[str, int]] = {}
        self._templates: dict[ModuleSpec, _Template] = {}
        self._sources: dict[tuple[str, ModuleSpec], list[_Source]] = {}
        initial: dict[str, float] = {}
        for path, spec in _all_modules(space, num_classes):
            module = template(spec)
            sizes = module.sizes()
            for name, axes in module.axes().items():
                shared = shared_name(path, name, spec)
                large = self.sizes.setdefault(shared, dict(sizes))
                for key, size in sizes.items():
                    large[key] = max(size, large.get(key, 0))
                self.axes.setdefault(shared, axes)
                if name.startswith("scale"):
                    initial[shared] = spec.as_dict()["layer_scale"]
        for shared, axes in self.axes.items():
            weight = torch.empty(shape(axes, self.sizes[shared]))
            weight.fill_(initial.get(shared, 0.0))
            initialise_parameter(shared, weight)
            *holders, leaf = shared.split(".")
            holder: nn.Module = self
            for name in holders:
                if name not in holder._modules:
                    holder.add_module(name, nn.Module())
                holder = holder.get_submodule(name)
            holder.register_parameter(leaf, nn.Parameter(weight))

    def forward(
        self, images: Tensor, architecture: Architecture, drop_path_rate: float = 0.0
    ) -> Tensor:
        """Logits ``(batch, num_classes)`` of the subnet ``architecture``.

        ``images`` are ``(batch, 3, height, width)``, normalised, of any size: resizing to the
        architecture's resolution is the caller's. Raises InvalidArchitectureError for an
        architecture outside the space.
        """
        chain = components(architecture, self.num_classes, drop_path_rate)
        x = images
        for component, weights in zip(chain, self._weights(chain), strict=True):
            x = self._template(component.spec)(weights, x, self.training)
        return x

    def _template(self, spec: ModuleSpec) -> _Template:
        if spec not in self._templates:
            self._templates[spec] = _Template(spec)
        return self._templates[spec]

    def _weights(self, chain: Sequence[Component]) -> list[list[Tensor]]:
        """For each component the parameters of its static module, in the order of its axes."""
        plan = [self._plan(component) for component in chain]
        sliced = [item for sources in plan for item in sources if item.part is not None]
        parts = iter(
            cut([item.weight() for item in sliced], [item.part for item in sliced if item.part])
        )
        return [
            [item.weight() if item.part is None else next(parts) for item in sources]
            for sources in plan
        ]

    def _plan(self, component: Component) -> list[_Source]:
        key = (component.path, component.spec)
        if key in self._sources:
            return self._sources[key]
        module = template(component.spec)
        sizes = module.sizes()
        sources = []
        for name, axes in module.axes().items():
            shared = shared_name(component.path, name, component.spec)
            large = self.sizes.get(shared)
            if large is None or any(sizes[key] > large.get(key, 0) for key in sizes):
                raise InvalidArchitectureError(
                    f"{component.path} needs {component.spec}, which space {self.space.name!r} "
                    "does not hold; take an architecture of this space."
                )
            holder, leaf = shared.rsplit(".", 1)
            whole = shape(axes, large) == shape(axes, sizes)
            part = None if whole else Slice.of(axes, large, sizes)
            sources.append(_Source(name, self.get_submodule(holder), leaf, part))
        self._sources[key] = sources
        return sources

    def extract(self, architecture: Architecture, **options: object) -> Backbone:
        """The subnet as a static network with copies of its weights; ``options`` as Backbone's.

        Computes bit for bit what the subnet computes.
        """
        network = build(architecture, self.num_classes, **options)
        chain = components(architecture, self.num_classes)
        state = {
            f"{component.path}.{item.name}": weight.detach()
            for component, weights in zip(chain, self._weights(chain), strict=True)
            for item, weight in zip(self._plan(component), weights, strict=True)
        }
        network.load_state_dict(state)
        return network.to(next(self.parameters()).device).train(self.training)


def _all_modules(space: SearchSpace, num_classes: int) -> Iterator[tuple[str, ModuleSpec]]:
    """Every module that an architecture of ``space`` can have, with its path."""
    macro = space.macro
    for width in space.stages[0].widths:
        yield "stem", stem_spec(macro, width)
    for i, stage in enumerate(space.stages):
        for width in stage.widths:
            if i > 0:
                for width_in in space.stages[i - 1].widths:
                    yield f"stages.{i}.downsample", downsample_spec(macro, width_in, width)
            for block in stage.blocks:
                for j in range(stage.max_depth):
                    yield f"stages.{i}.blocks.{j}", block_spec(macro, width, block, j)
    for width in space.stages[-1].widths:
        yield "head", head_spec(macro, width, num_classes)
