"""Does a quality table predict what assembled networks lose?

Two parents, one of inverted residuals with batch norms and one of window attention, are trained on
digits in seconds; the alternatives around each are cut out of it; half of the held-out images makes
the table, and the other half says what random networks around the parent, recalibrated each by
itself, really lose. Reported for each parent, as means over seeds: Kendall's τ of predicted and
real cross entropy over all networks and over the better half of them,

- with averages of batch norms as the modules have them, and made anew after each change;
- by the measured increase of the loss, by the divergence from the parent, and by both;

and how a surrogate ranks the other networks after some of them were evaluated: a process alone, one
that has the table as prior, and the table alone.

    python benchmarks/quality_table.py [--seeds 3] [--networks 75] [--known 25]

It takes two minutes of one core. Figures go to ``benchmarks/results/quality_table.json``.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau

from predictors.measuring.quality import measure_quality
from predictors.surrogates import GaussianProcess, Surrogate, WithPrior
from predictors.tables.quality import Measure
from search_space import Architecture, Genes
from search_space.around import Around, around
from search_space.space_definition import space_from_dict
from supernet import build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.network.backbone import Backbone
from supernet.training.recalibration import recalibrate

RESULTS = Path(__file__).parent / "results" / "quality_table.json"
EPOCHS, RATE, BATCH, SMOOTHING, NOISE = 8, 3e-3, 64, 0.1, 0.1
HELD_OUT = 3  # one image of so many
CALIBRATION = 256
_CONVOLUTIONS = {
    **{"stem": "conv_act", "stem_kernel": 3, "stem_stride": 1, "stem_width": 12},
    **{"downsample": "block", "norm": "batch_norm", "head_norm": "none"},
}
_WINDOWS = {"window_attention": {"window": 4, "head_dim": 8, "mlp_ratio": 3}}


def _mobile(kernel: int) -> list[Any]:
    return [{"inverted_residual": {"expansion": 4, "kernel": kernel}}]


PARENTS: dict[str, dict[str, Any]] = {
    "convolutions": {
        "macro": _CONVOLUTIONS,
        "stages": [
            {"width": 16, "depth": 2, "stride": 2, "choices": _mobile(3)},
            {"width": 24, "depth": 3, "stride": 2, "choices": _mobile(5)},
            {"width": 32, "depth": 3, "stride": 1, "choices": _mobile(3)},
        ],
    },
    "windows": {
        "macro": {"stem_kernel": 2, "stem_stride": 2},
        "stages": [
            {"width": 24, "depth": 2, "choices": [{"depthwise_conv": {"kernel": 5}}]},
            {"width": 40, "depth": 4, "choices": [_WINDOWS]},
        ],
    },
}
Images = tuple[torch.Tensor, torch.Tensor]


def parent_architecture(name: str) -> Architecture:
    return space_from_dict({"name": name, "resolution": 16, **PARENTS[name]}).largest


def trained(architecture: Architecture, images: Images, seed: int) -> Backbone:
    torch.manual_seed(seed)
    pictures, labels = images
    network = build(architecture, 10).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels))[: len(labels) // BATCH * BATCH].split(BATCH):
            noisy = pictures[rows] + NOISE * torch.randn_like(pictures[rows])
            loss = F.cross_entropy(network(noisy), labels[rows], label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def drawn(bank: WeightBank, count: int, rng: np.random.Generator) -> Genes:
    """Networks with any share of the parent's blocks changed, in the order of the draw."""
    own = bank.space.encode([bank.parent])
    rows = bank.space.sample(rng, 2 * count)
    rows = np.where(rng.random(rows.shape) > rng.uniform(0.1, 1, (len(rows), 1)), own, rows)
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)][:count]


@torch.no_grad()
def real_losses(bank: WeightBank, rows: Genes, calibration: list[Images], seen: Images) -> Any:
    losses = []
    for architecture in bank.space.decode(rows):
        network = bank.extract(architecture).eval()
        recalibrate(network, calibration)
        losses.append(float(F.cross_entropy(network(seen[0]), seen[1])))
    return np.array(losses)


def compare(name: str, seed: int, networks: int, known: int) -> dict[str, float]:
    """Kendall τ by what is predicted, of one parent and seed."""
    batches = list(eval_batches(open_data("digits", 16).train))
    pictures, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    held = torch.arange(len(labels)) % HELD_OUT == 0
    train, rest = (pictures[~held], labels[~held]), (pictures[held], labels[held])
    table_images = [(rest[0][::2], rest[1][::2])]
    calibration = list(zip(*(part[:CALIBRATION].split(128) for part in train), strict=True))
    parent = trained(parent_architecture(name), train, seed)
    bank = WeightBank(around(parent.architecture, Around(resolutions=())), parent).eval()
    cut_alternatives(bank, calibration)
    rows = drawn(bank, networks, np.random.default_rng(seed))
    real = real_losses(bank, rows, calibration, (rest[0][1::2], rest[1][1::2]))
    better = np.argsort(real)[: len(real) // 2]
    result = {"parent's accuracy": 0.0, "networks' median loss": float(np.median(real))}
    for averages, images in (("averages kept", None), ("averages made anew", calibration)):
        table = measure_quality(
            bank, lambda side: table_images, None if images is None else lambda side: calibration
        )
        result["parent's accuracy"] = table.accuracy
        for measure in get_args(Measure):
            predicted = table.compile(bank.space, measure).predict(rows)
            result[f"{averages}, {measure}"] = _tau(predicted, real)
            result[f"{averages}, {measure}, better half"] = _tau(predicted[better], real[better])
    loss = table.compile(bank.space).predict
    surrogates: dict[str, Surrogate] = {
        "process alone": GaussianProcess(bank.space),
        "process with the table as prior": WithPrior(GaussianProcess(bank.space, [loss]), loss),
    }
    for name_of, model in surrogates.items():
        model.fit(rows[:known], real[:known])
        result[f"others, {name_of}"] = _tau(model.predict(rows[known:]).mean, real[known:])
    result["others, table alone"] = _tau(loss(rows[known:]), real[known:])
    return result


def _tau(predicted: Any, real: Any) -> float:
    return float(kendalltau(predicted, real).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", type=int, default=75)
    parser.add_argument("--known", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **vars(options),
        "kendall_tau": {},
    }
    for name in PARENTS:
        figures: dict[str, list[float]] = defaultdict(list)
        for seed in range(options.seeds):
            for key, value in compare(name, seed, options.networks, options.known).items():
                figures[key].append(value)
        results["kendall_tau"][name] = {
            key: {"mean": round(float(np.mean(values)), 3), "each": [round(v, 3) for v in values]}
            for key, values in figures.items()
        }
        for key, values in figures.items():
            print(f"{name}: {key}: {np.mean(values):.3f}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
