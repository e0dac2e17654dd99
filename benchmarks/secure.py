"""Which blocks keep softmax when the time of secure computation counts.

Six attentions on 8 × 8 positions of 64 channels, each by softmax, ReLU softmax or scaling, on the
digits at 32 × 32 pixels: one supernet, and a search that trades validation loss for the seconds
that ``nas profile cost mpc`` models (MPCViT's question, for blocks instead of heads). The best
network within each of several limits is printed.

    python benchmarks/secure.py [--epochs 6] [--evaluations 120]

Figures go to ``benchmarks/results/secure.json``; two minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from results.journal import read_journal
from search_space import Architecture

OUT = Path(__file__).parent / "results" / "secure.json"
LIMITS = (9, 11, 13, 15, 20)  # seconds
SPACE = """\
name: secret
resolution: [32]
macro: {stem_kernel: 4, stem_stride: 4}
stages:
  - width: 64
    depth: 6
    mixers: [{attention: {head_dim: 16, normaliser: [scaling, relu_softmax, softmax]}}]
    mlp_ratio: 2
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--evaluations", type=int, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "secret.yaml").write_text(SPACE)
        for command in (
            "profile cost mpc mpc.parquet --space secret.yaml --num-classes 10",
            "search --data digits --space secret.yaml --cost mpc=mpc.parquet --max mpc=20s "
            f"--minimize mpc --epochs {options.epochs} --evaluations {options.evaluations} "
            "--finetune-epochs 1 --finalists 1 --name secret",
        ):
            subprocess.run(["nas", *command.split()], cwd=folder, check=True)
        found = [
            {
                "seconds": round(evaluation.metrics["mpc_s"], 2),
                "loss": round(evaluation.metrics["loss"], 4),
                "blocks": [str(b.mixer["normaliser"]) for b in architecture.stages[0].blocks],
            }
            for evaluation in read_journal(Path(folder, "runs", "secret", "evaluations.jsonl"))
            for architecture in [Architecture.from_dict(evaluation.architecture)]
        ]
    best = {
        limit: min((one for one in found if one["seconds"] <= limit), key=lambda one: one["loss"])
        for limit in LIMITS
    }
    OUT.write_text(json.dumps({**vars(options), "evaluated": len(found), "best": best}, indent=1))
    for limit, one in best.items():
        print(f"{limit:3d} s: {one['seconds']:5.2f} s, loss {one['loss']}, {one['blocks']}")


if __name__ == "__main__":
    main()
