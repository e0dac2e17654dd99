"""Do the proxies order networks as their published ImageNet accuracies do?

Kendall's τ of every proxy with the top-1 accuracies of 55 four-stage networks of eleven families
(``benchmarks/data/imagenet_accuracy.csv``: trained on ImageNet-1k at 224 px, as published with
timm), over all of them and inside bands of MACs, with bootstrap intervals over the networks.

    python benchmarks/proxy_fidelity.py [--sampled] [--repeats 1]

The default score is a weighted mean of three standardised logarithms. Which is a choice that saw
accuracies, so it is also judged by 88 networks of 19 further families
(``imagenet_accuracy_others.csv``: multi-stage networks that were trained on ImageNet-1k alone,
without distillation, at the side of 224 or 256 px that timm reports), and with families held out of
all 143: for each family the best sum on the other families is taken, and judged by the pairs of
networks that this family is in.

``--sampled`` adds the proxies that run the networks (minutes to hours on a CPU); their figures
are kept in ``benchmarks/results/proxy_fidelity.json`` when it is left out later.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predictors.proxies import Network, ScoreSettings, proxy, proxy_names
from predictors.proxies.combined import REFERENCE, combined_score
from predictors.proxies.deepmad import (
    effectiveness_of_ends,
    final_effectiveness,
    score_of_ends,
    stage_ends,
)

Values = npt.NDArray[np.float64]
DATA = Path(__file__).parent / "data"
OUT = Path(__file__).parent / "results" / "proxy_fidelity.json"
BANDS = (0.0, 3e9, 6e9, 12e9, 40e9)
BAND_NAMES = ("0–3 G", "3–6 G", "6–12 G", "12–40 G")
RESAMPLES = 1000


def networks(name: str) -> list[tuple[Network, float, str]]:
    """Network, top-1 accuracy and family of each line of a file of ``benchmarks/data``."""
    with (DATA / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(Network.of_timm(row["model"]), float(row["top1"]), row["family"]) for row in rows]


def closed_forms(all_networks: list[Network]) -> dict[str, Values]:
    """Measures of structure, by name, shape (networks,) each."""
    rows = []
    for network in all_networks:
        structure = network.structure
        ends = stage_ends(structure)
        rows.append(
            {
                "num_params": structure.num_params,
                "macs": structure.macs,
                "activations": structure.activations,
                "layers": structure.path.layers,
                "entropy": structure.path.entropy,
                "deepmad": score_of_ends(ends),
                "effectiveness": effectiveness_of_ends(ends),
                "final_effectiveness": final_effectiveness(ends),
            }
        )
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]}


class Truth:
    """Accuracies, and how well scores order them.

    Args:
        accuracy: shape (networks,).
        macs: shape (networks,).
    """

    def __init__(self, accuracy: Values, macs: Values) -> None:
        self.n = len(accuracy)
        self.sign = np.sign(accuracy[:, None] - accuracy)
        self.band = np.digitize(macs, BANDS) - 1
        self.log_macs = np.log(macs)
        self.accuracy = accuracy
        upper = np.triu(np.ones((self.n, self.n), dtype=bool), 1)
        same = self.band[:, None] == self.band
        self.masks = {"all": upper} | {
            name: upper & same & (self.band == i)[:, None] for i, name in enumerate(BAND_NAMES)
        }

    def concordance(self, score: Values) -> Values:
        """1 for pairs in the right order, −1 for those in the wrong one; (networks, networks)."""
        return np.sign(score[:, None] - score) * self.sign

    def taus(self, concordance: Values, weights: Values | None = None) -> dict[str, float]:
        """Kendall's τ over all pairs and per band; networks may count several times or not."""
        pairs = np.ones((self.n, self.n)) if weights is None else np.outer(weights, weights)
        result = {}
        for name, mask in self.masks.items():
            total = pairs[mask].sum()
            result[name] = float((concordance * pairs)[mask].sum() / total) if total else 0.0
        return result

    def intervals(self, concordance: Values) -> dict[str, list[float]]:
        """95 % intervals of the same, by drawing networks with replacement."""
        rng = np.random.default_rng(0)
        drawn = [
            self.taus(concordance, np.bincount(rng.integers(self.n, size=self.n), minlength=self.n))
            for _ in range(RESAMPLES)
        ]
        return {
            name: [float(q) for q in np.quantile([d[name] for d in drawn], (0.025, 0.975))]
            for name in self.masks
        }

    def residual(self, score: Values) -> float:
        """τ between what is left of score and accuracy after a line in log MACs."""
        design = np.stack([np.ones(self.n), self.log_macs], axis=1)

        def left(values: Values) -> Values:
            rest: Values = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
            return rest

        rest, truth = left(score), left(self.accuracy)
        signs = np.sign(rest[:, None] - rest) * np.sign(truth[:, None] - truth)
        return float(signs[self.masks["all"]].mean())

    def judged(self, score: Values) -> dict[str, Any]:
        concordance = self.concordance(score)
        return {
            "tau": self.taus(concordance),
            "interval": self.intervals(concordance),
            "residual": self.residual(score),
        }


def judge(truth: Truth, measures: dict[str, Values]) -> dict[str, Any]:
    """Every measure and the default score, judged by ``truth`` and printed."""
    results = {name: truth.judged(np.log(values)) for name, values in measures.items()}
    combined = combined_score(
        measures["num_params"], measures["activations"], measures["final_effectiveness"]
    )
    results["combined (the default)"] = truth.judged(combined)
    print(f"{truth.n} networks, by band: {np.bincount(truth.band).tolist()}")
    for name, result in results.items():
        print(line(name, result))
    return results


def sums(measures: dict[str, Values]) -> dict[str, Values]:
    """Every sum of one to three standardised logarithms, with weights 1 or 2."""
    logs = {name: np.log(values) for name, values in measures.items()}
    standard = {name: (v - v.mean()) / v.std() for name, v in logs.items()}
    result = {}
    for k in (1, 2, 3):
        for names in itertools.combinations(standard, k):
            for weights in itertools.product((1, 2), repeat=k):
                if min(weights) == 1:  # 2, 2 is 1, 1
                    label = " + ".join(
                        name if w == 1 else f"{w} {name}"
                        for w, name in zip(weights, names, strict=True)
                    )
                    result[label] = sum(
                        (w * standard[n] for w, n in zip(weights, names, strict=True)),
                        start=np.zeros(len(next(iter(logs.values())))),
                    )
    return result


def held_out(
    truth: Truth, candidates: dict[str, Values], families: npt.NDArray[np.str_]
) -> dict[str, Any]:
    """τ of the sums that are best without the family that a pair is judged for."""
    concordances = {name: truth.concordance(score) for name, score in candidates.items()}
    total, count = np.zeros((truth.n, truth.n)), np.zeros((truth.n, truth.n))
    chosen = {}

    def quality(name: str, weights: Values) -> float:
        taus = truth.taus(concordances[name], weights)
        return taus["all"] + (taus["3–6 G"] + taus["6–12 G"]) / 2

    for family in dict.fromkeys(families.tolist()):
        inside = families == family
        kept = (~inside).astype(np.float64)
        best = max(concordances, key=lambda name: quality(name, kept))
        involved = inside[:, None] | inside
        total += np.where(involved, concordances[best], 0)
        count += involved
        chosen[family] = best
    mean = total / np.maximum(count, 1)
    return {"tau": truth.taus(mean), "interval": truth.intervals(mean), "chosen": chosen}


def timed(score: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.monotonic()
    result = score()
    return result, time.monotonic() - begin


def sampled(
    name: str, all_networks: list[Network], settings: ScoreSettings
) -> tuple[Values, dict[str, str], float]:
    """Scores of a proxy that runs networks (NaN where undefined), reasons, seconds."""
    values, reasons, seconds = [], {}, 0.0
    for i, network in enumerate(all_networks):
        score, took = timed(lambda network=network: proxy(name).score(network, settings))
        seconds += took
        values.append(np.nan if score.value is None else score.value)
        if score.value is None:
            reasons[network.name] = score.reason
        print(f"\r{name}: {i + 1} of {len(all_networks)}, {seconds:.0f} s", end="", flush=True)
    print()
    return np.array(values), reasons, seconds


def line(name: str, result: dict[str, Any]) -> str:
    cells = []
    for band, value in result["tau"].items():
        low, high = result["interval"][band]
        cells.append(f"{value:5.2f} ({low:5.2f} … {high:5.2f})")
    residual = f"{result['residual']:6.2f}" if "residual" in result else ""
    return f"{name:32}" + "  ".join(cells) + residual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--sampled", action="store_true")
    parser.add_argument("--proxies", default=None, help="of the sampled ones, by name")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    stored = json.loads(OUT.read_text("utf-8")) if OUT.exists() else {}
    rows, others = networks("imagenet_accuracy"), networks("imagenet_accuracy_others")
    all_networks = [network for network, _, _ in rows]
    accuracy = np.array([top1 for _, top1, _ in rows + others])
    families = np.array([family for _, _, family in rows + others])
    together = closed_forms([network for network, _, _ in rows + others])
    measures = {name: values[: len(rows)] for name, values in together.items()}
    truth = Truth(accuracy[: len(rows)], measures["macs"])
    print(f"{'':32}" + "  ".join(f"{name:21}" for name in truth.masks) + "residual")
    results = judge(truth, measures)
    unseen = {name: values[len(rows) :] for name, values in together.items()}
    of_others = judge(Truth(accuracy[len(rows) :], unseen["macs"]), unseen)
    everything = Truth(accuracy, together["macs"])
    of_all = judge(everything, together)
    parts = {name: values for name, values in together.items() if name != "effectiveness"}
    held = held_out(everything, sums(parts), families)
    print(line("default, chosen without family", held))
    print("chosen:", held["chosen"])
    reference = {
        name: [float(np.log(measures[name]).mean()), float(np.log(measures[name]).std())]
        for name in REFERENCE
    }
    largest = float(measures["final_effectiveness"].max())
    print("reference of the default:", reference, "largest ρ:", largest)
    runs: dict[str, Any] = dict(stored.get("sampled", {}))
    if options.sampled:
        settings = ScoreSettings(
            repeats=options.repeats, batch_size=options.batch_size, device=options.device
        )
        names = [n for n in proxy_names() if not proxy(n).closed_form]
        for name in options.proxies.split(",") if options.proxies else names:
            values, reasons, seconds = sampled(name, all_networks, settings)
            runs[name] = {
                "undefined": reasons,
                "seconds": round(seconds, 1),
                "repeats": settings.repeats,
                "batch_size": settings.batch_size,
                "values": [None if np.isnan(v) else float(v) for v in values],
            }
            store({"sampled": runs}, stored)
    for name, run in runs.items():
        values = np.array([np.nan if v is None else v for v in run["values"]])
        score = values if proxy(name).larger_is_better else -values
        defined = np.isfinite(score)
        # a network without a score is ranked last
        run |= truth.judged(np.where(defined, score, np.nanmin(score, initial=0.0) - 1))
        agreement = np.nan_to_num(truth.concordance(score))
        run["tau_of_defined"] = truth.taus(agreement, defined.astype(np.float64))
        print(line(name, run))
    store(
        {
            "networks": [network.name for network in all_networks],
            "bands": dict(zip(BAND_NAMES, np.bincount(truth.band).tolist(), strict=True)),
            "closed_form": results,
            "other_families": {
                "networks": [network.name for network, _, _ in others],
                "closed_form": of_others,
            },
            "all_families": {"closed_form": of_all},
            "held_out": held,
            "reference": reference,
            "largest_effectiveness": largest,
            "sampled": runs,
        },
        stored,
    )
    print(f"written to {OUT}")


def store(part: dict[str, Any], stored: dict[str, Any]) -> None:
    stored |= part
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
