"""Data of a report, plain and frozen: from a finished run or from its result.json.

Everything may be missing; the report leaves out or says so. Units are in the names, accuracies
are 0..1, metrics carry the names used everywhere (``num_params``, ``macs``, ``latency_ms``, …).
``ReportData.quality`` names the metric that the run is judged by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    TypeAdapter,
    with_config,
)
from typing_extensions import TypedDict

from results.files import as_plain, read_json
from results.report.inheritance import Inheritance
from search_space.names import Digest

Metrics = Mapping[str, FiniteFloat | None]


def value(metrics: Metrics, name: str) -> float | None:
    """A metric, or None where it is missing or not finite."""
    known = metrics.get(name)
    return known if known is not None and math.isfinite(known) else None


@dataclass(frozen=True, kw_only=True)
class Network:
    """A judged architecture: ``predicted`` as the search saw it, re-measured where possible.

    ``measured`` holds ``latency_ms`` and, for the spread of its repetitions, ``latency_low_ms``
    and ``latency_high_ms``.
    """

    digest: Digest
    architecture: Mapping[str, Any] | None = None
    predicted: Metrics = field(default_factory=dict)
    measured: Metrics = field(default_factory=dict)

    def figure(self, name: str) -> float | None:
        """The measured value of a metric where there is one, otherwise the predicted."""
        measured = value(self.measured, name)
        return value(self.predicted, name) if measured is None else measured


@dataclass(frozen=True, kw_only=True)
class Export:
    """One exported file: its path in the run, code that loads it, and the verified difference.

    ``agreement`` is the share of images of the validation split of which it says the same class, in
    int8, where ties that are rounded the other way make logits differ.
    """

    format: str
    path: str
    load: str = ""
    max_difference: FiniteFloat | None = None
    tolerance: FiniteFloat | None = None
    agreement: FiniteFloat | None = None


@with_config(ConfigDict(extra="allow"))
class _SplitQuality(TypedDict):
    images: NonNegativeInt
    accuracy: FiniteFloat
    balanced_accuracy: FiniteFloat
    macro_f1: FiniteFloat
    auc: FiniteFloat | None
    loss: FiniteFloat | None
    recalls: list[FiniteFloat | None]
    confusion: list[list[NonNegativeInt]] | None


def _checked(quality: dict[str, Any]) -> dict[str, Any]:
    known = TypeAdapter(_SplitQuality).validate_python(quality)
    classes, confusion = len(known["recalls"]), known["confusion"]
    if confusion is not None and [len(row) for row in confusion] != [classes] * classes:
        raise ValueError("the confusion matrix does not have a row and a column a class")
    return quality


SplitQuality = Annotated[dict[str, Any], AfterValidator(_checked)]
"""Quality of a network on a split, as ``supernet.training.evaluation.Quality.to_dict`` gives it."""


@dataclass(frozen=True, kw_only=True)
class Chosen(Network):
    """The network that the run ends with.

    ``test_accuracy_before`` is with inherited weights, ``test_accuracy`` after fine-tuning.
    ``component_latency_ms`` maps component paths (``stem``, ``stages.2.blocks.5``, …) to their
    share of the predicted latency. ``reason`` says in a sentence why this one. ``quality`` is that
    of the final network by split, its classes in the order of ``class_names``.
    """

    test_accuracy_before: FiniteFloat | None = None
    test_accuracy: FiniteFloat | None = None
    exports: tuple[Export, ...] = ()
    component_latency_ms: Mapping[str, FiniteFloat] = field(default_factory=dict)
    reason: str = ""
    quality: Mapping[str, SplitQuality] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Baseline(Network):
    """A design to compare with; it need not be of the searched space."""

    name: str
    digest: str = ""
    test_accuracy: FiniteFloat | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LatencyPair:
    """Predicted and measured latency of one network."""

    predicted_ms: FiniteFloat
    measured_ms: FiniteFloat
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class LatencyCheck:
    """Origin of the latency, and the quality of its prediction.

    ``provenance``: device, runtime, precision, batch size, threads, versions, kind (measured,
    modelled …). ``repeatability``: the machine predicting itself, under ``mape``,
    ``share_within_10`` (both 0..1) and ``kendall_tau``.
    """

    pairs: tuple[LatencyPair, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    repeatability: Metrics = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """Kendall's tau of the metric ``name`` against the quality over ``n`` architectures.

    ``low`` and ``high`` are the ends of the 95 % bootstrap interval.
    """

    name: str
    tau: FiniteFloat | None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    n: int = 0


@dataclass(frozen=True, kw_only=True)
class ProofRow:
    """Proof of a member of the front by an integer programme.

    ``value`` is its quality; nothing within the limits that costs no more is better than
    ``bound``, by ``gap`` of the value; None where the solver was stopped before it had a bound.
    ``status`` is ``optimal``, or ``stopped`` by the time limit; ``nodes`` are those of the search
    tree, ``seconds`` of wall time.
    """

    digest: Digest
    value: FiniteFloat
    bound: FiniteFloat | None
    gap: FiniteFloat | None
    status: str
    nodes: int = 0
    seconds: FiniteFloat = 0.0


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """Training after one epoch, on the validation split.

    A supernet has the figures of its largest and smallest subnet, a single network its own.
    """

    epoch: int
    loss_largest: float | None = None
    loss_smallest: FiniteFloat | None = None
    accuracy_largest: FiniteFloat | None = None
    accuracy_smallest: FiniteFloat | None = None
    loss: FiniteFloat | None = None
    accuracy: FiniteFloat | None = None


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of a fine-tuning after its last epoch, the ``epochs``-th.

    number: in the order in which trials were begun. network: its digest. chosen: whether the
    network that the run ends with comes from it.
    """

    number: int
    network: str
    status: str
    chosen: bool = False
    epochs: int = 0
    validation_loss: FiniteFloat | None = None
    validation_accuracy: FiniteFloat | None = None
    hyperparameters: Mapping[str, FiniteFloat] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of the run and the wall time it took."""

    name: str
    seconds: FiniteFloat


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that a report can show.

    Example:
        >>> data = read_result(Path("runs/one/result.json"))
        >>> write_report(Path("runs/one"), data)

    Args:
        run: name of the run; ``status`` ``complete`` or what stopped it.
        created: ISO 8601 time.
        targets: metric name to upper limit; ``minima`` to lower limit.
        summary: facts for the head of the page, in order (data, space, device, …).
        evaluated: what was judged, or a sample of it; the front's members are among them.
        num_seen: architectures that were costed in all, if more than ``evaluated``. Where the
            quality is no accuracy, they were all judged, and ``evaluated`` is what is shown.
        proofs: of the members of a front that is proven.
        trials: of a fine-tuning, which has these instead of a front.
        inherited: what became of the trained network that the search began with.
        notes: sentences that a reader must know to judge the result.
        quality: the metric that the run is judged by, the larger the better: ``accuracy``, or
            what a search without data maximised, ``score``.
        quality_note: a sentence under the chart on what the quality is and how far to trust it.
    """

    run: str
    status: str = "complete"
    created: str = ""
    targets: Mapping[str, FiniteFloat] = field(default_factory=dict)
    minima: Mapping[str, FiniteFloat] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    chosen: Chosen | None = None
    evaluated: tuple[Network, ...] = ()
    num_seen: int | None = None
    front: tuple[Network, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    latency: LatencyCheck | None = None
    proofs: tuple[ProofRow, ...] = ()
    ranking: tuple[RankRow, ...] = ()
    training: tuple[Epoch, ...] = ()
    trials: tuple[TrialRow, ...] = ()
    inherited: Inheritance | None = None
    phases: tuple[Phase, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    device: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    command: str = ""
    notes: tuple[str, ...] = ()
    quality: str = "accuracy"
    quality_note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Strictly JSON-able form; NaN and infinities, which JSON lacks, become None."""
        return dict(as_plain(dataclasses.asdict(self)))


def read_result(path: Path) -> ReportData:
    """The result of a run from its file.

    Raises:
        CorruptFileError: Names the file.
    """
    data: ReportData = read_json(path, ReportData)
    return data
