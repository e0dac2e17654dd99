"""Progressive tokenisation: pixels left out equal a dilated stem, and the tokens are as counted."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_backbone import STYLES, images, network, stage_outputs, styles
from torch.nn import functional as F

from search_space import Macro, Mixer, SearchSpace, StageSpace, load_space, metaformer
from search_space.components import stem_spec
from search_space.errors import RunError
from search_space.macro import conv_padding
from supernet.network.modules import build_module
from supernet.training.tokenisation import TokenSchedule, coarsen


@settings(deadline=None, max_examples=200)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    kernel=st.integers(1, 7),
    stride=st.integers(1, 6),
    padding=st.integers(0, 7),
    factor=st.integers(1, 5),
)
def test_a_stem_on_every_cth_pixel_is_the_dilated_stem(
    height, width, kernel, stride, padding, factor
):
    generator = torch.Generator().manual_seed(0)

    def integers(*shape: int) -> torch.Tensor:  # sums of small integers are exact in any order
        return torch.randint(-9, 10, shape, generator=generator).double()

    image, weight = integers(2, 3, height, width), integers(4, 3, kernel, kernel)
    small_image = coarsen(image, factor)
    if min(small_image.shape[2:]) + 2 * padding < kernel:
        return  # neither convolution has an output
    dilated = F.conv2d(
        image,
        weight,
        stride=stride * factor,
        padding=padding * factor,
        dilation=factor,
    )
    assert torch.equal(F.conv2d(small_image, weight, stride=stride, padding=padding), dilated)


@styles
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_every_stem_of_ours_with_its_norm(style, factor):
    macro = STYLES[style]
    torch.manual_seed(0)
    stem = build_module(stem_spec(macro, 8)).double()
    image = images(2, 3, 30, 30).double()
    dilated = F.conv2d(
        image,
        stem.conv.weight,
        stem.conv.bias,
        stride=macro.stem_stride * factor,
        padding=conv_padding(macro.stem_kernel, macro.stem_stride) * factor,
        dilation=factor,
    )
    torch.testing.assert_close(stem(coarsen(image, factor)), stem.norm(dilated.permute(0, 2, 3, 1)))


def test_coarse_images_are_contiguous_and_factor_one_copies_nothing():
    image = images(1, 3, 10, 7)
    assert coarsen(image, 1) is image
    found = coarsen(image, 4)
    assert found.is_contiguous()
    assert found.shape == (1, 3, 3, 2)
    assert found[0, 1, 2, 1] == image[0, 1, 8, 4]


def test_published_schedule_epoch_by_epoch():
    """Of As-ViT's 300 epochs 80 have stride 16 and 53 stride 8 before stride 4."""
    schedule = TokenSchedule(((80 / 300, 4), (133 / 300, 2)))
    factors = [schedule.factor(epoch / 300) for epoch in range(300)]
    assert factors == [4] * 80 + [2] * 53 + [1] * 167
    assert schedule.factor(1.0) == 1


@styles
def test_coarse_images_make_as_many_tokens_as_a_smaller_resolution(style):
    with torch.inference_mode():
        maps = stage_outputs(network(style), coarsen(images(1, 3, 32, 32), 2))
        small_maps = stage_outputs(network(style), images(1, 3, 16, 16))
    assert [m.shape for m in maps] == [m.shape for m in small_maps]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        (((0.5, 2), (0.5, 2)), r"share 0\.5 follows 0\.5.*must rise"),
        (((0.0, 2),), r"share 0\.0 .*must rise"),
        (((1.0, 2),), r"share 1\.0.*below 1.*end with all tokens"),
        (((float("nan"), 2),), "share nan"),
        (((0.2, 2), (0.4, 4)), "factor 4 follows 2.*from large to small"),
        (((0.2, 1),), "factor 1 until.*at least 2"),
        (((0.2, 2.0),), r"factor 2\.0.*integer"),
        (((0.2, True),), "factor True.*integer"),
        (((0.2,),), "not a list of pairs.*write pairs"),
        ((0.2, 4), "not a list of pairs"),
        ((("early", 4),), "not a list of pairs"),
    ],
)
def test_impossible_schedules_are_refused(phases, message):
    with pytest.raises(RunError, match=message):
        TokenSchedule(phases)


def test_schedule_from_plain_values():
    schedule = TokenSchedule([[0.25, 4], [0.5, 2]])  # as JSON and YAML give it
    assert schedule == TokenSchedule(((0.25, 4), (0.5, 2)))
    assert [schedule.factor(share) for share in (0, 0.249, 0.25, 0.499, 0.5, 1)] == [
        4,
        4,
        2,
        2,
        1,
        1,
    ]


def test_a_factor_must_leave_a_token_in_each_stage():
    # stride 4 and three halvings without padding: 32 px for a token
    stage = StageSpace((16,), (1,), (metaformer(Mixer.of("pooling")),))
    space = SearchSpace("four", Macro(), (112,), (stage,) * 4)
    schedule = TokenSchedule(((0.5, 4),))
    schedule.check(space, 128)
    with pytest.raises(RunError, match=r"sides \(7, 3, 1, 0\) at 112 px.*at most 3"):
        schedule.check(space, 112)
    with pytest.raises(RunError, match="at most 2"):
        TokenSchedule(((0.5, 3),)).check(space, 64)
    space = load_space("digits")
    with pytest.raises(RunError, match="leave tokens as they are, or take a larger resolution"):
        TokenSchedule(((0.1, 2),)).check(space, min(space.resolutions))
