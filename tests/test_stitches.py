"""Routes through networks of one family: their numbers, and the architectures that they are."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from search_space import Architecture, Macro, components, known
from search_space.errors import UsageError
from search_space.stitched import stitched
from search_space.stitches import Route, Stitch, one_way, paired, runs, two_way, unpaired


def test_published_numbers() -> None:
    """Pan et al. 2023 for DeiT and Swin, Pan et al. 2024 for DeiT3-S and L."""
    assert len(one_way([[12]] * 3)) == 71
    assert len(one_way([(2, 2, 6, 2), (2, 2, 18, 2), (2, 2, 18, 2)])) == 41
    assert len(two_way([[12], [24]])) == 134


@pytest.mark.parametrize(("depth", "window"), [(12, 2), (7, 3), (4, 4), (3, 5)])
def test_pairs_are_those_within_a_window_and_share_its_layer(depth: int, window: int) -> None:
    pairs = paired(depth, window)
    near = {(a, b) for a, b in itertools.product(range(depth), repeat=2) if abs(a - b) < window}
    assert {pair[:2] for pair in pairs} == near
    assert len(pairs) == len(near)
    layers = {pair[2] for pair in pairs}
    assert layers == set(range(max(1, depth - window + 1)))
    onwards = paired(depth, window, onwards=True)
    assert {pair[:2] for pair in onwards} == {(a, b) for a, b in near if a < b}


def test_unpaired_goes_by_nearest_neighbours() -> None:
    pairs = unpaired(6, 18)
    assert len(pairs) == 17  # all blocks of the deeper one but the first
    assert all(leave == enter // 3 == layer for leave, enter, layer in pairs)
    assert len({layer for *_, layer in pairs}) == 6


@pytest.mark.parametrize(("small", "large"), [(12, 24), (12, 12), (3, 7), (1, 4)])
def test_two_ways_are_choices_of_up_to_two_places(small: int, large: int) -> None:
    """From either parent: Σ over k = 0, 1, 2 of (small − 1 over k)."""
    routes = two_way([[small], [large]])
    assert len(set(routes)) == len(routes)
    assert len(routes) == 2 * sum(math.comb(small - 1, k) for k in range(3))
    for route in routes:
        # the deeper network's share of depth and the other's add up to about one
        done = {0: 0, 1: 0}
        for run in runs([[small], [large]], route):
            done[run.parent] += run.stop - run.start
        assert done[0] / small + done[1] / large == pytest.approx(1, abs=1 / small)


def test_stages_but_the_last_are_stitched_and_neighbours_only() -> None:
    depths = [(2, 3, 2), (2, 3, 2), (2, 6, 2)]
    for route in (*one_way(depths), *two_way(depths)):
        assert all(stitch.stage < 2 for stitch in route.stitches)
        assert all(abs(a - b) == 1 for a, b in itertools.pairwise(route.parents))


FAMILIES = [
    ("swin_t", "swin_s", "swin_b"),
    ("caformer_s18", "caformer_m36"),
    ("poolformer_s12", "poolformer_m36"),
    ("resnet18", "resnet34"),
    ("resnet18", "resnet50"),
    ("convnext_b", "convnext_t"),
]


@pytest.mark.parametrize("names", FAMILIES)
def test_every_module_of_a_route_is_a_parents_or_a_stitch(names: tuple[str, ...]) -> None:
    """Specs say widths, map sizes and which windows are shifted."""
    parents = [known(name) for name in names]
    chains = [{item.path: item for item in components(parent)} for parent in parents]
    depths = [parent.depths for parent in parents]
    seen: set[Architecture] = set()
    routes = list(dict.fromkeys((*one_way(depths), *two_way(depths))))
    for route in routes:
        result = stitched(parents, route)
        chain = components(result.architecture)
        stitches = [s for s in map(result.origins.get, (c.path for c in chain)) if _is(s)]
        assert stitches == list(route.stitches)
        for item in chain:
            origin = result.origins[item.path]
            if isinstance(origin, Stitch):
                options = item.spec.as_dict()
                assert options["style"] == (
                    "conv" if item.spec.kind == "downsample" else "projection"
                )
                assert options["stride"] == 1
                assert options["dim"] == parents[origin.front].widths[origin.stage]
                assert options["out_dim"] == parents[origin.end].widths[origin.stage]
            else:
                own = chains[origin[0]][origin[1]]
                assert own.in_size == item.in_size
                assert _without_scale(own.spec.as_dict()) == _without_scale(item.spec.as_dict())
        assert Architecture.from_dict(result.architecture.to_dict()) == result.architecture
        seen.add(result.architecture)
    assert len(seen) == len(routes)


def _is(origin: object) -> bool:
    return isinstance(origin, Stitch)


def _without_scale(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "layer_scale"}


def test_parents_are_routes_without_stitches() -> None:
    parents = [known("swin_t"), known("swin_b")]
    for index, parent in enumerate(parents):
        assert stitched(parents, Route(index)).architecture == parent


def test_what_is_of_no_family_is_refused_with_the_difference() -> None:
    swin = known("swin_t")
    route = Route(0, (Stitch(0, 1, 0, 0, 1, 0),))
    with pytest.raises(UsageError, match="downsample is patch_merging and norm_conv"):
        stitched([swin, known("convnext_t")], route)
    with pytest.raises(UsageError, match="resolution is 224 and 192"):
        stitched([swin, replace(known("swin_b"), resolution=192)], route)
    with pytest.raises(UsageError, match="same number of stages"):
        one_way([(2, 2), (2, 2, 2)])


@pytest.mark.parametrize(
    "stitch",
    [
        Stitch(1, 0, 0, 0, 1, 0),  # leaves another parent
        Stitch(0, 2, 0, 0, 1, 0),  # no such parent
        Stitch(0, 1, 4, 0, 1, 0),  # no such stage
        Stitch(0, 1, 0, 2, 1, 0),  # no such block of the front
        Stitch(0, 1, 0, 0, 2, 0),  # nor of the end
    ],
)
def test_stitches_that_lead_nowhere(stitch: Stitch) -> None:
    with pytest.raises(UsageError):
        stitched([known("swin_t"), known("swin_b")], Route(0, (stitch,)))


def test_a_stitch_does_not_stand_in_for_a_strided_block() -> None:
    with pytest.raises(UsageError, match="enter a later block"):
        stitched([known("resnet18"), known("resnet50")], Route(0, (Stitch(0, 1, 1, 0, 0, 0),)))


def test_older_files_keep_their_digests() -> None:
    assert "projection" not in Macro().to_dict()
    assert Macro(projection="linear").to_dict()["projection"] == "linear"
