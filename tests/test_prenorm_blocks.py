"""Blocks of MaxViT and MOAT: as timm's, weight for weight, or by a direct evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from operator_cases import assert_close, with_weights_of
from timm.models.maxxvit import MaxxVitBlock, MaxxVitConvCfg, MaxxVitTransformerCfg, MbConvBlock
from timm_pairs import randomised
from torch import Tensor, nn

from predictors.counts import count_entry
from predictors.measuring.runtimes.onnx_graph import to_onnx
from predictors.proxies.space_tables import component_path
from search_space import Block, Macro, Mixer, metaformer, space_from_dict
from search_space.components import block_spec, components
from supernet import Supernet
from supernet.network.axes import StaticModule
from supernet.network.layers import fold_batch_norms
from supernet.network.modules import build_module

MACRO = Macro(stem="conv_act", stem_kernel=3, stem_stride=2, downsample="block")
CONVOLUTIONS = {
    "pre_norm": "norm",
    "conv1_1x1": "expand.conv",
    "norm1": "expand.norm",
    "conv2_kxk": "depthwise.conv",
    "norm2": "depthwise.norm",
    "se.fc1": "excite.reduce",
    "se.fc2": "excite.expand",
    "conv3_1x1": "project.conv",
    "shortcut.expand": "shortcut.conv",
}
CHANGES = pytest.mark.parametrize(("dim", "stride"), [(16, 1), (16, 2), (8, 2)])


def built(block: Block, dim: int, stride: int, position: int = 0, macro: Macro = MACRO) -> Any:
    spec = block_spec(macro, 16, block, position, dim, stride)
    assert spec is not None
    return build_module(spec)


def prenorm(**params: Any) -> Block:
    return Block.of("prenorm_inverted_residual", **params)


@pytest.mark.parametrize("padding", ["half", "same"])
@CHANGES
@torch.no_grad()
def test_the_inverted_residual_is_timms(dim: int, stride: int, padding: str) -> None:
    config = MaxxVitConvCfg(padding="same" if padding == "same" else "")
    theirs = randomised(MbConvBlock(dim, 16, stride, cfg=config), 0)
    macro = Macro(stem="conv_act", stem_kernel=3, downsample="block", padding=padding)
    block = built(prenorm(squeeze=0.25), dim, stride, macro=macro)
    block = with_weights_of(block, theirs, CONVOLUTIONS)
    x = torch.randn(2, dim, 12, 6)
    assert_close(block(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))


@CHANGES
@torch.no_grad()
def test_a_block_of_maxvit_is_three_of_ours(dim: int, stride: int) -> None:
    attention = MaxxVitTransformerCfg(dim_head=8, window_size=(3, 3), head_first=False)
    theirs = randomised(MaxxVitBlock(dim, 16, stride, transformer_cfg=attention), 0)
    parts = {"attn.rel_pos.": "mixer.", "attn.": "mixer.", "norm": "norm", "mlp": "mlp"}
    ours = nn.Sequential(
        with_weights_of(built(prenorm(squeeze=0.25), dim, stride), theirs.conv, CONVOLUTIONS)
    )
    for position, name in enumerate(("block", "grid"), 1):
        mixer = Mixer.of(f"{name}_attention", window=3, head_dim=8)
        block = built(metaformer(mixer), 16, 1, position)
        ours.append(with_weights_of(block, theirs.get_submodule(f"attn_{name}"), parts))
    x = torch.randn(2, dim, 12, 6)
    assert_close(ours(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))


# MOAT: published in TensorFlow only -----------------------------------------------------------


def moat_by_definition(block: StaticModule, x: Tensor) -> Tensor:
    """Yang et al., MOAT, 2023, section 2.2, of attention without biases, head by head."""
    w = block.state_dict()

    def batch_norm(maps: Tensor, name: str) -> Tensor:
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return (maps - mean) / (var + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(maps: Tensor, name: str) -> Tensor:
        return maps @ w[f"{name}.weight"].flatten(1).T

    stride = 2 if block.stride == 2 else 1
    y = linear(batch_norm(x, "norm"), "expand.conv")
    y = F.gelu(batch_norm(y, "expand.norm")).permute(0, 3, 1, 2)
    y = F.conv2d(y, w["depthwise.conv.weight"], None, stride, 1, groups=y.shape[1])
    y = F.gelu(batch_norm(y.permute(0, 2, 3, 1), "depthwise.norm"))
    y = linear(y, "project.conv") + w["project.conv.bias"]
    if stride == 2:  # of maps with even sides
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    if "shortcut.conv.weight" in w:
        x = linear(x, "shortcut.conv") + w["shortcut.conv.bias"]
    x = x + y
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    z = (x - mean) / (var + 1e-6).sqrt() * w["mixer_norm.weight"] + w["mixer_norm.bias"]
    tokens = linear(z, "mixer.qkv").flatten(1, 2)
    heads = []
    for head in range(2):
        q, k, v = (tokens[..., 16 * i + 8 * head :][..., :8] for i in range(3))
        heads.append((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v)
    return x + linear(torch.cat(heads, -1), "mixer.proj").view(x.shape)


@pytest.mark.parametrize(("dim", "stride"), [(16, 1), (16, 2), (8, 1), (8, 2)])
@torch.no_grad()
def test_moat_by_definition(dim: int, stride: int) -> None:
    block = randomised(built(Block.of("moat", Mixer.of("attention", head_dim=8)), dim, stride), 0)
    block = block.double()
    x = torch.randn(2, 8, 6, dim, dtype=torch.float64)
    torch.testing.assert_close(block(x), moat_by_definition(block, x))


# Both -----------------------------------------------------------------------------------------


def space() -> Any:
    mixed = {"conv_expansion": [1, 2], "conv_kernel": [3, 5]}
    moats = [
        {"moat": {"mixer": name, **params, **mixed}}
        for name, params in (("attention", {"head_dim": [4, 8]}), ("gnconv", {"kernel": 3}))
    ]
    own = {"expansion": [1, 2], "kernel": [3, 5], "squeeze": [0, 0.25]}
    choices = [{"prenorm_inverted_residual": own}, *moats]
    stage = {"width": [8, 16], "depth": [1, 2], "choices": choices}
    macro = {"stem": "conv_act", "stem_kernel": 3, "stem_stride": 2, "downsample": "block"}
    return space_from_dict({"name": "x", "macro": macro, "resolution": 16, "stages": [stage] * 2})


@torch.no_grad()
def test_subnets_are_extracted_networks_bit_for_bit() -> None:
    torch.manual_seed(0)
    supernet, images = Supernet(space(), 3), torch.randn(2, 3, 16, 16)
    for architecture in space().decode(space().sample(np.random.default_rng(0), 8)):
        network = supernet.extract(architecture)  # in training: subnets normalise by their batch
        assert torch.equal(supernet(images, architecture), network(images))


@pytest.mark.parametrize(
    "block",
    [prenorm(squeeze=0.25), Block.of("moat", Mixer.of("grid_attention", window=3, head_dim=8))],
    ids=lambda block: block.kind,
)
@torch.no_grad()
def test_exports_compute_the_same(block: Block) -> None:
    module = fold_batch_norms(randomised(built(block, 8, 2), 0))
    x = torch.randn(1, 9, 9, 8)
    session = onnxruntime.InferenceSession(to_onnx(module, x).SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, module(x).numpy(), atol=1e-4)
    exported = torch.export.export(module, (x,)).module()
    assert_close(exported(x), module(x))


def test_sorts_of_moat_are_told_apart_by_their_mixers() -> None:
    stage = space().stages[1]
    labels = {block.label for block in stage.blocks}
    assert labels == {"prenorm_inverted_residual", "moat(attention)", "moat(gnconv)"}
    near = stage.neighbours[0]
    for choice, others in enumerate(near):
        assert {stage.blocks[other].label for other in others} == {stage.blocks[choice].label}
    (spec,) = [c.spec for c in components(space().smallest) if c.path == "stages.0.blocks.0"]
    assert spec.label == space().smallest.stages[0].blocks[0].label


def test_costs_and_paths_of_moat_are_those_of_its_parts() -> None:
    """Two linear maps of 8 × 8 positions, a depthwise convolution of 4 × 4, attention of those."""
    spec = block_spec(MACRO, 16, Block.of("moat", Mixer.of("attention", head_dim=8)), 0, 8, 2)
    assert spec is not None
    convolutions = 64 * 8 * 64 + 16 * 64 * 9 + 16 * 64 * 16 + 16 * 8 * 16
    attention = 16 * 16 * 64 + 2 * 16 * 16 * 16 + 5 * 16 * 16  # a layer norm counts five
    assert count_entry(spec, 8).macs == convolutions + attention
    alone = block_spec(MACRO, 16, prenorm(), 0, 8, 2)
    assert alone is not None
    assert component_path(spec).layers == component_path(alone).layers + 2  # queries, projection
