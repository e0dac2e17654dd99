"""Our blocks are the published ones: weight for weight, the same logits as timm's networks."""

from __future__ import annotations

import pytest
import timm
import torch

from search_space import known
from search_space.errors import NasError
from supernet import build
from supernet.network.timm_weights import from_timm, load_timm_checkpoint

PAIRS = [
    ("swin_t", "swin_tiny_patch4_window7_224"),
    ("swin_s", "swin_small_patch4_window7_224"),
    ("focalnet_t_srf", "focalnet_tiny_srf"),
    ("focalnet_t_lrf", "focalnet_tiny_lrf"),
    ("convnext_t", "convnext_tiny"),
    ("poolformer_s12", "poolformer_s12"),
]


def randomised(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights large enough for every branch to matter, layer scales included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith(("weight", "gamma", "scale")):
                parameter.copy_(0.5 + 0.1 * noise)
            elif parameter.ndim == 1 or "relative_position" in name:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [pytest.param(*p, marks=pytest.mark.slow if p[0] == "swin_s" else ()) for p in PAIRS],
)
@pytest.mark.parametrize("size", [224, 448])
def test_logits_equal_timm(name: str, timm_name: str, size: int) -> None:
    options = {"img_size": size} if "swin" in name else {}
    theirs = randomised(timm.create_model(timm_name, num_classes=50, **options), seed=1)
    ours = build(known(name), num_classes=50).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), ours))
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected, actual = theirs(images), ours(images)
    assert expected.std() > 0.05  # a dead network would prove nothing
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "timm_name"),
    [
        *PAIRS,
        ("swin_b", "swin_base_patch4_window7_224"),
        ("focalnet_s_srf", "focalnet_small_srf"),
        ("focalnet_s_lrf", "focalnet_small_lrf"),
        ("focalnet_b_srf", "focalnet_base_srf"),
        ("focalnet_b_lrf", "focalnet_base_lrf"),
        ("convnext_s", "convnext_small"),
        ("convnext_b", "convnext_base"),
        ("poolformer_s24", "poolformer_s24"),
        ("poolformer_s36", "poolformer_s36"),
        ("poolformer_m36", "poolformer_m36"),
        ("poolformer_m48", "poolformer_m48"),
    ],
)
def test_every_parameter_has_its_counterpart(name: str, timm_name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(timm_name), build(known(name))
    mapped = from_timm(theirs.state_dict(), ours)
    assert {key: value.shape for key, value in mapped.items()} == {
        key: value.shape for key, value in ours.state_dict().items()
    }


def test_layer_scales_start_as_published() -> None:
    for name, timm_name in (("convnext_t", "convnext_tiny"), ("poolformer_s36", "poolformer_s36")):
        theirs, ours = timm.create_model(timm_name), build(known(name))
        published = from_timm(theirs.state_dict(), ours)["stages.0.blocks.0.scale2"]
        torch.testing.assert_close(ours.state_dict()["stages.0.blocks.0.scale2"], published)


def test_checkpoint_file_with_another_number_of_classes(tmp_path) -> None:
    theirs = randomised(timm.create_model("convnext_tiny", num_classes=7), seed=3)
    path = tmp_path / "weights.pth"
    torch.save({"model": theirs.state_dict()}, path)
    ours = load_timm_checkpoint(known("convnext_t"), path).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images), atol=1e-4, rtol=0)
    assert load_timm_checkpoint(known("convnext_t"), path, num_classes=3)(images).shape == (1, 3)


def test_weights_of_another_architecture_are_refused() -> None:
    state = timm.create_model("convnext_tiny", num_classes=7).state_dict()
    with pytest.raises(NasError, match=r"no counterpart|another architecture|lack"):
        from_timm(state, build(known("convnext_s"), 7))
    with pytest.raises(NasError, match="no known family"):
        from_timm({"conv1.weight": torch.zeros(1)}, build(known("convnext_s"), 7))
