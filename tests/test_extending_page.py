"""The examples of the page on extending work as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
USE = """
import numpy as np, pytest, torch
from pathlib import Path
from predictors.counts import count_architecture
import my_package.costs
from predictors.measuring.runtimes import find_runtime
from predictors.tables.cost_table import load_cost, total_costs
from search_space import components, load_space, metrics
from search_space.components import input_shape
from supernet import Supernet

space = load_space("mine.yaml")
torch.manual_seed(0)
supernet = Supernet(space, 4).eval()
images = torch.randn(2, 3, 32, 32)
for architecture in space.decode(space.sample(np.random.default_rng(0), 3)):
    logits = supernet(images, architecture)
    assert torch.equal(logits, supernet.extract(architecture).eval()(images))
    run = find_runtime("exported").prepare(supernet.extract(architecture).eval(), images, None)
    torch.testing.assert_close(run(), logits)
    ours = {"energy_mJ": 1e-5 * count_architecture(architecture, 10)["macs"]}
    table = load_cost("energy", Path("energy.parquet"))
    assert total_costs([table], architecture, 10) == pytest.approx(ours)
exec(Path("metric.py").read_text(), vars(metrics))
read = total_costs([metrics.metric_of_option("input")], architecture, 10)["input_kB"]
maps = [input_shape(part.spec, part.in_size) for part in components(architecture)]
assert read == pytest.approx(sum(4 * np.prod(shape) for shape in maps) / 1e3)
print({block.label for stage in space.stages for block in stage.blocks})
"""

USE_BLOCK = """
import numpy as np, torch
from search_space import load_space
from supernet import Supernet

space = load_space("block.yaml")
supernet = Supernet(space, 4)
images = torch.randn(2, 3, 32, 32)
for architecture in space.decode(space.sample(np.random.default_rng(0), 3)):
    network = supernet.extract(architecture)
    assert torch.equal(supernet(images, architecture), network(images))
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
    groups: dict[str, list[str]] = {}
    for group, name, value in points:
        groups.setdefault(group, []).append(f"{name} = {value}\n")
    assert set(groups) == {"nas.mixers", "nas.blocks", "nas.runtimes"}
    (info / "entry_points.txt").write_text(
        "".join(f"[{group}]\n{''.join(lines)}" for group, lines in groups.items())
    )
    (metric,) = re.findall(r"```python\n(def input_kilobytes.*?)```", text, re.DOTALL)
    (tmp_path / "metric.py").write_text(metric)
    spaces = [
        text for text in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "stages:" in text
    ]
    for name, space in zip(("mine.yaml", "block.yaml"), spaces, strict=True):
        (tmp_path / name).write_text(space)
    for code, label in ((USE, "squeeze"), (USE_BLOCK, "partial")):
        ran = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{PAGE.parents[1]}"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        assert label in ran.stdout
