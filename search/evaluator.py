"""Accuracy and loss of architectures with weights inherited from the supernet.

Networks here normalise with statistics of their own input only, so inherited weights are used
as they are. The split to evaluate on is the validation split, which is cut from the training data.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from search_space.architecture import Architecture

if TYPE_CHECKING:
    import torch

    from supernet.supernet import Supernet


class SupernetEvaluator:
    """``evaluator(architecture)`` → ``{"accuracy": top-1, 0..1, "loss": in nats}``.

    The same for every call.

    Args:
        supernet: trained; moved to ``device`` and otherwise left as it is.
        batches: validation batches, iterated once per call: (images (n, 3, side, side),
            labels (n,)). Images are resized to each architecture's resolution.
        device: where to evaluate.
        amp: ``auto`` for bfloat16 on CUDA, ``off`` for float32 everywhere.
    """

    def __init__(
        self,
        supernet: Supernet,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        device: str | torch.device = "cpu",
        *,
        amp: str = "auto",
    ) -> None:
        self.supernet = supernet.to(device)
        self.batches = batches
        self.device = device
        self.amp = amp

    def __call__(self, architecture: Architecture) -> dict[str, float]:
        from supernet.training import evaluate

        quality = evaluate(
            self.supernet,
            self.batches,
            architecture=architecture,
            device=self.device,
            amp=self.amp,
        )
        return quality._asdict()
