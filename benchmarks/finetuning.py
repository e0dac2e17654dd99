"""At which learning rate does a subnet gain most from a short fine-tuning?

Random subnets of a trained supernet on ``digits`` are fine-tuned at several peak rates; loss and
accuracy on the validation and the test split before and after, means over the subnets.

    nas train --data digits --name digits-supernet
    python benchmarks/finetuning.py --run runs/digits-supernet [--subnets 8]

Figures go to ``benchmarks/results/finetuning.json``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from nas.resolving import resolve
from supernet import Supernet
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.train import evaluate, finetune

RATES = (1 / 8, 1 / 2, 1.0, 2.0)  # times the supernet's
RESULTS = Path(__file__).parent / "results" / "finetuning.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--subnets", type=int, default=8)
    options = parser.parse_args()
    config = resolve({"data": "digits"}, with_budget=False)
    space = config.search_space()
    data = open_data("digits", space.resolutions[-1], seed=config.seed)
    checkpoint = CheckpointFolder(options.run / "supernet" / "checkpoints").newest()
    if checkpoint is None:
        parser.error(f"{options.run} has no trained supernet")
    supernet = Supernet(space, data.num_classes).eval()
    supernet.load_state_dict(checkpoint.trained_weights())
    rng = np.random.default_rng(5)
    subnets = [supernet.extract(a) for a in space.decode(space.sample(rng, options.subnets))]
    splits = {
        "validation": list(eval_batches(data.validation)),
        "test": list(eval_batches(data.test)),
    }

    def quality(networks: list[nn.Module]) -> dict[str, float]:
        found = {
            name: [evaluate(network, batches) for network in networks]
            for name, batches in splits.items()
        }
        result = {f"{name}_loss": [q.loss for q in each] for name, each in found.items()}
        result |= {f"{name}_accuracy": [q.accuracy for q in each] for name, each in found.items()}
        return {name: round(float(np.mean(values)), 5) for name, values in result.items()}

    rows: list[dict[str, Any]] = [{"lr": 0.0, **quality(list(subnets))}]
    print(rows[-1], flush=True)
    for rate in RATES:
        recipe = replace(config.finetune, lr=config.train.lr * rate)
        networks = [supernet.extract(subnet.architecture) for subnet in subnets]
        for network in networks:
            finetune(network, data, recipe)
        rows.append({"lr": recipe.lr, **quality(list(networks))})
        print(rows[-1], flush=True)
    content = {
        "subnets": options.subnets,
        "epochs": config.finetune.epochs,
        "supernet_lr": config.train.lr,
        "supernet_epochs": len(checkpoint.metadata["state"]["history"]),
        "torch": torch.__version__,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(RESULTS)


if __name__ == "__main__":
    main()
