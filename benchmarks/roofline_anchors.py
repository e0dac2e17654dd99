"""How far are estimates of unavailable GPUs from published latencies?

Every published figure is predicted by a fit that did not see it: not the figure itself, nothing
of its device, of its mixer kind, or of its implementation; and by transfer from another device.
The last part is what estimates of some devices therefore state as their expected error.

    python benchmarks/roofline_anchors.py

Takes seconds and measures nothing: the figures are in the package. Results go to
``benchmarks/results/roofline_anchors.json``.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from predictors.estimates.anchors import anchors, basis, constants, expected_error
from predictors.estimates.datasheets import datasheet
from predictors.estimates.estimate import anchor_errors
from predictors.estimates.transfer import transfer_error
from search_space import MIXERS

DEVICES = ("a100-40gb", "a100-80gb", "h100", "t4")  # others have no figures, as the H100
RUNTIMES = ("eager", "cudagraph", "inductor", "tensorrt")


def expectations() -> list[dict[str, object]]:
    """Expected errors of estimates, and of transfer from an H200, by device and runtime."""
    rows: list[dict[str, object]] = []
    for runtime in RUNTIMES:
        for precision in ("fp16", "fp32"):
            for name in DEVICES:
                sheet = datasheet(name)
                number_format = sheet.number_format(precision, runtime)
                errors = {
                    mixer: expected_error(sheet, runtime, number_format, mixer) for mixer in MIXERS
                }
                rows.append(
                    {
                        "device": name,
                        "runtime": runtime,
                        "precision": precision,
                        "products_in": number_format,
                        "own_figures": basis(runtime, number_format).exact,
                        "constants": asdict(constants(runtime, number_format)),
                        "expected_error": {m: round(e.error, 4) for m, e in errors.items()},
                        "found_by": sorted({e.reason for e in errors.values()}),
                        "transfer_from_h200": round(
                            transfer_error(datasheet("h200"), sheet, runtime, precision), 4
                        ),
                    }
                )
    return rows


def main() -> None:
    start = time.perf_counter()
    rows = anchor_errors()
    print(
        f"{'held out':14} {'implementation':22} {'device':10} {'format':6} {'mixer':17}  n  error"
    )
    for row in rows:
        print(
            f"{row.held_out:14} {row.implementation:22} {row.device:10} {row.precision:6} "
            f"{row.mixer:17} {row.n:2} {row.mean_error:6.1%}"
        )
    expected = expectations()
    for row in expected:
        print(row["device"], row["runtime"], row["precision"], row["expected_error"])
    result = {
        "figures": len(anchors()),
        "seconds": round(time.perf_counter() - start, 1),
        "held_out": [asdict(row) for row in rows],
        "expected": expected,
    }
    path = Path(__file__).parent / "results" / "roofline_anchors.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(path)


if __name__ == "__main__":
    main()
