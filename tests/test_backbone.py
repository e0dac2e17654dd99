"""The static network as timm's users meet it: creation, images, training, export."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import pytest
import timm
import torch
from small_backbone import create, images, network, small, styles, without
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from search_space import MIXERS, Architecture, components, known, load_space, space_names
from search_space.components import ModuleSpec
from search_space.errors import InvalidArchitectureError
from supernet import build
from supernet.network.axes import STATISTICS
from supernet.network.backbone import Backbone
from supernet.network.modules import build_module


def test_the_small_network_has_every_mixer() -> None:
    mixers = {block.mixer.name for stage in small().stages for block in stage.blocks}
    assert mixers == set(MIXERS.names())


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


def test_parameters_and_averages_are_saved_and_nothing_else() -> None:
    backbone = network()
    averages = {name for name, _ in backbone.named_buffers() if name.endswith(STATISTICS)}
    parameters = {name for name, _ in backbone.named_parameters()}
    assert set(backbone.state_dict()) == parameters | averages


# Images -------------------------------------------------------------------------------------


@styles
@pytest.mark.parametrize("size", [(32, 48), (40, 24), (33, 37)])
def test_rectangular_images(style: str, size: tuple[int, int]) -> None:
    # rows and columns of other channels cannot be exchanged
    architecture = without(without(small(style), "inception_depthwise"), "stripe_attention")
    backbone = network(style, architecture)
    x = images(2, 3, *size)
    assert backbone(x).shape == (2, 7)
    assert backbone(x).isfinite().all()
    # transposing image and weights transposes the maps: heights and widths are not mixed up
    mirrored = network(style, architecture)
    state = {}
    for name, value in backbone.state_dict().items():
        if value.ndim == 4:  # a convolution's
            value = value.transpose(-1, -2)
        elif name.endswith(("relative_position_bias_table", ".positions")):
            side = int(value.shape[0] ** 0.5)
            value = value.view(side, side, -1).transpose(0, 1).reshape(value.shape)
        elif name.endswith("cpb_mlp.0.weight"):  # of distances along both sides
            value = value.flip(1)
        elif ".mixer.weights." in name:  # of outlook attention, by pairs of places in a kernel
            pairs = value.view(-1, 3, 3, 3, 3, *value.shape[1:])
            value = pairs.transpose(1, 2).transpose(3, 4).reshape(value.shape)
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
    layers = [{layer[name] for name in names if name.startswith(f"{part}.")} for part in chain]
    # one layer for each part, in the order in which an image passes them
    assert all(len(part) == 1 for part in layers)
    order = [part.pop() for part in layers]
    assert order == sorted(set(order))


def test_groups_are_timm_s_for_swin() -> None:
    with torch.device("meta"):
        ours = build(known("swin_t"), 7)
        theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=7)
    for coarse in (False, True):
        sizes = []
        for model in (ours, theirs):
            groups = group_parameters(model, model.group_matcher(coarse=coarse))
            parameters = dict(model.named_parameters())
            sizes.append([sum(parameters[n].numel() for n in group) for group in groups.values()])
        assert sizes[0] == sizes[1]


def test_layer_decay_and_no_weight_decay() -> None:
    backbone = network()
    tables = r"relative_position_bias_table|logit_scale|cpb_mlp\.\d\.(weight|bias)|positions"
    assert backbone.no_weight_decay() == {
        name
        for name, _ in backbone.named_parameters()
        if re.fullmatch(rf"stages\.\d\.blocks\.\d+\.mixer\.({tables})", name)
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
        if leaf in ("bias", "position_bias", "positions", "q_bias", "v_bias"):
            assert not value.any(), name
        elif leaf == "logit_scale":
            assert (value.exp() - 10).abs().max() < 1e-5, name
        elif leaf in ("scale1", "scale2"):
            assert (value == 0.5).all(), name
        elif (
            leaf.startswith("shortcut")
            or name.endswith("activation.scale")
            or (".norm" in name and leaf == "weight")
        ):
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
