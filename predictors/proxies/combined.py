"""The default score for searches without data: size, activations and depth in one number.

Inside a band of MACs neither MACs nor parameters say much about the accuracy of published networks;
activations and depth over width, ρ, say more, and parameters help over all sizes. The score is a
weighted mean of the three logarithms, each standardised over 55 networks whose ImageNet accuracy is
known. It is judged with each family left out, and by 88 networks of families that its choice did
not see (``benchmarks/proxy_fidelity.py``).

A ρ above the largest of the 55 counts as that one, so that a search gains nothing from networks
that are deeper and narrower than any that was trained. ρ is that of the whole network, where
DeepMAD takes the largest over its stages: in the 55 the two hardly differ, but a search would make
the first stage narrow and deep for the sake of the latter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from predictors.proxies.base import ClosedFormProxy, register_proxy
from predictors.proxies.deepmad import DeepMAD, final_effectiveness, stage_ends
from predictors.proxies.structure import Structure

Values = npt.NDArray[np.float64]

# Mean and standard deviation of the logarithm over the 55 networks at 224 px, and the largest ρ.
REFERENCE = {
    "num_params": (17.20218, 1.02791),
    "activations": (16.65047, 0.81236),
    "final_effectiveness": (-1.25652, 0.72778),
}
WEIGHTS = {"num_params": 0.4, "activations": 0.4, "final_effectiveness": 0.2}
LARGEST_EFFECTIVENESS = 1.31608

RANK_QUALITY = (
    "It orders the published ImageNet accuracies of 55 four-stage networks with a Kendall τ of "
    "0.84, and those of 88 networks of families that its choice did not see with 0.75 (activations "
    "0.73, parameters 0.66, MACs 0.64); among the latter with 3 to 6 G MACs it has 0.56 (0.44, "
    "0.31, 0.24), with 6 to 12 G 0.51 (0.62, 0.37, 0.27)."
)


def combined_score(num_params: Values, activations: Values, effectiveness: Values) -> Values:
    """Computes the weighted mean of the three standardised logarithms; 0 is the mean of the 55.

    Activations are output elements of layers and matrix products for one image, ``effectiveness``
    is ρ at the end of the last stage.
    """
    measures: dict[str, Values] = {
        "num_params": num_params,
        "activations": activations,
        "final_effectiveness": np.minimum(effectiveness, LARGEST_EFFECTIVENESS),
    }
    total = np.zeros(np.shape(num_params))
    for name, values in measures.items():
        mean, deviation = REFERENCE[name]
        total += WEIGHTS[name] * (np.log(values) - mean) / deviation
    return total


@register_proxy
class Combined(ClosedFormProxy):
    """Weighted mean of standardised log parameters, log activations and log ρ."""

    name = "combined"
    summary = "parameters, activations and depth over width; the default for searches without data"
    applies = DeepMAD.applies

    def value(self, structure: Structure) -> float:
        rho = final_effectiveness(stage_ends(structure))
        counts = (float(structure.num_params), float(structure.activations), rho)
        return float(combined_score(*map(np.array, counts)))
