"""Puts the parts that ``on_gpu.sh`` measured into one file, and prints them as tables.

python benchmarks/on_gpu.py OUT RESULT.json
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from predictors.measuring.this_machine import identify


def machine(device: str) -> dict[str, Any]:
    """What was measured on, with what, and when."""
    driver = Path("/proc/driver/nvidia/version")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": str(identify(device)),
        "host": str(identify("cpu")),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver.read_text("utf-8").split("\n", 1)[0] if driver.exists() else "",
    }


def add_part(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Writes the figures of one part, and prints them without their long lists."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False)
    (folder / f"{name}.json").write_text(text + "\n", "utf-8")
    shown = {k: v for k, v in result.items() if k not in ("networks", "architectures")}
    print(f"\n{name}: {json.dumps(shown)}", flush=True)


def merged(folder: Path) -> dict[str, Any]:
    """All parts of a folder by name; architectures that several measured are there once."""
    parts = {p.stem: json.loads(p.read_text("utf-8")) for p in sorted(folder.glob("*.json"))}
    architectures: dict[str, Any] = {}
    for part in parts.values():
        architectures |= part.pop("architectures", {})
    return {"parts": parts, "architectures": architectures}


def table(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of the errors of table and estimate."""
    lines = [
        "| space | runtime | batch | entries, profiled in | by table: error, within 10 %, τ "
        "| by estimate: error, bias, with one factor, τ |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for part in parts.values():
        if "by table" not in part:
            continue
        c, own = part["conditions"], part["by table"]
        guess = part.get("by estimate", {})
        words = "–"
        if "mape" in guess:
            words = (
                f"{guess['mape']:.0%}, {guess['bias']:+.0%}, {guess['mape_with_one_factor']:.0%}, "
                f"{guess['kendall_tau']:.2f}"
            )
        lines.append(
            f"| {part['space']} | {c['runtime']} | {c['batch_size']} | {part['entries']}, "
            f"{part['seconds']['profile']:.0f} s | {own['mape']:.1%}, "
            f"{own['within_10_percent']:.0%}, {own['kendall_tau']:.2f} | {words} |"
        )
    return lines


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    result = merged(folder)
    out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", "utf-8")
    print("\n".join(table(result["parts"])))
    for name, part in result["parts"].items():
        for row in part.get("rows", []):
            print(name, json.dumps(row))
    print(out)


if __name__ == "__main__":
    main()
