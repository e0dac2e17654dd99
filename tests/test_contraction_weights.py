"""Contracted networks with the weights of the large one: by hand, on digits, by command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_job import USAGE, nas
from torch.nn import functional as F

from predictors.counts import count_architecture
from results.export.card import ModelCard
from results.export.write import export_network
from search.scaling.contract import reductions, width_notches
from search_space import Architecture, Macro, Mixer, Stage, known, metaformer
from search_space.errors import UsageError
from search_space.preprocessing import Preprocessing
from supernet import Backbone, build
from supernet.data.dataset import open_data
from supernet.data.evaluation_batches import eval_batches
from supernet.inherit.contraction import contracted
from supernet.inherit.parents import find_parent
from supernet.network.layers import BatchNorm
from supernet.training.train import TrainConfig, evaluate, finetune

pytestmark = pytest.mark.usefixtures("one_thread")


def network(ratio: float = 4.0, depth: int = 2, widths: tuple[int, ...] = (16, 24)) -> Architecture:
    block = metaformer(Mixer.of("depthwise_conv", kernel=3), ratio)
    macro = Macro(stem_kernel=2, stem_stride=2)
    return Architecture(macro, 16, tuple(Stage(width, (block,) * depth) for width in widths))


def random(architecture: Architecture, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    result = build(architecture, 10)
    with torch.no_grad():
        for parameter in result.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
        for module in result.modules():
            if isinstance(module, BatchNorm):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return result.eval()


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 32), ("mobilenetv3_small_100", 64), ("poolformer_s12", 32), ("swin_t", 56)],
)
def test_the_large_network_comes_out_as_it_was(name: str, side: int) -> None:
    large = random(replace(known(name), resolution=side))
    seed = large.architecture
    smaller = [each for _, each in reductions(seed, width_notches(seed))]
    same, *others = contracted(large, [seed, *smaller[::4]])
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(same(images), large(images), rtol=1e-4, atol=1e-5)
        for small in others:
            side_of = small.architecture.resolution
            assert small(F.interpolate(images, (side_of, side_of))).isfinite().all()
    assert [small.architecture for small in others] == smaller[::4]


def test_fewer_blocks_are_the_first_ones() -> None:
    large, images = random(network()), torch.randn(2, 3, 16, 16)
    (small,) = contracted(large, [network(depth=1)])
    by_hand = build(network(depth=1), 10).eval()
    by_hand.load_state_dict({k: large.state_dict()[k] for k in by_hand.state_dict()})
    torch.testing.assert_close(small(images), by_hand(images), rtol=1e-4, atol=1e-5)


def test_the_hidden_units_of_largest_norms_stay() -> None:
    large, images = random(network()), torch.randn(2, 3, 16, 16)
    (small,) = contracted(large, [network(ratio=2.0)])
    by_hand = build(network(ratio=2.0), 10).eval()
    state = dict(large.state_dict())
    for name in [name for name in state if name.endswith("mlp.fc1.weight")]:
        block = name.removesuffix("fc1.weight")
        read, written = state[f"{block}fc1.weight"], state[f"{block}fc2.weight"]
        norms = read.abs().sum(1) + written.abs().sum(0)
        kept = norms.topk(len(norms) // 2).indices
        state[f"{block}fc1.weight"], state[f"{block}fc2.weight"] = read[kept], written[:, kept]
        state[f"{block}fc1.bias"] = state[f"{block}fc1.bias"][kept]
    by_hand.load_state_dict(state)
    torch.testing.assert_close(small(images), by_hand(images), rtol=1e-4, atol=1e-5)


def test_what_was_learnt_is_kept_for_the_most_part() -> None:
    data = open_data("digits", 16)
    torch.manual_seed(0)
    large = build(network(depth=3), data.num_classes)
    finetune(large, data, TrainConfig(epochs=4, lr=3e-3, warmup_epochs=0.5, batch_size=64))
    members = [network(ratio=3.0, depth=3), network(ratio=3.0, depth=3, widths=(14, 22))]
    smaller, narrower = contracted(large.eval(), members)
    validation = eval_batches(data.validation)
    whole, kept, cut = (evaluate(n, validation).accuracy for n in (large, smaller, narrower))
    assert whole > 0.6
    assert kept > 0.8 * whole
    assert cut > 0.2  # of ten classes: channels of the maps are dearer than those inside


def test_networks_that_are_no_contraction_are_refused() -> None:
    large = random(network())
    for other in (network(widths=(16, 32)), network(depth=3), replace(network(), macro=Macro())):
        with pytest.raises(UsageError, match="is no smaller"):
            contracted(large, [other])


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAS_CACHE", str(tmp_path / "cache"))
    images = Preprocessing(resolution=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    card, large = ModelCard(title="trained"), random(network())
    export_network(large, Path("trained"), preprocessing=images, card=card, formats=("timm",))
    return Path("trained")


def test_members_of_a_family_keep_the_weights_of_their_seed(trained: Path) -> None:
    size = count_architecture(network(), 10)["num_params"]
    budgets = f"{size // 2},{int(0.7 * size)}"
    command = ("scale", "--from", trained, "--method", "contract", "--to", budgets)
    said = nas(*command, "--no-measure", "--json", "--out", "family")
    assert said.code == 0, said.err
    members = json.loads(said.out)["members"]
    assert len(members) == 2
    large = find_parent(str(trained)).load()
    for member in members:
        parent = find_parent(member["export"])
        assert parent.mean == (0.5, 0.4, 0.3)
        assert parent.architecture.digest == member["digest"]
        small = parent.load()
        assert sum(p.numel() for p in small.parameters()) == member["costs"]["num_params"]
        (again,) = contracted(large, [parent.architecture])
        assert small.num_classes == 10
        images = torch.randn(2, 3, parent.architecture.resolution, parent.architecture.resolution)
        with torch.no_grad():
            torch.testing.assert_close(again(images), small(images))
    assert nas(*command, "--no-measure", "--out", "family").code == 0  # the same again


def test_seeds_that_are_unclear_are_refused(trained: Path) -> None:
    contract = ("--from", trained, "--method", "contract")
    for options, words in (
        (("--to", "1k"), "neither is given"),
        (("--to", "1k", "--seed", "convnext_t", *contract), "both are given"),
        (("--to", "1k", "--from", trained), "only with contract"),
        (("--to", "1k", "--seed", "convnext_t", "--from-weights", "x"), "without --from"),
        (("--to", "1k", *contract, "--num-classes", 5), "the classes of the trained network"),
        (("--to", "1k", "--from", "resnett", "--method", "contract"), "there is no network"),
    ):
        said = nas("scale", *options)
        assert said.code == USAGE, said.err
        assert words in said.err
