"""Checks what the search without images produced: python .ci/check_scored.py RESULT_JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    run, best = Path(result["run"]), result["best"]
    assert result["status"] == "complete", result["status"]
    assert best["test_accuracy"] is None
    assert best["predicted"]["latency_ms"] <= 5.0
    scores = {member["digest"]: member["predicted"]["score"] for member in result["front"]}
    assert best["predicted"]["score"] == max(scores.values())
    slowest = max(member["predicted"]["latency_ms"] for member in result["front"])
    report = json.loads((run / "result.json").read_text())
    known = [design["predicted"]["latency_ms"] for design in report["baselines"]]
    assert slowest < max(known) <= 2 * slowest, known
    assert "estimated" in (run / "report.html").read_text()
    session = onnxruntime.InferenceSession(str(run / "export" / best["digest"] / "model.onnx"))
    side = best["architecture"]["resolution"]
    (logits,) = session.run(None, {"images": np.zeros((2, 3, side, side), np.float32)})
    assert logits.shape == (2, 1000)
    print(f"chosen {best['digest']}: score {best['predicted']['score']:.3f}, {len(scores)} members")


if __name__ == "__main__":
    main()
