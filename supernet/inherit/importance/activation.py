"""Importance by activation (Muralidharan et al., Minitron, 2024; the rank of CORP, 2026).

    I_j = E[h_j²]

with h what the unit gives to the last layer that reads it: after activations, depthwise
convolutions and gates of squeeze-excite. Of a head or another unit of several channels these are
summed. Units that no layer reads, as the channels of keys, are judged by what writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.data.evaluation_batches import moved
from supernet.inherit.importance.criteria import Scores, Units, criterion, readers, writers
from supernet.inherit.observing import by_channel, chain, observe
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches, at_trained_resolution

_Watched = tuple[str, str, bool]  # path, layer, and whether it is what the layer writes


@criterion("activation")
@torch.no_grad()
def activation(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Measures the mean square of what each unit feeds to its consumer, over all positions."""
    device = next(network.parameters()).device
    sums: dict[_Watched, Tensor] = {}
    counts: dict[_Watched, int] = {}
    layers = {axis: _layers(axis, network) for axis in units}
    for images, _ in moved(batches, device):
        x = at_trained_resolution(network, images)
        for path, module in chain(network):
            here = {one for axis, ones in layers.items() if axis.path == path for one in ones}
            x, seen = observe(module, x, {layer for layer, _ in here})
            for layer, written in here:
                values = by_channel(module.get_submodule(layer), seen[layer][written]).double()
                rows, key = values.flatten(0, -2), (path, layer, written)
                sums[key] = sums.get(key, 0) + rows.square().sum(0)
                counts[key] = counts.get(key, 0) + len(rows)
    result = {}
    for axis, watched in layers.items():
        module = axis.module(network)
        result[axis] = axis.zeros(module)
        for layer, written in watched:
            key = axis.path, layer, written
            of = module.axes()[f"{layer}.weight"][0 if written else 1]
            result[axis] += axis.along(module, of, sums[key] / counts[key])
    return result


def _layers(axis: Units, network: Backbone) -> list[tuple[str, bool]]:
    """The layers that tell of units, and whether by what they write."""
    module = axis.module(network)
    reading = readers(module, axis.names)
    if reading:
        return [(reading[-1], False)]
    return [(layer, True) for layer in writers(module, axis.names)]
