"""Known designs and timm's names of them, and timm's networks as tests compare with them."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from supernet.network.timm_models import PUBLISHED as PAIRS

QUICK = (
    "swin_t",
    "swinv2_t",
    "maxvit_t",
    "focalnet_t_srf",
    "focalnet_t_lrf",
    "convnext_t",
    "poolformer_s12",
    "poolformerv2_s12",
    "convformer_s18",
    "caformer_s18",
    "convnext_atto",
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "tf_efficientnet_lite0",
    "efficientnet_b0",
    "resnet18",
    "resnet26",
    "resnet18d",
    "seresnet50",
    "ecaresnet50d",
    "resnet10t",
    "test_resnet",
)
"""Small ones of every family, which are compared by default."""

all_pairs = pytest.mark.parametrize(("name", "timm_name"), PAIRS.items())
quick_pairs = pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        pytest.param(*pair, marks=() if pair[0] in QUICK else pytest.mark.slow)
        for pair in PAIRS.items()
    ],
)


def randomised(network: nn.Module, seed: int) -> nn.Module:
    """Random weights and averages large enough for every branch to matter, layer scales too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.state_dict().items():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("running_var"):
                parameter.copy_(0.5 + noise.abs())
            elif parameter.ndim == 1 and name.endswith(("weight", "gamma", "scale")):
                parameter.copy_(0.5 + 0.1 * noise)
            elif parameter.ndim == 1 or "relative_position" in name:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return network.eval()


def of_size(network: nn.Module, timm_name: str, size: tuple[int, int], **options: Any) -> nn.Module:
    """A timm network with the same weights for images of ``size``: itself, but for Swin.

    Swin is made for a size. A window that is larger than its map becomes the map, with those
    entries of the bias table that are left.
    """
    if not timm_name.startswith("swin"):
        return network
    resized = timm.create_model(timm_name, img_size=size, **options).eval()
    state = dict(network.state_dict())
    for path, module in resized.named_modules():
        key = f"{path}.relative_position_bias_table"
        if key in state and module.relative_position_bias_table.shape != state[key].shape:
            state[key] = _middle(state[key], [2 * side - 1 for side in module.window_size])
    resized.load_state_dict(state)
    return resized


def _middle(table: Tensor, sides: list[int]) -> Tensor:
    side = round(len(table) ** 0.5)
    square = table.unflatten(0, (side, side))
    for dim, length in enumerate(sides):
        square = square.narrow(dim, (side - length) // 2, length)
    return square.flatten(0, 1)
