"""What a token mixer is called and which parameters it has.

Only the names and rules live here, so that an architecture can check itself without torch;
the network modules are in ``supernet/mixers``, one file each, under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from search_space.errors import UnknownNameError

ParamValue = int | bool


@dataclass(frozen=True)
class Param:
    """Rule for one parameter: an integer within bounds (odd if asked), or a flag."""

    default: ParamValue
    minimum: int = 1
    maximum: int | None = None
    odd: bool = False

    def problem(self, value: object) -> str | None:
        """Why ``value`` is not allowed, or None."""
        if isinstance(self.default, bool):
            return None if isinstance(value, bool) else "must be true or false"
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be an integer"
        if value < self.minimum:
            return f"must be at least {self.minimum}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum}"
        if self.odd and value % 2 == 0:
            return "must be odd"
        return None


@dataclass(frozen=True)
class MixerSpec:
    """Name, parameters and width rule of a mixer.

    ``width_multiple`` gives the number that the block's width must be a multiple of.
    ``alternates`` says that every second block of a stage is built with ``shifted=True``.
    """

    name: str
    params: Mapping[str, Param]
    width_multiple: Callable[[Mapping[str, ParamValue]], int] = field(default=lambda params: 1)
    alternates: bool = False


_SPECS: dict[str, MixerSpec] = {}


def register_mixer_spec(spec: MixerSpec) -> MixerSpec:
    """Make a mixer known to architectures and spaces; its name must be new."""
    if spec.name in _SPECS:
        raise ValueError(f"a mixer named {spec.name!r} is registered already")
    _SPECS[spec.name] = spec
    return spec


def mixer_names() -> list[str]:
    """Names of all known mixers, sorted."""
    return sorted(_SPECS)


def mixer_spec(name: str) -> MixerSpec:
    """The rules of mixer ``name``; raises UnknownNameError naming the nearest."""
    if name not in _SPECS:
        raise UnknownNameError("mixer", name, _SPECS)
    return _SPECS[name]


register_mixer_spec(
    MixerSpec(
        "window_attention",
        {"window": Param(7), "head_dim": Param(32)},
        width_multiple=lambda params: int(params["head_dim"]),
        alternates=True,
    )
)
register_mixer_spec(
    MixerSpec(
        "focal_modulation",
        {"levels": Param(2), "window": Param(3, odd=True), "post_norm": Param(False)},
    )
)
register_mixer_spec(
    MixerSpec(
        "gnconv",
        {"order": Param(3, maximum=8), "kernel": Param(7, odd=True)},
        width_multiple=lambda params: 2 ** (int(params["order"]) - 1),
    )
)
register_mixer_spec(MixerSpec("pooling", {"kernel": Param(3, odd=True)}))
register_mixer_spec(MixerSpec("depthwise_conv", {"kernel": Param(7, odd=True)}))
