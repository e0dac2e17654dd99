"""Do gradients say which components suffer from int8?

Each component of two trained networks is put in int8 alone; what that costs on test images is
compared, by Kendall's τ, with what one backward pass of other images says of it
(``supernet.quantisation.sensitivity``): scores of rounding and relevances. Costs are the divergence
from the float network, and the increase of the loss, which at 8 bits is mostly noise.

    python benchmarks/sensitivity.py --data FOLDER

The networks are those of ``quantisers.py``. It takes a minute and a half of one core. Figures go to
``benchmarks/results/sensitivity.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from pretrained_setup import store_images
from quality_table import _tau
from quantisers import TRAIN, batches, lite0, windows

from search_space.precision import in_precision
from supernet import Backbone
from supernet.data.dataset import ImageData
from supernet.quantisation.calibration import quantised_network
from supernet.quantisation.sensitivity import relevances, rounding_scores

RESULTS = Path(__file__).parent / "results" / "sensitivity.json"
SEEN, TEST = 128, 256


@torch.no_grad()
def measured(
    network: Backbone, quantised: Backbone, paths: list[str], data: ImageData
) -> tuple[list[float], list[float]]:
    """Divergence and increase of the loss by each component alone, nats."""
    pictures, labels = batches(data.test, TEST)
    wanted = network(pictures)
    before = float(F.cross_entropy(wanted, labels))
    shares = wanted.softmax(1)
    divergences, increases = [], []
    for path in paths:
        mixed = copy.deepcopy(network)
        mixed.set_submodule(path, quantised.get_submodule(path))
        logits = mixed.eval()(pictures)
        divergences.append(float(F.kl_div(logits.log_softmax(1), shares, reduction="batchmean")))
        increases.append(float(F.cross_entropy(logits, labels)) - before)
    return divergences, increases


def compare(network: Backbone, data: ImageData) -> dict[str, Any]:
    seen = batches(data.train, SEEN)[0]
    architecture = in_precision(network.architecture, "int8")
    quantised = quantised_network(network.eval(), architecture, [seen]).eval()
    scores = rounding_scores(network, quantised, seen)
    shares = relevances(network, seen)
    paths = list(scores)
    divergences, increases = measured(network, quantised, paths, data)
    tau = {
        f"{name}, {cost}": round(_tau([found[path] for path in paths], real), 3)
        for name, found in (("rounding scores", scores), ("relevances", shares))
        for cost, real in (("divergence", divergences), ("increase of the loss", increases))
    }
    print(tau, flush=True)
    rows = zip(paths, divergences, increases, strict=True)
    return {
        "kendall_tau": tau,
        "components": [
            {
                "path": path,
                "divergence": round(divergence, 6),
                "loss_increase": round(increase, 6),
                "rounding_score": round(scores[path], 6),
                "relevance": round(shares[path], 5),
            }
            for path, divergence, increase in rows
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    results: dict[str, Any] = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
    results["windows"] = compare(*windows())
    with TemporaryDirectory() as folder:
        out = Path(folder)
        store_images(Namespace(out=out, data=data, images=TRAIN, test_images=2 * TEST))
        results["lite0"] = compare(*lite0(out))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
