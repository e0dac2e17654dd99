"""Every mixer in use: weights that subnets share, batch norms folded, exported graphs."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from mixer_sizes import narrow
from operator_cases import assert_close
from timm_pairs import randomised

from predictors.counts import count_entry
from predictors.measuring.runtimes.onnx_graph import to_onnx
from search_space import MIXERS, Macro, Mixer, SearchSpace, StageSpace, metaformer
from search_space.components import block_spec
from search_space.mixers import NORMALISERS
from supernet import Supernet
from supernet.network.layers import fold_batch_norms
from supernet.network.mixers import ReparamDepthwise, build_mixer
from supernet.network.norms import has_batch_norms

SMALLER = {  # other values of parameters, which share weights with the defaults
    "window_attention": {"head_dim": 8, "window": 3},  # which pads the maps, of side 4 and 2
    "block_attention": {"head_dim": 8, "window": 3, "head_ratio": 0.5},
    "grid_attention": {"head_dim": 8, "window": 3, "head_ratio": 0.5},
    "linear_attention": {"head_dim": 4, "window": 3, "kernel": 3},
    "cosine_window_attention": {"head_dim": 4, "window": 3, "trained": 8},
    "single_head_attention": {"key_dim": 8},
    "spatial_reduction_attention": {"head_dim": 8, "reduction": 1},
    "efficient_modulation": {"expansion": 2, "kernel": 3},
    "large_kernel_attention": {"kernel": 3, "dilated": 5, "dilation": 2},
    "inception_depthwise": {"band": 7},
    "reparam_depthwise": {"kernel": 13},
    "scale_aware_modulation": {"heads": 2, "expansion": 3},
    "local_aggregation": {"kernel": 3},
    "convolutional_attention": {"head_dim": 4, "kernel": 5, "reduction": 1},
    "stripe_attention": {"head_dim": 2, "stripe": 2},
    "outlook_attention": {"head_dim": 4, "kernel": 5, "stride": 1},
    "additive_attention": {"kernel": 5},
    "cascaded_group_attention": {"heads": 2, "key_dim": 8, "window": 3, "kernel": 3},
}


@pytest.mark.parametrize("name", SMALLER)
@torch.no_grad()
def test_subnets_are_extracted_networks_bit_for_bit(name: str) -> None:
    mixers = narrow(name), Mixer.of(name, **SMALLER[name])
    blocks = tuple(metaformer(mixer, 1.0, position=mixer != mixers[0]) for mixer in mixers)
    stage = StageSpace((8, 16), (1, 2), blocks)
    space = SearchSpace("x", Macro(stem_kernel=2, stem_stride=2), (8,), (stage, stage))
    torch.manual_seed(0)
    supernet, images = Supernet(space, 3), torch.randn(2, 3, 8, 8)
    for architecture in space.decode(space.sample(np.random.default_rng(0), 4)):
        network = supernet.extract(architecture)  # in training: subnets normalise by their batch
        assert torch.equal(supernet(images, architecture), network(images))


@pytest.mark.parametrize("name", MIXERS.names())
@torch.no_grad()
def test_batch_norms_inside_mixers_fold_without_a_change(name: str) -> None:
    mixer = randomised(build_mixer(name, 32), 0)
    x = torch.randn(2, 7, 5, 32)
    expected = mixer(x)
    folded = fold_batch_norms(mixer)
    assert not has_batch_norms(folded)
    assert_close(folded(x), expected)


@pytest.mark.parametrize("branches", ["dilated", "point"])
@pytest.mark.parametrize("kernel", [3, 5, 7, 9, 11, 13, 15, 17])
@torch.no_grad()
def test_branches_are_one_convolution_once_folded(kernel: int, branches: str) -> None:
    mixer = randomised(ReparamDepthwise(8, kernel, branches), 0).double()
    x = torch.randn(2, 7, 20, 8, dtype=torch.float64)
    expected = mixer(x)
    folded = fold_batch_norms(mixer)
    torch.testing.assert_close(folded(x), expected)
    assert [tuple(p.shape) for p in folded.parameters()] == [(8, 1, kernel, kernel), (8,)]
    assert torch.equal(fold_batch_norms(folded)(x), folded(x))


def test_costs_are_those_of_the_merged_convolution() -> None:
    """In time, operations and activations a depthwise convolution; parameters are the trained."""
    blocks = [
        metaformer(Mixer.of(name, kernel=13)) for name in ("reparam_depthwise", "depthwise_conv")
    ]
    ours, plain = (count_entry(block_spec(Macro(), 16, block, 0), 14) for block in blocks)
    assert (ours.macs, ours.activations) == (plain.macs, plain.activations)
    assert ours.num_params - plain.num_params == 16 * (25 + 49 + 27 + 6 * 2 - 1)


EXPORTED = (
    *map(Mixer.of, MIXERS),
    Mixer.of("reparam_depthwise", branches="point"),
    *(
        Mixer.of(name, normaliser=normaliser)
        for name in ("attention", "window_attention")
        for normaliser in NORMALISERS[1:]
    ),
)


@pytest.mark.parametrize("mixer", EXPORTED, ids=lambda m: f"{m.name}-{m.params[-1:]}")
def test_onnx_and_torch_export(mixer: Mixer) -> None:
    module = fold_batch_norms(randomised(build_mixer(mixer.name, 32, **dict(mixer.params)), 0))
    x = torch.randn(2, 7, 9, 32)
    expected = module(x).detach()
    graph = to_onnx(module, x).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(output), expected)
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(module, (x,), dynamic_shapes=batch).module()
    assert_close(exported(torch.cat([x, x]))[2:], expected)
