"""Progressive tokenisation: coarser tokens early in training (As-ViT, Chen et al., ICLR 2022).

A stem with stride s·c and dilation c makes c² times fewer tokens with the same weights. It needs
no other stem: on every c-th pixel, the stem as it is computes the same. For one axis, image I of n
pixels, kernel w, padding p, which dilated is p·c,

    Σ_j w_j I[o·s·c + j·c − p·c] = Σ_j w_j J[o·s + j − p],  J[m] = I[c·m],

with zeros outside both; J has ⌈n/c⌉ pixels, and as ⌊(n − 1)/c⌋ = ⌈n/c⌉ − 1, both have the same
number of outputs. This is exact for stems of one convolution with zeros around it, of any kernel,
stride and padding, whatever norm follows; one of several layers sees coarser images in all of them.
As-ViT itself dilates by 5 for stride 16 = 4·4, so that a kernel of 4 spans the
stride; the tokens are as many.

Nothing is smoothed: pixels between are left out, as a dilated kernel leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_space.errors import RunError
from search_space.macro import feature_sizes
from search_space.space import SearchSpace

if TYPE_CHECKING:  # a configuration, which the command line reads, needs no torch
    import torch


def coarsen(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Returns every ``factor``-th pixel, contiguous; the images themselves for factor 1.

    Args:
        images: (n, channels, height, width), at the network's resolution already: resizing undoes
            the saving.
        factor: Of both sides, which become ⌈height/factor⌉ and ⌈width/factor⌉.
    """
    return images if factor == 1 else images[..., ::factor, ::factor].contiguous()


def _sides(space: SearchSpace, resolution: int, factor: int) -> tuple[int, ...]:
    """Sides of the stages' maps of coarsened images."""
    return feature_sizes(space.macro, space.strides, -(-resolution // factor))


@dataclass(frozen=True)
class TokenSchedule:
    """States how much coarser tokens are as training goes on.

    Attributes:
        phases: (share, factor): until this share of training, images are coarsened by this factor;
            after the last one they are not. Shares rise within (0, 1), factors are integers that
            fall and stay above 1. Without phases nothing is ever coarsened.

    Raises:
        RunError: The phases are no such pairs.
    """

    phases: tuple[tuple[float, int], ...] = ()

    def __post_init__(self) -> None:
        try:
            phases = tuple((float(share), factor) for share, factor in self.phases)
        except (TypeError, ValueError):
            raise RunError(
                f"token schedule {self.phases!r} is not a list of pairs; write pairs of a share of "
                "training and a factor, as in [[0.27, 4], [0.44, 2]]."
            ) from None
        object.__setattr__(self, "phases", phases)
        before, larger = 0.0, None
        for share, factor in phases:
            if not before < share < 1:
                raise RunError(
                    f"token schedule: share {share} follows {before}; shares must rise and stay "
                    "below 1, since training has to end with all tokens."
                )
            if not isinstance(factor, int) or isinstance(factor, bool) or factor < 2:
                raise RunError(
                    f"token schedule: factor {factor!r} until {share}; a factor must be an "
                    "integer of at least 2 (after the last pair it is 1)."
                )
            if larger is not None and factor >= larger:
                raise RunError(
                    f"token schedule: factor {factor} follows {larger}; tokens must get finer: "
                    "list the factors from large to small."
                )
            before, larger = share, factor

    def factor(self, progress: float) -> int:
        """Returns the factor at this share of training, in [0, 1]."""
        return next((factor for share, factor in self.phases if progress < share), 1)

    def check(self, space: SearchSpace, resolution: int) -> None:
        """Checks that every factor leaves a token in each stage.

        Maps grow with the resolution, so a space's smallest resolution stands for all of it.

        Raises:
            RunError: A factor is too large.
        """
        for _, factor in self.phases:
            sides = _sides(space, resolution, factor)
            if min(sides) < 1:
                most = max(f for f in range(1, factor) if min(_sides(space, resolution, f)) >= 1)
                fix = f"coarsen by at most {most}" if most > 1 else "leave tokens as they are"
                raise RunError(
                    f"tokens {factor} times coarser leave maps of sides {sides} at {resolution} "
                    f"px; each stage needs at least one token: {fix}, or take a larger resolution."
                )
