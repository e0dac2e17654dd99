"""Convolutional blocks against direct evaluations of their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network import blocks  # noqa: F401  they register themselves
from supernet.network.axes import problem_of
from supernet.network.registry import register_block

STYLE = {"norm": "batch_norm", "norm_eps": 1e-3, "padding": "half"}
INSIDE = {
    "inverted_residual": {"hidden": 24, "kernel": 5, "squeeze": 3, "gate": "sigmoid"},
    "depthwise_separable": {"kernel": 5, "squeeze": 3, "gate": "hard_sigmoid"},
    "fused_inverted_residual": {"hidden": 24, "kernel": 3},
    "basic": {"hidden": 12, "shortcut": "conv"},
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
    inner = F.relu(inner) if kind == "depthwise_separable" else F.silu(inner)
    outer = inner @ layer.expand.weight.flatten(1).T + layer.expand.bias
    hard = kind == "depthwise_separable"
    gate = (outer / 6 + 0.5).clamp(0, 1) if hard else 1 / (1 + torch.exp(-outer))
    return x * gate[:, :, None, None]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("out_dim", [8, 16])
@pytest.mark.parametrize("kind", INSIDE)
@torch.no_grad()
def test_a_block_is_its_formula(kind: str, out_dim: int, stride: int) -> None:
    torch.manual_seed(0)
    dim = 8
    block = register_block[kind](
        dim=dim, out_dim=out_dim, stride=stride, activation="silu", **INSIDE[kind], **STYLE
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
        x = conv(excited(x, get("excite"), kind), get("project"), 0)
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
    same = stride == 1 and dim == out_dim
    if kind in ("basic", "bottleneck"):
        shortcut = images if same else conv(images, get("shortcut"), 0, stride)
        x = F.silu(x + shortcut)
    elif same:
        x = x + images
    actual = block(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(actual, x, rtol=1e-4, atol=1e-4)
