"""What is inserted into a supernet comes out of it, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from space_kinds import NAMES, kind_of_space
from torch import nn

from search_space import SearchSpace, load_space
from search_space.errors import InvalidArchitectureError
from supernet import Supernet, build
from supernet.network.norms import has_batch_norms
from supernet.network.supernet import normalises_by_batch

SPACES = (*NAMES, "digits")


def space_called(name: str) -> SearchSpace:
    return load_space(name) if name == "digits" else kind_of_space(name)


@pytest.mark.parametrize("name", SPACES)
def test_what_is_inserted_is_extracted(name: str) -> None:
    space = space_called(name)
    torch.manual_seed(0)
    supernet = Supernet(space, 5)
    drawn = space.decode(space.sample(np.random.default_rng(0), 3))
    for architecture in (space.smallest, *drawn, space.largest):
        network = build(architecture, 5)
        supernet.insert(architecture, network)
        given, found = dict(network.named_parameters()), supernet.extract(architecture)
        assert given.keys() == dict(found.named_parameters()).keys()
        assert all(torch.equal(given[key], value) for key, value in found.named_parameters())


@pytest.mark.parametrize("name", SPACES)
def test_entries_that_the_subnet_does_not_use_stay(name: str) -> None:
    """Which entries it uses, its gradients say."""
    space = space_called(name)
    torch.manual_seed(0)
    supernet = Supernet(space, 5).double()
    before = {key: value.detach().clone() for key, value in supernet.named_parameters()}
    (architecture,) = space.decode(space.sample(np.random.default_rng(1), 1))
    network = build(architecture, 5).double()
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(torch.nan)
    supernet.insert(architecture, network)
    used = {key: value.detach().isnan() for key, value in supernet.named_parameters()}
    now = {key: value.detach() for key, value in supernet.named_parameters()}
    assert all(torch.equal(now[key][~mask], before[key][~mask]) for key, mask in used.items())
    count = sum(int(mask.sum()) for mask in used.values())
    assert count == sum(value.numel() for value in network.parameters())  # each has one place
    with torch.no_grad():
        for key, value in supernet.named_parameters():
            value.copy_(before[key])
    side = architecture.resolution
    supernet(torch.randn(4, 3, side, side).double(), architecture).square().sum().backward()
    for key, value in supernet.named_parameters():
        if value.grad is not None:
            assert not value.grad[~used[key]].any()


def test_a_network_of_another_architecture_is_refused_and_changes_nothing() -> None:
    space = load_space("digits")
    supernet = Supernet(space, 5)
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    cases = [
        (space.largest, build(space.smallest, 5), "has a parameter"),
        (space.smallest, build(space.largest, 5), "has a parameter"),
        (space.largest, build(space.largest, 7), r"head\.fc"),  # of other classes
        (space.smallest, nn.Linear(2, 2), "none"),
        (kind_of_space("one").largest, build(kind_of_space("one").largest, 5), "does not hold"),
    ]
    for architecture, network, message in cases:
        with pytest.raises(InvalidArchitectureError, match=message):
            supernet.insert(architecture, network)
    more = build(space.smallest, 5)
    more.add_module("extra", nn.Linear(2, 2))
    with pytest.raises(InvalidArchitectureError, match=r"extra\.bias"):
        supernet.insert(space.smallest, more)
    assert all(torch.equal(before[key], value) for key, value in supernet.state_dict().items())


def test_averages_stay_with_the_network() -> None:
    space = kind_of_space("entries")
    assert normalises_by_batch(space)
    supernet, network = Supernet(space, 5), build(space.largest, 5)
    assert has_batch_norms(network)
    for name, value in network.named_buffers():
        if name.endswith("running_mean"):
            value.add_(1)
    supernet.insert(space.largest, network)
    means = [v for k, v in supernet.extract(space.largest).named_buffers() if k.endswith("mean")]
    assert means
    assert not any(value.any() for value in means)
