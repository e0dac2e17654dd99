"""Losses: labels for teachers, soft logits for students.

In-place distillation (Yu & Huang, "Universally Slimmable Networks", ICCV 2019; BigNAS): the
students of a step learn the distribution that the step's largest subnet predicts.
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
