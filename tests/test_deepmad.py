"""DeepMAD's score and ρ: published figures, a plain sum as oracle, and tables against traces."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from predictors.counts import count_architecture, counts
from predictors.proxies import Network, proxy
from predictors.proxies.combined import RANK_QUALITY, REFERENCE, combined_score
from predictors.proxies.deepmad import (
    StageEnd,
    effectiveness_of_ends,
    score_of_ends,
    stage_ends,
)
from predictors.proxies.space_tables import (
    CLOSED_FORMS,
    SpaceScores,
    architecture_ends,
    score_architecture,
)
from predictors.proxies.structure import trace
from search_space import known, known_names, load_space
from search_space.errors import UnknownNameError

BANDS = ("all", "3–6 G", "6–12 G")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "proxy_fidelity.json"


def resnet50() -> list[StageEnd]:
    """The plain structure of ResNet-50 at 224 px: stem and bottlenecks, no projections."""
    widths, c_in = [3 * 7**2], 64
    ends = [StageEnd(64, 112**2, 0.5 * math.log(widths[0]), 1)]
    for inner, depth, size in [(64, 3, 56), (128, 4, 28), (256, 6, 14), (512, 3, 7)]:
        for _ in range(depth):
            widths += [c_in, inner * 3**2, inner]
            c_in = 4 * inner
        ends.append(StageEnd(c_in, size**2, 0.5 * sum(map(math.log, widths)), len(widths)))
    return ends


def test_resnet_50_has_the_published_score_and_effectiveness() -> None:
    assert score_of_ends(resnet50()) == pytest.approx(16977.0826, abs=1e-4)
    assert effectiveness_of_ends(resnet50()) == pytest.approx(0.0891, abs=5e-5)


def test_depthwise_layers_count_by_their_kernel_alone() -> None:
    depthwise = nn.Conv2d(64, 64, 7, padding=3, groups=64, device="meta")
    ends = stage_ends(trace(depthwise, (1, 64, 8, 8)))
    # one stage, the last one: weight 8
    assert score_of_ends(ends) == pytest.approx(8 * math.log(64 * 64) * 0.5 * math.log(49))
    assert effectiveness_of_ends(ends) == pytest.approx(1 / 49)


@pytest.mark.parametrize("name", ["swin_t", "focalnet_t_lrf", "convnext_t", "hornet_t"])
def test_components_and_the_traced_network_give_the_same(name: str) -> None:
    traced = stage_ends(Network.of_architecture(known(name)).structure)
    by_parts = architecture_ends(known(name))
    assert [(e.channels, e.positions, e.layers) for e in traced] == [
        (e.channels, e.positions, e.layers) for e in by_parts
    ]
    np.testing.assert_allclose([e.entropy for e in traced], [e.entropy for e in by_parts])


@pytest.mark.parametrize("preset", ["digits", "cifar", "tiny"])
def test_they_do_so_on_small_maps_too(preset: str) -> None:
    space = load_space(preset)
    drawn = space.decode(space.sample(np.random.default_rng(2), 3))
    for architecture in (space.smallest, space.largest, *drawn):
        network = Network.of_architecture(architecture)
        for name in CLOSED_FORMS:
            expected = score_architecture(name, architecture)
            assert proxy(name).score(network).value == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize(("ours", "timm"), [("swin_t", "swin_tiny_patch4_window7_224")])
def test_our_network_and_timm_s_have_the_same_structure(ours: str, timm: str) -> None:
    mine, theirs = Network.of_architecture(known(ours)).structure, Network.of_timm(timm).structure
    assert mine.layers == theirs.layers
    assert (mine.num_params, mine.activations) == (theirs.num_params, theirs.activations)


@pytest.mark.parametrize("name", known_names())
def test_traced_counts_are_the_closed_forms(name: str) -> None:
    structure = Network.of_architecture(known(name)).structure
    expected = count_architecture(known(name))
    assert structure.num_params == expected["num_params"]
    assert structure.macs == pytest.approx(expected["macs"], rel=1e-3)
    assert structure.activations == expected["activations"]


def test_only_the_longest_of_parallel_branches_counts() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.long = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1))
            self.short = nn.Conv2d(4, 4, 5, padding=2)
            self.squeeze = nn.Conv2d(4, 4, 1)

        def forward(self, x):  # type: ignore[no-untyped-def]
            gate = self.squeeze(x.mean((2, 3), keepdim=True))
            return x + self.long(x) * self.short(x) * gate

    path = trace(Gate().to("meta"), (1, 4, 6, 6)).path
    # ½(ln 4 + ln 36) against ½ ln 100; the gate of one position is left out
    assert path.layers == 2
    assert path.entropy == pytest.approx(0.5 * (math.log(4) + math.log(36)))


@pytest.mark.parametrize("preset", ["digits", "cifar"])
def test_tables_give_what_each_architecture_has(preset: str) -> None:
    space = load_space(preset)
    scores = SpaceScores.build(space, counts(space))
    genes = space.sample(np.random.default_rng(0), 50)
    for name in CLOSED_FORMS:
        expected = [score_architecture(name, a) for a in space.decode(genes)]
        np.testing.assert_allclose(scores.predict(name, genes), expected, rtol=1e-9)
    with pytest.raises(UnknownNameError, match=r"'deepmat'.*deepmad"):
        scores.predict("deepmat", genes)
    with pytest.raises(UnknownNameError, match=r"'deepmat'.*deepmad"):
        score_architecture("deepmat", known("swin_t"))


def test_a_class_token_is_no_stage() -> None:
    token, none = (Network.of_timm(f"vit_base_patch16_{n}224") for n in ("", "gap_"))
    ends = stage_ends(token.structure)
    assert [end.positions for end in ends] == [197]
    for name in CLOSED_FORMS:
        of_token, of_none = (proxy(name).score(network).value for network in (token, none))
        assert of_token == pytest.approx(of_none, rel=1e-3, abs=0.05), name


def test_padded_windows_are_no_stages() -> None:
    ours = Network.of_architecture(replace(known("swin_t"), resolution=160))
    theirs = Network.of_timm("swin_tiny_patch4_window7_224", image_size=160)
    assert len(stage_ends(theirs.structure)) == 4
    for name in ("deepmad", "effectiveness"):
        expected = proxy(name).score(ours).value
        assert proxy(name).score(theirs).value == pytest.approx(expected, rel=1e-6)


def test_closed_forms_of_a_timm_model_and_of_nothing() -> None:
    ends = stage_ends(Network.of_timm("resnet50").structure)
    assert len(ends) == 5
    score = proxy("deepmad").score(Network.of_timm("resnet50"))
    assert score.value == pytest.approx(score_of_ends(ends))
    # within the difference of projections and of where strides sit
    assert score.value == pytest.approx(16977.08, rel=0.005)
    assert proxy("effectiveness").score(Network.of_timm("resnet50")).value == pytest.approx(
        effectiveness_of_ends(ends)
    )
    empty = Network("empty", 8, nn.Identity)
    found = proxy("deepmad").score(empty)
    assert found.value is None
    assert "no linear layer" in found.reason
    with pytest.raises(UnknownNameError, match="resnet5000"):
        Network.of_timm("resnet5000")


def test_the_default_score_is_zero_for_the_mean_of_its_reference() -> None:
    means = {name: math.exp(mean) for name, (mean, _) in REFERENCE.items()}
    args = [np.array([means[k]]) for k in REFERENCE]
    assert combined_score(*args)[0] == pytest.approx(0)
    more = [a * math.exp(REFERENCE[k][1]) for k, a in zip(REFERENCE, args, strict=True)]
    assert combined_score(*more)[0] == pytest.approx(1)
    deep = combined_score(args[0], args[1], np.array([5.0]))
    assert deep == combined_score(args[0], args[1], np.array([50.0]))


def test_what_the_default_score_claims_is_what_the_benchmark_found() -> None:
    found = json.loads(RESULTS.read_text())
    for name, (mean, deviation) in REFERENCE.items():
        assert [mean, deviation] == pytest.approx(found["reference"][name], abs=1e-4)
    own, unseen = found["closed_form"], found["other_families"]["closed_form"]
    default = "combined (the default)"
    assert f"τ of {own[default]['tau']['all']:.2f}" in RANK_QUALITY
    sizes = [unseen[name]["tau"] for name in ("activations", "num_params", "macs")]
    told = [(unseen[default]["tau"][band], *(tau[band] for tau in sizes)) for band in BANDS]
    assert ["{:.2f} ({:.2f}, {:.2f}, {:.2f})".format(*taus) for taus in told] == [
        re.sub("[a-zA-Z]+ (?=0)", "", text)
        for text in re.findall(r"0\.\d\d \([^)]*\)", " ".join(RANK_QUALITY.split()))
    ]
