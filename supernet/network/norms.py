"""Norms of maps (batch, height, width, dim), and what batch norms are in evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from supernet.network.axes import Axes, Axis


class GroupNorm(nn.Module):
    """Group norm with one group, over height, width and channels (PoolFormer's norm)."""

    def __init__(self, dim: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        maps = x.permute(0, 3, 1, 2)
        return F.group_norm(maps, 1, self.weight, self.bias, self.eps).permute(0, 2, 3, 1)


class BatchNorm(nn.Module):
    """Batch norm over all positions of a batch.

    In training it normalises by its batch, and keeps a moving average of mean and variance, by
    which it normalises otherwise. A module without the averages, as those are that a supernet
    calls on shared weights, always normalises by its batch.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(self, dim: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.seen: int | None = None  # positions that the averages are of, while they are pooled

    def pool(self, on: bool) -> None:
        """Begins or ends pooling.

        In training the averages then are mean and variance of all positions since it began,
        instead of moving averages.
        """
        self.seen = 0 if on else None
        if on and self.running_mean is not None:
            self.running_mean.zero_()  # else what was there before would be in the rounding

    def forward(self, x: Tensor) -> Tensor:
        return self.of_maps(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def of_maps(self, maps: Tensor) -> Tensor:
        """Normalises maps (batch, dim, height, width)."""
        if self.training and self.seen is not None:
            return self._pooled(maps)
        mean, var = self.running_mean, self.running_var
        by_batch = self.training or mean is None
        return F.batch_norm(maps, mean, var, self.weight, self.bias, by_batch, 0.1, self.eps)

    def _pooled(self, maps: Tensor) -> Tensor:
        """Normalises maps by their batch, and adds its statistics (Chan et al., 1979)."""
        assert self.seen is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, var = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
        # below ``F.batch_norm``, which refuses a batch of one position
        cudnn = torch.backends.cudnn.enabled
        result = torch.batch_norm(
            maps, self.weight, self.bias, mean, var, True, 1.0, self.eps, cudnn
        )
        before, count = self.seen, maps.numel() // maps.shape[1]
        self.seen = before + count
        gap = mean - self.running_mean
        self.running_mean += gap * (count / self.seen)
        squares = gap**2 * (before * count / self.seen)
        if count > 1:
            squares += var * (count - 1)
        if before > 1:
            squares += self.running_var * (before - 1)
        self.running_var.copy_(squares / max(1, self.seen - 1))
        return result

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns scale and shift (dim,), float64, by which it changes channels in evaluation."""
        assert self.running_mean is not None
        assert self.running_var is not None
        scale = self.weight.double() / torch.sqrt(self.running_var.double() + self.eps)
        shift = -self.running_mean.double() * scale
        return scale, shift if self.bias is None else shift + self.bias.double()

    @torch.no_grad()
    def set_affine(self, scale: Tensor, shift: Tensor) -> None:
        """Sets weight and bias, which it has, by what ``affine`` then returns."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.bias is not None
        self.weight.copy_(scale * torch.sqrt(self.running_var.double() + self.eps))
        self.bias.copy_(shift + scale * self.running_mean.double())


class RepBatchNorm(BatchNorm):
    """Batch norm beside ``alpha`` times the input (Guo et al., SLAB, 2024, equation 5).

    In evaluation both are one affine map. Published networks begin with layer norm and go over to
    this one within the training; here it is there from the start.
    """

    def __init__(self, dim: int, eps: float, bias: bool = True) -> None:
        super().__init__(dim, eps, bias)
        self.alpha = nn.Parameter(torch.ones(1))

    def of_maps(self, maps: Tensor) -> Tensor:
        return super().of_maps(maps) + self.alpha * maps

    def affine(self) -> tuple[Tensor, Tensor]:
        scale, shift = super().affine()
        return scale + self.alpha.double(), shift

    def set_affine(self, scale: Tensor, shift: Tensor) -> None:
        super().set_affine(scale - self.alpha.double(), shift)


@contextmanager
def pooled(norms: Iterable[BatchNorm]) -> Iterator[None]:
    """Makes the averages of ``norms`` those of all that passes them meanwhile.

    Each batch is normalised by itself, and each position of each map counts alike.
    """
    norms = list(norms)
    for norm in norms:
        norm.pool(True)
        norm.training = True
    try:
        yield
    finally:
        for norm in norms:
            norm.pool(False)
            norm.training = False


def build_norm(norm: str, dim: int, eps: float, bias: bool = True) -> nn.Module:
    """Builds the norm called ``none``, or one of ``search_space.macro.NORMS``."""
    match norm:
        case "layer_norm":
            return nn.LayerNorm(dim, eps=eps, bias=bias)
        case "group_norm":
            return GroupNorm(dim, eps, bias)
        case "batch_norm":
            return BatchNorm(dim, eps, bias)
        case "rep_batch_norm":
            return RepBatchNorm(dim, eps, bias)
        case "none":
            return nn.Identity()
    raise ValueError(f"unknown norm {norm!r}")


def norm_axes(prefix: str, norm: nn.Module, axis: Axis) -> dict[str, Axes]:
    """Returns the axes of a norm's parameters over channels ``axis``; ``alpha`` is a number."""
    return {
        f"{prefix}.{name}": (1 if name == "alpha" else axis,) for name, _ in norm.named_parameters()
    }


def has_batch_norms(module: nn.Module) -> bool:
    """Whether any part of ``module`` is a batch norm."""
    return any(isinstance(part, BatchNorm) for part in module.modules())
