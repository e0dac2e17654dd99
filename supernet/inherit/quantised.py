"""Alternatives in int8: copies of a bank's in float, with ranges of the parent's inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from search_space.errors import UsageError
from supernet.inherit.bank import Entry, WeightBank
from supernet.network.layers import fold_batch_norms
from supernet.network.quantised import quantise_module
from supernet.quantisation.calibration import DEFAULT, FIRST, calibrate
from supernet.quantisation.correction import correct_biases


@torch.no_grad()
def quantise_alternatives(
    bank: WeightBank,
    images: Iterable[Tensor],
    how: str = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
) -> list[Entry]:
    """Gives a bank the alternatives in int8 of all that it holds in float.

    Example:
        Those of a bank whose other alternatives are cut already::

            quantise_alternatives(bank, [images for images, _ in batches])

    Args:
        bank: Holds the float twins; what has no twin stays missing.
        images: Batches (n, 3, side, side) of training images at the parent's resolution.
        how: Name of the way in which ranges are found.
        progress: Called after each place with how many are done, and how many there are.

    Returns:
        What was put into the bank.

    Raises:
        UnknownNameError: There is no such way to find ranges.
        UsageError: There are no images, or a layer cannot be quantised.
    """
    device = next(bank.parameters()).device
    batches = [batch.to(device) for batch in images]
    wanted: dict[str, list[Entry]] = {}
    for path, spec in bank.quantised:
        if (path, spec) not in bank and (path, spec.in_float) in bank:
            wanted.setdefault(path, []).append((path, spec))
    chain, made = list(bank.chain(bank.parent)), []
    for done, (item, module) in enumerate(chain, 1):
        for entry in wanted.get(item.path, []):
            twin = fold_batch_norms(copy.deepcopy(bank[entry[0], entry[1].in_float]))
            rounded = copy.deepcopy(twin)
            quantise_module(rounded)
            try:
                calibrate(rounded, batches, how)
            except UsageError as error:
                raise error.located(str(entry[1])) from None
            correct_biases(rounded, twin, torch.cat(batches)[:FIRST])
            bank.put(entry, rounded)
            made.append(entry)
        batches = [module(batch) for batch in batches]
        if progress is not None:
            progress(done, len(chain))
    return made
