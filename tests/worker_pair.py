"""Two workers in processes of their own, without Ray: the same cases run by both, then compared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from safetensors.torch import load_file, save_file
from tiny_training import few_images, fresh

from search_space import SearchSpace
from search_space.space_definition import space_from_dict
from supernet.training import objectives, precision
from supernet.training.config import TrainConfig
from supernet.training.parallel import Group
from supernet.training.train import train_supernet

_MIXERS = ["pooling", {"depthwise_conv": {"kernel": [3, 5]}}]
_ATTENTION = {"window_attention": {"window": 4, "head_dim": 8}}


def small_space(*, attention: bool = False) -> SearchSpace:
    """Quick to train; every kind of weight is in it, those of attention only where asked."""
    mixers = [*_MIXERS, *([_ATTENTION] if attention else [])]
    stages = [
        {"width": widths, "depth": [1, 2], "mixers": mixers, "mlp_ratio": [2, 4]}
        for widths in ([8, 16], [16], [16, 24], [24, 32])
    ]
    macro = {"stem_kernel": 2, "stem_stride": 2}
    plain = {"name": "small", "macro": macro, "resolution": 16, "stages": stages}
    return space_from_dict(plain)


@dataclass(frozen=True)
class Case:
    """A training; on worker ``broken[0]`` the loss is not a number in its call ``broken[1]``.

    Where losses are ``scaled``, that one is a number, but too large to be scaled.
    """

    config: TrainConfig
    attention: bool = False
    broken: tuple[int, int] | None = None
    scaled: bool = False


@dataclass
class Ended:
    """What a worker ended with: weights and figures of epochs, or an error."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


def train_pair(folder: Path, cases: Mapping[str, Case]) -> dict[str, list[Ended]]:
    """By case, what each of the two workers ended with."""
    multiprocessing.spawn(_work, (str(folder), dict(cases)), nprocs=2)
    ended: dict[str, list[Ended]] = {}
    for name in cases:
        ended[name] = []
        for rank in range(2):
            said = json.loads((folder / f"{name}-{rank}.json").read_text())
            weights = load_file(folder / f"{name}-{rank}.safetensors")
            ended[name].append(Ended(weights, **said))
    return ended


def _work(rank: int, folder: str, cases: dict[str, Case]) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    with Group.current().patient() as wait_for_all:
        wait_for_all()
    data = few_images()
    for name, case in cases.items():
        supernet = fresh(small_space(attention=case.attention))
        history, error = [], ""
        call = case.broken[1] if case.broken and case.broken[0] == rank else None
        with _broken(call, 1e36 if case.scaled else math.nan), _scaled(case.scaled):
            try:
                directory = Path(folder) / name if rank == 0 else None
                history = train_supernet(supernet, data, case.config, directory)
            except Exception as raised:
                error = f"{type(raised).__name__}: {raised}"
        said = {"history": [epoch.to_dict() for epoch in history], "error": error}
        (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(said))
        save_file(dict(supernet.state_dict()), f"{folder}/{name}-{rank}.safetensors")
    dist.destroy_process_group()


def _broken(call: int | None, factor: float) -> Any:
    calls, real = iter(range(10**9)), objectives.label_loss

    def loss(*arguments: Any) -> torch.Tensor:
        value = real(*arguments)
        return value * factor if next(calls) == call else value

    return mock.patch.object(objectives, "label_loss", loss)


def _scaled(on: bool) -> Any:
    half = torch.float16 if on else None
    return mock.patch.object(precision, "half_precision", return_value=half)
