"""How fast are training-free proxies, against the plain way of computing them in the same run?

    python benchmarks/proxies.py [--repeats 3] [--threads 1]
        [--parts length_distortion,ntk,populations,family_deepmad,family_as_vit]
        [--designs swin_t,convnext_t,poolformer_s12]

``length_distortion`` and ``ntk`` score known designs at seed size (one block in each stage, widths
32 to 256, 224 px): one forward-mode pass against one backward pass per feature, and one backward
pass per image against one through the whole batch for each. Both ways must give the same number.

``populations`` scores a million architectures of ``tiny`` with each closed form from tables,
against one architecture after another.

``family_deepmad`` and ``family_as_vit`` scale the first design at seed size to four sizes (seconds,
and half an hour of one core beside other jobs).

Figures go to ``benchmarks/results/proxies.json``; parts that are not repeated stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from predictors.proxies.as_vit import condition_number, length_distortion, tangent_kernel
from predictors.proxies.preparation import as_vit_weights, unit_scales
from predictors.proxies.space_tables import CLOSED_FORMS, SpaceScores, score_architecture
from search_space import Architecture, Stage, known, load_space
from supernet import build

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # the slow definitions are the tests'

WIDTHS = (32, 64, 128, 256)
IMAGES = 16
FAMILY = ("3M", "6M", "12M", "24M")
POPULATION, ONE_BY_ONE = 1_000_000, 200


@dataclass(frozen=True)
class Settings:
    """What all parts are run with."""

    designs: Sequence[str]
    repeats: int


Part = Callable[[Settings], list[dict[str, Any]]]


def seed_size(name: str) -> Architecture:
    """A known design with one block in each stage, at small widths."""
    design = known(name)
    stages = zip(WIDTHS, design.stages, strict=True)
    return Architecture(
        design.macro, 224, tuple(Stage(width, stage.blocks[:1]) for width, stage in stages)
    )


def ready(architecture: Architecture, seed: int) -> tuple[nn.Module, torch.Generator]:
    """A network with the weights that As-ViT's proxies score, and where its inputs come from."""
    torch.manual_seed(seed)
    network = build(architecture).eval()
    generator = torch.Generator().manual_seed(seed)
    unit_scales(network, generator)
    as_vit_weights(network, generator)
    return network, generator


def timed(function: Callable[[], float]) -> tuple[float, float]:
    """Seconds and result."""
    begin = time.perf_counter()
    result = function()
    return time.perf_counter() - begin, result


def compared(
    settings: Settings, make: Callable[[str, int], tuple[Callable[[], float], Callable[[], float]]]
) -> list[dict[str, Any]]:
    """A fast and a slow way by turns, for every design and repeat."""
    rows = []
    for name in settings.designs:
        fast_s, slow_s, differences, values = [], [], [], []
        for seed in range(settings.repeats):
            fast, slow = make(name, seed)
            if seed == 0:
                fast()  # the first call of an operator is slower
            seconds, value = timed(fast)
            slow_seconds, expected = timed(slow)
            fast_s.append(seconds)
            slow_s.append(slow_seconds)
            values.append(value)
            differences.append(abs(value / expected - 1))
            print(f"{name}: {seconds:.2f} s, {slow_seconds:.2f} s, {value:.6g}, {expected:.6g}")
        rows.append(
            {
                "design": name,
                "seconds": statistics.median(fast_s),
                "plain_seconds": statistics.median(slow_s),
                "times_faster": statistics.median(
                    s / f for f, s in zip(fast_s, slow_s, strict=True)
                ),
                "largest_relative_difference": max(differences),
                "values": values,
            }
        )
    return rows


def distortion_part(settings: Settings) -> list[dict[str, Any]]:
    """L^E against one backward pass per feature."""
    from proxy_cases import distortion_by_coordinates, our_features, without_norms

    def make(name: str, seed: int) -> tuple[Callable[[], float], Callable[[], float]]:
        network, generator = ready(seed_size(name), seed)
        gaussian = torch.randn(3 * 224 * 224, 2, generator=generator)
        plane = torch.linalg.qr(gaussian).Q.reshape(3, 224, 224, 2)
        bare = deepcopy(network)
        without_norms(bare)

        def features(x: Tensor) -> Tensor:
            return our_features(bare, x)

        return (
            lambda: length_distortion(network, plane),
            lambda: distortion_by_coordinates(features, plane),
        )

    return compared(settings, make)


def ntk_part(settings: Settings) -> list[dict[str, Any]]:
    """κ against the gradients of one sum after another of a common batch."""
    from proxy_cases import kernel_by_jacobian, our_features

    def make(name: str, seed: int) -> tuple[Callable[[], float], Callable[[], float]]:
        network, generator = ready(seed_size(name), seed)
        images = torch.randn(IMAGES, 3, 224, 224, generator=generator)
        bare = deepcopy(network)
        bare.head.norm = nn.Identity()
        weights = [p for key, p in bare.named_parameters() if key.endswith("weight")]

        def features(x: Tensor) -> Tensor:
            return our_features(bare, x)

        return (
            lambda: condition_number(tangent_kernel(network, images)),
            lambda: condition_number(kernel_by_jacobian(features, images, weights)),
        )

    return compared(settings, make)


def populations_part(settings: Settings) -> list[dict[str, Any]]:
    """Closed forms of many architectures at once and of one after another."""
    space = load_space("tiny")
    begin = time.perf_counter()
    scores = SpaceScores.build(space)
    tables = time.perf_counter() - begin
    genes = space.sample(np.random.default_rng(0), POPULATION)
    single = space.decode(genes[:ONE_BY_ONE])
    rows = []
    for name in CLOSED_FORMS:
        together, alone = [], []
        for _ in range(settings.repeats):
            begin = time.perf_counter()
            values = scores.predict(name, genes)
            together.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            expected = [score_architecture(name, architecture) for architecture in single]
            alone.append(time.perf_counter() - begin)
            np.testing.assert_allclose(values[:ONE_BY_ONE], expected, rtol=1e-9)
        seconds, one = statistics.median(together), statistics.median(alone) / ONE_BY_ONE
        rows.append(
            {
                "score": name,
                "architectures": POPULATION,
                "seconds": seconds,
                "seconds_of_tables": tables,
                "seconds_one_by_one": one * POPULATION,
                "ratio": one * POPULATION / seconds,
            }
        )
        print(f"  {name}: {POPULATION:,} in {seconds:.2f} s, {rows[-1]['ratio']:.0f} times as fast")
    return rows


def family_part(method: str, settings: Settings) -> list[dict[str, Any]]:
    """A family of four sizes by the command, from the first design at seed size."""
    with tempfile.TemporaryDirectory() as folder:
        seed = Path(folder) / "seed.yaml"
        seed.write_text(yaml.safe_dump(seed_size(settings.designs[0]).to_dict()), "utf-8")
        begin = time.perf_counter()
        said = subprocess.run(
            [
                *("nas", "scale", "--seed", str(seed), "--method", method),
                *("--to", ",".join(FAMILY), "--no-measure", "--json"),
                *("--out", str(Path(folder) / method)),
            ],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
        seconds = time.perf_counter() - begin
    print(f"  {', '.join(FAMILY)} in {seconds:.0f} s")
    return [{"method": method, "seconds": seconds, "members": json.loads(said)["members"]}]


PARTS: dict[str, Part] = {
    "length_distortion": distortion_part,
    "ntk": ntk_part,
    "populations": populations_part,
    "family_deepmad": partial(family_part, "deepmad"),
    "family_as_vit": partial(family_part, "as-vit"),
}


def store(path: Path, part: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of a part into the file in place of earlier ones."""
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    content[part] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    partial.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--designs", default="swin_t,convnext_t,poolformer_s12")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/proxies.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = Settings(options.designs.split(","), options.repeats)
    for part in options.parts.split(","):
        if part not in PARTS:
            parser.error(f"unknown part {part!r}; known: {', '.join(PARTS)}")
        print(part)
        store(options.out, part, PARTS[part](settings))
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
