"""Names and parameter rules of token mixers; their modules are in ``supernet/network/mixers``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from search_space.registry import POSITIVE, Param, ParamValue, Registry


@dataclass(frozen=True)
class MixerSpec:
    """Name, parameters and width rule of a mixer.

    Args:
        name: Of the mixer.
        params: Rules of its parameters by name.
        width_multiple: Of parameters, the number that a block's width must be a multiple of.
        alternates: Whether every second block of a stage is built with ``shifted=True``.
    """

    name: str
    params: Mapping[str, Param]
    width_multiple: Callable[[Mapping[str, ParamValue]], int] = field(default=lambda params: 1)
    alternates: bool = False


MIXERS: Registry[MixerSpec] = Registry("mixer", "nas.mixers")

MIXERS.add(
    MixerSpec(
        "window_attention",
        {"window": Param(7), "head_dim": Param(32)},
        width_multiple=lambda params: int(params["head_dim"]),
        alternates=True,
    )
)
MIXERS.add(
    MixerSpec(
        "focal_modulation",
        {"levels": Param(2), "window": Param(3, odd=True), "post_norm": Param(False)},
    )
)
MIXERS.add(
    MixerSpec(
        "gnconv",
        {"order": Param(3, maximum=8), "kernel": Param(7, odd=True)},
        width_multiple=lambda params: 2 ** (int(params["order"]) - 1),
    )
)
MIXERS.add(
    MixerSpec(
        "attention",
        {"head_dim": Param(32)},
        width_multiple=lambda params: int(params["head_dim"]),
    )
)
MIXERS.add(MixerSpec("pooling", {"kernel": Param(3, odd=True)}))
MIXERS.add(
    MixerSpec(
        "separable_conv",
        {"expansion": Param(2.0, minimum=POSITIVE), "kernel": Param(7, odd=True)},
    )
)
MIXERS.add(MixerSpec("depthwise_conv", {"kernel": Param(7, odd=True)}))
