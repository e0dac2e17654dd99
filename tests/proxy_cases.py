"""Small networks to score, and slow definitions to compare their scores with.

``benchmarks/proxies.py`` times the definitions too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import timm
import torch
from mixer_sizes import narrow
from timm.layers import GroupNorm1
from timm.models.metaformer import MetaFormer
from torch import Tensor, nn

from predictors.proxies import Network
from search_space import Architecture, Macro, Stage, metaformer
from supernet.network.norms import GroupNorm

MACROS: Mapping[str, Macro] = {
    "window_attention": Macro(downsample="patch_merging", head_norm="before_pool"),
    "focal_modulation": Macro(downsample="conv_norm", head_norm="before_pool"),
    "gnconv": Macro(layer_scale=1e-6),
    "pooling": Macro(
        stem_kernel=7,
        stem_norm=False,
        downsample="conv",
        downsample_kernel=3,
        norm="group_norm",
        layer_scale=1e-5,
    ),
    "depthwise_conv": Macro(layer_scale=1e-6),
}


def small(mixer: str, depth: int = 1) -> Architecture:
    """One mixer in its published surroundings: 32 px, widths 8 and 16."""
    window = {"window": 4} if mixer == "window_attention" else {}
    block = metaformer(narrow(mixer, **window), 2)
    stages = tuple(Stage(width, (block,) * depth) for width in (8, 8, 16, 16))
    return Architecture(MACROS.get(mixer, Macro()), 32, stages)


def small_timm() -> dict[str, Network]:
    """Small versions of timm's networks: with norms before and after pooling, and without one."""

    def convnext() -> nn.Module:
        return timm.create_model("convnext_atto", num_classes=5, depths=(1,) * 4, dims=(8,) * 4)

    def poolformer() -> nn.Module:
        return MetaFormer(
            num_classes=5,
            depths=(1,) * 4,
            dims=(8, 8, 16, 16),
            downsample_norm=None,
            norm_layers=GroupNorm1,
            mlp_act=nn.GELU,
            mlp_bias=True,
            layer_scale_init_values=1e-5,
            res_scale_init_values=None,
        )

    def swin() -> nn.Module:
        return timm.create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=5,
            img_size=64,
            embed_dim=8,
            depths=(1, 2, 1, 1),
            num_heads=(1, 2, 2, 4),
            window_size=4,
        )

    def resnet() -> nn.Module:
        return timm.create_model("resnet18", num_classes=5, channels=(8, 8, 16, 16))

    made = {"convnext": convnext, "poolformer": poolformer, "swin": swin, "resnet": resnet}
    return {name: Network(name, 64, make) for name, make in made.items()}


def without_norms(module: nn.Module) -> None:
    """Replace the norms of our networks by the identity, module by module."""
    for name, child in module.named_children():
        if isinstance(child, (nn.LayerNorm, GroupNorm)):
            setattr(module, name, nn.Identity())
        else:
            without_norms(child)


def our_features(network: nn.Module, images: Tensor) -> Tensor:
    """Means over tokens of our networks' last features, ``(batch, channels)``."""
    return network.forward_features(images).mean((1, 2))


def distortion_by_coordinates(features: Callable[[Tensor], Tensor], plane: Tensor) -> float:
    """L^E by its definition: one backward pass per feature, down to the angles.

    ``plane`` is ``(3, height, width, 2)``, ``features`` maps images to ``(batch, channels)``.
    """
    angles = torch.linspace(0, 2 * math.pi, 10, dtype=plane.dtype, requires_grad=True)
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    outputs = features((plane @ circle.T).permute(3, 0, 1, 2))
    jacobian = [
        torch.autograd.grad(outputs[:, i].sum(), angles, retain_graph=True)[0]
        for i in range(outputs.shape[1])
    ]
    return float(torch.stack(jacobian).norm(dim=0).sum())


def kernel_by_jacobian(
    features: Callable[[Tensor], Tensor], images: Tensor, weights: list[nn.Parameter]
) -> Tensor:
    """Tangent kernel by its definition: the Jacobian of all images' features together."""
    sums = features(images).sum(1)
    rows = []
    for one in sums:
        parts = torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([part.flatten() for part in parts if part is not None]))
    jacobian = torch.stack(rows)
    return (jacobian @ jacobian.T).double()
