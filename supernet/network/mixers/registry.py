"""The registry of mixers by name.

Ours register here, and their rules in ``search_space.mixers``; one of another package registers
both at once. Every test, table and count then covers it.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar

from search_space.errors import UnknownNameError
from search_space.mixers import MixerSpec, mixer_spec, register_mixer_spec
from supernet.network.axes import StaticModule


class Mixer(StaticModule):
    """A mixer of tokens: input and output are ``(batch, height, width, dim)``, contiguous.

    ``inside_mlp`` says that the mixer sits inside the MLP's residual branch, before its norm,
    as ConvNeXt's depthwise convolution does, instead of in a normed branch of its own.
    """

    inside_mlp = False


_MIXERS: dict[str, type[Mixer]] = {}
M = TypeVar("M", bound=type[Mixer])


def register_mixer(mixer: str | MixerSpec) -> Callable[[M], M]:
    """Makes a module class the mixer of a name, as a class decorator.

    Args:
        mixer: The rules of a new mixer, whose parameters the class takes, or the name of one whose
            rules are registered.

    Raises:
        TypeError: The class cannot be made with the parameters that the rules name.
        ValueError: The name is taken.

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

    def register(cls: M) -> M:
        spec = mixer if isinstance(mixer, MixerSpec) else mixer_spec(mixer)
        name = spec.name
        given = (*spec.params, *(("shifted",) if spec.alternates else ()))
        try:
            signature(cls).bind(1, **dict.fromkeys(given))
        except TypeError as error:
            wanted = ", ".join(("dim", *given))
            raise TypeError(f"{cls.__name__}.__init__ must take {wanted}: {error}") from None
        if spec is mixer:
            register_mixer_spec(spec)
        if name in _MIXERS:
            raise ValueError(f"a mixer named {name!r} is registered already")
        _MIXERS[name] = cls
        return cls

    return register


def mixer_class(name: str) -> type[Mixer]:
    """Returns the module class of mixer ``name``; raises as ``mixer_spec`` does."""
    mixer_spec(name)  # imports the package that adds it
    if name not in _MIXERS:
        raise UnknownNameError("module of a mixer", name, _MIXERS)
    return _MIXERS[name]


def build_mixer(name: str, dim: int, **params: Any) -> Mixer:
    """Builds mixer ``name`` for ``dim`` channels; raises as ``mixer_spec`` does."""
    return mixer_class(name)(dim, **params)
