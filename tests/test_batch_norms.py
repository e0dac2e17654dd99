"""Batch norms outside training: averages by recalibration, folding, and what carries them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from architecture_strategies import architectures
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from safetensors.torch import load_file
from tiny_training import config, few_images, fresh
from torch import Tensor, nn

from predictors.counts import count_architecture
from predictors.measuring.bench import WeightPool, entry_subject, network_subject
from predictors.measuring.runtimes.onnx_graph import to_onnx
from predictors.measuring.this_machine import local_conditions
from predictors.operators import operators
from results.export.card import ModelCard
from results.export.write import export_network
from search.evaluator import SupernetEvaluator, SupernetFactory
from search_space import (
    Architecture,
    Block,
    Macro,
    Mixer,
    SearchSpace,
    Stage,
    StageSpace,
    components,
    load_space,
    metaformer,
)
from search_space.errors import RunError, UsageError
from search_space.preprocessing import Preprocessing
from supernet import build
from supernet.data.batches import Batch
from supernet.data.evaluation_batches import doubling_batches, eval_batches
from supernet.network.layers import fold_batch_norms
from supernet.network.norms import BatchNorm, has_batch_norms
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.loop import CHECKPOINTS
from supernet.training.objectives import Loss, NetworkObjective
from supernet.training.recalibration import calibration_batches, extract, recalibrate
from supernet.training.train import finetune, train_supernet

pytestmark = pytest.mark.usefixtures("one_thread")

MACRO = Macro(
    stem="conv_act",
    stem_kernel=3,
    stem_stride=2,
    downsample="block",
    norm="batch_norm",
    head="conv",
    head_width=32,
    head_norm="none",
)
ATTENTION = metaformer(Mixer.of("window_attention", window=4, head_dim=8), 2)


def inverted(expansion: float, squeeze: float = 0.0, kernel: int = 3) -> Block:
    return Block.of("inverted_residual", expansion=expansion, kernel=kernel, squeeze=squeeze)


def space() -> SearchSpace:
    """Inverted residuals, and attention with batch norms in its last stage."""
    blocks = (inverted(2.0), inverted(3.0, 0.25, 5))
    return SearchSpace(
        "norms",
        MACRO,
        (16,),
        (
            StageSpace((8, 16), (1, 2), (blocks, blocks)),
            StageSpace((16, 24), (1, 2), (blocks, (inverted(2.0), ATTENTION))),
        ),
    )


def normed(seen: list[tuple[BatchNorm, Tensor]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps what every batch norm is given."""
    plain = BatchNorm.of_maps

    def record(self: BatchNorm, maps: Tensor) -> Tensor:
        seen.append((self, maps.detach().double()))
        return plain(self, maps)

    monkeypatch.setattr(BatchNorm, "of_maps", record)


def with_random_averages(network: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.5, 2),
                (module.weight.data, 0.5, 1.5),
                *([] if module.bias is None else [(module.bias.data, -0.5, 0.5)]),
            ):
                assert tensor is not None
                tensor.uniform_(low, high, generator=generator)
    return network


def averages(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.named_buffers()}


# Recalibration ------------------------------------------------------------------------------


def test_averages_are_the_statistics_of_all_positions(monkeypatch):
    data, supernet = few_images(), fresh(space())
    supernet.eval()
    network = supernet.extract(supernet.space.largest)
    before = {name: value.clone() for name, value in network.named_parameters()}
    batches = calibration_batches(data, 10**9)
    sizes = [len(images) for images, _ in batches]
    assert sum(sizes) == len(data.train)
    # a last batch that is smaller counts for its positions only
    uneven = [*batches, tuple(part[:3] for part in next(iter(batches)))]
    seen: list[tuple[BatchNorm, Tensor]] = []
    normed(seen, monkeypatch)
    assert recalibrate(network, uneven) == len(data.train) + 3
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    assert len(norms) > 10
    for norm in norms:
        values = torch.cat(
            [maps.transpose(0, 1).flatten(1) for who, maps in seen if who is norm], 1
        )
        torch.testing.assert_close(norm.running_mean.double(), values.mean(1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(norm.running_var.double(), values.var(1), atol=1e-4, rtol=1e-4)
        assert not norm.training
        assert norm.seen is None
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())


def test_images_are_drawn_by_the_seed_without_augmentation():
    data = few_images()

    def drawn(images: int, seed: int) -> list[int]:
        return calibration_batches(data, images, seed).chosen

    assert drawn(20, 1) == drawn(20, 1) != drawn(20, 2)
    assert len(set(drawn(20, 1))) == 20
    images, labels = next(iter(calibration_batches(data, 20, 1)))
    plain = [data.train[index] for index in drawn(20, 1)]
    assert torch.equal(images, torch.stack([image for image, _ in plain]))
    assert labels.tolist() == [label for _, label in plain]


def test_candidates_are_judged_as_recalibrated_networks():
    data, supernet = few_images(), fresh(space())
    counts = tuple(np.bincount(data.validation.labels).tolist())
    calibration = calibration_batches(data, 64)
    parts = doubling_batches(data.validation, 1)
    options = {"calibration": calibration, "class_counts": counts}
    evaluator = SupernetEvaluator(supernet, parts, **options)
    architecture = supernet.space.largest
    found = evaluator(architecture)
    network = extract(supernet, architecture, calibration).eval()
    losses, hits = [], []
    for images, labels in eval_batches(data.validation):
        logits = network(images).detach()
        losses.append(nn.functional.cross_entropy(logits, labels, reduction="none"))
        hits.append(logits.argmax(1) == labels)
    assert found["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float(torch.cat(hits).float().mean()))
    apart = [evaluator(architecture, part) for part in range(2)]
    weights = [part["validation_images"] for part in apart]
    mean = np.average([part["loss"] for part in apart], weights=weights)
    assert mean == pytest.approx(found["loss"], rel=1e-6)
    assert evaluator.recalibrated == 1  # and its averages serve all parts
    assert SupernetFactory.of(supernet, parts, **options)()(architecture) == found


def test_a_batch_of_one_position_counts_for_one():
    norm = BatchNorm(3, 1e-5)
    maps = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    norm.pool(True)
    for part in (maps[:1], maps[1:4], maps[4:]):
        norm.of_maps(part)
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, maps.flatten(1).var(0))


def test_what_a_batch_norm_cannot_do_is_said_before():
    data, supernet = few_images(), fresh(space())
    with pytest.raises(
        UsageError, match=r"have batch norms, .* whose averages and ranges no subnet inherits"
    ):
        SupernetEvaluator(supernet, [eval_batches(data.validation)])
    alone = config(batch_size=2, strategy="multi_architecture", groups=2)
    with pytest.raises(RunError, match="one image at a time; give a batch_size of 4 or more"):
        train_supernet(supernet, data, alone, None)
    with pytest.raises(RunError, match="give a batch_size of 2 or more"):
        finetune(supernet.extract(space().smallest), data, config(batch_size=1))


def test_validation_of_a_training_is_of_recalibrated_networks(tmp_path):
    data, supernet = few_images(), fresh(space())
    settings_ = config(epochs=1, recalibration_images=32)
    metrics = train_supernet(supernet, data, settings_, tmp_path)[-1]
    calibration = calibration_batches(data, 32, settings_.seed)
    evaluator = SupernetEvaluator(
        supernet, [eval_batches(data.validation)], calibration=calibration
    )
    for role in ("largest", "smallest"):
        expected = evaluator(getattr(supernet.space, role))
        assert metrics.val_loss[role] == pytest.approx(expected["loss"], rel=1e-5)


# Fine-tuning --------------------------------------------------------------------------------


def test_averages_of_averaged_weights_are_averaged_too(tmp_path, monkeypatch):
    data = few_images()
    network = fresh(space()).extract(space().smallest)
    taken: list[dict[str, Tensor]] = [averages(network)]
    settings_ = config(epochs=2, ema_decay=0.5)
    finetune(
        network,
        data,
        settings_,
        tmp_path,
        progress=lambda done, total, info: taken.append(averages(network)),
    )
    stored = CheckpointFolder(tmp_path, CHECKPOINTS).newest()
    weights = stored.trained_weights()
    assert weights.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(value, weights[name])
    steps = stored.step
    for name in averages(network):
        expected = taken[0][name]
        for step, state in enumerate(_by_step(taken[1:], steps)):
            decay = min(0.5, (1 + step) / (10 + step))
            expected = torch.lerp(expected, state[name], 1 - decay)
        torch.testing.assert_close(weights[name], expected)


class _StopError(Exception):
    pass


def test_a_continued_training_has_the_averages_of_one_that_was_not_stopped(tmp_path):
    data, settings_ = few_images(), config(epochs=1, ema_decay=0.9)
    whole = fresh(space()).extract(space().smallest)
    finetune(whole, data, settings_, tmp_path / "whole")

    def stop(done: int, total: int, info: dict[str, Any]) -> None:
        if done == 3:
            raise _StopError

    network = fresh(space()).extract(space().smallest)
    how = {"checkpoint_seconds": 0.0}
    with pytest.raises(_StopError):
        finetune(network, data, settings_, tmp_path / "parts", progress=stop, **how)
    assert CheckpointFolder(tmp_path / "parts", CHECKPOINTS).newest().step == 2
    network = fresh(space()).extract(space().smallest)
    finetune(network, data, settings_, tmp_path / "parts", **how)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_a_roll_back_takes_spoilt_averages_back(monkeypatch):
    data = few_images()
    network = fresh(space()).extract(space().smallest)
    plain, spoilt = NetworkObjective.losses, []

    def losses(self: NetworkObjective, step: int, batch: Batch) -> Iterator[Loss]:
        if step == 2 and not spoilt:
            spoilt.append(step)
            batch = batch._replace(images=batch.images * torch.nan)
        return plain(self, step, batch)

    monkeypatch.setattr(NetworkObjective, "losses", losses)
    assert finetune(network, data, config(epochs=1))[-1].rollbacks == 1
    assert all(value.isfinite().all() for value in network.state_dict().values())


def _by_step(states: list[dict[str, Tensor]], steps: int) -> list[dict[str, Tensor]]:
    """Progress is also called at the end of each epoch, after its last step."""
    per_epoch = steps // 2
    return [state for i, state in enumerate(states) if i % (per_epoch + 1) < per_epoch]


# Folding ------------------------------------------------------------------------------------


def everything() -> list[Architecture]:
    """All kinds of convolutional blocks, stems and transitions, with batch norms."""
    kinds = (
        inverted(2.0, 0.25, 5),
        inverted(3.0),
        Block.of("depthwise_separable"),
        Block.of("fused_inverted_residual"),
        Block.of("basic"),
        Block.of("bottleneck"),
        Block.of("prenorm_inverted_residual", squeeze=0.25),
        Block.of("moat", Mixer.of("block_attention", window=3, head_dim=8)),
    )
    last = ATTENTION, ATTENTION.replaced(res_post_norm=True)
    stages = (Stage(16, kinds[:3]), Stage(24, kinds[3:]), Stage(24, (*kinds[:2], *last)))
    result = [Architecture(MACRO, 32, stages)]
    for stem, transition, head in (
        ("conv", "patch_merging", "before_pool"),
        ("convs", "conv_norm", "after_pool"),
        ("conv_pool", "norm_conv", "none"),
        ("conv_act_conv", "patch_merging_norm", "after_pool"),
    ):
        macro = Macro(
            stem=stem,
            stem_kernel=4 if stem == "conv" else 3,
            stem_stride=4,
            downsample=transition,
            norm="batch_norm",
            head_norm=head,
            **({"head": "hidden", "head_width": 20} if stem == "conv_act_conv" else {}),
        )
        result.append(Architecture(macro, 33, stages))
    return result


@torch.no_grad()
@pytest.mark.parametrize("architecture", everything(), ids=lambda a: a.macro.stem)
def test_folding_keeps_the_logits(architecture):
    torch.manual_seed(0)
    network = with_random_averages(build(architecture, 7).eval())
    side = architecture.resolution
    images = torch.randn(3, 3, side, side)
    before = network(images)
    left = {name for name, part in fold_batch_norms(network).named_modules() if _is(part)}
    # a mixer's norm stays, and one before the padding of a convolution
    unfoldable = {name for name in left if name.endswith(("norm1", "mixer_norm"))}
    if architecture.macro.downsample == "norm_conv":
        unfoldable |= {f"stages.{i}.downsample.norm" for i in (1, 2)}
    assert left == unfoldable
    difference = float((network(images) - before).abs().max())
    assert difference <= 1e-4 * max(1.0, float(before.abs().max()))


def _is(part: nn.Module) -> bool:
    return isinstance(part, BatchNorm)


@settings(max_examples=15, deadline=None)
@given(architectures(sides=(32, 48)))
def test_folding_keeps_the_logits_of_any_architecture(architecture):
    torch.manual_seed(0)
    network = with_random_averages(build(architecture, 7).double().eval())
    side = architecture.resolution
    images = torch.randn(2, 3, side, side, dtype=torch.float64)
    before = network(images)
    torch.testing.assert_close(fold_batch_norms(network)(images), before, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("architecture", everything(), ids=lambda a: a.macro.stem)
def test_what_is_timed_and_counted_is_folded(architecture):
    conditions = local_conditions()
    pool = WeightPool(conditions)
    subject = network_subject(architecture, 7, conditions, pool)
    norms = [part for part in subject.module.modules() if _is(part)]
    assert len(norms) < sum(map(_is, build(architecture).modules())) / 2
    assert subject.module(subject.images).shape == (1, 7)
    total = 0
    for part in components(architecture, 7):
        entry = entry_subject(part.spec, part.in_size, conditions, pool)
        assert torch.isfinite(entry.module(entry.images)).all()
        launched = operators(part.spec, part.in_size)
        total += sum(op.name == "batch_norm" for op in launched)
    assert total == len(norms)


def test_counts_are_those_of_convolutions_and_linear_layers():
    architecture = everything()[0]
    network = build(architecture, 7).eval()
    side = architecture.resolution
    flops = FlopCountAnalysis(network, torch.zeros(1, 3, side, side))
    by_operator = flops.unsupported_ops_warnings(False).by_operator()
    ours = count_architecture(architecture, 7)
    attention = sum(  # which fvcore leaves out
        op.macs
        for part in components(architecture, 7)
        for op in operators(part.spec, part.in_size)
        if op.name == "scaled_dot_product_attention"
    )
    products = by_operator["conv"] + by_operator["linear"]
    assert ours["macs"] - attention == pytest.approx(products, rel=0.005)
    assert ours["num_params"] == sum(value.numel() for value in network.parameters())


# Exports ------------------------------------------------------------------------------------


def test_exports_carry_the_averages(tmp_path):
    architecture = Architecture(
        MACRO, 16, (Stage(8, (inverted(2.0),)), Stage(16, (inverted(2.0, 0.25), ATTENTION)))
    )
    torch.manual_seed(0)
    network = with_random_averages(build(architecture, 7))
    card = ModelCard(title="norms")
    exports = export_network(
        network, tmp_path / "out", preprocessing=Preprocessing(resolution=16), card=card
    )
    assert {item.format for item in exports} >= {"timm", "onnx", "torch_export"}  # all verified
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == network.state_dict().keys()
    assert has_batch_norms(network)  # it was folded in a copy
    assert network.training
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    left = sum(node.op_type == "BatchNormalization" for node in graph.node)
    assert left == 1  # the one before attention
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model(images), network.eval()(images))


def test_bundled_models_have_folded_norms():
    conditions, pool = local_conditions(), WeightPool(local_conditions())
    spec = next(c for c in components(everything()[0], 7) if c.path == "stages.0.blocks.1")
    subject = entry_subject(spec.spec, spec.in_size, conditions, pool)
    kinds = {node.op_type for node in to_onnx(subject.module, subject.images).graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds


def test_spaces_without_batch_norms_need_nothing():
    data, plain = few_images(), load_space("digits")
    evaluator = SupernetEvaluator(fresh(plain), [eval_batches(data.validation)])
    assert evaluator(plain.smallest)["loss"] > 0
    assert evaluator.recalibrated == 0
    network = fresh(plain).extract(plain.smallest)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert recalibrate(network, eval_batches(data.train)) == 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
