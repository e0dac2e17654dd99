"""The report of a search from a trained network: its parent, blocks, losses and the zoo."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import pytest
from sample_report import Page, changed, parse, sample_report, with_parent
from scipy.stats import kendalltau

from nas.cli.printing import result_lines
from results.report.data import ReportData
from results.report.fates import CELL, fate_of, fates_picture
from results.report.front import front_chart
from results.report.inheritance import BlockFate, Inheritance, ZooFront
from results.report.page import render_report
from results.report.parent import agreement
from search_space.around import Around, around, inner_widths
from search_space.blocks import Block, Mixer, metaformer
from search_space.components import components
from search_space.known import known, known_names


@pytest.fixture(scope="module")
def data() -> ReportData:
    return with_parent(sample_report(60))


@pytest.fixture(scope="module")
def page(data: ReportData) -> str:
    return render_report(data)


def inherited(data: ReportData) -> Inheritance:
    assert data.inherited is not None
    return data.inherited


def fate(before: Block, after: Block, was: dict[str, int], now: dict[str, int]) -> BlockFate:
    return BlockFate(
        stage=0,
        position=0,
        before=before.to_dict(),
        after=after.to_dict(),
        widths_before=was,
        widths_after=now,
    )


def test_a_blocks_fate_is_told_in_words() -> None:
    own = metaformer(Mixer.of("depthwise_conv", kernel=7))
    small = metaformer(Mixer.of("depthwise_conv", kernel=3), 2.0)
    pooled = metaformer(Mixer.of("pooling"), 3.0)
    wide = {"mlp_ratio": 64}
    for after, widths, words, share in (
        (own, wide, "kept", 1.0),
        (own.replaced(mlp_ratio=1.0), {"mlp_ratio": 16}, "cut to 25\u00a0%", 0.25),
        (small, {"mlp_ratio": 32}, "cut to 50\u00a0%, kernel 7 → 3", 0.5),
        (pooled, {"mlp_ratio": 48}, "cut to 75\u00a0%, pooling instead", 0.75),
        (Block.of("skip"), {}, "skipped", 0.0),
        (Block.of("projection"), {}, "linear map instead", 0.0),
    ):
        became = fate_of(fate(own, after, wide, widths))
        assert (became.words, became.share) == (words, share)
        assert became.kept == (after == own)
    # another mixer has other widths, which are not compared
    heads = metaformer(Mixer.of("window_attention", head_dim=16))
    became = fate_of(fate(heads, pooled, {"head_ratio": 32, **wide}, wide))
    assert (became.words, became.share) == ("pooling instead", 1.0)


@pytest.mark.parametrize("name", known_names())
def test_inner_widths_are_those_of_the_modules(name: str) -> None:
    network = known(name)
    hidden = {
        item.path: item.spec.as_dict()["hidden"]
        for item in components(network)
        if item.spec.as_dict().get("hidden")
    }
    widths = inner_widths(network)
    present = sum(not b.skipped for stage in network.stages for b in stage.blocks)
    assert len(widths) == present
    for path, width in hidden.items():
        own = [channels for key, channels in widths[path].items() if key != "head_ratio"]
        assert width in own
    # the space around it keeps what it says: a half has half of the channels, to a multiple of 8
    narrow = around(network, Around(ratios=(0.5,), mixer_ratios=(), resolutions=(), skip=False))
    for path, after in inner_widths(narrow.smallest).items():
        assert all(width <= widths[path][key] for key, width in after.items())


def test_the_picture_has_a_cell_a_block_filled_by_its_share(data: ReportData, page: str) -> None:
    parent = known("convnext_t")
    picture = fates_picture(inherited(data).blocks)
    assert picture is not None
    assert len(picture["rows"]) == len(parent.stages)
    assert len(picture["cells"]) == sum(parent.depths)
    assert [cell["filled"] for cell in picture["cells"][:3]] == [CELL / 4, CELL, 0.0]
    boxes = {(cell["x"], cell["y"]) for cell in picture["cells"]}
    assert len(boxes) == len(picture["cells"])
    for cell in picture["cells"]:
        assert 0 <= cell["x"] <= picture["width"] - picture["cell"]["width"]
        assert 0 <= cell["y"] <= picture["height"] - CELL
    assert "18 blocks: 6 kept, 4 narrower inside, 4 changed in kernel" in picture["summary"]
    parsed = Page(page)
    assert not parsed.open
    (drawn,) = parsed.classed("fates")
    assert picture["summary"] in str(drawn["aria-label"])
    assert len(parsed.classed("fate-text")) == len(picture["cells"])
    assert "stages.2.blocks.8" in parsed.text
    assert "224 → 160 px" in parsed.text


def test_stages_of_many_blocks_take_several_rows(data: ReportData) -> None:
    one = inherited(data).blocks[0]
    many = [replace(one, position=i) for i in range(27)]
    picture = fates_picture(many)
    assert picture is not None
    assert len({cell["y"] for cell in picture["cells"]}) == 3
    assert max(cell["x"] for cell in picture["cells"]) + picture["cell"]["width"] <= 760
    assert fates_picture([]) is None


def test_the_parent_is_drawn_and_named_in_the_chart_of_the_front(data: ReportData) -> None:
    chart = front_chart(data)
    assert chart is not None
    for view in chart["views"]:
        names = [baseline["name"] for baseline in view["baselines"]]
        # where its cost is not known it has no place
        assert ("parent convnext_tiny" in names) == (view["metric"] != "activations")
        if names[0] == "parent convnext_tiny":
            assert view["baselines"][0]["label"] is not None


def test_predicted_and_real_losses_agree_as_scipy_says(data: ReportData, page: str) -> None:
    pairs = inherited(data).losses
    expected = kendalltau([p.predicted for p in pairs], [p.real for p in pairs]).statistic
    rank = agreement(inherited(data))
    assert rank.tau == pytest.approx(expected)
    assert rank.n == len(pairs) == 40
    parsed = Page(page)
    assert len(parsed.classed("pair")) == 40 + 30  # and those of the latency
    assert f"{expected:+.2f}" in parsed.text
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_published_accuracies_are_not_taken_for_ones_on_these_images(page: str) -> None:
    text = " ".join(Page(page).text.split())
    zoo = text[text.index("Beside the zoo") :]
    assert "are those on ImageNet and not on these images" in zoo
    assert "68.30 %" in zoo
    assert "a file of figures" in zoo


def test_the_terminal_names_the_parent_and_says_what_the_table_was_worth(
    data: ReportData, tmp_path: Path
) -> None:
    lines = list(result_lines(data, tmp_path))
    (row,) = [line for line in lines if line.endswith("← began with")]
    assert row.startswith("parent convnext_tiny ")
    assert "parent convnext_tiny: 2.40 ms, test accuracy 98.93%" in lines
    assert any("Kendall τ +0." in line for line in lines)
    first = data.front[0]
    on_front = replace(data, front=(replace(first, digest=data.baselines[0].digest),))
    marked = [line for line in result_lines(on_front, tmp_path) if "← " in line]
    assert len(marked) == 1
    assert marked[0].endswith("← parent convnext_tiny")
    plain = list(result_lines(sample_report(60), tmp_path))
    assert not any("parent" in line or "τ" in line for line in plain)


def test_the_data_survive_their_file(data: ReportData, page: str) -> None:
    again = parse(json.loads(json.dumps(data.to_dict())))
    assert again.to_dict() == data.to_dict()
    assert render_report(again) == page


def test_what_is_missing_is_left_out(data: ReportData) -> None:
    assert "What became of" not in render_report(sample_report(12))
    bare = replace(data, inherited=Inheritance(parent="gone"))
    text = render_report(bare)
    assert "What became of" in text
    for part in ('id="losses"', 'id="zoo"', 'class="fates"'):
        assert part not in text
    noted = replace(data, inherited=Inheritance(parent="gone", zoo=ZooFront(note="Not <known>.")))
    assert "Not &lt;known&gt;." in render_report(noted)
    for field in dataclasses.fields(Inheritance):
        if field.name != "parent":
            empty = None if field.name in ("resolution", "zoo") else ()
            part = replace(inherited(data), **{field.name: empty})
            assert not Page(render_report(replace(data, inherited=part))).open


def test_a_parent_that_is_chosen_itself_is_said(data: ReportData) -> None:
    assert data.chosen is not None
    parent = known("convnext_t")
    chosen = replace(data.chosen, digest=parent.digest, architecture=parent.to_dict())
    same = replace(data, chosen=chosen, inherited=replace(inherited(data), blocks=()))
    assert "The parent itself is what was chosen." in render_report(same)
    assert changed(parent).digest != parent.digest
