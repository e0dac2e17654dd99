"""Importance by Taylor expansion (Molchanov et al., "Importance estimation for pruning", 2019).

    I_j = E|Σ_s g_s w_s|

over the parameters s that belong to unit j, with the gradient g of each batch's cross entropy: by
how much the loss changes, to first order, when all of them become zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from supernet.data.evaluation_batches import moved
from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches, at_trained_resolution


@criterion("taylor")
def taylor(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Measures the mean over batches of the loss' change to first order without each unit."""
    return {axis: sums.abs().mean(0) for axis, sums in first_order(network, units, batches).items()}


def first_order(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Computes Σ_s g_s w_s of each unit for every batch: (batches, units), float64."""
    device = next(network.parameters()).device
    parameters = {
        f"{axis.path}.{name}": parameter
        for axis in units
        for name, parameter in axis.module(network).named_parameters()
    }
    result: dict[Units, list[torch.Tensor]] = {axis: [] for axis in units}
    with torch.enable_grad():
        for images, labels in moved(batches, device):
            logits = network(at_trained_resolution(network, images))
            loss = F.cross_entropy(logits.float(), labels)
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            products = {
                name: grad * parameter.detach()
                for (name, parameter), grad in zip(parameters.items(), grads, strict=True)
                if grad is not None
            }
            for axis in units:
                prefix = f"{axis.path}."
                inside = {
                    name.removeprefix(prefix): value
                    for name, value in products.items()
                    if name.startswith(prefix)
                }
                result[axis].append(axis.sums(axis.module(network), inside))
    return {axis: torch.stack(rows) for axis, rows in result.items()}
