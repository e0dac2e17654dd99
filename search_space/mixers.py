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
        ratios: Parameters that scale a width inside the mixer, as multiples of the block's; what is
            left of larger ones when they get smaller are the first channels.
    """

    name: str
    params: Mapping[str, Param]
    width_multiple: Callable[[Mapping[str, ParamValue]], int] = field(default=lambda params: 1)
    alternates: bool = False
    ratios: tuple[str, ...] = ()


def num_heads(width: int, head_dim: int, ratio: float) -> int:
    """Returns how many heads of ``head_dim`` channels make ``ratio`` times a width, at least 1."""
    return max(1, round(width * ratio / head_dim))


NORMALISERS = ("softmax", "relu_softmax", "2quad", "scaling")
"""What turns the scores of attention into weights."""
_HEAD_RATIO = Param(1.0, minimum=POSITIVE, later=True)
_NORMALISER = Param("softmax", choices=NORMALISERS, later=True)

MIXERS: Registry[MixerSpec] = Registry("mixer", "nas.mixers")

MIXERS.add(
    MixerSpec(
        "window_attention",
        {
            "window": Param(7),
            "head_dim": Param(32),
            "head_ratio": _HEAD_RATIO,
            "normaliser": _NORMALISER,
        },
        width_multiple=lambda params: int(params["head_dim"]),
        alternates=True,
        ratios=("head_ratio",),
    )
)
for _name in ("block_attention", "grid_attention"):
    MIXERS.add(
        MixerSpec(
            _name,
            {"window": Param(7), "head_dim": Param(32), "head_ratio": _HEAD_RATIO},
            width_multiple=lambda params: int(params["head_dim"]),
            ratios=("head_ratio",),
        )
    )
MIXERS.add(
    MixerSpec(
        "cosine_window_attention",
        {
            "window": Param(8),
            "head_dim": Param(32),
            "head_ratio": _HEAD_RATIO,
            "trained": Param(0, minimum=0),
        },
        width_multiple=lambda params: int(params["head_dim"]),
        alternates=True,
        ratios=("head_ratio",),
    )
)
MIXERS.add(
    MixerSpec(
        "linear_attention",
        {
            "window": Param(14),
            "head_dim": Param(32),
            "head_ratio": _HEAD_RATIO,
            "kernel": Param(5, odd=True),
        },
        width_multiple=lambda params: int(params["head_dim"]),
        ratios=("head_ratio",),
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
        {"head_dim": Param(32), "head_ratio": _HEAD_RATIO, "normaliser": _NORMALISER},
        width_multiple=lambda params: int(params["head_dim"]),
        ratios=("head_ratio",),
    )
)
MIXERS.add(MixerSpec("pooling", {"kernel": Param(3, odd=True)}))
MIXERS.add(
    MixerSpec(
        "separable_conv",
        {"expansion": Param(2.0, minimum=POSITIVE), "kernel": Param(7, odd=True)},
        ratios=("expansion",),
    )
)
MIXERS.add(MixerSpec("depthwise_conv", {"kernel": Param(7, odd=True)}))
MIXERS.add(
    MixerSpec(
        "reparam_depthwise",
        {
            "kernel": Param(7, minimum=3, maximum=17, odd=True),
            "branches": Param("dilated", choices=("dilated", "point")),
        },
    )
)
MIXERS.add(
    MixerSpec(
        "inception_depthwise",
        {"kernel": Param(3, odd=True), "band": Param(11, odd=True), "share": Param(8, minimum=3)},
        width_multiple=lambda params: int(params["share"]),
    )
)
MIXERS.add(
    MixerSpec(
        "large_kernel_attention",
        {"kernel": Param(5, odd=True), "dilated": Param(7, odd=True), "dilation": Param(3)},
    )
)
MIXERS.add(
    MixerSpec(
        "single_head_attention",
        {"attending": Param(0.214, minimum=POSITIVE, maximum=1), "key_dim": Param(16)},
    )
)
MIXERS.add(
    MixerSpec(
        "spatial_reduction_attention",
        {
            "reduction": Param(2),
            "head_dim": Param(32),
            "head_ratio": _HEAD_RATIO,
            "normaliser": _NORMALISER,
        },
        width_multiple=lambda params: int(params["head_dim"]),
        ratios=("head_ratio",),
    )
)
MIXERS.add(MixerSpec("additive_attention", {"kernel": Param(3, minimum=3, odd=True)}))
MIXERS.add(MixerSpec("efficient_modulation", {"expansion": Param(1), "kernel": Param(7, odd=True)}))
MIXERS.add(
    MixerSpec(
        "cascaded_group_attention",
        {
            "heads": Param(4),
            "key_dim": Param(16),
            "window": Param(7),
            "kernel": Param(5, minimum=3, odd=True),
        },
        width_multiple=lambda params: int(params["heads"]),
    )
)
MIXERS.add(
    MixerSpec(
        "scale_aware_modulation",
        {"heads": Param(4, maximum=8), "expansion": Param(2)},
        width_multiple=lambda params: int(params["heads"]),
    )
)
MIXERS.add(MixerSpec("local_aggregation", {"kernel": Param(5, odd=True)}))
MIXERS.add(
    MixerSpec(
        "convolutional_attention",
        {
            "kernel": Param(3, minimum=3, odd=True),
            "reduction": Param(2),
            "head_dim": Param(32),
            "head_ratio": _HEAD_RATIO,
        },
        width_multiple=lambda params: int(params["head_dim"]),
        ratios=("head_ratio",),
    )
)
MIXERS.add(
    MixerSpec(
        "stripe_attention",
        {"stripe": Param(7), "head_dim": Param(16)},
        width_multiple=lambda params: 2 * int(params["head_dim"]),
    )
)
MIXERS.add(
    MixerSpec(
        "outlook_attention",
        {"kernel": Param(3, odd=True), "stride": Param(2), "head_dim": Param(32)},
        width_multiple=lambda params: int(params["head_dim"]),
    )
)
