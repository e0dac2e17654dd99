"""Importance to second order (LeCun et al., 1990; the diagonal of Xu et al., LPViT, ECCV 2024).

    I_j = E_i[½ (Σ_p g_ip h_ip)²]

over the positions p of image i at which unit j gives h to the last layer that reads it, with g the
gradient of the image's cross entropy by h: the second-order term of the loss' change when the unit
becomes zero, with the empirical Fisher information in place of the Hessian.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from supernet.data.evaluation_batches import moved
from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.inherit.importance.feeds import pass_images
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches


@criterion("second_order")
@torch.enable_grad()
def second_order(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Measures half the mean over images of each unit's squared gate gradient."""
    result, seen = {one: one.zeros(one.module(network)) for one in units}, 0
    for images, labels in moved(batches, next(network.parameters()).device):
        seen += len(images)
        logits, feeds = pass_images(network, units, images)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        pairs = [(one, feed) for one, given in feeds.items() for feed in given]
        grads = torch.autograd.grad(loss, [feed.values for _, feed in pairs])
        sums: dict[Units, torch.Tensor] = {}
        for (one, feed), grad in zip(pairs, grads, strict=True):
            module = one.module(network)
            products = feed.rows(module, grad * feed.values, len(images)).sum(1)
            axis = module.axes()[f"{feed.layer}.weight"][feed.dim]
            sums[one] = sums.get(one, 0) + one.along(module, axis, products)
        for one, values in sums.items():
            result[one] += values.square().sum(0) / 2
    return {one: total / seen for one, total in result.items()}
