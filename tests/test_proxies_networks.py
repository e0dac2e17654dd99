"""Every sampled proxy on every mixer and on networks of timm: a number or a reason, repeatable."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from proxy_cases import small, small_timm

from predictors.proxies import Network, Score, ScoreSettings, proxy, proxy_names
from search_space.mixers import MIXERS

SAMPLED = [name for name in proxy_names() if not proxy(name).closed_form]
QUICK = ScoreSettings(repeats=1, batch_size=3)
sampled = pytest.mark.parametrize("name", SAMPLED)


def scored(network: Network, name: str, settings: ScoreSettings = QUICK) -> Score:
    score = proxy(name).score(network, settings)
    if score.value is None:
        assert score.reason
    else:
        assert math.isfinite(score.value)
    return score


def test_all_are_there() -> None:
    assert set(SAMPLED) >= {
        *("length_distortion", "ntk_condition", "synflow", "naswot", "zico"),
        *("grad_norm", "snip", "tf_tas_dss"),
    }


@sampled
@pytest.mark.parametrize("mixer", MIXERS.names())
def test_every_mixer_has_a_score(mixer: str, name: str) -> None:
    assert scored(Network.of_architecture(small(mixer), 5), name).value is not None


@sampled
@pytest.mark.parametrize("model", list(small_timm()))
def test_timm_networks_have_a_score_or_a_reason(model: str, name: str) -> None:
    score = scored(small_timm()[model], name)
    if name == "tf_tas_dss" and model == "resnet":
        assert "attention or to an MLP" in score.reason
    else:
        assert score.value is not None


@sampled
def test_seeds_decide_values_and_nothing_else_does(name: str) -> None:
    network = Network.of_architecture(small("window_attention"), 5)
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    first = scored(network, name)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == [random.getstate(), np.random.get_state()[1].tolist()]
    torch.manual_seed(99)
    assert scored(network, name) == first
    other = scored(network, name, ScoreSettings(seed=1, repeats=1, batch_size=3))
    assert other.value != first.value


def test_repeats_are_averaged() -> None:
    network = Network.of_architecture(small("pooling"), 5)
    values = [
        scored(network, "grad_norm", ScoreSettings(seed=seed, repeats=1, batch_size=2)).value
        for seed in (4, 5, 6)
    ]
    score = scored(network, "grad_norm", ScoreSettings(seed=4, repeats=3, batch_size=2))
    assert score.value == pytest.approx(np.mean(values))
    assert score.spread == pytest.approx(np.std(values, ddof=1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@sampled
@pytest.mark.parametrize("mixer", MIXERS.names())
def test_devices_agree(mixer: str, name: str) -> None:
    network = Network.of_architecture(small(mixer), 5)
    here = scored(network, name).value
    with torch.backends.cudnn.flags(allow_tf32=False):
        there = scored(network, name, ScoreSettings(repeats=1, batch_size=3, device="cuda")).value
    assert there == pytest.approx(here, rel=1e-2)
