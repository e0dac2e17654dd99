"""ViT-ResNAS's residual spatial reduction, position by position."""

from __future__ import annotations

import itertools

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from timm_pairs import randomised

from predictors.measuring.runtimes.onnx_graph import to_onnx
from search_space import Macro, Mixer, SearchSpace, StageSpace, metaformer
from supernet import Supernet
from supernet.network.transitions import ResidualNormConv

PLACES = pytest.mark.parametrize(
    ("dim", "out_dim", "kernel", "stride"),
    [(6, 10, 3, 2), (10, 6, 3, 2), (6, 6, 2, 2), (6, 10, 4, 2), (6, 10, 5, 2), (6, 9, 1, 1)],
)


def module(dim: int, out_dim: int, kernel: int, stride: int) -> ResidualNormConv:
    made = ResidualNormConv(dim, out_dim, kernel, stride, "layer_norm", 1e-6)
    return randomised(made, 0).double()


@PLACES
@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@torch.no_grad()
def test_by_definition(
    dim: int, out_dim: int, kernel: int, stride: int, size: tuple[int, int]
) -> None:
    """Liao et al., 2021, section 3.2: a strided convolution of the norm, and padded averages."""
    made = module(dim, out_dim, kernel, stride)
    x = torch.randn(2, *size, dim, dtype=torch.float64)
    normed = F.layer_norm(x, (dim,), made.norm.weight, made.norm.bias, 1e-6)
    margin = (kernel - stride + 1) // 2
    padded = F.pad(normed, (0, 0, *(margin,) * 4))
    rows, columns = ((n + kernel % 2) // 2 if stride == 2 else n for n in size)
    expected = made.conv.bias.expand(2, rows, columns, out_dim).clone()
    for i, j in itertools.product(range(rows), range(columns)):
        patch = padded[:, i * stride :, j * stride :][:, :kernel, :kernel]
        expected[:, i, j] += torch.einsum("bijc,ocij->bo", patch, made.conv.weight)
        means = x[:, i * stride :, j * stride :][:, :stride, :stride].mean((1, 2))
        shared = min(dim, out_dim)
        expected[:, i, j, :shared] += means[:, :shared]
    torch.testing.assert_close(made(x), expected)


@PLACES
@torch.no_grad()
def test_exports_compute_the_same(dim: int, out_dim: int, kernel: int, stride: int) -> None:
    made = module(dim, out_dim, kernel, stride).float()
    x = torch.randn(1, 7, 9, dim)
    session = onnxruntime.InferenceSession(to_onnx(made, x).SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(output, made(x).numpy(), atol=1e-4)
    exported = torch.export.export(made, (x,)).module()
    torch.testing.assert_close(exported(x), made(x))


@torch.no_grad()
def test_subnets_are_extracted_networks_bit_for_bit() -> None:
    block = metaformer(Mixer.of("pooling"), 2)
    stages = tuple(StageSpace((8, 16, 24), (1,), (block,)) for _ in range(3))
    macro = Macro(stem_kernel=2, stem_stride=2, downsample="residual_norm_conv")
    space = SearchSpace("x", macro, (16,), stages)
    torch.manual_seed(0)
    supernet, images = Supernet(space, 3), torch.randn(2, 3, 16, 16)
    for architecture in space.decode(space.sample(np.random.default_rng(0), 8)):
        network = supernet.extract(architecture)
        assert torch.equal(supernet(images, architecture), network(images))
