"""Mixers by name. A new mixer registers here and its parameters in ``search_space.mixers``;
every test, table and count then covers it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from search_space.errors import UnknownNameError
from search_space.mixers import mixer_spec
from supernet.network.axes import StaticModule


class Mixer(StaticModule):
    """Mixes tokens: input and output ``(batch, height, width, dim)``, contiguous.

    ``inside_mlp`` says that the mixer sits inside the MLP's residual branch, before its norm,
    as ConvNeXt's depthwise convolution does, instead of in a normed branch of its own.
    """

    inside_mlp = False


_MIXERS: dict[str, type[Mixer]] = {}
M = TypeVar("M", bound=type[Mixer])


def register_mixer(name: str) -> Callable[[M], M]:
    """Class decorator: ``name`` must have a ``MixerSpec``, whose parameters the class takes."""
    mixer_spec(name)

    def register(cls: M) -> M:
        if name in _MIXERS:
            raise ValueError(f"a mixer named {name!r} is registered already")
        _MIXERS[name] = cls
        return cls

    return register


def mixer_class(name: str) -> type[Mixer]:
    """The module class of mixer ``name``; raises UnknownNameError naming the nearest."""
    if name not in _MIXERS:
        raise UnknownNameError("mixer", name, _MIXERS)
    return _MIXERS[name]


def build_mixer(name: str, dim: int, **params: Any) -> Mixer:
    """Mixer ``name`` for ``dim`` channels."""
    return mixer_class(name)(dim, **params)


def registered_mixers() -> list[str]:
    """Names of all mixers that have a module."""
    return sorted(_MIXERS)
