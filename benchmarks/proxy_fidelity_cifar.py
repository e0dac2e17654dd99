"""Do the proxies order small networks as their accuracies on CIFAR-10 do?

The accuracies are those of networks trained alone from scratch, one recipe for all, that
``benchmarks/rank_fidelity.py`` left in its results. Kendall's τ of every proxy with them, over all
networks and as the mean of three bands of MACs, with bootstrap intervals over the networks.

    python benchmarks/proxy_fidelity_cifar.py [--repeats 3] [--proxies combined,zico]

Figures go to ``benchmarks/results/proxy_fidelity_cifar.json``, where those of proxies that are not
named stay as they are.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rank_fidelity import BANDS, RESULTS, reduced_space, spread_subnets
from scipy.stats import kendalltau

from predictors.counts import counts
from predictors.proxies import Network, ScoreSettings, proxy, proxy_names

Values = npt.NDArray[np.float64]
OUT = Path(__file__).parent / "results" / "proxy_fidelity_cifar.json"
RESAMPLES = 1000
CLASSES = 10


def tau(score: Values, accuracy: Values) -> float:
    return float(kendalltau(score, accuracy).statistic)


def judged(score: Values, accuracy: Values, macs: Values) -> dict[str, Any]:
    bands = np.array_split(np.argsort(macs), BANDS)
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(score), size=len(score)) for _ in range(RESAMPLES)]
    return {
        "tau": tau(score, accuracy),
        "interval": [
            float(q)
            for q in np.nanquantile([tau(score[d], accuracy[d]) for d in drawn], (0.025, 0.975))
        ],
        "tau_in_bands": float(np.mean([tau(score[band], accuracy[band]) for band in bands])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--proxies", default=None, help="by name; default: all")
    options = parser.parse_args()
    alone = json.loads(RESULTS.read_text("utf-8"))["alone"]
    accuracies = {item["digest"]: item["accuracy"] for item in alone}
    space = reduced_space()
    table = counts(space, CLASSES)
    subnets = spread_subnets(space, table["macs"], len(alone))
    missing = [a.digest for a in subnets if a.digest not in accuracies]
    if missing:
        raise SystemExit(f"{RESULTS} lacks {', '.join(missing)}; finish rank_fidelity.py first")
    accuracy = np.array([accuracies[a.digest] for a in subnets])
    rows = space.encode(subnets)
    found = {
        name: judged(table[name].predict(rows), accuracy, table["macs"].predict(rows))
        for name in ("macs", "num_params", "activations")
    }
    settings = ScoreSettings(repeats=options.repeats)
    for name in options.proxies.split(",") if options.proxies else proxy_names():
        scores = [
            proxy(name).score(Network.of_architecture(a, CLASSES), settings).value for a in subnets
        ]
        if None in scores:
            print(f"{name}: not defined for {scores.count(None)} of {len(scores)}")
            continue
        sign = 1 if proxy(name).larger_is_better else -1
        values = sign * np.array(scores, dtype=np.float64)
        found[name] = judged(values, accuracy, table["macs"].predict(rows))
    for name, result in found.items():
        low, high = result["interval"]
        print(
            f"{name:20} {result['tau']:5.2f} ({low:5.2f} … {high:5.2f})"
            f"  in bands {result['tau_in_bands']:5.2f}"
        )
    stored = json.loads(OUT.read_text("utf-8"))["proxies"] if OUT.exists() else {}
    content = {"networks": len(subnets), "repeats": options.repeats, "proxies": stored | found}
    OUT.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
