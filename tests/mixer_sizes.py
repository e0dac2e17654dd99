"""Mixers with parameters that suit small widths."""

from __future__ import annotations

from search_space import MIXERS, Mixer
from search_space.registry import ParamValue


def narrow(name: str, **params: ParamValue) -> Mixer:
    """A mixer by name with its defaults, but for ``params`` and heads of 8 channels."""
    side = 4 if name == "stripe_attention" else 8  # it has an even number of heads
    heads = {"head_dim": side} if "head_dim" in MIXERS[name].params else {}
    return Mixer.of(name, **{**heads, **params})
