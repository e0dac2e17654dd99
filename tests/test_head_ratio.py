"""Attention with fewer heads, or more, than fit the width side by side."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from search_space import (
    MIXERS,
    Architecture,
    Around,
    Mixer,
    SearchSpace,
    Stage,
    around,
    components,
    known,
    metaformer,
    space_from_dict,
)
from search_space.mixers import num_heads
from supernet import Supernet
from supernet.network.axes import extent
from supernet.network.mixers import build_mixer

NAMES = [name for name in MIXERS if "head_ratio" in MIXERS[name].params]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_it_is_the_whole_one_without_what_the_other_heads_say(name: str) -> None:
    torch.manual_seed(0)
    whole = build_mixer(name, 32, head_dim=8).double()
    part = build_mixer(name, 32, head_dim=8, head_ratio=0.75).double()
    assert (whole.heads, part.heads) == (4, 3)
    for key, axes in whole.axes().items():
        value = whole.get_parameter(key).detach()
        for dim, axis in enumerate(axes):  # the first three of four heads
            index = torch.arange(extent(axis, whole.sizes()))
            if extent(axis, part.sizes()) == len(index):
                continue
            per_head = len(index) // 4 if len(index) <= 32 else 8
            index = index[index // per_head % 4 < 3]
            value = value.index_select(dim, index)
        part.get_parameter(key).copy_(value)
    whole.get_parameter("proj.weight")[:, 24:] = 0
    x = torch.randn(2, 7, 9, 32, dtype=torch.float64)
    torch.testing.assert_close(part(x), whole(x))


def space() -> SearchSpace:
    heads = {"head_dim": 8, "head_ratio": [0.5, 1, 1.5], "mlp_ratio": 2}
    stage = {"width": [16, 32], "depth": 2, "choices": [{name: heads} for name in NAMES]}
    macro = {"stem_kernel": 2, "stem_stride": 2}
    stages = [stage, {**stage, "width": [16]}]
    return space_from_dict({"name": "heads", "macro": macro, "resolution": 16, "stages": stages})


def test_subnets_are_their_networks_bit_for_bit() -> None:
    torch.manual_seed(0)
    shared = Supernet(space(), 5).train()
    images = torch.randn(2, 3, 16, 16)
    for architecture in space().decode(space().sample(np.random.default_rng(0), 8)):
        network = shared.extract(architecture)
        assert torch.equal(shared(images, architecture), network(images))
        shared.zero_grad()
        shared(images, architecture).square().sum().backward()
        network(images).square().sum().backward()
        squares = [
            sum(p.grad.double().square().sum() for p in module.parameters() if p.grad is not None)
            for module in (shared, network)
        ]
        torch.testing.assert_close(*squares)


def test_what_there_was_before_stays_as_it_was() -> None:
    """Digests, and the specs by which tables know a component."""
    swin = known("swin_t")
    mixer = Mixer.of("window_attention", window=7, head_dim=32, head_ratio=1)
    stages = tuple(replace(s, blocks=(metaformer(mixer),) * s.depth) for s in swin.stages)
    assert replace(swin, stages=stages) == swin
    assert swin.digest == "8b95100c8202"
    assert "head_ratio" not in swin.canonical_json()
    assert not any("head_ratio" in str(item.spec) for item in components(swin))
    fewer = metaformer(Mixer.of("attention", head_dim=8, head_ratio=0.5))
    network = Architecture(swin.macro, 64, (Stage(16, (fewer,)),))
    assert Architecture.from_dict(network.to_dict()) == network
    assert any("head_ratio=0.5" in str(item.spec) for item in components(network))


def test_fewer_heads_are_near_to_all_of_them() -> None:
    stage = space().stages[0]
    near = stage.neighbours[0]
    ratios = [block.mixer["head_ratio"] for block in stage.positions[0] if block.mixer]
    for choice, others in enumerate(near):
        kind = choice // 3
        assert others.tolist() == [j for j in range(3 * kind, 3 * kind + 3) if j != choice]
    assert ratios == [0.5, 1.0, 1.5] * len(NAMES)


def test_around_a_network_half_of_the_heads_are_kept() -> None:
    parent = known("swin_t")
    space = around(parent)
    heads = [
        {num_heads(s.widths[0], 32, float(b.mixer["head_ratio"])) for b in s.blocks if b.mixer}
        for s in space.stages
    ]
    assert heads == [{2, 3}, {3, 6}, {6, 12}, {12, 24}]
    assert [len(choices) for stage in space.stages for choices in stage.positions] == [10] * 12
    assert space.largest == parent
    more = around(parent, Around(mixer_ratios=(0.34, 0.67)))
    assert len(more.stages[0].positions[0]) == 2 + 4 * 3
