"""The registry of ways to prepare a float network for int8, which change its ranges alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from search_space.registry import Functions
from supernet.network.backbone import Backbone
from supernet.quantisation.preparations.pairs import Pair, pairs_of

Preparation = Callable[[Pair], None]
"""Moves scales between what writes channels and what reads them, where it is of use."""


PREPARATIONS: Functions[Preparation] = Functions("preparation for int8", "nas.preparations")
preparation = PREPARATIONS.register


def prepare_components(
    network: Backbone, paths: Collection[str], images: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Prepares some components of a network in place; in float they compute what they did.

    Args:
        network: In evaluation mode.
        paths: Of its components that get int8, with folded batch norms.
        images: Batches (n, 3, side, side) of training images, normalised; at least one.
        names: Ways among ``PREPARATIONS``, which are gone in this order.

    Raises:
        UnknownNameError: There is no such way.
    """
    ways = [PREPARATIONS[name].call for name in names]
    for pair in pairs_of(network, paths, images) if ways else ():
        for prepare in ways:
            prepare(pair)
