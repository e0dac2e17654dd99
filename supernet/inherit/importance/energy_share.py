"""Importance by the share of energy (He & Zhou, DIMAP, ICLR 2024; Lee et al., LAMP, ICLR 2021).

    share(w_(k)) = w_(k)² / Σ_{i ≤ k} w_(i)²,   I_j = Σ_s share(w_s)

with w_(1), w_(2) … the weights of a layer by falling size: a weight's part of the energy that is
left when all smaller ones are gone. The published scores are of single weights; here those that
write or read a unit are summed. Batch norms are folded first, as for the magnitude.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from supernet.inherit.importance.criteria import Scores, Units, criterion
from supernet.network.backbone import Backbone
from supernet.network.layers import fold_batch_norms
from supernet.training.evaluation import Batches


@criterion("energy_share")
def energy_share(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Sums the shares of each unit's weights in their layers' energy; looks at no image."""
    result = {}
    for axis in units:
        module = fold_batch_norms(copy.deepcopy(axis.module(network)))
        shares = {
            name: _shares(value.detach())
            for name, value in module.named_parameters()
            if value.ndim > 1
        }
        result[axis] = axis.sums(module, shares)
    return result


def _shares(weight: Tensor) -> Tensor:
    energy = weight.double().square().flatten()
    falling, order = energy.sort(descending=True, stable=True)
    shares = torch.empty_like(energy)
    shares[order] = falling / falling.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return shares.reshape(weight.shape)
