"""Accuracy of every architecture of a small space on CIFAR-10, with weights of one supernet.

    python benchmarks/rank_fidelity.py --data FOLDER_OR_NAME --strategies sandwich --keep FOLDER
    python benchmarks/tabulate_space.py --data FOLDER_OR_NAME --supernet FOLDER/sandwich

The space is ``benchmarks/data/cifar_part.yaml``, a part of the one that the supernet was trained
on. The table, ``benchmarks/data/cifar_part.parquet``, is what ``search_quality.py --table``
searches: a problem of real accuracies whose best front is known.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import pandas as pd
from rank_fidelity import reduced_space

from search.samplers.base import enumerate_rows
from search_space import load_space
from supernet import Supernet
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.train import CHECKPOINTS, evaluate

DATA = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--supernet", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    whole, part = reduced_space(), load_space(str(DATA / "cifar_part.yaml"))
    data = open_data(options.data, whole.resolutions[-1])
    checkpoint = CheckpointFolder(options.supernet / CHECKPOINTS).newest()
    if checkpoint is None:
        raise SystemExit(f"{options.supernet} holds no trained supernet")
    supernet = Supernet(whole, data.num_classes)
    supernet.load_state_dict(checkpoint.trained_weights())
    supernet.to(options.device).eval()
    batches = list(eval_batches(data.test, 500, limit=options.images))
    architectures = part.decode(enumerate_rows(part))
    rows, started = [], time.monotonic()
    for i, architecture in enumerate(architectures):
        quality = evaluate(supernet, batches, architecture=architecture, device=options.device)
        text = json.dumps(architecture.to_dict())
        rows.append({"architecture": text, "accuracy": quality.accuracy, "loss": quality.loss})
        if i % 50 == 0:
            left = (time.monotonic() - started) / (i + 1) * (len(architectures) - i - 1)
            print(f"{i + 1} of {len(architectures)}, {left:.0f} s left", file=sys.stderr)
    pd.DataFrame(rows).to_parquet(DATA / "cifar_part.parquet", index=False)


if __name__ == "__main__":
    main()
