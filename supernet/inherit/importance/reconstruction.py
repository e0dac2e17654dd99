"""Importance by what cannot be folded (Hassibi & Stork, "Optimal brain surgeon", 1992).

    I_j = tr(W_j ((C⁻¹)_jj)⁻¹ W_jᵀ)

with W the weights of the last layer that reads the units, C the covariance of what it reads (second
moments, where the layer has no constant), and indices j all that unit j gives it: the least mean
square error of the layer's output when unit j is left out and the others make up for it. The unit
with the least is taken out, C and W become those of the rest, and so on (of several channels at
once as by Frantar & Alistarh, "Optimal brain compression", 2022), so that of two units that stand
for each other one is kept. Importance is the place in that order. Outputs are weighed by the batch
norm after the layer. Units that no layer reads are judged by their activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from supernet.inherit.fold import norm_after
from supernet.inherit.importance.activation import activation
from supernet.inherit.importance.criteria import Scores, Units, criterion, readers
from supernet.inherit.moments import Watched, sum_up
from supernet.network.axes import entries
from supernet.network.backbone import Backbone
from supernet.training.evaluation import Batches

_RIDGE = 1e-3  # added to the covariance, as a part of the mean variance
_COMPACT = 0.8  # share of features that are left when matrices are made smaller


@criterion("reconstruction")
@torch.no_grad()
def reconstruction(network: Backbone, units: Sequence[Units], batches: Batches) -> Scores:
    """Ranks units by the error that is left when each is folded into the rest: 0, 1, 2 …"""
    reading = {one: readers(one.module(network), one.names)[-1:] for one in units}
    watched = {
        one: Watched.of(one.path, one.module(network), layers)
        for one, layers in reading.items()
        if layers
    }
    sum_up(network, list(watched.values()), batches)
    others = [one for one in units if one not in watched]
    result = activation(network, others, batches) if others else {}
    for one, watch in watched.items():
        ((name, moments),) = watch.moments.items()
        module = one.module(network)
        layer = module.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        weight = layer.weight.double()
        norm = norm_after(module, name)
        centred = norm is not None or layer.bias is not None
        if norm is not None:
            scale = norm.affine()[0]
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
        taps = weight[0, 0].numel()
        axis = module.axes()[f"{name}.weight"][1]
        of = [
            max(each)
            for each in zip(*(entries(axis, module.sizes(), n) for n in one.names), strict=True)
        ]
        features = torch.tensor(of).repeat_interleave(taps)
        places = _order(weight.flatten(1).clone(), moments.covariance(centred)[0], features)
        result[one] = places.double()
    return result


def _order(weight: Tensor, covariance: Tensor, of: Tensor) -> Tensor:
    """The place of each unit in the order in which they are taken out.

    Args:
        weight: (outputs, features); is used up.
        covariance: (features, features).
        of: The unit that each feature is of, −1 for none; all units have equally many.
    """
    scale = covariance.diagonal().mean().clamp_min(torch.finfo(covariance.dtype).tiny)
    inverse = torch.linalg.inv(covariance + torch.diag(_RIDGE * scale.expand(len(of))))
    units = int(of.max()) + 1
    members = torch.stack([(of == unit).nonzero()[:, 0] for unit in range(units)])
    place, left = torch.zeros(units, dtype=torch.long), torch.arange(units)
    for step in range(units):
        blocks = torch.linalg.inv(inverse[members[:, :, None], members[:, None]])
        columns = weight.T[members]  # (units, features of each, outputs)
        errors = ((blocks @ columns) * columns).sum((1, 2))
        worst = int(errors.argmin())
        place[left[worst]] = step
        gone = members[worst]
        rows = inverse[gone]  # a copy; the matrix is symmetric
        gain = (blocks[worst] @ rows).T
        weight.addmm_(weight[:, gone], gain.T, alpha=-1)
        inverse.addmm_(gain, rows, alpha=-1)
        others = torch.arange(len(left)) != worst
        left, members = left[others], members[others]
        if len(left) * members.shape[1] < _COMPACT * len(inverse) and len(left):
            kept = members.flatten()
            inverse, weight = inverse[kept][:, kept], weight[:, kept]
            members = torch.arange(len(kept)).reshape(members.shape)
    return place
