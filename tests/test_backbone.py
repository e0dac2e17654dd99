"""The static network as timm's users meet it: creation, features, heads, training, export."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from search_space import (
    Architecture,
    Block,
    Macro,
    Mixer,
    Stage,
    components,
    known,
    load_space,
    space_names,
)
from search_space.components import ModuleSpec
from search_space.errors import InvalidArchitectureError
from supernet import build
from supernet.backbone import Backbone
from supernet.mixers import registered_mixers
from supernet.modules import build_module

STYLES = {
    "swin": Macro(
        stem_kernel=2, stem_stride=2, downsample="patch_merging", head_norm="before_pool"
    ),
    "focalnet": Macro(
        stem_kernel=2, stem_stride=2, downsample="conv_norm", head_norm="before_pool"
    ),
    "convnext": Macro(stem_kernel=2, stem_stride=2, downsample="norm_conv", layer_scale=0.5),
    "poolformer": Macro(
        stem_kernel=3,
        stem_stride=2,
        stem_norm=False,
        downsample="conv",
        downsample_kernel=3,
        norm="group_norm",
        layer_scale=0.5,
    ),
}
WIDTHS = (8, 16, 24, 32)
styles = pytest.mark.parametrize("style", STYLES)


def small(style: str = "swin") -> Architecture:
    """All five mixers on maps of side 16, 8, 4 and 2."""
    attention = Block(Mixer.of("window_attention", window=4, head_dim=8), 2)
    focal = Block(Mixer.of("focal_modulation", levels=2), 2)
    recursive = Block(Mixer.of("gnconv", order=3, kernel=3), 2)
    pooling = Block(Mixer.of("pooling"), 2)
    convolution = Block(Mixer.of("depthwise_conv", kernel=3), 2)
    blocks = ((attention, attention), (focal, pooling), (recursive, convolution), (attention,))
    stages = tuple(Stage(width, row) for width, row in zip(WIDTHS, blocks, strict=True))
    return Architecture(STYLES[style], 32, stages)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(style: str = "swin", **options: Any) -> Backbone:
    torch.manual_seed(0)
    return build(small(style), **{"num_classes": 7, **options}).eval()


def create(style: str = "swin", **options: Any) -> Any:
    """As a user of timm does, with the architecture as plain JSON."""
    torch.manual_seed(0)
    form = json.loads(json.dumps(small(style).to_dict()))
    return timm.create_model("nas_backbone", architecture=form, **options).eval()


def stage_outputs(backbone: Backbone, x: Tensor) -> list[Tensor]:
    """Maps after each stage, by hooks: (batch, height, width, dim)."""
    maps: list[Tensor] = []
    handles = [
        stage.register_forward_hook(lambda module, inputs, output: maps.append(output))
        for stage in backbone.stages
    ]
    backbone(x)
    for handle in handles:
        handle.remove()
    return maps


def test_the_small_network_has_every_mixer() -> None:
    mixers = {block.mixer.name for stage in small().stages for block in stage.blocks}
    assert mixers == set(registered_mixers())


# Creation -----------------------------------------------------------------------------------


@styles
def test_create_model(style: str) -> None:
    model = create(style, num_classes=7)
    assert isinstance(model, Backbone)
    assert model.architecture == small(style)
    assert model(images(2, 3, 32, 32)).shape == (2, 7)
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (7, 32, 32)
    assert model.pretrained_cfg["first_conv"] == "stem.conv"
    assert isinstance(model.get_submodule(model.pretrained_cfg["first_conv"]), nn.Conv2d)
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()


def test_create_model_equals_build() -> None:
    one, other = create(num_classes=7), network()
    for (name, a), (also, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert name == also
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_wrong_architecture() -> None:
    form = small().to_dict()
    form["resolution"] = 0
    with pytest.raises(InvalidArchitectureError, match="resolution=0"):
        timm.create_model("nas_backbone", architecture=form)


@styles
def test_is_the_chain_of_its_components(style: str) -> None:
    backbone = network(style)
    chain = components(small(style), 7)
    paths = [item.path for item in chain]
    x = images(2, 3, 32, 32)
    expected = backbone(x)
    for path, item in zip(paths, chain, strict=True):
        alone = build_module(item.spec).eval()
        alone.load_state_dict(backbone.get_submodule(path).state_dict())
        if path == "stem":
            assert x.shape[-1] == item.in_size
        else:
            assert x.shape[1:3] == (item.in_size, item.in_size)
        x = alone(x)
        assert path == "head" or x.is_contiguous()  # the layout that latency tables assume
    torch.testing.assert_close(x, expected, atol=0, rtol=0)
    owned = {f"{path}.{name}" for path in paths for name, _ in _parameters(backbone, path)}
    assert owned == {name for name, _ in backbone.named_parameters()}


def _parameters(backbone: Backbone, path: str) -> list[tuple[str, nn.Parameter]]:
    return list(backbone.get_submodule(path).named_parameters())


def test_on_meta_has_no_storage_and_the_same_shapes() -> None:
    with torch.device("meta"):
        empty = build(known("swin_b"))
        assert all(value.is_meta for value in empty.state_dict().values())
        assert empty(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
    assert sum(p.numel() for p in empty.parameters()) == 87_768_224  # as timm's swin_base
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in build(small(), 7).state_dict().items()}
    assert shapes == {name: value.shape for name, value in network().state_dict().items()}


def test_every_parameter_is_saved_and_nothing_else() -> None:
    backbone = network()
    assert set(backbone.state_dict()) == {name for name, _ in backbone.named_parameters()}


# Images -------------------------------------------------------------------------------------


@styles
@pytest.mark.parametrize("size", [(32, 48), (40, 24), (33, 37)])
def test_rectangular_images(style: str, size: tuple[int, int]) -> None:
    backbone = network(style)
    x = images(2, 3, *size)
    assert backbone(x).shape == (2, 7)
    assert backbone(x).isfinite().all()
    # transposing image and weights transposes the maps: heights and widths are not mixed up
    mirrored = network(style)
    state = {}
    for name, value in backbone.state_dict().items():
        if name.endswith("conv.weight") or "contexts" in name:
            value = value.transpose(-1, -2)
        elif name.endswith("relative_position_bias_table"):
            side = int(value.shape[0] ** 0.5)
            value = value.view(side, side, -1).transpose(0, 1).reshape(value.shape)
        elif name.endswith("downsample.reduction.weight"):
            value = swap_corners(value)
        elif "downsample.norm" in name and style == "swin":
            value = swap_corners(value[None])[0]
        state[name] = value
    mirrored.load_state_dict(state)
    torch.testing.assert_close(
        mirrored.forward_features(x.transpose(2, 3)).transpose(1, 2),
        backbone.forward_features(x),
        atol=1e-4,
        rtol=0,
    )


def swap_corners(weight: Tensor) -> Tensor:
    """Columns of merged 2 × 2 neighbours with the two off-diagonal ones exchanged."""
    a, b, c, d = weight.chunk(4, dim=1)
    return torch.cat([a, c, b, d], dim=1)


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels(in_chans: int) -> None:
    model = create(in_chans=in_chans, num_classes=7)
    assert model.stem.conv.weight.shape[1] == in_chans
    assert model(images(2, in_chans, 32, 32)).shape == (2, 7)


def test_images_do_not_influence_each_other() -> None:
    backbone = network()
    x = images(3, 3, 32, 32)
    torch.testing.assert_close(
        backbone(x), torch.cat([backbone(one[None]) for one in x]), atol=1e-5, rtol=0
    )


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
    rates = [
        getattr(block.drop_path, "drop_prob", 0.0)
        for stage in backbone.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])
    x = images(1, 3, 32, 32)
    torch.testing.assert_close(backbone(x), network()(x), atol=0, rtol=0)
    backbone.train()
    torch.manual_seed(0)
    assert len({round(backbone(x).sum().item(), 4) for _ in range(20)}) > 1


# Training -----------------------------------------------------------------------------------


@styles
@pytest.mark.parametrize("coarse", [False, True])
def test_group_matcher(style: str, coarse: bool) -> None:
    backbone = network(style)
    groups = group_parameters(backbone, backbone.group_matcher(coarse=coarse))
    names = [name for group in groups.values() for name in group]
    assert sorted(names) == sorted(name for name, _ in backbone.named_parameters())
    layer = {name: index for index, group in groups.items() for name in group}
    chain = ["stem"] + [
        f"stages.{i}" if coarse else f"stages.{i}.blocks.{j}"
        for i, stage in enumerate(small(style).stages)
        for j in range(stage.depth)
    ]
    chain = list(dict.fromkeys([*chain, "head.fc"]))
    found = [{layer[name] for name in names if name.startswith(f"{part}.")} for part in chain]
    # one layer for each part, in the order in which an image passes them
    assert all(len(part) == 1 for part in found)
    order = [part.pop() for part in found]
    assert order == sorted(set(order))


def test_groups_are_timm_s_for_swin() -> None:
    with torch.device("meta"):
        ours = build(known("swin_t"), 7)
        theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7)
    for coarse in (False, True):
        sizes = []
        for model in (ours, theirs):
            groups = group_parameters(model, model.group_matcher(coarse=coarse))
            own = dict(model.named_parameters())
            sizes.append([sum(own[n].numel() for n in group) for group in groups.values()])
        assert sizes[0] == sizes[1]


def test_layer_decay_and_no_weight_decay() -> None:
    backbone = network()
    assert backbone.no_weight_decay() == {
        name for name, _ in backbone.named_parameters() if "relative_position_bias" in name
    }
    optimizer = create_optimizer_v2(
        backbone, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5
    )
    scales = {
        parameter: group["lr_scale"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert scales[backbone.head.fc.weight] == 1
    assert scales[backbone.stem.conv.weight] < scales[backbone.stages[3].blocks[0].mlp.fc1.weight]
    assert len(scales) == len(list(backbone.parameters()))


@styles
def test_grad_checkpointing_changes_nothing(style: str) -> None:
    x = images(2, 3, 32, 32)
    results = []
    for enable in (False, True):
        backbone = network(style, drop_path_rate=0.2).train()
        backbone.set_grad_checkpointing(enable)
        calls = count_calls(backbone.stages[0].blocks[0])
        torch.manual_seed(1)  # the same paths are dropped
        logits = backbone(x)
        logits.square().mean().backward()
        assert len(calls) == (2 if enable else 1)  # run again for the gradients
        results.append((logits, {name: p.grad for name, p in backbone.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], atol=0, rtol=0)
    assert all(grad is not None for grad in results[0][1].values())
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-7, rtol=1e-5)


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_initial_values() -> None:
    backbone = network("convnext")
    for name, value in backbone.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "bias":
            assert not value.any(), name
        elif leaf in ("scale1", "scale2"):
            assert (value == 0.5).all(), name
        elif ".norm" in name and leaf == "weight":
            assert (value == 1).all(), name
        else:
            assert 0.01 < value.std() < 1, name


# Export -------------------------------------------------------------------------------------


@lru_cache
def random_architecture(name: str) -> Architecture:
    """A random choice of every gene, with depths kept low so that tracing is quick."""
    space = load_space(name)
    genes = space.sample(np.random.default_rng(3), 64)
    return min(space.decode(genes), key=lambda architecture: sum(architecture.depths))


@pytest.mark.parametrize("name", [*space_names(), "all mixers"])
def test_torch_export_with_dynamic_batch(name: str) -> None:
    torch.manual_seed(0)
    architecture = small() if name == "all mixers" else random_architecture(name)
    backbone = build(architecture, num_classes=5).eval()
    side = min(architecture.resolution, 64)
    program = torch.export.export(
        backbone, (images(2, 3, side, side),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    exported = program.module()
    for batch in (1, 3):
        x = images(batch, 3, side, side, seed=batch)
        torch.testing.assert_close(exported(x), backbone(x), atol=1e-5, rtol=0)
    assert backbone(images(1, 3, 32, 32)).isfinite().all()  # no traced tensor was left behind


def test_specs_are_plain_values() -> None:
    spec = components(small())[0].spec
    assert isinstance(spec, ModuleSpec)
    assert hash(spec) == hash(components(small())[0].spec)
    assert str(spec).startswith("stem(dim=8,kernel=2,")
