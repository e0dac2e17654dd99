"""Losses: labels for teachers, soft logits for students.

In-place distillation (Yu & Huang, "Universally Slimmable Networks", ICCV 2019; BigNAS): the
students of a step learn the distribution that the step's first subnet predicts.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def label_loss(
    logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross entropy; logits: (n, classes).

    targets: (n,) int64 labels, or (n, classes) shares, which mixup has smoothed already.
    """
    smoothing = label_smoothing if targets.ndim == 1 else 0.0
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Mean cross entropy of the student to the teacher's distribution; both (n, classes) logits.

    No gradient reaches the teacher. Times temperature², which keeps the gradient's size
    (Hinton et al., 2015).
    """
    shares = F.softmax(teacher.detach().float() / temperature, dim=-1)
    return F.cross_entropy(student.float() / temperature, shares) * temperature**2


def alpha_divergence(
    student: torch.Tensor, shares: torch.Tensor, ratio_limit: float = 5.0
) -> torch.Tensor:
    """Mean of the larger of the student's α-divergences from ``shares``, for α = −1 and α = 1.

    D_α(p ‖ q) = (Σ p^α q^(1−α) − 1) / (α (α − 1)), which is Σ p log(p/q) for α → 1 and
    ½ (Σ q²/p − 1) for α = −1: one punishes what the student leaves out, the other what it makes up
    (Wang et al., "AlphaNet", ICML 2021). In the gradient, −1/α Σ q (p/q)^α ∇log q, the ratios
    (p/q)^α are cut at ``ratio_limit``.

    student: (n, classes) logits; shares: (n, classes) probabilities p, without gradient.
    """
    log_q = F.log_softmax(student.float(), dim=-1)
    q, p = log_q.detach().exp(), shares.detach().float().clamp_min(1e-6)
    forward = (p * (p.log() - log_q.detach())).sum(-1)
    backward = ((q * q / p).sum(-1) - 1) / 2
    include = -(q * (p / q).clamp(max=ratio_limit) * log_q).sum(-1)
    exclude = (q * (q / p).clamp(max=ratio_limit) * log_q).sum(-1)
    value = torch.maximum(forward, backward)
    slope = torch.where(forward >= backward, include, exclude)
    return (value + slope - slope.detach()).mean()
