"""Peak memory: by hand for plain modules, against a running network, as a table."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from predictors.memory import _Ledger, peak_elements, peak_memory
from predictors.tables.additive import AdditiveTable
from search_space import (
    Architecture,
    Macro,
    Mixer,
    SearchSpace,
    StageSpace,
    components,
    known,
    metaformer,
)
from supernet import build


def peak_of(architecture: Architecture) -> int:
    """Elements of one image at the peak of the network's largest component."""
    return max(peak_elements(part.spec, part.in_size) for part in components(architecture, 10))


def test_a_pooling_block_by_hand() -> None:
    """Its MLP's hidden map is the largest: residual, normalised input, hidden, activated hidden."""
    architecture = known("poolformer_s12")
    chain = components(architecture)
    block = next(part for part in chain if part.path == "stages.0.blocks.0")
    values = block.in_size**2 * 64
    hidden = 4 * values
    peak = peak_elements(block.spec, block.in_size)
    assert values + 2 * hidden <= peak <= 3 * values + 2 * hidden


@pytest.mark.parametrize(
    "name", ["swin_t", "focalnet_t_srf", "convnext_t", "poolformer_s12", "hornet_t"]
)
def test_the_running_network_needs_that_much(name: str) -> None:
    """Eager execution keeps the images, the stem's and a stage's input on top, and no more."""
    architecture = known(name)
    predicted = 4 * peak_of(architecture)
    images = torch.zeros(1, 3, architecture.resolution, architecture.resolution, device="meta")
    with torch.device("meta"):
        network = build(architecture, 10).eval()
    ledger = _Ledger(network)
    with torch.inference_mode(), ledger:
        network(images)
    kept = 3 * 4 * architecture.stages[0].width * (architecture.resolution // 4) ** 2
    assert predicted <= ledger.peak <= predicted + kept


def test_the_ledger_agrees_with_the_allocator() -> None:
    """The profiler sees every allocation on the CPU; linear layers take no workspace."""
    network = nn.Sequential(
        nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256), nn.LayerNorm(256)
    ).eval()
    images = torch.randn(64, 256)
    with torch.inference_mode():
        network(images)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            network(images)
    events = profiled.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()) if e.nbytes()]
    allocated = max(itertools.accumulate(changes))
    ledger = _Ledger(network)
    with torch.inference_mode(), ledger:
        network(images)
    assert ledger.peak == pytest.approx(allocated, rel=0.05)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    blocks = (
        metaformer(Mixer.of("pooling"), 1.0),
        metaformer(Mixer.of("depthwise_conv", kernel=3), 4.0),
    )
    stages = tuple(StageSpace((8, 24), (1, 2), blocks) for _ in range(4))
    return SearchSpace("small", Macro(stem_kernel=2, stem_stride=2), (16, 24), stages)


@pytest.fixture(scope="module")
def table(space: SearchSpace) -> AdditiveTable:
    return peak_memory(space, 10, batch_size=4, precision="fp16")


def test_the_table_predicts_what_components_say(space: SearchSpace, table: AdditiveTable) -> None:
    rows = space.sample(np.random.default_rng(0), 50)
    for value, architecture in zip(table.predict(rows), space.decode(rows), strict=True):
        assert value == 4 * 2 * peak_of(architecture)


def test_the_extremes_are_extreme(space: SearchSpace, table: AdditiveTable) -> None:
    rows = space.sample(np.random.default_rng(1), 20_000)
    low, high = table.predict(np.stack([table.argmin(), table.argmax()]))
    assert low == table.predict(rows).min()
    assert high == table.predict(rows).max()
