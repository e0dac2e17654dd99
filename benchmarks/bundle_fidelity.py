"""Does a bundle, measured by its own script, give the table that measuring directly gives?

    python benchmarks/bundle_fidelity.py [--space digits] [--python PYTHON]

Profiles this machine with onnxruntime, writes a bundle for the same space, runs its script with
``--python`` (an interpreter that has only numpy and onnxruntime, to be strict), imports the result,
and profiles directly a second time. Prints how far entries and predictions of random architectures
are apart: bundle against the first direct table, and the two direct tables, which is the machine's
repeatability. Ratios are given after removing their median, since the speed of a shared machine
differs between any two measurements.

Figures go to ``benchmarks/results/bundle_fidelity.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from predictors.bundles.bundle import write_bundle
from predictors.bundles.bundle_import import import_bundle
from predictors.measuring.profile import profile
from predictors.measuring.this_machine import local_conditions
from predictors.tables.latency_table import LatencyTable
from search_space import SearchSpace, load_space

OUT = Path(__file__).parent / "results" / "bundle_fidelity.json"
ARCHITECTURES = 1000


def compared(
    space: SearchSpace, classes: int, first: LatencyTable, second: LatencyTable
) -> dict[str, Any]:
    """How far two tables of one machine are apart, the overall speed aside."""
    assert first.entries.keys() == second.entries.keys()
    keys = list(first.entries)
    ratio = np.array([second.entries[k].latency_ms / first.entries[k].latency_ms for k in keys])
    genes = space.sample(np.random.default_rng(0), ARCHITECTURES)
    a, b = (table.compile(space, classes).predict(genes) for table in (first, second))
    networks = b / a
    return {
        "entries": len(keys),
        "speed": float(np.median(networks)),
        "entry_difference": float(np.median(np.abs(ratio / np.median(ratio) - 1))),
        "network_difference": float(np.abs(networks / np.median(networks) - 1).mean()),
        "networks_within_10_percent": float(
            (np.abs(networks / np.median(networks) - 1) <= 0.1).mean()
        ),
        "kendall_tau": float(kendalltau(a, b).statistic),
        "expected_errors": [first.expected_error(space), second.expected_error(space)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--space", default="digits")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    space, conditions = load_space(options.space), local_conditions(runtime="onnxruntime")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        first = profile(space, options.classes, conditions, folder / "first")
        bundle, results = folder / "bundle", folder / "results.json"
        write_bundle(bundle, space, options.classes)
        command = [options.python, str(bundle / "run.py"), "--out", str(results)]
        subprocess.run(command, check=True)
        imported = import_bundle(results, bundle, "bundle")
        second = profile(space, options.classes, conditions, folder / "second")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "space": space.name,
        "conditions": conditions.to_dict(),
        "bundle against direct": compared(space, options.classes, first, imported),
        "direct against direct": compared(space, options.classes, first, second),
    }
    OUT.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for name in ("bundle against direct", "direct against direct"):
        print(name, json.dumps(result[name]))
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
