"""Checks what the main command produced: python .ci/check_run.py RESULT_JSON.

Run in a process that has seen nothing of the search. The ONNX file and the exported program are
loaded without this package; the timm directory needs its registration.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch


def main() -> None:
    result = json.loads(Path(sys.argv[1]).read_text())
    run, best = Path(result["run"]), result["best"]
    assert result["status"] == "complete", result["status"]
    assert set(best) >= {"digest", "architecture", "predicted", "measured", "test_accuracy"}
    assert best["test_accuracy"] > 0.9, best["test_accuracy"]
    assert best["digest"] in {member["digest"] for member in result["front"]}
    print(
        f"chosen {best['digest']}: {best['measured']['latency_ms']:.2f} ms measured, "
        f"{best['predicted']['latency_ms']:.2f} ms predicted, test {best['test_accuracy']:.2%}"
    )
    for name in ("config.yaml", "manifest.json", "evaluations.jsonl", "evaluations.parquet"):
        assert (run / name).stat().st_size > 0, name
    report = (run / "report.html").read_text()
    assert best["digest"] in report
    assert "http://" not in report.replace("http://www.w3.org", "")

    export = run / "export" / best["digest"]
    side = json.loads((export / "config.json").read_text())["pretrained_cfg"]["input_size"][-1]
    images = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(export / "model.onnx"))
    (onnx,) = session.run(None, {"images": images.numpy()})
    program = torch.export.load(export / "model.pt2").module()(images).detach().numpy()
    assert not {"nas", "supernet", "search_space"} & set(sys.modules)
    np.testing.assert_allclose(onnx, program, atol=1e-3)

    script = (
        "import nas.timm, timm, torch, json, sys\n"
        "model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()\n"
        f"images = torch.randn(5, 3, {side}, {side}, generator=torch.Generator().manual_seed(0))\n"
        "print(json.dumps(model(images).tolist()))\n"
    )
    command = [sys.executable, "-c", script, str(export)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(np.array(json.loads(printed)), program, atol=1e-3)
    print("timm, ONNX and torch.export give the same logits in fresh processes")


if __name__ == "__main__":
    main()
