"""The space where none is named: it suits the images and reaches the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from latency_cases import phone_table
from PIL import Image
from tiny_job import every_architecture, latency_ms

from nas.config import TrainedConfig
from nas.resolving import resolve
from nas.workflows.default_space import ImageFacts, choose_space, look_at, shortfall
from search_space import SearchSpace, load_space
from search_space.units import format_latency

pytestmark = pytest.mark.usefixtures("job")


def never(space: SearchSpace) -> str | None:
    raise AssertionError(space.name)


@pytest.mark.parametrize(
    ("side", "count", "name"),
    [(8, 1000, "digits"), (32, 50_000, "cifar"), (64, 100_000, "mobile"), (96, 5000, "mobile")],
)
def test_images_decide_where_one_preset_suits_them(side: int, count: int, name: str) -> None:
    chosen, reason = choose_space(ImageFacts(side, count), never)
    assert chosen == name
    assert f"suits images of {side} px" in reason


def test_the_smallest_space_that_reaches_the_budget_is_taken() -> None:
    many = ImageFacts(300, 100_000)
    assert choose_space(many, lambda space: None)[0] == "mobile"
    name, reason = choose_space(many, lambda space: None if space.name == "base" else "1.99 ms")
    assert name == "base"
    assert "reaches the limits (mobile ends at 1.99 ms; tiny ends at 1.99 ms)" in reason
    name, reason = choose_space(None, lambda space: "1 ms")
    assert name == "base"
    assert (
        "none reaches the limits (mobile ends at 1 ms; tiny ends at 1 ms; base ends at 1 ms)"
        in reason
    )
    name, reason = choose_space(ImageFacts(300, 500), never)
    assert name == "mobile"
    assert "of which there are 500 only" in reason


def test_a_budget_beyond_tiny_takes_base() -> None:
    said: list[str] = []
    large = resolve({"max": {"macs": "20G"}, "device": "a100"}, say=said.append)
    assert large.space == "base"
    assert "(mobile ends at 1.29 G; tiny ends at 6.13 G)" in said[0]
    assert resolve({"max": {"macs": "1G"}, "device": "a100"}).space == "mobile"
    assert resolve({"max": {"macs": "3G"}, "device": "a100"}).space == "tiny"
    # one limit that binds is enough, and a lower one must be there
    both = {"macs": "1G", "params": "900M"}
    assert resolve({"max": both, "device": "a100"}).space == "mobile"
    assert resolve({"max": both, "min": {"macs": "7G"}, "device": "a100"}).space == "base"


def test_a_latency_is_that_of_the_slowest_network(job: Path) -> None:
    space = load_space(str(job / "pebble.yaml"))
    table = phone_table(space)
    slowest = max(latency_ms(table, a) for a in every_architecture(space))
    options = {"space": "tiny", "device": "phone", "num_classes": 10}
    within = resolve({**options, "target_latency": f"{slowest * 0.99}ms"})
    assert shortfall(within, space) is None
    beyond = resolve({**options, "target_latency": f"{slowest * 1.01}ms"})
    assert shortfall(beyond, space) == format_latency(slowest)


def test_photographs_are_not_searched_at_32_px(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = tmp_path / "photos"
    for label in ("cat", "dog"):
        (photos / label).mkdir(parents=True)
        for i in range(4):
            pixels = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(photos / label / f"{i}.png")
    config = resolve({"data": str(photos), "target_latency": "1s"})
    assert isinstance(config, TrainedConfig)
    assert config.space == "mobile"
    facts = look_at(config)
    assert facts.side == 300
    assert config.train.lr == 5e-4  # the rate of wide networks
