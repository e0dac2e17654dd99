"""Batch norms of any network folded into the convolutions before them, as deployed networks are.

Networks of this package fold their own; those of timm are folded here, so that both are timed in
the form in which they run. Which norm follows which convolution is seen in a pass of images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from supernet.network.layers import fold_batch_norms


@torch.no_grad()
def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """Folds in place what can be folded; logits of ``images`` in evaluation stay."""
    before = fold_batch_norms(network)(images)
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def conv_done(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(output)] = layer, output

    def norm_begins(layer: nn.BatchNorm2d, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], layer))

    hooks = [m.register_forward_hook(conv_done) for m in network.modules() if type(m) is nn.Conv2d]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks += [norm.register_forward_pre_hook(norm_begins) for norm in norms]
    network(images)
    for hook in hooks:
        hook.remove()
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            *(conv.weight, conv.bias, norm.running_mean, norm.running_var),
            *(norm.eps, norm.weight, norm.bias),
        )
        holder, _, leaf = names[norm].rpartition(".")
        # timm's norms may have an activation
        rest: nn.Module = getattr(norm, "act", nn.Identity())
        setattr(network.get_submodule(holder), leaf, rest)
    after = network(images)
    assert (after - before).abs().max() <= 1e-4 * max(1.0, float(before.abs().max()))
    return network
