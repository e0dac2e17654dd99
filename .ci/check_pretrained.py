"""Checks a search from a trained network: python .ci/check_pretrained.py RESULT_JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

LOST = 0.05  # of the test accuracy, at most, for a part of the parent's latency


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    run, best = Path(result["run"]), result["best"]
    assert result["status"] == "complete", result["status"]
    report = json.loads((run / "result.json").read_text())
    name = report["inherited"]["parent"]
    (parent,) = [baseline for baseline in report["baselines"] if baseline["name"] == name]
    assert best["digest"] != parent["digest"]
    assert best["predicted"]["macs"] < parent["predicted"]["macs"]
    assert best["test_accuracy"] > parent["test_accuracy"] - LOST, (best, parent)
    assert len(report["front"]) > 1
    for name in ("parent/start.safetensors", "quality.parquet", "alternatives/identity.json"):
        assert (run / name).stat().st_size > 0, name
    export = run / "export" / best["digest"]
    side = best["architecture"]["resolution"]
    session = onnxruntime.InferenceSession(str(export / "model.onnx"))
    (logits,) = session.run(None, {"images": np.zeros((2, 3, side, side), np.float32)})
    assert logits.shape == (2, 10)
    for name, network in (("parent", parent), ("chosen", best)):
        latency = network["measured"]["latency_ms"]
        print(f"{name}: test accuracy {network['test_accuracy']:.2%} at {latency:.2f} ms")


if __name__ == "__main__":
    main()
