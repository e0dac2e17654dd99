"""What the static network gives: maps of its stages, pooled features, logits."""

from __future__ import annotations

import pytest
import timm
import torch
from small_backbone import STYLES, WIDTHS, create, images, network, stage_outputs, styles
from torch import Tensor, nn

from search_space import known

# Features -----------------------------------------------------------------------------------


@styles
@pytest.mark.parametrize("out_indices", [None, (0, 2), (1,), (-2, -1)])
def test_features_only(style: str, out_indices: tuple[int, ...] | None) -> None:
    options = {} if out_indices is None else {"out_indices": out_indices}
    model = create(style, features_only=True, **options)
    taken = list(range(4)) if out_indices is None else sorted(i % 4 for i in out_indices)
    x = images(2, 3, 32, 64)
    maps = model(x)
    assert model.feature_info.channels() == [WIDTHS[i] for i in taken]
    assert model.feature_info.reduction() == [2 * 2**i for i in taken]
    assert [tuple(m.shape) for m in maps] == [
        (2, 32 // r, 64 // r, c)  # channels last, as its output_fmt says
        for r, c in zip(model.feature_info.reduction(), model.feature_info.channels(), strict=True)
    ]
    full = network(style)
    full.load_state_dict({**full.state_dict(), **flat_names(model.state_dict())})
    expected = stage_outputs(full, x)
    for i, actual in zip(taken, maps, strict=True):
        torch.testing.assert_close(actual, expected[i], atol=0, rtol=0)


def flat_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("stages_", "stages."): value for name, value in state.items()}


def test_features_only_is_as_timm_s_swin() -> None:
    architecture = known("swin_t").to_dict()
    for options in ({}, {"feature_cls": "getter"}, {"out_indices": (1, 3)}):
        with torch.device("meta"):
            ours = timm.create_model(
                "nas_backbone", architecture=architecture, features_only=True, **options
            )
            theirs = timm.create_model(
                "swin_tiny_patch4_window7_224", features_only=True, **options
            )
            x = torch.empty(1, 3, 224, 224)
            assert [m.shape for m in ours(x)] == [m.shape for m in theirs(x)]
        assert ours.output_fmt == theirs.output_fmt
        assert ours.feature_info.channels() == theirs.feature_info.channels()
        assert ours.feature_info.reduction() == theirs.feature_info.reduction()


def test_features_getter_gives_channels_first() -> None:
    model = create(features_only=True, feature_cls="getter", out_indices=(0, 2))
    shapes = [tuple(m.shape) for m in model(images(2, 3, 32, 32))]
    assert shapes == [(2, 8, 16, 16), (2, 24, 4, 4)]
    assert len(model.model.stages) == 3  # what is not needed is gone


@styles
def test_forward_intermediates(style: str) -> None:
    backbone = network(style)
    x = images(2, 3, 32, 32)
    expected = stage_outputs(backbone, x)
    last, maps = backbone.forward_intermediates(x)
    torch.testing.assert_close(last, backbone.forward_features(x), atol=0, rtol=0)
    assert len(maps) == 4
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted.permute(0, 3, 1, 2), atol=0, rtol=0)
    maps = backbone.forward_intermediates(
        x, indices=[0, -1], output_fmt="NHWC", intermediates_only=True
    )
    for actual, wanted in zip(maps, (expected[0], expected[3]), strict=True):
        torch.testing.assert_close(actual, wanted, atol=0, rtol=0)
    (normed,) = backbone.forward_intermediates(
        x, indices=1, norm=True, output_fmt="NHWC", intermediates_only=True
    )
    torch.testing.assert_close(normed, backbone.forward_features(x), atol=0, rtol=0)


def test_forward_intermediates_stops_early() -> None:
    backbone = network()
    ran: list[int] = []
    for i, stage in enumerate(backbone.stages):
        stage.register_forward_hook(lambda *_, i=i: ran.append(i))
    maps = backbone.forward_intermediates(
        images(1, 3, 32, 32), indices=[0, 1], stop_early=True, intermediates_only=True
    )
    assert ran == [0, 1]
    assert [m.shape[1] for m in maps] == [8, 16]


def test_forward_intermediates_refuses_other_formats() -> None:
    with pytest.raises(ValueError, match="output_fmt 'NLC' must be 'NCHW' or 'NHWC'"):
        network().forward_intermediates(images(1, 3, 32, 32), output_fmt="NLC")


@styles
@pytest.mark.parametrize("indices", [[0, 2], [1], [1, 3], 2])
def test_prune_intermediate_layers(style: str, indices: int | list[int]) -> None:
    backbone = network(style)
    x = images(2, 3, 32, 32)
    expected = backbone.forward_intermediates(x, indices=indices, intermediates_only=True)
    before = sum(p.numel() for p in backbone.parameters())
    take = backbone.prune_intermediate_layers(indices)
    assert take == ([2, 3] if indices == 2 else indices)
    assert len(backbone.stages) == take[-1] + 1
    assert sum(p.numel() for p in backbone.parameters()) < before
    last, maps = backbone.forward_intermediates(x, indices=take)
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted, atol=0, rtol=0)
    # what is left runs as a whole, without classifier
    assert backbone(x).shape == last.shape
    assert last.shape[-1] == WIDTHS[take[-1]]


# Heads --------------------------------------------------------------------------------------


@styles
@pytest.mark.parametrize("pool", ["avg", "max", ""])
def test_global_pool(style: str, pool: str) -> None:
    backbone = network(style, global_pool=pool)
    x = images(2, 3, 32, 64)
    maps = stage_outputs(backbone, x)[-1]
    head = backbone.head
    after = STYLES[style].head_norm == "after_pool"
    y = maps if after else head.norm(maps)
    if pool:
        flat = y.reshape(2, 1, -1, y.shape[-1])
        y = flat.mean(2, keepdim=True) if pool == "avg" else flat.max(2, keepdim=True).values
    if after:
        y = head.norm(y)
    y = y.reshape(2, -1) if pool else y
    logits = backbone(x)
    assert logits.shape == ((2, 7) if pool else (2, 2, 4, 7))
    torch.testing.assert_close(logits, head.fc(y), atol=1e-5, rtol=0)
    features = backbone.forward_features(x)
    torch.testing.assert_close(backbone.forward_head(features), logits, atol=0, rtol=0)
    torch.testing.assert_close(
        backbone.forward_head(features, pre_logits=True), y, atol=1e-5, rtol=0
    )


def test_unknown_global_pool() -> None:
    with pytest.raises(ValueError, match="global_pool 'mean' must be 'avg', 'max' or ''"):
        network(global_pool="mean")


@styles
def test_without_classifier(style: str) -> None:
    model, full = create(style, num_classes=0), network(style)
    full.load_state_dict({**full.state_dict(), **model.state_dict()})
    x = images(2, 3, 32, 32)
    assert isinstance(model.get_classifier(), nn.Identity)
    pre = full.forward_head(full.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model(x), pre, atol=0, rtol=0)


def test_reset_classifier() -> None:
    backbone = network()
    x = images(2, 3, 32, 32)
    features = backbone.forward_features(x)
    old = backbone.get_classifier()
    backbone.reset_classifier(3)
    assert backbone.get_classifier() is not old
    assert backbone(x).shape == (2, 3)
    assert backbone.num_classes == 3
    backbone.reset_classifier(5, "max")
    pooled = features.amax((1, 2))
    torch.testing.assert_close(backbone(x), backbone.head.fc(pooled), atol=1e-6, rtol=0)
    backbone.reset_classifier(0, "")
    torch.testing.assert_close(backbone(x), features, atol=0, rtol=0)
    torch.testing.assert_close(backbone.forward_features(x), features, atol=0, rtol=0)


def test_drop_rate() -> None:
    backbone = network(drop_rate=0.5)
    x = images(1, 3, 32, 32)
    features = backbone.forward_features(x)
    pre = backbone.forward_head(features, pre_logits=True)
    torch.testing.assert_close(backbone(x), network()(x), atol=0, rtol=0)  # none in eval mode
    backbone.head.train()
    torch.manual_seed(0)
    dropped = torch.stack([backbone.forward_head(features, pre_logits=True)[0] for _ in range(300)])
    kept = dropped != 0
    assert kept.float().mean() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(dropped[kept], (2 * pre).expand(300, -1)[kept], atol=1e-5, rtol=0)


def test_drop_path_grows_and_only_acts_in_training() -> None:
    backbone = network(drop_path_rate=0.3)
    rates = [block.drop_path_rate for stage in backbone.stages for block in stage.blocks]
    assert rates == pytest.approx([0.3 * i / (len(rates) - 1) for i in range(len(rates))])
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(backbone(x), network()(x), atol=0, rtol=0)
    backbone.train()
    torch.manual_seed(0)
    assert len({round(backbone(x).sum().item(), 4) for _ in range(20)}) > 1
