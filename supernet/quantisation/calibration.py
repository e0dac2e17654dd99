"""A network in int8, made of a trained float one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search_space.architecture import Architecture
from search_space.components import components
from search_space.errors import InvalidArchitectureError, UsageError
from search_space.precision import in_precision
from search_space.registry import FLOAT
from supernet.network.backbone import Backbone
from supernet.network.layers import fold_batch_norms
from supernet.network.quantised import FakeQuantiser, fake_quantisers, quantise_module
from supernet.quantisation.correction import correct_biases
from supernet.quantisation.preparations import prepare_components
from supernet.quantisation.ranges.ways import RANGES, Range, Seen

DEFAULT = "min_max"
NO_IMAGES = "there are no calibration images; give some."
PREPARED = ("smooth",)
FIRST = 128
"""Images by which scales are moved and biases corrected, the first of all."""
JUDGED = 32
"""Images by whose output ranges are chosen where a way finds several."""


def quantised_network(
    network: Backbone,
    architecture: Architecture,
    images: Iterable[Tensor],
    how: str = DEFAULT,
    *,
    prepare: Sequence[str] = PREPARED,
    correct: bool = True,
) -> Backbone:
    """Makes the network of ``architecture`` with the weights of its float twin.

    Example:
        A trained network with all components in int8, whose ranges 256 images give::

            architecture = in_precision(network.architecture, "int8")
            quantised = quantised_network(network, architecture, images)

    Args:
        network: The trained twin; it stays as it is. Batch norms of what gets int8 are folded in
            the copy, so their averages must be those of training images.
        architecture: The network's own, with other precisions.
        images: Batches (n, 3, side, side) of training images, normalised.
        how: Name of the way in which ranges are found, among ``RANGES``.
        prepare: Names among ``PREPARATIONS`` of what is done before to the components that get
            int8; it changes nothing in float but ranges.
        correct: Whether biases take away what rounding adds to the means of channels; see
            ``correct_biases``.

    Returns:
        A network that simulates int8 in float; in the mode that ``network`` is in.

    Raises:
        InvalidArchitectureError: The architectures differ by more than precisions.
        UnknownNameError: There is no such way to find ranges, or to prepare a network.
        UsageError: There are no images.
    """
    if in_precision(architecture, FLOAT) != in_precision(network.architecture, FLOAT):
        raise InvalidArchitectureError(
            f"{architecture.digest} is not {network.architecture.digest} in another precision; "
            "change nothing but precisions."
        )
    result = copy.deepcopy(network)
    own = components(network.architecture, network.num_classes)
    paths = []
    for before, after in zip(own, components(architecture, network.num_classes), strict=True):
        if before.spec.quantised and not after.spec.quantised:
            raise InvalidArchitectureError(
                f"{before.path} is in int8 already, and its float weights are gone; give the "
                "network that was trained in float."
            )
        if after.spec.quantised and not before.spec.quantised:
            paths.append(after.path)
    result.eval()
    for path in paths:
        fold_batch_norms(result.get_submodule(path))
    rest = iter(images)
    first = _first(rest, FIRST)
    if not first:
        raise UsageError(NO_IMAGES)
    prepare_components(result, paths, first, prepare)
    twin = copy.deepcopy(result)
    for path in paths:
        quantise_module(result.get_submodule(path))
    result.architecture = architecture
    calibrate(result, itertools.chain(first, rest), how)
    if correct:
        correct_biases(result, twin, torch.cat(first)[:FIRST])
    return result.train(network.training)


def _first(batches: Iterator[Tensor], count: int) -> list[Tensor]:
    """Takes batches until they have so many images, or there are no more."""
    taken: list[Tensor] = []
    while sum(map(len, taken)) < count and (batch := next(batches, None)) is not None:
        taken.append(batch)
    return taken


@torch.no_grad()
def calibrate(module: nn.Module, inputs: Iterable[Tensor], how: str = DEFAULT) -> None:
    """Finds the ranges of all activations that a module in int8 rounds, in place.

    All are found in one pass, in which none is rounded. Where a way finds several for a place, they
    are tried one place after the other with what is found for the others so far.

    Args:
        module: A network, or one of its modules.
        inputs: Batches of what it is given.
        how: Name of the way in which ranges are found, among ``RANGES``.

    Raises:
        UnknownNameError: There is no such way.
        UsageError: There are no inputs, or a layer is never called.
    """
    find = RANGES[how].call
    places = fake_quantisers(module)
    seen = {name: Seen() for name in places}
    same: dict[str, str] = {}
    judged: tuple[Tensor, Tensor] | None = None  # images and the output in float
    for number, batch in enumerate(inputs):
        if number == 0:
            same = same_tensors(module, batch[:1])
        with watched(module, {name: seen[name].add for name in places}):
            output = module(batch)
        if judged is None:
            judged = batch[:JUDGED], output[:JUDGED]
    for name in places:
        if not seen[name].count:
            raise UsageError(
                f"{name} was never called: "
                + (
                    "its module takes the weights of the layer and not the layer, so it cannot be "
                    "quantised; leave its block in float."
                    if any(each.count for each in seen.values())
                    else NO_IMAGES
                )
            )
    tensors: dict[str, list[FakeQuantiser]] = {}  # places by the first that rounds the same
    for name, place in places.items():
        tensors.setdefault(same[name], []).append(place)
    choices = {name: find(seen[name]) for name in tensors}
    for name, together in tensors.items():
        _set_ranges(together, choices[name][0])
    if judged is not None:
        for name, together in tensors.items():
            if len(choices[name]) > 1:
                _choose(module, together, choices[name], *judged)


def _choose(
    module: nn.Module,
    places: Iterable[FakeQuantiser],
    choices: Iterable[Range],
    images: Tensor,
    wanted: Tensor,
) -> None:
    """Takes the range whose output has the smallest cross entropy, over its last dimension."""
    shares = wanted.flatten(0, -2).float().softmax(-1)

    def distance(tried: Range) -> float:
        _set_ranges(places, tried)
        with watched(module, {}):
            return float(F.cross_entropy(module(images).flatten(0, -2).float(), shares))

    _set_ranges(places, min(choices, key=distance))


def _set_ranges(places: Iterable[FakeQuantiser], found: Range) -> None:
    for place in places:
        place.set_range(*found)


@contextmanager
def watched(module: nn.Module, watches: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Lets each place that rounds show what it is given, and round nothing, in evaluation mode.

    Args:
        module: A network, or one of its modules.
        watches: By place, as ``fake_quantisers`` names them.
    """
    training = [part for part in module.modules() if part.training]
    places = fake_quantisers(module)
    module.eval()
    try:
        for name, watch in watches.items():
            places[name].watch = watch
        yield
    finally:
        for place in places.values():
            place.watch = None
        for part in training:
            part.training = True


@torch.no_grad()
def same_tensors(module: nn.Module, x: Tensor) -> dict[str, str]:
    """Finds for each place that is called the first that rounds the same tensor, or a view of it.

    Their ranges must be one, since a runtime may round once what is rounded twice.

    Args:
        module: A network, or one of its modules.
        x: What it is given; one image will do.
    """
    first: dict[int, tuple[str, Tensor]] = {}  # kept, so that no other gets their memory
    same: dict[str, str] = {}

    def watching(name: str) -> Callable[[Tensor], None]:
        def watch(seen: Tensor) -> None:
            same[name] = first.setdefault(seen.untyped_storage().data_ptr(), (name, seen))[0]

        return watch

    with watched(module, {name: watching(name) for name in fake_quantisers(module)}):
        module(x)
    return same
