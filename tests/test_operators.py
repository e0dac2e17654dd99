"""Published operators: weight for weight as timm's, or by a direct evaluation of their formulas."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from mixer_sizes import narrow
from operator_cases import assert_close, with_weights_of
from timm.models.byobnet import RepVggBlock
from timm.models.efficientvit_msra import LocalWindowAttention
from timm.models.inception_next import InceptionDWConv2d
from timm.models.pvt_v2 import Attention as ReducedAttention
from timm.models.shvit import SHSA
from timm.models.volo import OutlookAttention as VoloAttention
from timm_pairs import randomised
from torch import Tensor, nn

from search_space import (
    MIXERS,
    Architecture,
    Macro,
    Mixer,
    SearchSpace,
    Stage,
    StageSpace,
    metaformer,
)
from search_space.components import block_spec
from search_space.mixers import NORMALISERS
from supernet import Supernet
from supernet.network.mixers import (
    AdditiveAttention,
    CascadedGroupAttention,
    ConvolutionalAttention,
    EfficientModulation,
    InceptionDepthwise,
    LargeKernelAttention,
    LocalAggregation,
    OutlookAttention,
    ReparamDepthwise,
    ScaleAwareModulation,
    SingleHeadAttention,
    SpatialReductionAttention,
    StripeAttention,
    build_mixer,
)
from supernet.network.mixers.normalisers import attend
from supernet.network.modules import build_module
from supernet.network.norms import BatchNorm

SIZES = [(8, 8), (7, 5)]
sizes = pytest.mark.parametrize("size", SIZES)


@sizes
@torch.no_grad()
def test_inception_depthwise_is_timms(size: tuple[int, int]) -> None:
    theirs = randomised(InceptionDWConv2d(40), 0)
    names = {"dwconv_hw": "square", "dwconv_w": "row", "dwconv_h": "column"}
    mixer = with_weights_of(InceptionDepthwise(40), theirs, names)
    x = torch.randn(2, 40, *size)
    assert_close(mixer(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))


@sizes
@torch.no_grad()
def test_single_head_attention_is_timms(size: tuple[int, int]) -> None:
    """``shvit_s1``'s second stage: 48 of 224 channels; the published parts are round(0.214 C)."""
    theirs = randomised(SHSA(224, 16, 48), 0)
    names = {"pre_norm": "norm", "qkv.c": "qkv.conv", "qkv.bn": "qkv.norm"}
    names |= {"proj.1.c": "proj.conv", "proj.1.bn": "proj.norm"}
    mixer = with_weights_of(SingleHeadAttention(224), theirs, names)
    x = torch.randn(2, 224, *size)
    assert_close(mixer(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))
    published = {320: 68, 308: 66, 448: 96, 352: 75, 336: 72}
    assert {dim: SingleHeadAttention(dim).part for dim in published} == published


@pytest.mark.parametrize("reduction", [1, 2, 4])
@sizes
@torch.no_grad()
def test_spatial_reduction_attention_is_timms(size: tuple[int, int], reduction: int) -> None:
    theirs = randomised(ReducedAttention(32, num_heads=4, sr_ratio=reduction), 0)
    names = {"q": "query", "kv": "key_value", "proj": "proj", "sr": "reduce", "norm": "norm"}
    names = {f"{key}.": f"{value}." for key, value in names.items()}
    mixer = SpatialReductionAttention(32, reduction, head_dim=8)
    mixer = with_weights_of(mixer, theirs, names)
    x = torch.randn(2, *size, 32)
    assert_close(mixer(x).flatten(1, 2), theirs(x.flatten(1, 2), list(size)))


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (9, 9)])
@torch.no_grad()
def test_cascaded_group_attention_is_timms(size: tuple[int, int]) -> None:
    """One window, whole windows, padded windows, by ``efficientvit_m0``'s first stage."""
    theirs = LocalWindowAttention(64, 16, 4, attn_ratio=1, resolution=size[0], window_resolution=7)
    theirs = randomised(theirs, 0)
    theirs.attn.attention_bias_cache.clear()
    names = {"proj.1.conv": "proj.conv", "proj.1.bn": "proj.norm"}
    names |= {"attention_biases": "position_bias"}
    for index in range(4):
        for ours, their in (("qkv", "qkvs"), ("near", "dws")):
            names[f"{their}.{index}.conv"] = f"heads.{index}.{ours}.conv"
            names[f"{their}.{index}.bn"] = f"heads.{index}.{ours}.norm"
    mixer = with_weights_of(CascadedGroupAttention(64), theirs.attn, names)
    x = torch.randn(2, 64, *size)
    assert_close(mixer(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))


@sizes
@torch.no_grad()
def test_reparam_depthwise_is_timms_repvgg(size: tuple[int, int]) -> None:
    theirs = randomised(RepVggBlock(16, 16, 5, group_size=1), 0)
    theirs.act = nn.Identity()
    names = {"identity": "branches.input.norm"}
    for their, ours in (("conv_kxk", "branches.main"), ("conv_1x1", "branches.point")):
        names |= {f"{their}.conv": f"{ours}.conv", f"{their}.bn": f"{ours}.norm"}
    mixer = with_weights_of(ReparamDepthwise(16, 5, "point"), theirs, names)
    x = torch.randn(2, 16, *size)
    assert_close(mixer(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (5, 2)])
@sizes
@torch.no_grad()
def test_outlook_attention_is_timms(size: tuple[int, int], kernel: int, stride: int) -> None:
    theirs = VoloAttention(32, 4, kernel, padding=kernel // 2, stride=stride)
    names = {"v.": "value.", "attn.": "weights.", "proj.": "proj."}
    mixer = OutlookAttention(32, kernel, stride, head_dim=8)
    mixer = with_weights_of(mixer, randomised(theirs, 0), names)
    x = torch.randn(2, *size, 32)
    assert_close(mixer(x), theirs(x))


# Direct evaluations: a convolution is a sum of shifted maps -----------------------------------


def convolved(x: Tensor, layer: nn.Conv2d, dilation: int = 1) -> Tensor:
    """A depthwise convolution of (batch, height, width, dim), tap by tap."""
    height, width = x.shape[1:3]
    side = layer.weight.shape[-1]
    margin = dilation * (side // 2)
    padded = F.pad(x, (0, 0, margin, margin, margin, margin))
    result = torch.zeros_like(x)
    for i, j in itertools.product(range(side), repeat=2):
        y, c = i * dilation, j * dilation
        result += padded[:, y : y + height, c : c + width] * layer.weight[:, 0, i, j]
    return result if layer.bias is None else result + layer.bias


def branched(mixer: ReparamDepthwise, x: Tensor) -> Tensor:
    result = torch.zeros_like(x)
    for name, branch in mixer.branches.items():
        dilation = 1 if name == "main" else int(name.removeprefix("dilated_"))
        result = result + normed(convolved(x, branch.conv, dilation), branch.norm)
    return result


def scale_aware(mixer: ScaleAwareModulation, x: Tensor) -> Tensor:
    """Head by head and group by group; the published order of channels before they are mixed."""
    dim, group = x.shape[-1], x.shape[-1] // 2
    scales = x @ mixer.scales.weight.T + mixer.scales.bias
    heads = [convolved(scales[..., :group], mixer.filters[0])]
    heads.append(convolved(scales[..., group:], mixer.filters[1]))
    inner = torch.zeros(*x.shape[:3], 3 * dim, dtype=x.dtype)
    for unit in range(3 * dim):  # of group unit // 6
        for head in range(2):
            inner[..., unit] += heads[head][..., unit // 6] * mixer.mix.weight[unit, head, 0, 0]
    inner = F.gelu(normed(inner, mixer.norm))
    modulator = inner @ mixer.modulator.weight[:, :, 0, 0].T + mixer.modulator.bias
    value = x @ mixer.value.weight.T + mixer.value.bias
    return (modulator * value) @ mixer.proj.weight.T + mixer.proj.bias


def aggregated(mixer: LocalAggregation, x: Tensor) -> Tensor:
    value = x @ mixer.value.weight.T + mixer.value.bias
    return convolved(value, mixer.around) @ mixer.proj.weight.T + mixer.proj.bias


def convolutional(mixer: ConvolutionalAttention, x: Tensor) -> Tensor:
    """Two heads of four channels; a stride leaves every second position of a convolution."""
    rows = []
    for part, stride in ((mixer.query, 1), (mixer.key, 2), (mixer.value, 2)):
        seen = normed(convolved(x, part.around.conv), part.around.norm)[:, ::stride, ::stride]
        rows.append((seen @ part.linear.weight.T + part.linear.bias).flatten(1, 2))
    heads = []
    for start in (0, 4):
        q, k, v = (row[..., start : start + 4] for row in rows)
        heads.append(((q @ k.mT) / 8**0.5).softmax(-1) @ v)
    out = torch.cat(heads, -1).reshape(x.shape)
    return out @ mixer.proj.weight.T + mixer.proj.bias


def striped(mixer: StripeAttention, x: Tensor) -> Tensor:
    """Position by position: one half of the heads sees its column's stripe, one its row's."""
    height, width, dim = x.shape[1:]
    head_dim, stripe, half = mixer.head_dim, mixer.stripe, dim // 2
    rows = x @ mixer.qkv.weight.T + mixer.qkv.bias
    margin = max(height, width) + stripe  # zeros all around, of which some are padding
    q, k, v = (F.pad(part, (0, 0, *[margin] * 4)) for part in rows.split(dim, -1))
    out = torch.zeros_like(x)
    for y, c in itertools.product(range(height), range(width)):
        for part in range(2):
            if part == 0:
                side = min(stripe, width)
                ys, xs = range(height), range(c // side * side, (c // side + 1) * side)
            else:
                side = min(stripe, height)
                ys, xs = range(y // side * side, (y // side + 1) * side), range(width)
            seen = [(j, i) for j in ys for i in xs]
            for start in range(part * half, (part + 1) * half, head_dim):
                mine = slice(start, start + head_dim)
                keys = torch.stack([k[:, margin + j, margin + i, mine] for j, i in seen], 1)
                values = torch.stack([v[:, margin + j, margin + i, mine] for j, i in seen], 1)
                query = q[:, margin + y, margin + c, mine, None] / head_dim**0.5
                out[:, y, c, mine] += ((keys @ query).softmax(1) * values).sum(1)
            mine = slice(part * half, (part + 1) * half)
            for dy, dx in itertools.product(range(-1, 2), repeat=2):
                if (y + dy, c + dx) in seen:
                    near = v[:, margin + y + dy, margin + c + dx, mine]
                    weight = mixer.positions[part].weight[:, 0, dy + 1, dx + 1]
                    out[:, y, c, mine] += near * weight
    out += torch.cat([layer.bias for layer in mixer.positions])
    return out @ mixer.proj.weight.T + mixer.proj.bias


def normed(x: Tensor, norm: BatchNorm) -> Tensor:
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return (x - norm.running_mean) * scale + norm.bias


def large_kernel(mixer: LargeKernelAttention, x: Tensor) -> Tensor:
    inner = F.gelu(x @ mixer.proj_in.weight.T + mixer.proj_in.bias)
    seen = convolved(convolved(inner, mixer.near), mixer.far, dilation=3)
    gate = seen @ mixer.gate.weight.T + mixer.gate.bias
    return x + (inner * gate) @ mixer.proj_out.weight.T + mixer.proj_out.bias


def additive(mixer: AdditiveAttention, x: Tensor) -> Tensor:
    dim = x.shape[-1]
    q, k, v = (x @ mixer.qkv.weight[i * dim : (i + 1) * dim].T for i in range(3))

    def weighted(maps: Tensor, phi: nn.Module) -> Tensor:
        around = normed(convolved(maps, phi.around.conv), phi.around.norm).relu()
        maps = maps * (around @ phi.position.weight[0, :, 0, 0]).sigmoid()[..., None]
        means = maps.sum((1, 2)) / (maps.shape[1] * maps.shape[2])
        return maps * (means @ phi.channel.weight[:, :, 0, 0].T).sigmoid()[:, None, None]

    together = convolved(weighted(q, mixer.query) + weighted(k, mixer.key), mixer.context)
    return convolved(together * v, mixer.proj)


def modulation(mixer: EfficientModulation, x: Tensor) -> Tensor:
    context = x @ mixer.context_in.weight.T + mixer.context_in.bias
    context = F.gelu(convolved(context, mixer.filter))
    context = context @ mixer.context_out.weight.T + mixer.context_out.bias
    hidden = F.gelu(x @ mixer.proj_in.weight.T + mixer.proj_in.bias)
    for channel in range(hidden.shape[-1]):
        hidden[..., channel] *= context[..., channel % x.shape[-1]]
    return hidden @ mixer.proj_out.weight.T + mixer.proj_out.bias


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda s: s.exp() / s.exp().sum(),
    "relu_softmax": lambda s: s.clamp(min=0) / (s.clamp(min=0).sum() + 1e-5),
    "2quad": lambda s: (s + 5) ** 2 / ((s + 5) ** 2).sum(),
    "scaling": lambda s: s / len(s),
}


@pytest.mark.parametrize("normaliser", NORMALISERS)
@pytest.mark.parametrize("keys", [3, 40])  # fewer and more than channels: both orders of products
@torch.no_grad()
def test_normalisers_by_definition(normaliser: str, keys: int) -> None:
    q, k, v = (torch.randn(2, 5 * keys, 8, dtype=torch.float64) for _ in range(3))
    k, v = k[:, :keys], v[:, :keys]
    actual = attend(q, k, v, normaliser)
    for image, query in itertools.product(range(2), range(0, 5 * keys, 7)):
        scores = torch.stack([q[image, query] @ key / 8**0.5 for key in k[image]])
        expected = WEIGHTS[normaliser](scores) @ v[image]
        torch.testing.assert_close(actual[image, query], expected)


@pytest.mark.parametrize("name", [name for name in MIXERS if "normaliser" in MIXERS[name].params])
@torch.no_grad()
def test_normalisers_share_all_weights_and_keep_digests(name: str) -> None:
    """The same weights with each normaliser; softmax is the one that files do not name."""
    mixers = [narrow(name, normaliser=normaliser) for normaliser in NORMALISERS]
    assert narrow(name) == mixers[0]
    assert "normaliser" not in mixers[0].traits
    stage = StageSpace((8,), (1,), tuple(metaformer(mixer, 1.0) for mixer in mixers))
    space = SearchSpace("x", Macro(stem_kernel=2, stem_stride=2), (8,), (stage,))
    torch.manual_seed(0)
    supernet, images = Supernet(space, 3).eval(), torch.randn(2, 3, 8, 8)
    outputs = []
    for block in stage.blocks:
        architecture = Architecture(space.macro, 8, (Stage(8, (block,)),))
        network = supernet.extract(architecture)
        outputs.append(supernet(images, architecture))
        assert torch.equal(outputs[-1], network(images))
        assert {n.shape for n in network.parameters()} == {n.shape for n in supernet.parameters()}
    assert all(not torch.equal(*pair) for pair in itertools.combinations(outputs, 2))


@pytest.mark.parametrize(
    ("mixer", "formula"),
    [
        (LargeKernelAttention(6), large_kernel),
        (AdditiveAttention(6), additive),
        (EfficientModulation(6, expansion=3, kernel=5), modulation),
        (ScaleAwareModulation(6, heads=2, expansion=3), scale_aware),
        (LocalAggregation(6), aggregated),
        (ReparamDepthwise(6, 13), branched),
        (ReparamDepthwise(6, 17), branched),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@sizes
@torch.no_grad()
def test_by_definition(
    mixer: nn.Module, formula: Callable[[nn.Module, Tensor], Tensor], size: tuple[int, int]
) -> None:
    mixer = randomised(mixer, 0).double()
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), formula(mixer, x))


@pytest.mark.parametrize(
    ("mixer", "formula"),
    [
        (ConvolutionalAttention(8, head_dim=4), convolutional),
        (StripeAttention(8, stripe=3, head_dim=2), striped),
        (StripeAttention(8, stripe=9, head_dim=4), striped),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@sizes
@torch.no_grad()
def test_attention_by_definition(
    mixer: nn.Module, formula: Callable[[nn.Module, Tensor], Tensor], size: tuple[int, int]
) -> None:
    mixer = randomised(mixer, 0).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), formula(mixer, x))


@sizes
@torch.no_grad()
def test_uniformers_block_by_definition(size: tuple[int, int]) -> None:
    """Positions, local aggregation and MLP, each added to what it reads; batch norms before."""
    block = metaformer(Mixer.of("local_aggregation"), 2.0, position=True)
    spec = block_spec(Macro(norm="batch_norm"), 6, block, 0)
    assert spec is not None
    module = randomised(build_module(spec), 0).double()
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    first = x + convolved(x, module.position)
    second = first + aggregated(module.mixer, normed(first, module.norm1))
    hidden = normed(second, module.norm2) @ module.mlp.fc1.weight.T + module.mlp.fc1.bias
    expected = second + F.gelu(hidden) @ module.mlp.fc2.weight.T + module.mlp.fc2.bias
    torch.testing.assert_close(module(x), expected)
    assert "position" not in str(block_spec(Macro(), 6, metaformer(block.mixer), 0))


# Numbers of parameters, as published for 64 channels -----------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("inception_depthwise", {}, 8 * (9 + 11 + 11 + 3)),
        # of UniRepLKNet's largest, two numbers of each norm
        ("reparam_depthwise", {"kernel": 13}, 64 * (169 + 25 + 49 + 27 + 6 * 2)),
        ("reparam_depthwise", {"kernel": 3, "branches": "point"}, 64 * (9 + 1 + 3 * 2)),
        ("large_kernel_attention", {}, 3 * (64**2 + 64) + 26 * 64 + 50 * 64),
        ("single_head_attention", {}, 2 * 14 + 14 * (32 + 14) + 2 * (32 + 14) + 64**2 + 2 * 64),
        ("spatial_reduction_attention", {"reduction": 2}, (4 + 4) * 64**2 + (4 + 1 + 2) * 64),
        # published 13 C in each Φ: with a bias before the norm
        ("additive_attention", {}, 3 * 64**2 + 2 * (12 * 64 + 64**2) + 20 * 64),
        (  # four heads of 16 channels, keys of 16
            "cascaded_group_attention",
            {},
            4 * (48 * 16 + 2 * 48 + 25 * 16 + 2 * 16) + 4 * 49 + 64**2 + 2 * 64,
        ),
        ("block_attention", {}, 4 * 64**2 + 4 * 64 + 2 * 13**2),
        ("linear_attention", {"window": 7}, 4 * 64**2 + 4 * 64 + 49 * 64 + 32 * 26),
        ("grid_attention", {}, 4 * 64**2 + 4 * 64 + 2 * 13**2),
        ("cosine_window_attention", {}, 4 * 64**2 + 3 * 64 + 2 + (2 + 1 + 2) * 512),
        (  # published 2 C more: a bias before the norm
            "scale_aware_modulation",
            {},
            3 * (64**2 + 64) + 16 * (9 + 25 + 49 + 81 + 4) + 4 * 2 * 64 + 4 * 64 + 2 * 64**2 + 64,
        ),
        ("local_aggregation", {}, 2 * (64**2 + 64) + 26 * 64),
        ("convolutional_attention", {}, 3 * (9 + 2) * 64 + 4 * 64**2 + 4 * 64),
        ("stripe_attention", {}, 4 * 64**2 + 4 * 64 + 10 * 64),
        ("outlook_attention", {}, 64**2 + 64 * 81 * 2 + 81 * 2 + 64**2 + 64),
        ("efficient_modulation", {"expansion": 4}, 10 * 64**2 + (4 + 1 + 2 + 50) * 64),
    ],
)
def test_numbers_of_parameters(name: str, params: dict[str, int], expected: int) -> None:
    mixer = build_mixer(name, 64, **params)
    assert sum(parameter.numel() for parameter in mixer.parameters()) == expected
