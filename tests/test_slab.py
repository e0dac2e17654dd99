"""SLAB's linear attention and its norm, by their formulas."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from operator_cases import assert_close
from timm_pairs import randomised
from torch import Tensor, nn

from search_space import (
    Architecture,
    Block,
    Macro,
    Mixer,
    SearchSpace,
    Stage,
    StageSpace,
    metaformer,
)
from supernet import Supernet, build
from supernet.inherit.fold import _renormalise
from supernet.network.layers import fold_batch_norms
from supernet.network.mixers import LinearAttention
from supernet.network.norms import RepBatchNorm, has_batch_norms


def by_definition(mixer: LinearAttention, x: Tensor) -> Tensor:
    """Window by window, head by head and query by query; padding are positions of zeros."""
    height, width, _ = x.shape
    side_h, side_w = min(mixer.window, height), min(mixer.window, width)
    padded = F.pad(x, (0, 0, 0, -width % side_w, 0, -height % side_h))
    result = torch.zeros_like(padded)
    grid = mixer.positions.view(mixer.window, mixer.window, -1)
    for top in range(0, padded.shape[0], side_h):
        for left in range(0, padded.shape[1], side_w):
            part = padded[top : top + side_h, left : left + side_w]
            q, k, v = (part @ mixer.qkv.weight.T + mixer.qkv.bias).chunk(3, -1)
            q, k = q.relu(), (k + grid[:side_h, :side_w]).relu()
            heads = []
            for head in range(mixer.heads):
                own = slice(head * mixer.head_dim, (head + 1) * mixer.head_dim)
                queries, keys, values = (maps[..., own].flatten(0, 1) for maps in (q, k, v))
                out = torch.stack(
                    [
                        sum((query @ key) * value for key, value in zip(keys, values, strict=True))
                        / (sum(query @ key for key in keys) + 1e-6)
                        for query in queries
                    ]
                )
                near = mixer.near(v[..., own].permute(2, 0, 1)[None])[0].permute(1, 2, 0)
                heads.append(out.view(near.shape) + near)
            out = torch.cat(heads, -1) @ mixer.proj.weight.T + mixer.proj.bias
            result[top : top + side_h, left : left + side_w] = out
    return result[:height, :width]


@pytest.mark.parametrize("window", [2, 3, 8])
@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
@torch.no_grad()
def test_linear_attention_by_definition(window: int, size: tuple[int, int]) -> None:
    """Sums over keys first, or over queries in windows of fewer positions than channels."""
    mixer = randomised(LinearAttention(16, window, head_dim=8, kernel=3), 0).double()
    x = torch.randn(*size, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(x[None])[0], by_definition(mixer, x))


@torch.no_grad()
def test_linear_attention_in_half_precision_stays_finite() -> None:
    """Where all scores are 0, and where sums over all keys would be too large."""
    mixer = LinearAttention(16, 64, head_dim=8).half()
    x = torch.randn(1, 64, 64, 16).half()
    mixer.qkv.weight.zero_()
    assert mixer(x).isfinite().all()
    mixer.qkv.bias.fill_(8.0)
    assert mixer(x).isfinite().all()


def norm(dim: int = 6) -> RepBatchNorm:
    made = randomised(RepBatchNorm(dim, 1e-5), 0)
    nn.init.constant_(made.alpha, -0.3)
    return made


@torch.no_grad()
def test_the_norm_is_batch_norm_and_a_multiple_of_the_input() -> None:
    made, x = norm(), torch.randn(4, 5, 3, 6)
    mean, var = made.running_mean, made.running_var
    normed = (x - mean) / (var + 1e-5).sqrt() * made.weight + made.bias
    torch.testing.assert_close(made(x), normed - 0.3 * x)
    scale, shift = made.affine()
    torch.testing.assert_close(made(x).double(), x * scale + shift, atol=1e-5, rtol=1e-5)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), unbiased=False)
    normed = (x - mean) / (var + 1e-5).sqrt() * made.weight + made.bias
    torch.testing.assert_close(made.train()(x), normed - 0.3 * x, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_other_averages_leave_what_it_computes() -> None:
    made, x = norm().double(), torch.randn(4, 5, 3, 6, dtype=torch.float64)
    before, missing = copy.deepcopy(made), torch.randn(6, dtype=torch.float64)
    _renormalise(made, torch.randn(6).double(), torch.rand(6).double(), missing)
    torch.testing.assert_close(made(x), before(x + missing), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_network_with_it_folds_but_for_what_mixers_begin_with() -> None:
    macro = Macro(
        stem="conv_act",
        stem_kernel=3,
        stem_stride=2,
        downsample="conv_norm",
        norm="rep_batch_norm",
        conv_norm="rep_batch_norm",
        head_norm="before_pool",
    )
    attention = metaformer(Mixer.of("linear_attention", window=4, head_dim=8), 2)
    blocks = (attention, Block.of("inverted_residual"))
    network = build(Architecture(macro, 32, (Stage(16, blocks), Stage(24, blocks))), 5)
    network = randomised(network, 0)
    images = torch.randn(2, 3, 32, 32)
    before = network(images)
    folded = fold_batch_norms(network)
    left = {name for name, part in folded.named_modules() if isinstance(part, RepBatchNorm)}
    assert left == {f"stages.{i}.blocks.0.norm1" for i in (0, 1)}
    assert has_batch_norms(folded)
    assert_close(folded(images), before)


@torch.no_grad()
def test_subnets_with_the_norm_are_extracted_networks_bit_for_bit() -> None:
    mixers = Mixer.of("linear_attention", window=4, head_dim=4), Mixer.of("pooling")
    stage = StageSpace((8, 16), (1, 2), tuple(metaformer(mixer, 1.0) for mixer in mixers))
    macro = Macro(stem_kernel=2, stem_stride=2, norm="rep_batch_norm")
    space = SearchSpace("x", macro, (16,), (stage, stage))
    torch.manual_seed(0)
    supernet, images = Supernet(space, 3), torch.randn(2, 3, 16, 16)
    for architecture in space.decode(space.sample(np.random.default_rng(0), 6)):
        network = supernet.extract(architecture)
        assert torch.equal(supernet(images, architecture), network(images))
