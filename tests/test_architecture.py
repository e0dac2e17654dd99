"""Architectures as values: round trips, identity and sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest
import yaml
from architecture_strategies import architectures, small
from hypothesis import given, settings

from search_space import (
    Architecture,
    Macro,
    Mixer,
    Stage,
    components,
    dump_architecture,
    known,
    known_names,
    metaformer,
)
from search_space.components import input_shape
from search_space.macro import conv_padding, conv_size

# Round trips --------------------------------------------------------------------------------


@given(architectures())
@settings(max_examples=40, deadline=None)
def test_round_trips(architecture: Architecture) -> None:
    forms = [
        architecture.to_dict(),
        json.loads(json.dumps(architecture.to_dict())),
        json.loads(architecture.canonical_json()),
        yaml.safe_load(dump_architecture(architecture)),
    ]
    for form in forms:
        back = Architecture.from_dict(form)
        assert back == architecture
        assert hash(back) == hash(architecture)
        assert back.canonical_json() == architecture.canonical_json()
        assert back.digest == architecture.digest


@given(architectures(), architectures())
@settings(max_examples=40, deadline=None)
def test_equal_exactly_where_json_and_digest_are(a: Architecture, b: Architecture) -> None:
    assert (a == b) == (a.canonical_json() == b.canonical_json()) == (a.digest == b.digest)


@pytest.mark.parametrize("name", known_names())
def test_known_designs_round_trip(name: str) -> None:
    assert Architecture.from_dict(known(name).to_dict()) == known(name)


def test_known_digests_are_distinct() -> None:
    assert len({known(name).digest for name in known_names()}) == len(known_names())


# Identity -----------------------------------------------------------------------------------


def test_digests_of_today_stay() -> None:
    # stores, tables and exports written by earlier versions are found by these
    assert known("swin_t").digest == "8b95100c8202"
    assert small().digest == "c2aa1078b7e9"


def test_digest_is_the_hash_of_sorted_compact_json() -> None:
    text = small().canonical_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert "\n" not in text


def test_digest_does_not_depend_on_the_process() -> None:
    program = "from search_space import known; print(known('swin_t').digest)"
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert digests == {known("swin_t").digest}


def test_numbers_that_are_equal_give_equal_digests() -> None:
    one = replace(small(), macro=Macro(stem_kernel=2, stem_stride=2, layer_scale=0, norm_eps=1))
    other = replace(one, macro=replace(one.macro, layer_scale=-0.0, norm_eps=1.0))
    assert one == other
    assert one.canonical_json() == other.canonical_json()
    assert metaformer(Mixer.of("pooling"), 2) == metaformer(Mixer.of("pooling"), 2.0)
    assert small().to_dict()["stages"][0]["blocks"][0]["mlp_ratio"] == 2.0


@pytest.mark.parametrize(
    "change",
    [
        lambda a: replace(a, resolution=33),
        lambda a: replace(a, macro=replace(a.macro, norm_eps=2e-6)),
        lambda a: replace(a, stages=(replace(a.stages[0], width=17), *a.stages[1:])),
        lambda a: replace(
            a, stages=(Stage(16, (metaformer(Mixer.of("pooling", kernel=5), 2),)), *a.stages[1:])
        ),
        lambda a: replace(a, stages=(Stage(16, a.stages[0].blocks * 2), *a.stages[1:])),
    ],
)
def test_every_part_counts(change: Callable[[Architecture], Architecture]) -> None:
    assert change(small()) != small()
    assert change(small()).digest != small().digest


def test_immutable() -> None:
    architecture = small()
    for target, name in [
        (architecture, "resolution"),
        (architecture.macro, "norm"),
        (architecture.stages[0], "width"),
        (architecture.stages[0].blocks[0], "mlp_ratio"),
        (architecture.stages[0].blocks[0].mixer, "name"),
    ]:
        with pytest.raises(FrozenInstanceError):
            setattr(target, name, 1)
    form = architecture.to_dict()
    form["stages"][0]["width"] = 1
    form["macro"]["norm"] = "none"
    assert architecture == small()


def test_description() -> None:
    assert str(known("swin_t")) == "8b95100c8202 (224 px: 96×2, 192×2, 384×6, 768×2)"
    assert known("convnext_t").depths == (3, 3, 9, 3)
    assert known("poolformer_s12").widths == (64, 128, 320, 512)


# Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", range(1, 9))
def test_conv_size_is_torch_s(kernel: int) -> None:
    torch = pytest.importorskip("torch")
    for stride in range(1, min(kernel, 4) + 1):
        conv = torch.nn.Conv2d(
            1, 1, kernel, stride, conv_padding(kernel, stride), device="meta", dtype=torch.float32
        )
        for size in range(kernel, 40):
            image = torch.empty(1, 1, size, size, device="meta")
            assert conv(image).shape[-1] == conv_size(size, kernel, stride)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 4), (2, 2), (7, 4), (3, 2), (3, 1), (5, 2)])
def test_conv_size_of_divisible_images(kernel: int, stride: int) -> None:
    assert [conv_size(stride * n, kernel, stride) for n in (3, 8, 56)] == [3, 8, 56]


@given(architectures())
@settings(max_examples=40, deadline=None)
def test_components_are_the_network(architecture: Architecture) -> None:
    torch = pytest.importorskip("torch")
    from supernet import build

    chain = components(architecture, num_classes=7)
    side = architecture.resolution
    seen: list[tuple[str, tuple[int, ...]]] = []
    with torch.device("meta"):
        network = build(architecture, 7).eval()
        for item in chain[:-1]:
            network.get_submodule(item.path).register_forward_pre_hook(
                lambda _, args, path=item.path: seen.append((path, tuple(args[0].shape)))
            )
        logits = network(torch.empty(2, 3, side, side))
    assert logits.shape == (2, 7)
    assert seen == [(i.path, input_shape(i.spec, i.in_size, 2)) for i in chain[:-1]]
    assert chain[-1].in_size == architecture.sizes[-1]
    skipped = sum(block.skipped for stage in architecture.stages for block in stage.blocks)
    blocks = [item for item in chain if item.spec.kind == "block"]
    assert len(blocks) == sum(architecture.depths) - skipped
    for item in blocks:
        position = int(item.path.rpartition(".")[2])
        options = item.spec.as_dict()
        if options.get("mixer") == "window_attention":
            assert dict(options["params"])["shifted"] == (position % 2 == 1)
