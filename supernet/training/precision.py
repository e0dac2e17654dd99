"""Half precision: which one a device computes in, and the loss scale that float16 needs.

bfloat16 has float32's range and needs no scale. GPUs older than Ampere (V100, T4) only emulate it,
slower than float32, and compute float16 in their matrix units: there the loss is multiplied, so
that small gradients do not become 0, and a step whose gradient overflows is left out (Micikevicius
et al., "Mixed Precision Training", ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from search_space.errors import RunError
from supernet.training.parallel import Group

_BFLOAT16_SINCE = (8, 0)  # compute capabilities
_FLOAT16_SINCE = (7, 0)


def half_precision(device: torch.device, amp: str) -> torch.dtype | None:
    """Returns the type of 16 bits that ``device`` computes in fastest; None for float32.

    Args:
        device: Any; only GPUs of CUDA and ROCm compute in 16 bits here.
        amp: ``auto``, or ``off`` for float32 everywhere.
    """
    if device.type != "cuda" or amp == "off":
        return None
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is not None or capability >= _BFLOAT16_SINCE:
        return torch.bfloat16
    return torch.float16 if capability >= _FLOAT16_SINCE else None


def autocast(device: torch.device, amp: str) -> AbstractContextManager[Any]:
    """Computes in ``half_precision`` where the device has one; changes nothing elsewhere."""
    dtype = half_precision(device, amp)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


class LossScale:
    """Scales the losses of a training in float16; leaves those of other precisions alone.

    Gradients of all subnets and parts of a step are summed, and averaged over workers, as they are
    scaled. Only then is the scale taken out, so all workers find the same overflow, leave the same
    step out and go on with the same scale.

    Args:
        device: Where the training computes.
        amp: ``TrainConfig.amp``.
        group: The workers of the training.

    Raises:
        RunError: Workers compute in different precisions.
    """

    def __init__(self, device: torch.device, amp: str, group: Group) -> None:
        dtype = half_precision(device, amp)
        found = group.gather(str(dtype or torch.float32).removeprefix("torch."))
        if len(set(found)) > 1:
            raise RunError(
                f"the workers' devices compute in {', '.join(found)} (by rank), and gradients of "
                "different precisions cannot be averaged; give GPUs of one generation, or set "
                "train.amp to 'off'"
            )
        self._scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of ``loss``, scaled, to what parameters have."""
        scaled: Any = self._scaler.scale(loss)
        scaled.backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divides the gradients of a whole step by the scale."""
        self._scaler.unscale_(optimizer)

    def update(self, *, overflow: bool) -> bool:
        """Halves the scale after an overflow, and doubles it after 2,000 steps without one.

        Args:
            overflow: Whether the norm of the gradients is not finite.

        Returns:
            Whether there was an overflow that a smaller scale may mend, so that the step is left
            out.
        """
        if not overflow or not self._scaler.is_enabled():
            self._scaler.update()
            return False
        before = self._scaler.get_scale()
        self._scaler.update()
        return self._scaler.get_scale() < before and before > 1

    def state_dict(self) -> dict[str, Any]:
        """Returns plain values; none where losses are not scaled."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` gave, where it gave something."""
        if state:
            self._scaler.load_state_dict(dict(state))
