"""Our blocks are the published ones: weight for weight, the same logits as timm's networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from timm_pairs import PAIRS, all_pairs, of_size, quick_pairs, randomised

from search_space import known
from search_space.errors import NasError
from search_space.known_convolutional import CONVOLUTIONAL
from search_space.known_hybrid import HYBRID
from supernet import build
from supernet.network.timm_weights import from_timm, load_timm_checkpoint

# neither windows nor strides divide the third; windows are larger than maps of the last
SIZES = ((224, 224), (256, 192), (200, 200), (96, 160))
MAXVIT_SIZES = ((224, 224), (224, 448))  # timm's refuses others
CONVOLUTIONAL_SIZES = ((64, 64), (75, 75), (64, 107))


@quick_pairs
def test_logits_equal_timm(name: str, timm_name: str) -> None:
    network = randomised(timm.create_model(timm_name, num_classes=50), seed=1)
    ours = build(known(name), num_classes=50).eval()
    ours.load_state_dict(from_timm(network.state_dict(), ours))
    sizes = CONVOLUTIONAL_SIZES if name in CONVOLUTIONAL else SIZES
    for size in MAXVIT_SIZES if name in HYBRID else sizes:
        theirs = of_size(network, timm_name, size, num_classes=50)
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        with torch.inference_mode():
            expected, actual = theirs(images), ours(images)
        assert expected.std() > 0.05  # a dead network would prove nothing
        torch.testing.assert_close(
            actual, expected, atol=1e-4, rtol=0, msg=lambda text, size=size: f"{size}: {text}"
        )


@all_pairs
def test_every_parameter_has_its_counterpart(name: str, timm_name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(timm_name), build(known(name))
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


@pytest.mark.parametrize("name", ["convnext_t", "mobilenetv2_050", "test_resnet", "caformer_s18"])
def test_checkpoint_file_with_another_number_of_classes(name: str, tmp_path: Path) -> None:
    theirs = randomised(timm.create_model(PAIRS[name], num_classes=7), seed=3)
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
