"""Mixers with parameters that suit small widths."""

from __future__ import annotations

from search_space import MIXERS, Mixer


def narrow(name: str) -> Mixer:
    """A mixer by name with its defaults, but for heads of 8 channels."""
    return Mixer.of(name, **({"head_dim": 8} if "head_dim" in MIXERS[name].params else {}))
