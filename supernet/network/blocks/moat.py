"""MOAT's block (Yang et al., 2023): an inverted residual, and then a mixer instead of an MLP.

``x + mbconv(x)``, which may enter a stage, then ``x + mixer(norm(x))``. The published mixer is
attention of all positions, or in windows on large maps.
"""

from __future__ import annotations

from typing import Any

from timm.layers import drop_path
from torch import Tensor

from supernet.network.axes import Axes, prefixed, renamed
from supernet.network.blocks.prenorm_inverted_residual import PreNormInvertedResidual
from supernet.network.mixers import build_mixer
from supernet.network.norms import build_norm, norm_axes
from supernet.network.registry import register_block


@register_block("moat")
class Moat(PreNormInvertedResidual):
    """An inverted residual without squeeze-excite, and a mixer in a residual branch of its own.

    Args:
        mixer: Name of the mixer.
        params: Its parameters.
        mixer_norm: Norm before it.
        mixer_norm_eps: Added to that norm's variance.
        bias: Whether that norm has a bias.
        convolutions: As for ``PreNormInvertedResidual``.
    """

    def __init__(
        self,
        *,
        mixer: str,
        params: tuple[tuple[str, Any], ...],
        mixer_norm: str,
        mixer_norm_eps: float,
        bias: bool,
        **convolutions: Any,
    ) -> None:
        super().__init__(**convolutions)
        dim = self.widths["out_dim"]
        self.mixer_norm = build_norm(mixer_norm, dim, mixer_norm_eps, bias)
        self.mixer, self.mixer_name = build_mixer(mixer, dim, **dict(params)), mixer

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        branch = self.mixer(self.mixer_norm(x))
        return x + drop_path(branch, self.drop_path_rate, self.training)

    def axes(self) -> dict[str, Axes]:
        mixer = {
            name: tuple(renamed(axis, self._name) for axis in axes)
            for name, axes in self.mixer.axes().items()
        }
        norm = norm_axes("mixer_norm", self.mixer_norm, "out_dim")
        return super().axes() | norm | prefixed("mixer", mixer)

    def sizes(self) -> dict[str, int]:
        inside = {self._name(name): size for name, size in self.mixer.sizes().items()}
        return {**inside, **super().sizes()}

    def permutable(self) -> tuple[frozenset[str], ...]:
        of_mixer = [frozenset(map(self._name, names)) for names in self.mixer.permutable()]
        free = any("out_dim" in names for names in of_mixer)
        result = [names for names in of_mixer if "out_dim" not in names]
        for names in super().permutable():
            if "out_dim" not in names:
                result.append(names)
            elif free:  # with all that the mixer re-orders together with it
                result.append(names.union(*(each for each in of_mixer if "out_dim" in each)))
        return tuple(result)

    def _name(self, name: str) -> str:
        """A name in the mixer's axes as one of the block's; its channels are the block's output."""
        return "out_dim" if name == "dim" else f"{self.mixer_name}.{name}"
