"""What all mixers are."""

from __future__ import annotations

from typing import Any, cast

from supernet.network.axes import StaticModule
from supernet.network.registry import register_mixer


class Mixer(StaticModule):
    """A mixer of tokens: input and output are ``(batch, height, width, dim)``, contiguous.

    ``inside_mlp`` says that the mixer sits inside the MLP's residual branch, before its norm,
    as ConvNeXt's depthwise convolution does, instead of in a normed branch of its own.

    Example:
        The file of a package with the entry point ``scaled`` in the group ``nas.mixers``::

            @register_mixer(MixerSpec("scaled", {}))
            class Scaled(Mixer):
                def __init__(self, dim: int) -> None:
                    super().__init__()
                    self.dim = dim
                    self.gamma = nn.Parameter(torch.ones(dim))

                def forward(self, x: Tensor) -> Tensor:
                    return x * self.gamma

                def axes(self) -> dict[str, Axes]:
                    return {"gamma": ("dim",)}

                def sizes(self) -> dict[str, int]:
                    return {"dim": self.dim}

                def permutable(self) -> tuple[frozenset[str], ...]:
                    return (frozenset({"dim"}),)
    """

    inside_mlp = False


def build_mixer(name: str, dim: int, **params: Any) -> Mixer:
    """Builds mixer ``name`` for ``dim`` channels; raises as the registry of mixers does."""
    return mixer_class(name)(dim, **params)


def mixer_class(name: str) -> type[Mixer]:
    """Returns the module class of mixer ``name``; raises as the registry of mixers does."""
    return cast(type[Mixer], register_mixer[name])
