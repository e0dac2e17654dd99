"""Folding what is cut off a layer's input into what is kept, by ridge regression.

A layer that reads units h in its parent and only h_K after a cut gets the weights

    W' = W A,   A = argmin E‖h − A h_K − c‖² + λ ‖A − E_K‖²,   b' = b + W c

with E_K the plain choice of the kept ones: what is cut off is predicted from what is kept (CORP,
arXiv 2602.05243, 2026, which fits A for the units cut off alone; for those kept A is 1 unless they
compute something else than before). One pass of the parent sums up the moments of h, from which A
follows for any choice of units. Inputs of a convolution are the patches that it reads, at a sample
of positions, so the taps cut off a kernel are folded into those kept in the same way, of a
depthwise one by channel. Where a batch norm follows, c goes into its average, and average and
variance become those of the layer's new output, with scale and bias such that the module computes
the same: whoever makes the averages anew, as is done for assembled networks, changes nothing.

A block that is left out altogether is folded in the same way into a map of each position, from its
output, as h, and its input, as h_K.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from supernet.inherit.moments import Moments
from supernet.inherit.smaller import Kept
from supernet.network.axes import StaticModule, positions
from supernet.network.blocks import Projection
from supernet.network.layers import ConvNorm
from supernet.network.norms import BatchNorm


@torch.no_grad()
def refit(
    source: StaticModule,
    target: StaticModule,
    layer: str,
    moments: Moments,
    kept: Kept,
    ridge: float,
) -> None:
    """Gives a layer of a smaller copy the weights that make up for what its input lost.

    Args:
        source: The module that ``target`` was cut out of.
        target: The smaller copy, of which the layer, and a batch norm after it, are changed.
        layer: The layer's name.
        moments: Of what it reads in the parent, and in ``source``.
        kept: What ``target`` has of each name, the middle of kernels included.
        ridge: As for ``Moments.regression``.
    """
    large, small = source.get_submodule(layer), target.get_submodule(layer)
    assert isinstance(large, nn.Linear | nn.Conv2d)
    assert isinstance(small, nn.Linear | nn.Conv2d)
    axes, sizes = source.axes()[f"{layer}.weight"], source.sizes()
    rows, *columns = (positions(axis, sizes, kept) for axis in axes)
    features = [0]
    for extent, chosen in zip(large.weight.shape[1:], columns, strict=True):
        features = [outer * extent + i for outer in features for i in chosen]
    norm = norm_after(target, layer)
    centred = small.bias is not None or norm is not None
    predicted, missing, mean, covariance = moments.regression(features, ridge, centred)
    weight = large.weight.double().reshape(moments.groups, -1, moments.features)
    fitted = weight @ predicted  # (groups, outputs of each, kept features)
    constant = (weight @ missing[..., None]).flatten()[rows]
    means = (fitted @ mean[..., None]).flatten()[rows]
    variances = ((fitted @ covariance) * fitted).sum(2).flatten()[rows]
    small.weight.copy_(fitted.flatten(0, 1)[rows].reshape(small.weight.shape))
    if small.bias is not None:
        small.bias += constant
        means, constant = means + small.bias, torch.zeros_like(constant)
    if norm is not None:
        _renormalise(norm, means, variances, constant)


@torch.no_grad()
def fit_map(target: Projection, moments: Moments | None, ridge: float) -> None:
    """Makes a linear map, in place, what predicts a module's output from its input the best.

    Args:
        target: Is changed; of the module's in- and output.
        moments: Of the module as a whole, as ``Watched`` has them; None for the identity.
        ridge: As for ``Moments.regression``. The map is drawn to the identity, as which a block
            that is left out would count.
    """
    assert target.conv.bias is not None
    if moments is None:
        nn.init.dirac_(target.conv.weight)
        target.conv.bias.zero_()
        return
    predicted, constant, *_ = moments.regression(range(moments.features), ridge, centred=True)
    target.conv.weight.copy_(predicted[0].reshape(target.conv.weight.shape))
    target.conv.bias.copy_(constant[0])


def norm_after(module: StaticModule, layer: str) -> BatchNorm | None:
    """The batch norm that normalises what a layer writes."""
    holder = module.get_submodule(layer.rpartition(".")[0])
    norm = holder.norm if isinstance(holder, ConvNorm) else None
    return norm if isinstance(norm, BatchNorm) else None


def _renormalise(norm: BatchNorm, means: Tensor, variances: Tensor, constant: Tensor) -> None:
    """Makes averages those of inputs to which ``constant`` is to be added; the output stays."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale, shift = norm.affine()
    if norm.bias is None:
        norm.running_mean -= constant
        return
    norm.running_mean.copy_(means)
    norm.running_var.copy_(variances.clamp_min(0))
    norm.set_affine(scale, shift + scale * constant)
