"""Attention in windows, blocks and grids: whole blocks are timm's, weight for weight."""

from __future__ import annotations

import pytest
import torch
from operator_cases import assert_close, with_weights_of
from timm.models.maxxvit import MaxxVitTransformerCfg, PartitionAttentionCl
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm_pairs import randomised

from supernet.network.blocks import MetaFormer
from supernet.network.mixers import CosineWindowAttention

PARTED = {"attn.rel_pos.": "mixer.", "attn.": "mixer.", "norm": "norm", "mlp": "mlp"}


@pytest.mark.parametrize(
    ("name", "kind"), [("block_attention", "block"), ("grid_attention", "grid")]
)
@pytest.mark.parametrize("size", [(9, 9), (12, 6)])
@torch.no_grad()
def test_block_and_grid_attention_are_timms(size: tuple[int, int], name: str, kind: str) -> None:
    """A whole block of MaxViT's attention, with its MLP."""
    config = MaxxVitTransformerCfg(dim_head=8, window_size=(3, 3), head_first=False)
    theirs = randomised(PartitionAttentionCl(32, kind, config), 0)
    block = MetaFormer(32, name, (("head_dim", 8), ("window", 3)), 128, "layer_norm", 1e-6)
    block = with_weights_of(block, theirs, PARTED)
    x = torch.randn(2, *size, 32)
    assert_close(block(x), theirs(x))


@pytest.mark.parametrize(("window", "trained"), [(4, 0), (4, 8), (3, 2), (16, 0), (16, 4)])
@pytest.mark.parametrize("size", [(12, 8), (7, 10)])
@pytest.mark.parametrize("shifted", [False, True])
@torch.no_grad()
def test_cosine_window_attention_is_timms(
    size: tuple[int, int], window: int, trained: int, shifted: bool
) -> None:
    """A whole block of SwinV2, in windows of the side that it was trained in and of others."""
    shift, heads = (window // 2 if shifted else 0), 4
    sides = {"input_resolution": size, "window_size": window, "shift_size": shift}
    theirs = SwinTransformerV2Block(32, num_heads=heads, pretrained_window_size=trained, **sides)
    theirs = randomised(theirs, 0)
    params = {"head_dim": 8, "window": window, "trained": trained, "shifted": shifted}
    block = MetaFormer(
        32,
        "cosine_window_attention",
        tuple(params.items()),
        128,
        "layer_norm",
        1e-5,
        res_post_norm=True,
    )
    block = with_weights_of(block, theirs, PARTED)
    x = torch.randn(2, *size, 32)
    assert_close(block(x), theirs(x))


@torch.no_grad()
def test_keys_of_padding_have_no_direction_in_half_precision() -> None:
    mixer = CosineWindowAttention(16, window=4, head_dim=8).half()
    assert mixer(torch.randn(1, 6, 7, 16).half()).isfinite().all()
