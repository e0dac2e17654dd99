"""Well-known convolutional designs, under timm's names: what people deploy today.

MobileNetV2 (Sandler et al. 2018), MobileNetV3 (Howard et al. 2019), EfficientNet (Tan & Le 2019)
and its Lite versions for integer hardware, and ResNet (He et al. 2016) with its D and T variants
(He et al., Bag of tricks, 2019). Resolutions are those of timm's weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from search_space.architecture import Architecture, Stage
from search_space.blocks import Block
from search_space.macro import Macro

MOBILENETV2 = Macro(
    stem="conv_act",
    stem_kernel=3,
    stem_stride=2,
    stem_width=32,
    downsample="block",
    head_norm="none",
    head="conv",
    head_width=1280,
)
EFFICIENTNET_LITE = replace(MOBILENETV2, padding="same", conv_norm_eps=1e-3)
EFFICIENTNET = replace(MOBILENETV2, conv_activation="silu")
MOBILENETV3_LARGE = replace(
    MOBILENETV2,
    stem_width=16,
    conv_activation="hard_swish",
    head="conv_hidden",
    head_conv_width=960,
)
MOBILENETV3_SMALL = replace(MOBILENETV3_LARGE, head_conv_width=576, head_width=1024)
RESNET = Macro(
    stem="conv_pool",
    stem_kernel=7,
    stem_stride=4,
    stem_width=64,
    downsample="block",
    head_norm="none",
    conv_activation="relu",
)
RESNET_D = replace(RESNET, stem="deep_pool", stem_kernel=3, shortcut="pooled")
RESNET_T = replace(RESNET_D, stem="tiered_pool")

Row = tuple[int, int, tuple[Block, ...]]  # width, stride and blocks of a stage


def _separable(kernel: int = 3, **params: Any) -> Block:
    return Block.of("depthwise_separable", kernel=kernel, **params)


def _inverted(expansion: float, kernel: int = 3, **params: Any) -> Block:
    return Block.of("inverted_residual", expansion=expansion, kernel=kernel, **params)


def _scaled(rows: tuple[Row, ...], width: float, depth: float, fixed_ends: bool) -> list[Row]:
    """Multiplies widths and depths as EfficientNet does, depths at the ends only if not fixed."""
    result = []
    for i, (channels, stride, blocks) in enumerate(rows):
        ends = fixed_ends and i in (0, len(rows) - 1)
        count = len(blocks) if ends else math.ceil(depth * len(blocks))
        result.append(
            (_by_eight(width * channels), stride, (*blocks, *blocks[-1:] * count)[:count])
        )
    return result


def _by_eight(width: float) -> int:
    """Rounds to a multiple of eight, up where rounding down takes more than a tenth."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * width else rounded + 8


_MOBILENETV2 = (
    (16, 1, (_separable(),)),
    (24, 2, (_inverted(6),) * 2),
    (32, 2, (_inverted(6),) * 3),
    (64, 2, (_inverted(6),) * 4),
    (96, 1, (_inverted(6),) * 3),
    (160, 2, (_inverted(6),) * 3),
    (320, 1, (_inverted(6),)),
)


def _efficientnet(**params: Any) -> tuple[Row, ...]:
    """The stages of B0, whose blocks all have ``params``."""
    return (
        (16, 1, (_separable(**params),)),
        (24, 2, (_inverted(6, 3, **params),) * 2),
        (40, 2, (_inverted(6, 5, **params),) * 2),
        (80, 2, (_inverted(6, 3, **params),) * 3),
        (112, 1, (_inverted(6, 5, **params),) * 3),
        (192, 2, (_inverted(6, 5, **params),) * 4),
        (320, 1, (_inverted(6, 3, **params),)),
    )


_RELU: dict[str, Any] = {"activation": "relu"}
_HARD: dict[str, Any] = {"activation": "hard_swish"}
_GATE: dict[str, Any] = {"gate": "hard_sigmoid"}
# squeeze-excite has a quarter of the inner channels, rounded to eights; here of the input's
_MOBILENETV3_LARGE = (
    (16, 1, (_separable(**_RELU),)),
    (24, 2, (_inverted(4, **_RELU), _inverted(3, **_RELU))),
    (
        40,
        2,
        (
            _inverted(3, 5, squeeze=1.0, **_RELU, **_GATE),
            *(_inverted(3, 5, squeeze=0.8, **_RELU, **_GATE),) * 2,
        ),
    ),
    (80, 2, (_inverted(6, **_HARD), _inverted(2.5, **_HARD), *(_inverted(2.3, **_HARD),) * 2)),
    (112, 1, (_inverted(6, squeeze=1.5, **_HARD, **_GATE),) * 2),
    (160, 2, (_inverted(6, 5, squeeze=1.5, **_HARD, **_GATE),) * 3),
)
_MOBILENETV3_SMALL = (
    (16, 2, (_separable(squeeze=0.5, **_RELU, **_GATE),)),
    (24, 2, (_inverted(4.5, **_RELU), _inverted(3.67, **_RELU))),
    (
        40,
        2,
        (
            _inverted(4, 5, squeeze=1.0, **_HARD, **_GATE),
            *(_inverted(6, 5, squeeze=1.6, **_HARD, **_GATE),) * 2,
        ),
    ),
    (
        48,
        1,
        (
            _inverted(3, 5, squeeze=0.8, **_HARD, **_GATE),
            _inverted(3, 5, squeeze=0.83, **_HARD, **_GATE),
        ),
    ),
    (96, 2, (_inverted(6, 5, squeeze=1.5, **_HARD, **_GATE),) * 3),
)
_LITE = _efficientnet()
_B = _efficientnet(activation="silu", squeeze=0.25)
_BASIC, _BOTTLENECK = Block.of("basic"), Block.of("bottleneck")


def _resnet(
    depths: tuple[int, ...], blocks: tuple[Block, ...], widths: tuple[int, ...]
) -> list[Row]:
    return [
        (width, 1 if i == 0 else 2, (block,) * depth)
        for i, (width, depth, block) in enumerate(zip(widths, depths, blocks, strict=True))
    ]


def _basic(*depths: int) -> list[Row]:
    return _resnet(depths, (_BASIC,) * 4, (64, 128, 256, 512))


def _bottleneck(*depths: int, **options: Any) -> list[Row]:
    block = _BOTTLENECK.replaced(**options)
    return _resnet(depths, (block,) * 4, (256, 512, 1024, 2048))


def _v2(width: float) -> tuple[Macro, int, list[Row]]:
    macro = replace(
        MOBILENETV2, stem_width=_by_eight(32 * width), head_width=max(1280, _by_eight(1280 * width))
    )
    return macro, 224, _scaled(_MOBILENETV2, width, 1.0, False)


def _lite(width: float, depth: float, resolution: int) -> tuple[Macro, int, list[Row]]:
    return EFFICIENTNET_LITE, resolution, _scaled(_LITE, width, depth, True)


def _b(width: float, depth: float, resolution: int) -> tuple[Macro, int, list[Row]]:
    macro = replace(
        EFFICIENTNET, stem_width=_by_eight(32 * width), head_width=_by_eight(1280 * width)
    )
    return macro, resolution, _scaled(_B, width, depth, False)


_MIXED = _resnet((1,) * 4, (_BASIC, _BASIC, _BOTTLENECK, _BASIC), (32, 48, 192, 96))

# macro style, resolution and stages
CONVOLUTIONAL: dict[str, tuple[Macro, int, list[Row]]] = {
    "mobilenetv2_035": _v2(0.35),
    "mobilenetv2_050": _v2(0.5),
    "mobilenetv2_075": _v2(0.75),
    "mobilenetv2_100": _v2(1.0),
    "mobilenetv2_140": _v2(1.4),
    "mobilenetv3_small_100": (MOBILENETV3_SMALL, 224, list(_MOBILENETV3_SMALL)),
    "mobilenetv3_large_100": (MOBILENETV3_LARGE, 224, list(_MOBILENETV3_LARGE)),
    "tf_efficientnet_lite0": _lite(1.0, 1.0, 224),
    "tf_efficientnet_lite1": _lite(1.0, 1.1, 240),
    "tf_efficientnet_lite2": _lite(1.1, 1.2, 260),
    "tf_efficientnet_lite3": _lite(1.2, 1.4, 300),
    "tf_efficientnet_lite4": _lite(1.4, 1.8, 380),
    "efficientnet_b0": _b(1.0, 1.0, 224),
    "efficientnet_b1": _b(1.0, 1.1, 240),
    "efficientnet_b2": _b(1.1, 1.2, 256),
    "efficientnet_b3": _b(1.2, 1.4, 288),
    "efficientnet_b4": _b(1.4, 1.8, 320),
    "resnet18": (RESNET, 224, _basic(2, 2, 2, 2)),
    "resnet34": (RESNET, 224, _basic(3, 4, 6, 3)),
    "resnet26": (RESNET, 224, _bottleneck(2, 2, 2, 2)),
    "resnet50": (RESNET, 224, _bottleneck(3, 4, 6, 3)),
    "resnet18d": (RESNET_D, 224, _basic(2, 2, 2, 2)),
    "resnet34d": (RESNET_D, 224, _basic(3, 4, 6, 3)),
    "resnet26d": (RESNET_D, 224, _bottleneck(2, 2, 2, 2)),
    "resnet50d": (RESNET_D, 224, _bottleneck(3, 4, 6, 3)),
    "seresnet50": (RESNET, 224, _bottleneck(3, 4, 6, 3, squeeze=1 / 16)),
    "ecaresnet50d": (RESNET_D, 224, _bottleneck(3, 4, 6, 3, eca=True)),
    "resnet10t": (RESNET_T, 176, _basic(1, 1, 1, 1)),
    "resnet14t": (RESNET_T, 176, _bottleneck(1, 1, 1, 1)),
    "resnet26t": (RESNET_T, 256, _bottleneck(2, 2, 2, 2)),
    "test_resnet": (replace(RESNET_D, stem_width=32), 160, _MIXED),
}


def convolutional(name: str) -> Architecture:
    """Makes the design ``name`` of the table."""
    macro, resolution, rows = CONVOLUTIONAL[name]
    stages = tuple(Stage(width, blocks, stride) for width, stride, blocks in rows)
    return Architecture(macro, resolution, stages)
