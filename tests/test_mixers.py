"""Every registered mixer: shape, layout, axes, independent evaluations of the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from search_space.errors import UnknownNameError
from search_space.mixers import MIXERS, NORMALISERS
from supernet.network.axes import STATISTICS, shape
from supernet.network.mixers import (
    DepthwiseConv,
    FocalModulation,
    GnConv,
    Pooling,
    WindowAttention,
    build_mixer,
    register_mixer,
)


def test_every_mixer_with_rules_has_a_module_and_the_reverse() -> None:
    assert register_mixer.names() == MIXERS.names()


def test_unknown_mixer_names_the_nearest_and_all() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean 'gnconv'\?.*window_attention"):
        build_mixer("gnconf", 16)


@pytest.mark.parametrize("name", MIXERS.names())
@pytest.mark.parametrize("size", [(5, 7), (8, 8), (1, 2)])
def test_shape_axes_and_gradients(name: str, size: tuple[int, int]) -> None:
    mixer = build_mixer(name, 32)
    x = torch.randn(2, *size, 32, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    declared = {key: shape(axes, mixer.sizes()) for key, axes in mixer.axes().items()}
    assert declared == {key: tuple(value.shape) for key, value in mixer.named_parameters()}
    assert all(key.endswith(STATISTICS) for key, _ in mixer.named_buffers())
    for parameter in mixer.parameters():
        assert parameter.grad is not None


@pytest.mark.parametrize("name", MIXERS.names())
def test_batch_entries_do_not_mix(name: str) -> None:
    mixer = build_mixer(name, 32).eval()
    x = torch.randn(3, 6, 6, 32)
    torch.testing.assert_close(mixer(x)[1:2], mixer(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("order", "dim"), [(1, 8), (2, 16), (3, 24), (5, 64)])
def test_gnconv_is_the_papers_recursion(order: int, dim: int) -> None:
    """Equations 3.2 to 3.5 of HorNet, evaluated channel by channel in NumPy float64."""
    mixer = GnConv(dim, order=order, kernel=3).double()
    x = torch.randn(4, 5, dim, dtype=torch.float64)
    w = {key: value.detach().numpy() for key, value in mixer.state_dict().items()}
    inputs = x.numpy() @ w["proj_in.weight"].T + w["proj_in.bias"]
    widths = [dim // 2 ** (order - k - 1) for k in range(order)]
    p, rest = inputs[..., : widths[0]], inputs[..., widths[0] :]
    padded = np.pad(rest, ((1, 1), (1, 1), (0, 0)))
    filtered = np.zeros_like(rest)
    for channel in range(rest.shape[-1]):
        for dy in range(3):
            for dx in range(3):
                tap = w["conv.weight"][channel, 0, dy, dx]
                filtered[..., channel] += tap * padded[dy : dy + 4, dx : dx + 5, channel]
    filtered += w["conv.bias"]
    start = 0
    for k in range(order):
        q = filtered[..., start : start + widths[k]]
        if k > 0:
            gate = order - 1 - k
            p = p @ w[f"gates.{gate}.weight"].T + w[f"gates.{gate}.bias"]
        p = p * q / 3
        start += widths[k]
    expected = p @ w["proj_out.weight"].T + w["proj_out.bias"]
    np.testing.assert_allclose(mixer(x[None])[0].detach().numpy(), expected, atol=1e-12)


WEIGHTS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "softmax": lambda s, area: s.softmax(0),
    "relu_softmax": lambda s, area: s.relu() / (s.relu().sum() + 1e-5),
    "2quad": lambda s, area: (s + 5) ** 2 / ((s + 5) ** 2).sum(),
    "scaling": lambda s, area: s / area,
}


def attention_by_definition(mixer: WindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Token by token: who may see whom follows from positions alone; padding are tokens of 0."""
    height, width, _ = x.shape
    sides = (min(mixer.window, height), min(mixer.window, width))
    shifts = [
        mixer.window // 2 if mixer.shifted and n > mixer.window else 0 for n in (height, width)
    ]
    padded = [-(-n // side) * side for n, side in zip((height, width), sides, strict=True)]
    tokens = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
    q, k, v = (
        (tokens @ w.T + b).view(*padded, mixer.heads, mixer.head_dim)
        for w, b in zip(mixer.qkv.weight.chunk(3), mixer.qkv.bias.chunk(3), strict=True)
    )
    table = mixer.relative_position_bias_table.view(2 * mixer.window - 1, -1, mixer.heads)

    def moved(position: int, axis: int) -> int:
        length = (height, width)[axis]
        return (position - shifts[axis]) % length if position < length else position

    def cell(position: int, axis: int) -> tuple[int, bool]:
        now = moved(position, axis)
        return now // sides[axis], now >= padded[axis] - shifts[axis]

    out = torch.zeros(height, width, mixer.heads, mixer.head_dim, dtype=x.dtype)
    for y in range(height):
        for c in range(width):
            mine = (cell(y, 0), cell(c, 1))
            seen = [
                (j, i)
                for j in range(padded[0])
                for i in range(padded[1])
                if (cell(j, 0), cell(i, 1)) == mine
            ]
            for head in range(mixer.heads):
                scores = torch.stack(
                    [
                        q[y, c, head] @ k[j, i, head] / math.sqrt(mixer.head_dim)
                        + table[
                            moved(y, 0) - moved(j, 0) + mixer.window - 1,
                            moved(c, 1) - moved(i, 1) + mixer.window - 1,
                            head,
                        ]
                        for j, i in seen
                    ]
                )
                weights = WEIGHTS[mixer.normaliser](scores, math.prod(sides))
                out[y, c, head] = sum(
                    weight * v[j, i, head] for weight, (j, i) in zip(weights, seen, strict=True)
                )
    return out.reshape(height, width, -1) @ mixer.proj.weight.T + mixer.proj.bias


@pytest.mark.parametrize(
    ("shifted", "ratio", "normaliser"),
    [
        (False, 1.0, "softmax"),
        (True, 1.0, "softmax"),
        (True, 0.5, "softmax"),
        *((True, 1.0, normaliser) for normaliser in NORMALISERS[1:]),
    ],
)
@pytest.mark.parametrize(
    ("size", "window"), [((8, 8), 4), ((7, 5), 3), ((6, 9), 4), ((3, 4), 7), ((5, 12), 5)]
)
def test_window_attention_by_definition(
    size: tuple[int, int], window: int, shifted: bool, ratio: float, normaliser: str
) -> None:
    """Divisible, padded, global and half-global windows, shifted and not, of two heads or one."""
    mixer = WindowAttention(8, window, 4, ratio, normaliser, shifted).double()
    with torch.no_grad():
        mixer.relative_position_bias_table.normal_()
        mixer.qkv.bias.normal_()  # all that is seen of padding
    x = torch.randn(*size, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x[None])[0], attention_by_definition(mixer, x))


def test_focal_modulation_by_definition() -> None:
    mixer = FocalModulation(6, levels=2, window=3, post_norm=True).double()
    x = torch.randn(1, 6, 7, 5, dtype=torch.float64).permute(0, 2, 3, 1).contiguous()
    rows = F.linear(x, mixer.proj_in.weight, mixer.proj_in.bias)
    query, z, gates = rows[..., :6], rows[..., 6:12], rows[..., 12:]
    modulator = torch.zeros_like(query)
    for level, kernel in enumerate((3, 5)):
        padded = F.pad(z.permute(0, 3, 1, 2), (kernel // 2,) * 4)
        patches = padded.unfold(2, kernel, 1).unfold(3, kernel, 1)
        weight = mixer.contexts[level].weight[:, 0]
        z = F.gelu(torch.einsum("bchwij,cij->bhwc", patches, weight))
        modulator = modulator + z * gates[..., level : level + 1]
    modulator = modulator + F.gelu(z.mean((1, 2), keepdim=True)) * gates[..., 2:]
    out = query * F.linear(modulator, mixer.modulator.weight, mixer.modulator.bias)
    expected = mixer.proj_out(F.layer_norm(out, (6,), mixer.norm.weight, mixer.norm.bias))
    torch.testing.assert_close(mixer(x), expected)


def test_pooling_and_depthwise_by_definition() -> None:
    x = torch.randn(1, 4, 5, 2, dtype=torch.float64)
    pooled = Pooling(2, kernel=3)(x)
    corner = x[0, :2, :2].mean((0, 1)) - x[0, 0, 0]
    torch.testing.assert_close(pooled[0, 0, 0], corner)
    inner = x[0, 1:4, 1:4].mean((0, 1)) - x[0, 2, 2]
    torch.testing.assert_close(pooled[0, 2, 2], inner)
    mixer = DepthwiseConv(2, kernel=3).double()
    expected = (x[0, :3, :3] * mixer.conv.weight[:, 0].permute(1, 2, 0)).sum((0, 1))
    torch.testing.assert_close(mixer(x)[0, 1, 1], expected + mixer.conv.bias)


def test_spec_defaults_are_the_modules_defaults() -> None:
    """An architecture that names no parameter gets what the bare constructor gives."""
    for name in MIXERS.names():
        defaults = {key: rule.default for key, rule in MIXERS[name].params.items()}
        assert build_mixer(name, 32).sizes() == build_mixer(name, 32, **defaults).sizes()
