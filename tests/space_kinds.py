"""Tiny spaces of every sort: choices by position, skip, strided blocks as transitions, any stages.

Small enough to list, so that tests compare with all of their architectures.
"""

from __future__ import annotations

from functools import cache

from search_space import SearchSpace
from search_space.space_definition import space_from_dict

_SMALL = {"stem_kernel": 2, "stem_stride": 2}
_CONVOLUTIONS = {
    **{"stem": "conv_act", "stem_kernel": 3, "stem_stride": 2, "downsample": "block"},
    **{"norm": "batch_norm", "head_norm": "none"},
}
_MOBILE = {"inverted_residual": {"expansion": [1, 3], "squeeze": [0, 0.25]}}

_DEFINITIONS = {
    "positions": {  # other choices, and other numbers of them, at every position
        "macro": _SMALL,
        "resolution": [16, 24],
        "stages": [
            {
                "width": [8, 16],
                "depth": [1, 3],
                "positions": [
                    ["pooling"],
                    [{"depthwise_conv": {"kernel": [3, 5]}}, {"pooling": {"mlp_ratio": [2, 4]}}],
                    [{"pooling": {"mlp_ratio": 2}}, "basic"],
                ],
            },
            {"width": [8, 24], "depth": 1, "choices": ["bottleneck", "pooling"]},
        ],
    },
    "skip": {  # a stage may lose all its blocks
        "macro": {**_SMALL, "downsample": "patch_merging"},
        "resolution": 16,
        "stages": [
            {"width": [8, 16], "depth": 2, "choices": ["skip", "pooling", "basic"]},
            {
                "width": 16,
                "depth": 3,
                "choices": [
                    "skip",
                    {"window_attention": {"window": 4, "head_dim": 8, "mlp_ratio": [1, 2]}},
                ],
                "first": ["pooling"],
            },
        ],
    },
    "blocks": {  # strided blocks are the transitions, the stem has a width of its own
        "macro": {**_CONVOLUTIONS, "stem_width": 8, "head": "conv", "head_width": 24},
        "resolution": [16, 24],
        "stages": [
            {"width": [8, 12], "depth": [1, 2], "choices": ["depthwise_separable"]},
            {"width": [12, 16], "depth": 2, "first": [_MOBILE], "choices": ["skip", _MOBILE]},
            {"width": 16, "depth": 1, "choices": ["fused_inverted_residual", "basic"]},
        ],
    },
    "entries": {  # first blocks as transitions that may be skipped, and other ones after them
        "macro": {**_CONVOLUTIONS, "stem_kernel": 7, "stem": "conv_pool", "padding": "same"},
        "resolution": [32],
        "stages": [
            {"width": [8, 12], "depth": 2, "choices": ["skip", "basic", "bottleneck"]},
            {"width": [8, 16], "depth": [1, 2, 3], "choices": ["basic", "bottleneck"]},
        ],
    },
    "strides": {  # stages of stride 1: of another width, and of the same; a first of stride 2
        "macro": {**_SMALL, "downsample": "conv_norm", "stem_width": 12},
        "resolution": 24,
        "stages": [
            {"width": [8, 12], "depth": 1, "stride": 2, "choices": ["pooling", "basic"]},
            {"width": [12, 16], "depth": [1, 2], "stride": 1, "choices": ["pooling"]},
            {"width": 16, "depth": 1, "stride": 1, "choices": ["skip", "pooling", _MOBILE]},
            {"width": 24, "depth": 1, "choices": ["basic"]},
        ],
    },
    "one": {  # one stage
        "macro": {"stem": "convs", "stem_kernel": 3, "stem_stride": 4},
        "resolution": [16, 24, 32],
        "stages": [
            {
                "width": [8, 16, 24],
                "depth": 3,
                "choices": ["skip", "pooling", {"depthwise_conv": {"mlp_ratio": [1, 2]}}],
            }
        ],
    },
}
NAMES = tuple(_DEFINITIONS)


@cache
def kind_of_space(name: str) -> SearchSpace:
    """The tiny space ``name``, of at most some thousand architectures."""
    return space_from_dict({"name": name, **_DEFINITIONS[name]})
