"""Our blocks are the published ones: weight for weight, the same logits as timm's networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from search_space import known
from search_space.errors import NasError
from search_space.known_convolutional import CONVOLUTIONAL
from supernet import build
from supernet.network.timm_weights import from_timm, load_timm_checkpoint

METAFORMERS = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "focalnet_t_srf": "focalnet_tiny_srf",
    "focalnet_t_lrf": "focalnet_tiny_lrf",
    "convnext_t": "convnext_tiny",
    "poolformer_s12": "poolformer_s12",
}
LARGE = {
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "focalnet_s_srf": "focalnet_small_srf",
    "focalnet_s_lrf": "focalnet_small_lrf",
    "focalnet_b_srf": "focalnet_base_srf",
    "focalnet_b_lrf": "focalnet_base_lrf",
    "convnext_s": "convnext_small",
    "convnext_b": "convnext_base",
    "poolformer_s24": "poolformer_s24",
    "poolformer_s36": "poolformer_s36",
    "poolformer_m36": "poolformer_m36",
    "poolformer_m48": "poolformer_m48",
}
TIMM = METAFORMERS | LARGE | {name: name for name in CONVOLUTIONAL}
SIZES = {name: ((224, 224), (448, 448)) for name in METAFORMERS} | {
    name: ((64, 64), (75, 75), (64, 107)) for name in CONVOLUTIONAL
}
LONG = ("tf_efficientnet_lite4", "efficientnet_b3", "efficientnet_b4", "resnet50d")


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights and averages, large enough for every branch to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if not value.is_floating_point():
                continue
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise.abs())
            elif value.ndim == 1 and name.endswith(("weight", "gamma", "scale")):
                value.copy_(0.5 + 0.1 * noise)
            elif value.ndim == 1 or "relative_position" in name:
                value.copy_(0.2 * noise)
            else:
                value.copy_(noise * value[0].numel() ** -0.5)
    return network.eval()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in LONG else ()) for n in SIZES]
)
def test_logits_equal_timm(name: str) -> None:
    ours = build(known(name), num_classes=50).eval()
    for height, width in SIZES[name]:
        options = {"img_size": height} if "swin" in name else {}
        theirs = randomised(timm.create_model(TIMM[name], num_classes=50, **options), seed=1)
        ours.load_state_dict(from_timm(theirs.state_dict(), ours))
        images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            expected, actual = theirs(images), ours(images)
        assert expected.std() > 0.05  # a dead network would prove nothing
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TIMM)
def test_every_parameter_has_its_counterpart(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(TIMM[name]), build(known(name))
    mapped = from_timm(theirs.state_dict(), ours)
    assert {key: value.shape for key, value in mapped.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }
    if name in CONVOLUTIONAL:
        assert known(name).resolution == theirs.default_cfg["input_size"][-1]


def test_layer_scales_start_as_published() -> None:
    for name, timm_name in (("convnext_t", "convnext_tiny"), ("poolformer_s36", "poolformer_s36")):
        theirs, ours = timm.create_model(timm_name), build(known(name))
        published = from_timm(theirs.state_dict(), ours)["stages.0.blocks.0.scale2"]
        torch.testing.assert_close(ours.state_dict()["stages.0.blocks.0.scale2"], published)


@pytest.mark.parametrize("name", ["convnext_t", "mobilenetv2_050", "test_resnet"])
def test_checkpoint_file_with_another_number_of_classes(name: str, tmp_path: Path) -> None:
    theirs = randomised(timm.create_model(TIMM[name], num_classes=7), seed=3)
    path = tmp_path / "weights.pth"
    torch.save({"model": theirs.state_dict()}, path)
    ours = load_timm_checkpoint(known(name), path).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=0)
    fresh = load_timm_checkpoint(known(name), path, num_classes=3).eval()
    assert fresh(images).shape == (1, 3)
    torch.testing.assert_close(fresh.forward_features(images), ours.forward_features(images))


def test_weights_of_another_architecture_are_refused() -> None:
    state = timm.create_model("convnext_tiny", num_classes=7).state_dict()
    with pytest.raises(NasError, match=r"no counterpart|another architecture|lack"):
        from_timm(state, build(known("convnext_s"), 7))
    with pytest.raises(NasError, match="no known family"):
        from_timm({"conv1.weight": torch.zeros(1)}, build(known("convnext_s"), 7))
