"""Parents with every kind of block, and smaller copies of these blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from search_space.components import ModuleSpec
from search_space.space import SearchSpace
from search_space.space_definition import space_from_dict
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.network.axes import StaticModule, take
from supernet.network.backbone import Backbone
from supernet.network.layers import BatchNorm
from supernet.network.modules import build_module

_CONV = {"out_dim": 8, "stride": 1, "norm": "batch_norm", "norm_eps": 1e-3, "padding": "half"}
_META = {"style": "metaformer", "norm": "layer_norm", "norm_eps": 1e-5}


def _mixer(name: str, **params: object) -> dict[str, object]:
    return {**_META, "mixer": name, "params": tuple(sorted(params.items()))}


KINDS: dict[str, tuple[dict[str, object], dict[str, object]]] = {  # options, and those cut
    "inverted": ({"style": "inverted_residual", "kernel": 3, "activation": "relu6",
                  "squeeze": 0, "gate": "sigmoid", "hidden": 16, **_CONV}, {"hidden": 8}),
    "strided": ({"style": "inverted_residual", "kernel": 5, "activation": "silu", "squeeze": 0,
                 "gate": "sigmoid", "hidden": 16, **_CONV, "stride": 2, "padding": "same",
                 "out_dim": 12}, {"hidden": 8}),
    "gated": ({"style": "inverted_residual", "kernel": 3, "activation": "hard_swish",
               "squeeze": 4, "gate": "hard_sigmoid", "hidden": 16, **_CONV}, {"hidden": 8}),
    "squeezed": ({"style": "inverted_residual", "kernel": 3, "activation": "silu", "squeeze": 8,
                  "gate": "sigmoid", "hidden": 16, **_CONV}, {"squeeze": 4}),
    "normless": ({"style": "inverted_residual", "kernel": 3, "activation": "relu", "squeeze": 0,
                  "gate": "sigmoid", "hidden": 16, **_CONV, "norm": "none"}, {"hidden": 8}),
    "fused": ({"style": "fused_inverted_residual", "kernel": 3, "activation": "silu",
               "hidden": 16, **_CONV}, {"hidden": 8}),
    "basic": ({"style": "basic", "hidden": 8, "activation": "relu", "shortcut": "conv", **_CONV},
              {"hidden": 4}),
    "bottleneck": ({"style": "bottleneck", "hidden": 8, "activation": "relu",
                    "shortcut": "conv", **_CONV}, {"hidden": 4}),
    "separable": ({**_mixer("separable_conv", expansion=2.0, kernel=3), "hidden": 16},
                  {"params": (("expansion", 1.0), ("kernel", 3)), "hidden": 8}),
}  # fmt: skip
"""For each sort of block the options of a parent's module, and those that a smaller copy has."""
DIM = 8


def specs(kind: str) -> tuple[ModuleSpec, ModuleSpec]:
    """A module of a parent and a smaller copy."""
    options, cut = KINDS[kind]
    return ModuleSpec.of("block", dim=DIM, **options), ModuleSpec.of(
        "block", dim=DIM, **{**options, **cut}
    )
