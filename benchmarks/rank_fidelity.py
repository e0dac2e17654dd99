"""Does inherited accuracy rank networks as training them alone does, and with which strategy?

Subnets spread evenly over the logarithm of the space's MACs are trained alone from scratch with one
recipe; then a supernet is trained with each strategy, all for the same budget of images × MACs, and
the subnets are evaluated with its weights. Reported on the test split, which decides nothing else:
Kendall's τ and Spearman's ρ of inherited and stand-alone accuracy, over all subnets and inside
three bands of MACs, beside those of MACs themselves; the inherited accuracy of the smallest,
median and largest of them, how far that is from training alone, and wall time.

    python benchmarks/rank_fidelity.py --data FOLDER_OR_NAME [--strategies "sandwich;complexity"]
        [--space cifar] [--subnets 24] [--images 49000] [--alone-epochs 60] [--budget-epochs 60]
        [--device cuda] [--keep FOLDER] [--again 8]

``--again N`` trains N of the subnets alone once more from another seed. Their differences say how
uncertain a stand-alone accuracy is, and how well two such measurements of all subnets would agree:
no strategy can be expected to do better.

The reduced form, for a CPU, is the default: the extents of ``digits`` at 16 px, a fifth of the
images and few epochs. ``--budget-epochs`` is what the sandwich rule trains; the others get as many
epochs as cost the same. Figures go to ``benchmarks/results/rank_fidelity.json`` after each part,
and parts that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau, spearmanr

from predictors.counts import counts
from search_space import Architecture, SearchSpace, load_space
from search_space.errors import RunError
from search_space.space_definition import space_from_dict
from supernet import Supernet, build
from supernet.data.batches import steps_per_epoch
from supernet.data.dataset import ImageData, open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.recalibration import calibration_of, evaluate_subnet
from supernet.training.strategies import make_sampler
from supernet.training.tokenisation import TokenSchedule
from supernet.training.train import TrainConfig, evaluate, finetune, train_supernet

RESULTS = Path(__file__).parent / "results" / "rank_fidelity.json"
BANDS = 3
TOKENS = ((0.44, 2),)  # As-ViT ends with 56 % of the epochs at full resolution
SANDWICH: dict[str, Any] = {"strategy": "sandwich"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "sandwich": SANDWICH,
    "sandwich, predictions only": {**SANDWICH, "distillation": (1.0, 1.0)},
    "sandwich, labels only": {**SANDWICH, "distillation": (0.0, 0.0)},
    "uniform": {"strategy": "uniform"},
    "multi_architecture": {"strategy": "multi_architecture"},
    "complexity": {"strategy": "complexity"},
    "performance": {"strategy": "performance"},
    "sandwich, delayed": {**SANDWICH, "shrinking": "delayed"},
    "multi_architecture, delayed": {"strategy": "multi_architecture", "shrinking": "delayed"},
    "sandwich, progressive": {**SANDWICH, "shrinking": "progressive"},
    "sandwich, tokens": {**SANDWICH, "tokens": TOKENS},
    "sandwich, average": {**SANDWICH, "ema_decay": 0.998},
}


def reduced_space() -> SearchSpace:
    """The extents of ``digits`` at 16 px: networks that a CPU trains in a minute or two."""
    return space_from_dict(
        {**load_space("digits").to_dict(), "name": "digits-16", "resolution": [16]}
    )


def spread_subnets(space: SearchSpace, macs: Any, n: int) -> list[Architecture]:
    """The extremes and, between them, random ones at equal steps of log MACs, smallest first."""
    rng = np.random.default_rng(1)
    rows = space.sample(rng, 20000)
    # uniform choices rarely meet the ends: pull a part of the rows towards either
    for extreme in (space.smallest, space.largest):
        pulled = space.sample(rng, 20000)
        ends = np.repeat(space.encode([extreme]), len(pulled), axis=0)
        rows = np.concatenate([rows, space.crossover(ends, pulled, rng)])
    cost = np.log(macs.predict(rows))
    low, high = np.log(macs.predict(space.encode([space.smallest, space.largest])))
    picks = [int(np.argmin(np.abs(cost - c))) for c in np.linspace(low, high, n)[1:-1]]
    return [space.smallest, *space.decode(rows[picks]), space.largest]


def cost_of_epoch(
    space: SearchSpace, config: TrainConfig, macs: Any, steps: int, batch_size: int, epochs: int
) -> float:
    """Images × MACs of an epoch's forward passes, mean over ``epochs``."""
    total_steps = steps * epochs
    sampler = make_sampler(space, config, total_steps, macs.predict)
    tokens = TokenSchedule(config.tokens)
    sampled = np.linspace(0, total_steps - 1, min(400, total_steps)).astype(int)
    total = 0.0
    for step in sampled:
        subnets = sampler(int(step))
        cost = macs.predict(space.encode([subnet.architecture for subnet in subnets]))
        share = np.array([1 / subnet.part[1] for subnet in subnets])
        total += float((cost * share).sum()) / tokens.factor(step / total_steps) ** 2
    return total / len(sampled) * steps * batch_size


def equal_epochs(
    space: SearchSpace, config: TrainConfig, macs: Any, steps: int, budget: float
) -> int:
    """Epochs whose cost comes closest to ``budget``; what an epoch costs may depend on them."""
    best, error = 1, np.inf
    for epochs in range(1, 400):
        cost = epochs * cost_of_epoch(space, config, macs, steps, config.batch_size, epochs)
        if abs(cost - budget) < error:
            best, error = epochs, abs(cost - budget)
        elif cost > 1.5 * budget:
            break
    return best


def agreement(guide: Sequence[float], alone: list[float], cost: np.ndarray) -> dict[str, Any]:
    """How well ``guide`` orders the subnets, over all and inside bands of ``cost``."""
    bands = [
        float(kendalltau(np.take(guide, part), np.take(alone, part)).statistic)
        for part in np.array_split(np.argsort(cost), BANDS)
    ]
    return {
        "kendall_tau": float(kendalltau(guide, alone).statistic),
        "spearman_rho": float(spearmanr(guide, alone).statistic),
        "kendall_tau_in_bands": bands,
    }


def ranks(inherited: list[float], alone: list[float], cost: np.ndarray) -> dict[str, Any]:
    order = np.argsort(cost)
    gaps = np.array(inherited) - np.array(alone)
    return {
        **agreement(inherited, alone, cost),
        "inherited_smallest": inherited[int(order[0])],
        "inherited_median": float(np.median(inherited)),
        "inherited_largest": inherited[int(order[-1])],
        "mean_gap_to_alone": float(gaps.mean()),
    }


def repeatability(first: list[dict[str, Any]], again: list[dict[str, Any]]) -> dict[str, float]:
    """How well a second training of all subnets would agree with the first, by a part of it.

    Two measurements differ by twice the variance of one; such differences, drawn a thousand times,
    are added to the first.
    """
    accuracy = {item["digest"]: item["accuracy"] for item in first}
    deviation = float(
        np.sqrt(np.mean([(item["accuracy"] - accuracy[item["digest"]]) ** 2 for item in again]))
    )
    rng, alone = np.random.default_rng(0), np.array(list(accuracy.values()))
    taus = [
        kendalltau(alone, alone + rng.normal(0, deviation, len(alone))).statistic
        for _ in range(1000)
    ]
    return {
        "deviation_of_difference": deviation,
        "networks_trained_again": len(again),
        "expected_kendall_tau": float(np.mean(taus)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--space", help="default: the reduced one")
    parser.add_argument("--strategies", default=";".join(STRATEGIES))
    parser.add_argument("--subnets", type=int, default=24)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--again", type=int, default=0, help="subnets to train alone once more")
    parser.add_argument("--alone-epochs", type=int, default=20)
    parser.add_argument("--budget-epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="folder for the trained supernets")
    parser.add_argument(
        "--supernets-only", action="store_true", help="train and keep, beside another process"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    space = load_space(options.space) if options.space else reduced_space()
    data = open_images(options.data, space, options.images)
    test = eval_batches(data.test, 500)
    macs = counts(space, data.num_classes)["macs"]
    subnets = spread_subnets(space, macs, options.subnets)
    cost = macs.predict(space.encode(subnets))
    shared = {
        "batch_size": options.batch_size,
        "lr": options.lr,
        "weight_decay": 0.05,
        "warmup_epochs": 0.5,
        "label_smoothing": 0.1,
        "seed": options.seed,
        "evaluations": 1,
    }
    settings = {
        "space": space.digest,
        "data": data.fingerprint,
        "images": len(data.train),
        "test_images": len(data.test),
        "alone_epochs": options.alone_epochs,
        "device": options.device,
        **shared,
    }
    content: dict[str, Any] = {"settings": settings, "alone": [], "strategies": {}}
    if options.results.exists():
        stored = json.loads(options.results.read_text())
        if stored["settings"] == settings:
            content = stored

    def save() -> None:
        content["date"] = datetime.now(UTC).isoformat(timespec="seconds")
        content["versions"] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        options.results.write_text(json.dumps(content, indent=1) + "\n")

    def train_alone(index: int, seed: int) -> dict[str, Any]:
        architecture, network_macs = subnets[index], float(cost[index])
        torch.manual_seed(seed)
        network = build(architecture, data.num_classes)
        config = TrainConfig(epochs=options.alone_epochs, **{**shared, "seed": seed})
        started = time.perf_counter()
        finetune(network, data, config, device=options.device)
        seconds = time.perf_counter() - started
        accuracy = evaluate(network, test).accuracy
        print(f"alone {network_macs / 1e6:6.2f}M  {accuracy:.2%}  {seconds:.0f} s", flush=True)
        return {
            "digest": architecture.digest,
            "macs": network_macs,
            "accuracy": accuracy,
            "seconds": round(seconds, 1),
        }

    def missing(part: str) -> list[int]:
        known = {item["digest"] for item in content.get(part, [])}
        return [i for i, architecture in enumerate(subnets) if architecture.digest not in known]

    for index in [] if options.supernets_only else missing("alone"):
        content["alone"].append(train_alone(index, options.seed))
        save()
    spread = set(np.linspace(0, len(subnets) - 1, options.again).astype(int))
    for index in sorted(spread & set(missing("again"))):
        content.setdefault("again", []).append(train_alone(index, options.seed + 1))
        save()
    if "again" in content:
        content["repeatability"] = repeatability(content["alone"], content["again"])
        save()
    steps = steps_per_epoch(data, options.batch_size)
    plain = TrainConfig(epochs=options.budget_epochs, **shared, **SANDWICH)
    budget = options.budget_epochs * cost_of_epoch(
        space, plain, macs, steps, options.batch_size, options.budget_epochs
    )
    for name in filter(None, options.strategies.split(";")):
        if content["strategies"].get(name, {}).get("budget_epochs") == options.budget_epochs:
            continue
        changes = STRATEGIES[name]
        try:
            TokenSchedule(changes.get("tokens", ())).check(space.macro, min(space.resolutions))
        except RunError as error:
            print(f"{name}: left out, {error}")
            continue
        epochs = equal_epochs(space, TrainConfig(**shared, **changes), macs, steps, budget)
        config = TrainConfig(epochs=epochs, **shared, **changes)
        torch.manual_seed(options.seed)
        supernet = Supernet(space, data.num_classes)
        folder = None if options.keep is None else options.keep / name.replace(", ", "-")
        history = train_supernet(
            supernet, data, config, folder, cost=macs.predict, device=options.device
        )
        seconds = sum(epoch.seconds for epoch in history)
        if options.supernets_only:
            print(f"{name}: {epochs} epochs, {seconds:.0f} s", flush=True)
            continue
        alone = {item["digest"]: item["accuracy"] for item in content["alone"]}
        accuracies = [alone[architecture.digest] for architecture in subnets]
        supernet.eval()
        shown = calibration_of(space, data, config)
        inherited = [evaluate_subnet(supernet, a, test, shown).accuracy for a in subnets]
        spent = epochs * cost_of_epoch(space, config, macs, steps, options.batch_size, epochs)
        content["strategies"][name] = {
            "budget_epochs": options.budget_epochs,
            "epochs": epochs,
            "spent": spent / budget,
            "seconds": round(seconds, 1),
            **ranks(inherited, accuracies, cost),
            "inherited": inherited,
        }
        print(name, {k: v for k, v in content["strategies"][name].items() if k != "inherited"})
        save()
    if not options.supernets_only:
        alone = {item["digest"]: item["accuracy"] for item in content["alone"]}
        accuracies = [alone[architecture.digest] for architecture in subnets]
        content["macs"] = agreement(list(cost), accuracies, cost)
        save()
    print(options.results)


def open_images(source: str, space: SearchSpace, images: int) -> ImageData:
    """The data with about ``images`` for training; the rest of its training split is not used."""
    everything = open_data(source, space.resolutions[-1], validation_fraction=0.02)
    total = len(everything.train) + len(everything.validation)
    if images >= len(everything.train):
        return everything
    return open_data(source, space.resolutions[-1], validation_fraction=1 - images / total)


if __name__ == "__main__":
    main()
