"""The default score for searches without data: compute, activations and depth in one number.

Inside a band of MACs size says nothing about the accuracy of published networks, and depth over
width, ρ, says more than any other closed form; over all sizes compute and activations do. The
score is the mean of the three logarithms, each standardised over 55 networks whose ImageNet
accuracy is known. Nothing else was fitted but which three to take, with equal weights; what that
choice is worth was judged with each family left out of it (``benchmarks/proxy_fidelity.py``).

More depth is better as far as it was seen: a ρ above the largest of the 55 counts as that one, so
that a search gains nothing from networks that are deeper and narrower than any that was trained.

ρ is that of the whole network, where DeepMAD takes the largest over its stages: in the 55 the two
hardly differ, but a search would make the first stage narrow and deep for the sake of the latter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from predictors.proxies.base import ClosedFormProxy, register_proxy
from predictors.proxies.deepmad import DeepMAD, final_effectiveness, stage_ends
from predictors.proxies.structure import Structure

Values = npt.NDArray[np.float64]

# Mean and standard deviation of the logarithm over the 55 networks at 224 px, and the largest ρ.
REFERENCE = {
    "macs": (22.32327, 1.10651),
    "activations": (16.65047, 0.81236),
    "final_effectiveness": (-1.25652, 0.72778),
}
LARGEST_EFFECTIVENESS = 1.31608

RANK_QUALITY = (
    "It orders the published ImageNet accuracies of 55 four-stage networks with a Kendall τ of "
    "0.83 (0.81 with families held out), those of 3 to 6 G MACs among them with 0.68 (0.59) and "
    "those of 6 to 12 G with 0.69 (0.60)."
)


def combined_score(macs: Values, activations: Values, effectiveness: Values) -> Values:
    """Mean of the three standardised logarithms; arrays of one shape, counts for one image."""
    measures: Sequence[tuple[str, Values]] = (
        ("macs", macs),
        ("activations", activations),
        ("final_effectiveness", np.minimum(effectiveness, LARGEST_EFFECTIVENESS)),
    )
    total = np.zeros(np.shape(macs))
    for name, values in measures:
        mean, deviation = REFERENCE[name]
        total += (np.log(values) - mean) / deviation
    return total / len(measures)


@register_proxy
class Combined(ClosedFormProxy):
    """Mean of standardised log MACs, log activations and log ρ."""

    name = "combined"
    summary = "compute, activations and depth over width; the default for searches without data"
    applies = DeepMAD.applies

    def value(self, structure: Structure) -> float:
        rho = final_effectiveness(stage_ends(structure))
        macs, activations = float(structure.macs), float(structure.activations)
        return float(combined_score(np.array(macs), np.array(activations), np.array(rho)))
