"""A bank of weights assembles its parent, and networks of whatever was put into it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search.evaluator import SupernetEvaluator, SupernetFactory
from search_space import load_space
from search_space.components import components
from search_space.errors import InvalidArchitectureError
from supernet import build
from supernet.inherit.bank import WeightBank, entry_name


@pytest.fixture(scope="module")
def bank() -> WeightBank:
    torch.manual_seed(0)
    space = load_space("digits")
    return WeightBank(space, build(space.largest, 10)).eval()


def test_the_parent_comes_out_as_it_went_in() -> None:
    torch.manual_seed(1)
    space = load_space("digits")
    parent = build(space.largest, 10).eval()
    bank = WeightBank(space, parent).eval()
    images = torch.randn(2, 3, space.largest.resolution, space.largest.resolution)
    expected = parent(images)
    assert torch.equal(bank(images, space.largest), expected)
    assert torch.equal(bank.extract(space.largest)(images), expected)
    with torch.no_grad():
        for parameter in bank.parameters():
            parameter.zero_()
    assert torch.equal(parent(images), expected)  # the bank has copies


def test_what_is_put_into_it_is_assembled(bank: WeightBank) -> None:
    for entry in bank.missing():
        bank.put(entry, bank.fresh(entry))
    assert bank.missing() == []
    rng = np.random.default_rng(0)
    for architecture in bank.space.decode(bank.space.sample(rng, 4)):
        network = bank.extract(architecture)
        side = architecture.resolution
        images = torch.randn(2, 3, side, side)
        torch.testing.assert_close(network(images), bank(images, architecture), rtol=0, atol=0)
        for item in components(architecture, 10):
            mine, banked = network.get_submodule(item.path), bank[item.path, item.spec]
            assert mine is not banked
            assert all(
                torch.equal(value, banked.state_dict()[name])
                for name, value in mine.state_dict().items()
            )


def test_parameters_have_one_order_whenever_they_came() -> None:
    """The norm of all gradients is a sum in this order, so a continued training needs the same."""
    space = load_space("digits")
    parent = build(space.largest, 10)
    banks = [WeightBank(space, parent) for _ in range(2)]
    for bank, missing in zip(banks, (banks[0].missing(), banks[1].missing()[::-1]), strict=True):
        for entry in missing:
            bank.put(entry, bank.fresh(entry))
    names = [[name for name, _ in bank.named_parameters()] for bank in banks]
    assert names[0] == names[1]


def test_alternatives_without_weights_are_named() -> None:
    space = load_space("digits")
    bank = WeightBank(space, build(space.largest, 10))
    assert set(bank.missing()) < set(bank.entries)
    with pytest.raises(InvalidArchitectureError, match="for which there are no weights"):
        bank(torch.zeros(1, 3, 16, 16), space.smallest)
    with pytest.raises(InvalidArchitectureError, match="does not hold"):
        WeightBank(load_space("cifar"), build(space.largest, 10))


def test_names_of_alternatives_are_their_own(bank: WeightBank) -> None:
    names = [entry_name(entry) for entry in bank.entries]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-") for name in names)


def test_workers_judge_what_a_bank_holds(bank: WeightBank) -> None:
    for entry in bank.missing():
        bank.put(entry, bank.fresh(entry))
    labels = torch.tensor([0, 1, 2, 3])
    parts = [[(torch.randn(4, 3, 16, 16), labels)]]
    architecture = bank.space.largest
    calibration = parts[0]
    here = SupernetEvaluator(bank, parts, calibration=calibration)(architecture)
    there = SupernetFactory.of(bank, parts, calibration=calibration)()(architecture)
    assert there == pytest.approx(here)
