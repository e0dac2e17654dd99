"""What a run says of the margin that it keeps below a latency budget that it cannot measure."""

from __future__ import annotations

from collections.abc import Mapping

from nas.config_parts import LatencyConfig
from search import Constraint
from search_space.units import format_latency


def promise(limit: Constraint, lowered: Constraint, share: float, latency: LatencyConfig) -> str:
    """The sentence on a budget that was lowered by ``share``; says for whom, unless it was given.

    Args:
        limit: The budget, in milliseconds.
        lowered: The budget that the search keeps.
        share: What is left free, as a share of the budget.
        latency: Holds the margin if it was given, and the confidence that it follows from.
    """
    kept = f"the search keeps {share:.0%} below the budget of {_range(limit)},"
    if latency.margin is not None:
        kept = kept.capitalize()
    else:
        kept = f"For {_in_words(latency.confidence)} to meet it, {kept}"
    return f"{kept} at {_range(lowered)}."


def lowered_by(margins: Mapping[str, float]) -> str:
    """The sentence that adds margins, by device, to a search without a feasible network."""
    lowered = ", ".join(f"{margin:.0%} for {device}" for device, margin in margins.items())
    return (
        f"The latency budget was lowered by a margin ({lowered}), since predictions cannot be "
        "checked here; --confidence or --margin sets another."
    )


def _range(limit: Constraint) -> str:
    bounds = (limit.minimum, limit.maximum)
    return " to ".join(format_latency(bound) for bound in bounds if bound is not None)


def _in_words(share: float) -> str:
    """A share of networks as people say it."""
    words = {
        0.5: "half of the networks",
        0.75: "three in four networks",
        0.8: "four in five networks",
        0.9: "nine in ten networks",
    }
    return words.get(share, f"{share:.0%} of networks") + " like this"
