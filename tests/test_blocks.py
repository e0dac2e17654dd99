"""Convolutional blocks against direct evaluations of their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import EcaModule
from torch import Tensor, nn

from search_space import Block, Macro, SearchSpace, StageSpace
from search_space.components import block_spec
from supernet import Supernet
from supernet.network import blocks  # noqa: F401  they register themselves
from supernet.network.axes import problem_of
from supernet.network.layers import ChannelMix
from supernet.network.modules import build_module
from supernet.network.registry import register_block

STYLE = {"norm": "batch_norm", "norm_eps": 1e-3, "padding": "half"}
SCALED = {"squeeze": 3, "eca": True}
INSIDE = {
    "inverted_residual": {"hidden": 24, "kernel": 5, "squeeze": 3, "gate": "sigmoid"},
    "depthwise_separable": {"kernel": 5, "squeeze": 3, "gate": "hard_sigmoid"},
    "fused_inverted_residual": {"hidden": 24, "kernel": 3},
    "basic": {"hidden": 12, "shortcut": "conv"},
    "basic with both": {"hidden": 12, "shortcut": "conv", **SCALED},
    "bottleneck with both": {"hidden": 6, "shortcut": "conv", **SCALED},
    "inverted_residual with eca": {
        "hidden": 24,
        "kernel": 5,
        "squeeze": 0,
        "gate": "sigmoid",
        "eca": True,
    },
    "bottleneck": {"hidden": 6, "shortcut": "conv"},
}


def conv(x: Tensor, layer: nn.Module, padding: int, stride: int = 1, groups: int = 1) -> Tensor:
    """Convolution and batch norm by the averages, in the order of the published formula."""
    weight, norm = layer.conv.weight, layer.norm
    x = F.conv2d(x, weight, layer.conv.bias, stride, padding, groups=groups)
    mean, var = norm.running_mean.view(-1, 1, 1), norm.running_var.view(-1, 1, 1)
    scale, shift = norm.weight.view(-1, 1, 1), norm.bias.view(-1, 1, 1)
    return (x - mean) / torch.sqrt(var + norm.eps) * scale + shift


def excited(x: Tensor, layer: nn.Module, kind: str) -> Tensor:
    mean = x.mean((2, 3))
    inner = mean @ layer.reduce.weight.flatten(1).T + layer.reduce.bias
    inner = F.silu(inner) if kind == "inverted_residual" else F.relu(inner)
    outer = inner @ layer.expand.weight.flatten(1).T + layer.expand.bias
    hard = kind == "depthwise_separable"
    gate = (outer / 6 + 0.5).clamp(0, 1) if hard else 1 / (1 + torch.exp(-outer))
    return x * gate[:, :, None, None]


def mixed(x: Tensor, layer: nn.Module) -> Tensor:
    """ECA, channel by channel: the neighbours' means, none beyond the ends."""
    taps, means = layer.conv.weight.flatten(), x.mean((2, 3))
    result = torch.zeros_like(x)
    for channel in range(x.shape[1]):
        score = torch.zeros(len(x))
        for tap, weight in enumerate(taps):
            near = channel + tap - len(taps) // 2
            if 0 <= near < x.shape[1]:
                score += weight * means[:, near]
        result[:, channel] = x[:, channel] / (1 + torch.exp(-score))[:, None, None]
    return result


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("out_dim", [8, 16])
@pytest.mark.parametrize("name", INSIDE)
@torch.no_grad()
def test_a_block_is_its_formula(name: str, out_dim: int, stride: int) -> None:
    torch.manual_seed(0)
    dim, kind, options = 8, name.split()[0], INSIDE[name]
    block = register_block[kind](
        dim=dim, out_dim=out_dim, stride=stride, activation="silu", **options, **STYLE
    ).eval()
    assert problem_of(block) is None
    for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
        tensor.copy_(torch.rand_like(tensor) if "var" in name else torch.randn_like(tensor))
    images = torch.randn(2, dim, 9, 7)
    get = block.get_submodule
    if kind in ("inverted_residual", "depthwise_separable"):
        x = images
        if kind == "inverted_residual":
            x = F.silu(conv(x, get("expand"), 0))
        x = F.silu(conv(x, get("depthwise"), 2, stride, groups=x.shape[1]))
        x = excited(x, get("excite"), kind) if options["squeeze"] else x
        x = mixed(x, get("mix")) if "eca" in options else x
        x = conv(x, get("project"), 0)
    elif kind == "fused_inverted_residual":
        x = F.silu(conv(images, get("expand"), 1, stride))
        x = conv(x, get("project"), 0)
    elif kind == "basic":
        x = F.silu(conv(images, get("first"), 1, stride))
        x = conv(x, get("second"), 1)
    else:
        x = F.silu(conv(images, get("reduce"), 0))
        x = F.silu(conv(x, get("middle"), 1, stride))
        x = conv(x, get("expand"), 0)
    if kind in ("basic", "bottleneck") and "eca" in options:
        x = mixed(excited(x, get("excite"), kind), get("mix"))
    same = stride == 1 and dim == out_dim
    if kind in ("basic", "bottleneck"):
        shortcut = images if same else conv(images, get("shortcut"), 0, stride)
        x = F.silu(x + shortcut)
    elif same:
        x = x + images
    actual = block(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dim", [1, 8, 64, 100, 256, 2048])
@torch.no_grad()
def test_eca_is_timms(dim: int) -> None:
    theirs, ours = EcaModule(dim), ChannelMix(dim)
    ours.conv.weight.copy_(theirs.conv.weight.view_as(ours.conv.weight))
    images = torch.randn(2, dim, 5, 3)
    torch.testing.assert_close(ours(images), theirs(images))


@torch.no_grad()
def test_scaled_channels_share_weights_bit_for_bit() -> None:
    """Kernels of ECA of 3 and 5 taps, blocks with and without; what it reads keeps its order."""
    macro = Macro(stem="conv_act", stem_kernel=3, stem_stride=2, downsample="block")
    kinds = [
        Block.of(kind, **{**widths, **scaled})
        for kind, widths in (
            ("inverted_residual", {"expansion": 4.0}),
            ("prenorm_inverted_residual", {}),
            ("bottleneck", {}),
        )
        for scaled in ({}, {"eca": True}, {"squeeze": 0.25}, {"squeeze": 0.5, "eca": True})
    ]
    space = SearchSpace("x", macro, (16,), (StageSpace((8, 96), (1, 2), tuple(kinds)),))
    torch.manual_seed(0)
    supernet, images = Supernet(space, 3), torch.randn(2, 3, 16, 16)
    for architecture in space.decode(space.sample(np.random.default_rng(0), 8)):
        assert torch.equal(supernet(images, architecture), supernet.extract(architecture)(images))
    for block in kinds:
        spec = block_spec(macro, 96, block, 1)
        names = set().union(*build_module(spec).permutable())
        assert ("hidden" in names) == (block.kind == "bottleneck" or not block["eca"])
        assert ("dim" in names) == (block.kind != "bottleneck" or not block["eca"])
        assert "eca" not in str(spec) or block["eca"]  # specs of before stay as they were
