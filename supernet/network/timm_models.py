"""Which of timm's own networks an architecture is, so that plain timm builds and loads it.

A published design is a registered model; for other points ``timm_proposals`` has what they may be.
That is built without weights, and dropped unless its parameters are exactly those of our network.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from search_space import known_convolutional as published
from search_space.architecture import Architecture, Stage
from search_space.blocks import Block
from search_space.errors import NasError
from search_space.known import BASELINE_SIZES, known
from supernet.network.backbone import Backbone, build
from supernet.network.timm_proposals import PROPOSALS, TimmModel, image_size
from supernet.network.timm_weights import family, timm_names

SAME_NAMES = (
    *(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano")),
    *(f"poolformerv2_{size}" for size in ("s12", "s24", "s36", "m36", "m48")),
    *(f"{name}_{size}" for name in ("convformer", "caformer") for size in BASELINE_SIZES),
)
PUBLISHED = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_l": "swin_large_patch4_window7_224",
    **{f"swinv2_{size[0]}": f"swinv2_{size}_window8_256" for size in ("tiny", "small", "base")},
    **{f"maxvit_{size[0]}": f"maxvit_{size}_tf_224" for size in ("tiny", "small", "base", "large")},
    "focalnet_t_srf": "focalnet_tiny_srf",
    "focalnet_s_srf": "focalnet_small_srf",
    "focalnet_b_srf": "focalnet_base_srf",
    "focalnet_t_lrf": "focalnet_tiny_lrf",
    "focalnet_s_lrf": "focalnet_small_lrf",
    "focalnet_b_lrf": "focalnet_base_lrf",
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
    "convnext_b": "convnext_base",
    "convnext_l": "convnext_large",
    "convnext_xl": "convnext_xlarge",
    "poolformer_s12": "poolformer_s12",
    "poolformer_s24": "poolformer_s24",
    "poolformer_s36": "poolformer_s36",
    "poolformer_m36": "poolformer_m36",
    "poolformer_m48": "poolformer_m48",
} | {name: name for name in (*SAME_NAMES, *published.CONVOLUTIONAL)}
"""timm's names of known designs by ours."""


@lru_cache(maxsize=256)
def timm_model(architecture: Architecture) -> TimmModel | None:
    """Returns the network of timm's that an architecture is, or None if it is none.

    It computes the same from the same weights at the architecture's resolution.
    """
    for name, theirs in PUBLISHED.items():
        if replace(architecture, resolution=known(name).resolution) == known(name):
            usual = known(name).resolution
            if theirs.startswith("maxvit") and architecture.resolution != usual:
                return None  # there windows grow with the image
            sized = image_size(architecture, usual) if theirs.startswith("swin") else {}
            known_model = TimmModel(theirs, sized)  # a Swin on small maps has smaller windows there
            return known_model if _same_parameters(known_model, architecture) else None
    stages = [_kept(stage) for stage in architecture.stages]
    if not all(stages):
        return None
    for propose in PROPOSALS:
        model = propose(architecture, stages)
        if model is not None and _same_parameters(model, architecture):
            return model
    return None


def to_timm(network: Backbone) -> dict[str, Tensor]:
    """Returns the state dict that timm's own class takes for the same logits.

    Raises:
        NasError: No class of timm's is this architecture.
    """
    model = timm_model(network.architecture)
    if model is None:
        raise NasError(
            f"{network.architecture} is no network of timm's own; with this package installed, "
            "timm loads it as nas_backbone."
        )
    with torch.device("meta"):
        expected = model.build(network.num_classes).state_dict()
    state = network.state_dict()
    named = {theirs: state[ours] for ours, theirs in timm_names(network).items()}
    order = family(network.architecture)
    # what is left are counts of batches, which nothing reads at a fixed momentum
    return {
        key: order.their_values(key, named[key], value.shape)
        if key in named
        else torch.zeros_like(value, device="cpu")
        for key, value in expected.items()
    }


def _same_parameters(model: TimmModel, architecture: Architecture) -> bool:
    """Says whether the parameters of both have the same names and sizes."""
    with torch.device("meta"):
        ours = build(architecture, 1)
        try:
            theirs = model.build(1).state_dict()
        except (AssertionError, IndexError, TypeError, ValueError, RuntimeError):
            # as timm refuses values, and numbers of stages
            return False
    state = ours.state_dict()
    wanted = {theirs: state[name].numel() for name, theirs in timm_names(ours).items()}
    return wanted == {
        key: value.numel()
        for key, value in theirs.items()
        if not key.endswith("num_batches_tracked")
    }


def _kept(stage: Stage) -> list[Block]:
    return [block for block in stage.blocks if not block.skipped]
