"""Importance by activation (Muralidharan et al., Minitron, 2024; the rank of CORP, 2026).

    I_j = E[h_j²]

with h what the unit gives to the last layer that reads it: after activations, depthwise
convolutions and gates of squeeze-excite. Of a head or another unit of several channels these are
summed. Units that no layer reads, as the channels of keys, are judged by what writes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from supernet.data.evaluation_batches import moved
from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.inherit.importance.feeds import pass_images
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches


@criterion("activation")
@torch.no_grad()
def activation(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Measures the mean square of what each unit feeds to its consumer, over all positions."""
    result, seen = {one: one.zeros(one.module(network)) for one in units}, 0
    for images, _ in moved(batches, next(network.parameters()).device):
        seen += len(images)
        for one, feeds in pass_images(network, units, images)[1].items():
            module = one.module(network)
            for feed in feeds:
                squares = feed.rows(module, feed.values, len(images)).square().mean(1).sum(0)
                axis = module.axes()[f"{feed.layer}.weight"][feed.dim]
                result[one] += one.along(module, axis, squares)
    return {one: total / seen for one, total in result.items()}
