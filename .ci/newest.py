"""Says which releases are newer than the tested ones: python .ci/newest.py REPORT.

REPORT is what ``pip install --dry-run --report`` prints where the tested releases are installed.
Exit code 0: there are newer ones; 1: the tested releases are the newest.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main() -> int:
    report = json.loads(Path(sys.argv[1]).read_text())
    newer = []
    for item in report["install"]:
        name = item["metadata"]["name"]
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "none"
        if name != "nas" and installed != item["metadata"]["version"]:
            newer.append(f"{name} {installed} -> {item['metadata']['version']}")
    print("newer than tested: " + (", ".join(newer) or "nothing"))
    return 0 if newer else 1


if __name__ == "__main__":
    sys.exit(main())
