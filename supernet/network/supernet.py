"""The weight-sharing supernet: one set of weights that every architecture of a space uses.

For each place in the network (stem, block 2 of stage 3 …) it holds every parameter once, as
large as any configuration needs it. A subnet's pass calls the static module of its
configuration, kept without weights as a template, on the slices that its axes declare; an
extracted network gets copies of the same slices. Subnet and extracted network therefore
compute bit for bit the same.

Each kind of block has weights of its own at each place, and so has each mixer; norms, MLP and layer
scales of a MetaFormer block are shared by all mixers (weight entanglement, Chen et al.,
AutoFormer, 2021). Batch norms of subnets normalise by their batch: averages belong to a network, so
an extracted one has none that mean anything before ``training.recalibration`` has made them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_space.architecture import Architecture
from search_space.components import (
    Component,
    ModuleSpec,
    block_spec,
    components,
    head_spec,
    stem_spec,
    transition_spec,
)
from search_space.errors import InvalidArchitectureError
from search_space.precision import in_precision
from search_space.registry import FLOAT
from search_space.space import SearchSpace
from supernet.network.axes import STATISTICS, Axes, StaticModule, names, shape
from supernet.network.backbone import Backbone, build
from supernet.network.modules import build_module, drop_path_rates
from supernet.network.norms import has_batch_norms
from supernet.network.slices import Slice, cut
from supernet.network.templates import TEMPLATES, template


def normalises_by_batch(space: SearchSpace) -> bool:
    """Whether a network of ``space`` can have batch norms, so that subnets need recalibration."""
    return any(has_batch_norms(template(spec)) for _, spec in modules_of(space, num_classes=1))


def needs_images(space: SearchSpace) -> bool:
    """Whether an extracted network of ``space`` needs training images before it is judged.

    Batch norms need their averages, and modules in int8 the ranges of their activations.
    """
    specs = (spec for _, spec in modules_of(space, num_classes=1))
    return any(spec.quantised for spec in specs) or normalises_by_batch(space)


def shared_name(path: str, name: str, spec: ModuleSpec) -> str:
    """Names the shared weight that parameter ``name`` of a module is cut from."""
    options = spec.as_dict()
    if spec.kind == "block" and options["style"] != "metaformer":
        path = f"{path}.{options['style']}"
    if name.startswith("mixer."):
        name = f"mixer.{options['mixer']}.{name.removeprefix('mixer.')}"
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


@dataclass(frozen=True)
class _User:
    """Parameter ``name`` of the module of ``spec``, as one that uses a shared weight.

    ``sizes`` are those of the names in the weight's axes.
    """

    spec: ModuleSpec
    name: str
    sizes: dict[str, int]

    def among(self, others: Sequence[_User]) -> list[_User]:
        """Those of ``others`` and this one of which no other uses as much."""

        def within(a: _User, b: _User) -> bool:
            return all(size <= b.sizes[key] for key, size in a.sizes.items())

        rest = [other for other in others if not within(other, self)]
        return rest if any(within(self, other) for other in rest) else [*rest, self]


class Subnets(nn.Module):
    """Networks of a space, in one module that computes and extracts any of them.

    Attributes:
        space: The networks.
        num_classes: Outputs of the classifier.
    """

    space: SearchSpace
    num_classes: int

    @property
    def needs_images(self) -> bool:
        """Whether what is extracted needs training images before it is judged."""
        return needs_images(self.space)

    def extract(self, architecture: Architecture, **options: object) -> Backbone:
        """Makes a static network of a subnet, with copies of its weights."""
        raise NotImplementedError


class Supernet(Subnets):
    """All networks of a search space in one set of weights.

    Example:
        A subnet computes what its extracted network computes, bit for bit::

            supernet = Supernet(load_space("cifar"), num_classes=10)
            logits = supernet(images, space.smallest)
            network = supernet.extract(space.smallest)

    Shared weights have the values that the static modules start from; draw with a seeded global
    generator. A weight is that of the largest module that uses it. Where no module uses all of it
    (more heads in one, larger heads in another), each writes its part, the largest last, so that
    its values stand where several use an entry; modules of one size follow the order of the space.
    Passes of several threads do not disturb each other.

    Args:
        space: The search space.
        num_classes: Outputs of the classifier.

    Attributes:
        axes: Axes of each shared weight by name.
        sizes: Sizes of the names in its axes, as large as any configuration needs them.
    """

    def __init__(self, space: SearchSpace, num_classes: int) -> None:
        super().__init__()
        self.space, self.num_classes = space, num_classes
        self.axes: dict[str, Axes] = {}
        self.sizes: dict[str, dict[str, int]] = {}
        self._sources: dict[tuple[str, ModuleSpec], list[_Source]] = {}
        places: dict[str, dict[str, list[_User]]] = {}
        for path, spec in modules_of(space, num_classes):
            module, users = template(spec), places.setdefault(path, {})
            sizes = module.sizes()
            for name, axes in module.axes().items():
                shared = shared_name(path, name, spec)
                self.axes.setdefault(shared, axes)
                user = _User(spec, name, {key: sizes[key] for axis in axes for key in names(axis)})
                users[shared] = user.among(users.get(shared, []))
        for users in places.values():
            modules: dict[ModuleSpec, StaticModule] = {}
            for shared, largest in users.items():
                self._register(shared, largest, modules)

    @torch.no_grad()
    def _register(
        self, shared: str, users: Sequence[_User], modules: dict[ModuleSpec, StaticModule]
    ) -> None:
        """A shared weight with the values of ``users``, whose modules are made when missing."""
        axes = self.axes[shared]
        large = self.sizes[shared] = {
            name: max(user.sizes[name] for user in users) for name in users[0].sizes
        }
        weight = torch.zeros(shape(axes, large))
        for user in sorted(users, key=lambda user: math.prod(shape(axes, user.sizes))):
            if user.spec not in modules:
                modules[user.spec] = build_module(user.spec.in_float)
            values = modules[user.spec].get_parameter(user.name)
            for target, source in Slice.of(axes, large, user.sizes).pairs(weight, values):
                target.copy_(source)
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
        """Computes the logits of the subnet ``architecture``.

        Args:
            images: ``(batch, 3, height, width)``, normalised, of any size: resizing to the
                architecture's resolution is the caller's.
            architecture: A point of the space.
            drop_path_rate: In training, of the last block; earlier ones have less, linearly.

        Returns:
            Logits ``(batch, num_classes)``.

        Raises:
            InvalidArchitectureError: The architecture lies outside the space.
        """
        chain = components(architecture, self.num_classes)
        blocks = sum(component.spec.kind == "block" for component in chain)
        rates = iter(drop_path_rates(drop_path_rate, blocks))
        x = images
        for component, weights in zip(chain, self._weights(chain), strict=True):
            rate = next(rates) if component.spec.kind == "block" else 0.0
            x = TEMPLATES.of(component.spec.in_float)(weights, x, self.training, rate)
        return x

    def _weights(self, chain: Sequence[Component]) -> list[list[Tensor]]:
        """Returns each component's parameters, in the order of its static module's axes."""
        plan = [self._plan(component) for component in chain]
        sliced = [item for sources in plan for item in sources if item.part is not None]
        parts = iter(
            cut([item.weight() for item in sliced], [item.part for item in sliced if item.part])
        )
        return [
            # a layout other than the extracted network's would call other kernels
            [item.weight().contiguous() if item.part is None else next(parts) for item in sources]
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
            if large is None or any(sizes[key] > large[key] for key in large):
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
        """Makes a static network of a subnet, with copies of its weights.

        Args:
            architecture: A point of the space.
            **options: As those of ``Backbone``.

        Returns:
            A network that computes bit for bit what the subnet computes, in float: of one in int8
            that is its twin, which ``supernet.quantisation`` makes it of.

        Raises:
            InvalidArchitectureError: The architecture lies outside the space.
        """
        architecture = in_precision(architecture, FLOAT)
        network = build(architecture, self.num_classes, **options)
        chain = components(architecture, self.num_classes)
        state = {
            f"{component.path}.{item.name}": weight.detach()
            for component, weights in zip(chain, self._weights(chain), strict=True)
            for item, weight in zip(self._plan(component), weights, strict=True)
        }
        absent = network.load_state_dict(state, strict=False)
        assert not absent.unexpected_keys
        assert all(name.endswith(STATISTICS) for name in absent.missing_keys)
        return network.to(next(self.parameters()).device).train(self.training)

    @torch.no_grad()
    def insert(self, architecture: Architecture, network: nn.Module) -> None:
        """Writes the weights of a static network into the shared ones: the inverse of ``extract``.

        What other subnets alone use stays as it is, and what they share with this one is the
        network's from then on. Averages of batch norms are left out: they belong to the network.

        Example:
            A trained network as the largest subnet, from which others are then trained::

                supernet.insert(space.largest, network)

        Args:
            architecture: A point of the space, whose modules are the network's.
            network: A ``Backbone``, or another network whose modules have its paths.

        Raises:
            InvalidArchitectureError: The architecture lies outside the space, or the network is of
                another one; nothing has changed then.
        """
        given = dict(network.named_parameters())
        pairs: list[tuple[Tensor, Tensor]] = []
        for component in components(architecture, self.num_classes):
            for item in self._plan(component):
                name = f"{component.path}.{item.name}"
                weight, value = item.weight(), given.pop(name, None)
                wanted = weight.shape if item.part is None else item.part.shape
                if value is None or value.shape != wanted:
                    has = "none" if value is None else f"one of shape {tuple(value.shape)}"
                    raise InvalidArchitectureError(
                        f"{architecture.digest} has a parameter {name} of shape {tuple(wanted)}, "
                        f"and the network {has}; give the architecture that the network is of."
                    )
                if item.part is None:
                    pairs.append((weight, value))
                else:
                    pairs += item.part.pairs(weight, value)
        if given:
            raise InvalidArchitectureError(
                f"the network has a parameter {min(given)}, which {architecture.digest} has not; "
                "give the architecture that the network is of."
            )
        for target, source in pairs:
            target.copy_(source)


def modules_of(space: SearchSpace, num_classes: int) -> Iterator[tuple[str, ModuleSpec]]:
    """Yields every module that an architecture of ``space`` can have, with its path."""
    macro = space.macro
    for width in space.stages[0].widths:
        yield "stem", stem_spec(macro, width)
    for i, (stage, stride) in enumerate(zip(space.stages, space.strides, strict=True)):
        for width in stage.widths:
            before = [width] if i == 0 and not macro.stem_width else space.widths_before[i]
            for width_in in before:
                spec = transition_spec(macro, width_in, width, stride)
                if spec is not None:
                    yield f"stages.{i}.downsample", spec
            for j, choices in enumerate(stage.positions):
                entries = [(width, 1)]
                if j == 0 and space.enters_by_block:
                    entries = [(width_in, stride) for width_in in before]
                for block, entry in itertools.product(choices, entries):
                    spec = block_spec(macro, width, block, j, *entry)
                    if spec is not None:
                        yield f"stages.{i}.blocks.{j}", spec
    for width in space.stages[-1].widths:
        yield "head", head_spec(macro, width, num_classes)
