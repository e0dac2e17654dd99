"""Our kinds of blocks: rules of their parameters, and the options of their modules.

The modules are in ``supernet/network/blocks``, one file each, under the same names.
"""

from __future__ import annotations

from search_space.blocks import (
    ACTIVATIONS,
    BLOCKS,
    PROJECTION,
    SKIP,
    BlockKind,
    OptionValue,
    Params,
    Place,
    hidden_width,
)
from search_space.registry import POSITIVE, Param


def _metaformer(place: Place, params: Params) -> dict[str, OptionValue]:
    macro = place.macro
    return {
        "hidden": hidden_width(place.width, params["mlp_ratio"]),
        "norm": macro.norm_of_blocks,
        "norm_eps": macro.norm_eps,
        "layer_scale": macro.layer_scale,
        **{key: True for key in ("res_post_norm", "position") if params[key]},
        "shortcut_scale": params["shortcut_scale"],
        "activation": macro.activation,
        "bias": macro.bias,
    }


def _convolutional(place: Place) -> dict[str, OptionValue]:
    macro = place.macro
    return {"norm": macro.conv_norm, "norm_eps": macro.conv_norm_eps, "padding": macro.padding}


def _inverted_residual(place: Place, params: Params) -> dict[str, OptionValue]:
    options = {key: params[key] for key in ("kernel", "activation")}
    if params.get("eca"):
        options["eca"] = True
    if "gate" in params:
        options["gate"] = params["gate"]
        ratio = float(params["squeeze"])
        options["squeeze"] = hidden_width(place.width_in, ratio) if ratio > 0 else 0
    if "expansion" in params:
        options["hidden"] = hidden_width(place.width_in, params["expansion"])
    return {**options, **_convolutional(place)}


def _prenorm_inverted_residual(place: Place, params: Params) -> dict[str, OptionValue]:
    ratio = float(params["squeeze"])
    return {
        **{key: params[key] for key in ("kernel", "activation", "gate")},
        "hidden": hidden_width(place.width, params["expansion"]),
        "squeeze": hidden_width(place.width, ratio) if ratio > 0 else 0,
        **({"eca": True} if params["eca"] else {}),
        **_convolutional(place),
    }


def _moat(place: Place, params: Params) -> dict[str, OptionValue]:
    macro = place.macro
    return {
        "kernel": params["conv_kernel"],
        "activation": params["conv_activation"],
        "hidden": hidden_width(place.width, params["conv_expansion"]),
        "mixer_norm": macro.norm_of_blocks,
        "mixer_norm_eps": macro.norm_eps,
        "bias": macro.bias,
        **_convolutional(place),
    }


def _residual(place: Place, params: Params) -> dict[str, OptionValue]:
    inner = hidden_width(place.width, params["ratio"])
    own = {"hidden": inner, "activation": params["activation"], "shortcut": place.macro.shortcut}
    if params["squeeze"]:
        own["squeeze"] = hidden_width(place.width, params["squeeze"])
    if params["eca"]:
        own["eca"] = True
    return {**own, **_convolutional(place)}


_ACTIVATION, _GELU = (Param(name, choices=ACTIVATIONS) for name in ("relu6", "gelu"))
_KERNEL = Param(3, odd=True)
_ECA = {"eca": Param(False, later=True)}
_SQUEEZE = {
    "squeeze": Param(0.0, minimum=0.0),
    "gate": Param("sigmoid", choices=("sigmoid", "hard_sigmoid")),
    **_ECA,
}

BLOCKS.add(BlockKind(SKIP, {}))
BLOCKS.add(BlockKind(PROJECTION, {}, strided=True))
BLOCKS.add(
    BlockKind(
        "metaformer",
        {
            "mlp_ratio": Param(4.0, minimum=POSITIVE),
            "shortcut_scale": Param(False, later=True),
            "res_post_norm": Param(False, later=True),
            "position": Param(False, later=True),
        },
        _metaformer,
        has_mixer=True,
        ratios=("mlp_ratio",),
    )
)
BLOCKS.add(
    BlockKind(
        "inverted_residual",
        {"expansion": Param(4.0, minimum=POSITIVE), "kernel": _KERNEL, "activation": _ACTIVATION}
        | _SQUEEZE,
        _inverted_residual,
        strided=True,
        ratios=("expansion", "squeeze"),
    )
)
BLOCKS.add(
    BlockKind(
        "depthwise_separable",
        {"kernel": _KERNEL, "activation": _ACTIVATION} | _SQUEEZE,
        _inverted_residual,
        strided=True,
        ratios=("squeeze",),
    )
)
BLOCKS.add(
    BlockKind(
        "fused_inverted_residual",
        {"expansion": Param(4.0, minimum=POSITIVE), "kernel": _KERNEL, "activation": _ACTIVATION},
        _inverted_residual,
        strided=True,
        ratios=("expansion",),
    )
)
BLOCKS.add(
    BlockKind(
        "prenorm_inverted_residual",
        {"expansion": Param(4.0, minimum=POSITIVE), "kernel": _KERNEL, "activation": _GELU}
        | _SQUEEZE,
        _prenorm_inverted_residual,
        strided=True,
        ratios=("expansion", "squeeze"),
    )
)
BLOCKS.add(
    BlockKind(
        "moat",
        {  # names that no mixer has, whose parameters stand beside them in files
            "conv_expansion": Param(4.0, minimum=POSITIVE),
            "conv_kernel": _KERNEL,
            "conv_activation": _GELU,
        },
        _moat,
        strided=True,
        has_mixer=True,
        ratios=("conv_expansion",),
    )
)
for _name, _ratio in (("basic", 1.0), ("bottleneck", 0.25)):
    BLOCKS.add(
        BlockKind(
            _name,
            {
                "ratio": Param(_ratio, minimum=POSITIVE),
                "activation": Param("relu", choices=ACTIVATIONS),
                "squeeze": Param(0.0, minimum=0.0, later=True),
                **_ECA,
            },
            _residual,
            strided=True,
            ratios=("ratio", "squeeze"),
        )
    )
