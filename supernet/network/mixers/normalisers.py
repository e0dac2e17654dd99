"""Attention by other weights than softmax's, which cost less where computing is secret.

    softmax       exp(sᵢ) / Σ exp(sⱼ)
    relu_softmax  relu(sᵢ) / (Σ relu(sⱼ) + ε)
    2quad         (sᵢ + 5)² / Σ (sⱼ + 5)²
    scaling       sᵢ / n

of the scores s = q·k / √d of a query to n keys. Source: Zeng et al., MPCViT, 2023; ``2quad`` is of
Li et al., MPCFormer, 2023. Where nothing comes between scores and values, in ``scaling`` without
biases, keys and values are multiplied first if that is less work.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5  # of the published code
SHIFT = 5.0


_UNSEEN = {"relu_softmax": 0.0, "2quad": -SHIFT, "scaling": 0.0}  # scores that weigh nothing


def attend(q: Tensor, k: Tensor, v: Tensor, normaliser: str, bias: Tensor | None = None) -> Tensor:
    """Attends with weights of a normaliser.

    Args:
        q: Queries (..., queries, channels).
        k: Keys (..., keys, channels).
        v: Values (..., keys, value channels).
        normaliser: One of ``search_space.mixers.NORMALISERS``.
        bias: Added to the scores (..., queries, keys), −inf where a query does not see a key.

    Returns:
        Outputs (..., queries, value channels).
    """
    if normaliser == "softmax":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    queries, keys, dim, out = (int(n) for n in (*q.shape[-2:-1], *k.shape[-2:], v.shape[-1]))
    q = q * (1 / math.sqrt(dim))
    if normaliser == "scaling" and bias is None:
        q = q * (1 / keys)
        if (queries + keys) * dim * out < queries * keys * (dim + out):
            return q @ (k.transpose(-2, -1) @ v)
        return (q @ k.transpose(-2, -1)) @ v
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = torch.where(bias == -math.inf, _UNSEEN[normaliser], scores + bias)
    if normaliser == "scaling":
        return (scores * (1 / keys)) @ v
    if normaliser == "relu_softmax":
        weights = F.relu(scores)
        return (weights / (weights.sum(-1, keepdim=True) + EPS)) @ v
    assert normaliser == "2quad"
    weights = (scores + SHIFT).square()
    return (weights / weights.sum(-1, keepdim=True)) @ v
