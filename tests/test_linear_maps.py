"""A block that is left out is folded into a linear map of each position, by least squares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cut_cases import architecture, bank_of, cases, images, parent
from test_fold import EXACT, errors, inputs

from search_space import Around, Block
from search_space.around import around
from search_space.components import components
from supernet.inherit.bank import WeightBank
from supernet.inherit.cut import cut_alternatives
from supernet.inherit.importance import CRITERIA
from supernet.inherit.moments import POSITIONS

MAPS = Around(ratios=(), mixer_ratios=(), resolutions=(), smallest_kernel=99)
SKIP, MAP = Block.of("skip"), Block.of("projection")
FEW = pytest.mark.parametrize("case", ["inverted", "basic", "window_attention", "batch_norm"])


def fitted(case: str, **options: Any) -> WeightBank:
    bank = bank_of(parent(case), MAPS)
    filled = cut_alternatives(bank, images(96), **options)
    assert filled
    assert bank.missing() == []
    return bank


@cases
def test_a_map_is_offered_wherever_a_block_may_be_left_out(case: str) -> None:
    space = around(architecture(case), MAPS)
    assert space.largest == architecture(case)
    for stage in space.stages:
        for choices in stage.positions:
            assert (SKIP in choices) == (MAP in choices)
            assert SKIP not in choices or choices[:2] == (SKIP, MAP)
    without = around(architecture(case), replace(MAPS, linear=False))
    assert all(MAP not in choices for stage in without.stages for choices in stage.positions)


@FEW
def test_a_map_is_the_least_squares_of_what_the_block_computes(case: str) -> None:
    assert POSITIONS >= 8 * 8  # all are looked at
    bank = fitted(case, ridge=EXACT)
    network = bank.extract(bank.parent)
    for path, spec in bank.entries:
        if spec.as_dict().get("style") != "projection":
            continue
        x = inputs(network, images(96), path).detach()
        with torch.no_grad():
            y = network.get_submodule(path)(x).flatten(0, 2).double().numpy()
            ours = bank[path, spec](x).flatten(0, 2).double().numpy()
        read = x.flatten(0, 2).double().numpy()
        read = np.concatenate([read, np.ones((len(read), 1))], 1)
        # where a norm has left channels that sum to a constant, there is rounding alone
        theirs = read @ np.linalg.lstsq(read, y, rcond=1e-5)[0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * np.abs(y).max())


@cases
def test_a_map_loses_less_than_nothing_does_on_images_that_it_was_not_fitted_to(
    case: str,
) -> None:
    bank, plain = fitted(case), fitted(case, fold=False)
    unseen = images(96, seed=1)
    maps = [entry for entry in bank.entries if entry[1].as_dict().get("style") == "projection"]
    losses, skipped = errors(bank, maps, unseen), errors(plain, maps, unseen)
    for entry in maps:
        assert losses[entry] < 0.97 * skipped[entry]


@FEW
def test_without_folding_a_map_is_a_block_that_is_left_out(case: str) -> None:
    plain = fitted(case, fold=False)
    pixels = images()[0][0]
    for i, stage in enumerate(plain.space.stages):
        for j, choices in enumerate(stage.positions):
            if MAP not in choices:
                continue
            networks = []
            for block in (MAP, SKIP):
                stages = list(plain.parent.stages)
                blocks = list(stages[i].blocks)
                blocks[j] = block
                stages[i] = replace(stages[i], blocks=tuple(blocks))
                networks.append(plain.extract(replace(plain.parent, stages=tuple(stages))))
            with torch.no_grad():
                torch.testing.assert_close(networks[0](pixels), networks[1](pixels))
            assert len(components(networks[0].architecture)) == len(components(plain.parent))


SLOW = {"optin": pytest.mark.slow}  # shows images to the network without each unit


@pytest.mark.parametrize(
    "importance",
    [pytest.param(n, marks=SLOW.get(n, ())) for n in CRITERIA if n != "first"],
)
def test_what_is_cut_in_two_goes_is_cut_alike(importance: str) -> None:
    """An interrupted cutting goes on with what is missing."""
    network = parent("inverted")
    at_once, again = (bank_of(network, None) for _ in range(2))
    missing = at_once.missing()
    cut_alternatives(at_once, images(), importance=importance)
    cut_alternatives(again, images(), importance=importance, entries=missing[1::2])
    assert set(missing[::2]) <= set(again.missing())
    cut_alternatives(again, images(), importance=importance)
    assert at_once.missing() == again.missing() == []
    for name, value in at_once.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
