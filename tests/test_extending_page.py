"""The examples of the page on extending work as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
USE = """
import sys
import numpy as np, torch
from predictors.measuring.runtimes import find_runtime
from search_space import load_space
from supernet import Supernet

space = load_space(sys.argv[1])
torch.manual_seed(0)
supernet = Supernet(space, 4)
images = torch.randn(2, 3, 32, 32)
for architecture in space.decode(space.sample(np.random.default_rng(0), 3)):
    network = supernet.extract(architecture)
    assert torch.equal(supernet(images, architecture), network(images))
    run = find_runtime("traced").prepare(network.eval(), images, None)
    torch.testing.assert_close(run(), network(images))
print({block.label for stage in space.stages for block in stage.blocks})
"""


def test_the_examples_of_the_page_work(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    for name, code in re.findall(r"```python\n# my_package/(\w+\.py)\n(.*?)```", text, re.DOTALL):
        (tmp_path / "my_package").mkdir(exist_ok=True)
        (tmp_path / "my_package" / name).write_text(code)
    info = tmp_path / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    points = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "([\w.:]+)"', text)
    assert {group for group, _, _ in points} == {"nas.mixers", "nas.blocks", "nas.runtimes"}
    groups = {group: "" for group, _, _ in points}
    for group, name, value in points:
        groups[group] += f"{name} = {value}\n"
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{lines}" for group, lines in groups.items())
    )
    spaces = [text for text in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "name:" in text]
    used = ""
    for number, space in enumerate(spaces):
        (tmp_path / f"{number}.yaml").write_text(space)
        ran = subprocess.run(
            [sys.executable, "-c", USE, f"{number}.yaml"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{PAGE.parents[1]}"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        used += ran.stdout
    assert "local_mean" in used
    assert "partial" in used
