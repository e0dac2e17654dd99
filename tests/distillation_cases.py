"""A tiny parent, the space around it, and images: what is tested is how alternatives learn."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from search_space import Mixer, SearchSpace
from search_space.around import Around, around
from search_space.space_definition import space_from_dict
from supernet import build
from supernet.inherit.bank import WeightBank
from supernet.network.backbone import Backbone
from supernet.training.recalibration import recalibrate

CONVOLUTIONS = space_from_dict(  # batch norms, strided first blocks
    {
        "name": "convolutions",
        "macro": {
            **{"stem": "conv_act", "stem_kernel": 3, "stem_stride": 2, "downsample": "block"},
            **{"norm": "batch_norm", "head_norm": "none"},
        },
        "resolution": 16,
        "stages": [
            {"width": 8, "depth": 1, "choices": ["basic"]},
            {"width": 16, "depth": 2, "choices": [{"inverted_residual": {"expansion": 2}}]},
        ],
    }
)
METAFORMERS = space_from_dict(
    {
        "name": "metaformers",
        "macro": {"stem_kernel": 2, "stem_stride": 2},
        "resolution": 16,
        "stages": [
            {"width": 8, "depth": 2, "mixers": [{"depthwise_conv": {"kernel": 5}}]},
            {
                "width": 16,
                "depth": 1,
                "mixers": [{"window_attention": {"window": 4, "head_dim": 8}}],
            },
        ],
    }
)
MIXERS = Mixer.of("pooling"), Mixer.of("separable_conv", kernel=3)
OPTIONS = {
    "convolutions": Around(ratios=(0.5,), largest_kernel=5),
    "metaformers": Around(ratios=(0.5,), largest_kernel=7, mixers=MIXERS),
}
SPACES = {space.name: space for space in (CONVOLUTIONS, METAFORMERS)}


@cache
def space_around(name: str) -> SearchSpace:
    return around(SPACES[name].largest, OPTIONS[name])


def parent_of(name: str, seed: int = 0) -> Backbone:
    """Its batch norms have averages of images."""
    torch.manual_seed(seed)
    network = build(SPACES[name].largest, 10).eval()
    recalibrate(network, images_of())
    return network


def bank_of(name: str, seed: int = 0) -> WeightBank:
    return WeightBank(space_around(name), parent_of(name, seed)).eval()


def images_of(batches: int = 3, size: int = 8) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 3, 16, 16, generator=generator), torch.zeros(size, dtype=torch.int64))
        for _ in range(batches)
    ]


class Deadly:
    """Images whose reader dies: ``deaths`` times, each of which leaves a file in ``folder``."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for k in range(self.deaths):
            with suppress(FileExistsError):
                (self.folder / f"death-{k}").touch(exist_ok=False)
                os._exit(1)
        return iter(images_of())
