"""Latencies of published networks on a device: measured, or by its table or datasheet.

Those that are points of a space of ours run in our code, as the networks that are found do; all
others in timm's, as whole modules. Networks that are measured together are interleaved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Literal

import onnxruntime
import timm
import torch

from predictors.devices import Target
from predictors.estimates.calibrate import predict_network
from predictors.estimates.estimate import estimate_operators
from predictors.measuring.bench import Limits, Subject, WeightPool, network_subject
from predictors.measuring.remeasure import measure_subjects
from predictors.measuring.runtimes import find_runtime, require_int8
from predictors.operators import DTYPES, trace
from predictors.tables.latency_table import LatencyTable, MissingLatencyError
from predictors.zoo.integers import Quantised
from predictors.zoo.networks import deployed
from predictors.zoo.published import PublishedModel
from search_space.errors import UsageError, first_line
from search_space.precision import in_precision
from search_space.registry import INT8

Origin = Literal["measured", "estimated", "predicted"]
FORMAT = 1
_QUICK = Limits(min_rounds=10, max_rounds=30, min_seconds=1.0)
_LONG = Limits(min_seconds=5.0)


@dataclass(frozen=True)
class ZooLatency:
    """What is known of a network's latency on a device.

    Args:
        latency_ms: Milliseconds of one batch; None where it cannot be had.
        origin: How that is known.
        problem: Why it cannot be had.
        low_ms: Of a measured one, the 10th percentile of its runs.
        disturbed: Whether other work ran on the machine meanwhile.
        tries: How often it was measured; the figures are those of the best time.
        together: Whether it was measured at length, interleaved with its rivals.
    """

    latency_ms: float | None
    origin: Origin
    problem: str = ""
    low_ms: float | None = None
    disturbed: bool = False
    tries: int = 1
    together: bool = False

    def with_another(self, other: ZooLatency) -> ZooLatency:
        """Joins two measurements of one network: disturbances make both slower, never faster."""
        best = min(self, other, key=lambda one: one.latency_ms or math.inf)
        together = self.together or other.together
        return replace(best, tries=self.tries + other.tries, together=together)


def cache_name(target: Target, num_classes: int = 1000, int8: bool = False) -> str:
    """Names the file of what is known about ``target``: all that its latencies depend on."""
    basis = f"{FORMAT}, timm {timm.__version__}, {num_classes} classes".encode()
    if int8:
        basis += f", int8 by onnxruntime {onnxruntime.__version__}".encode()
    if not target.at_hand:
        folder = resources.files("predictors.estimates")
        for name in ("anchors.csv", "constants.json", "datasheets.yaml"):
            basis += (folder / name).read_bytes()
        if target.path.exists():  # its table, or the user's calibration
            basis += target.path.read_bytes()
    digest = hashlib.sha256(basis).hexdigest()[:8]
    return f"zoo-{target.conditions.digest}-{digest}.json"


def check_int8(target: Target) -> None:
    """Checks that networks can be measured in int8 on ``target``.

    Raises:
        UsageError: It is not at hand, or its runtime runs nothing in int8.
    """
    if not target.at_hand:
        raise UsageError(
            f"published networks in int8 are measured, and device {target.name!r} is not at hand. "
            "Ask where it is, or for another precision."
        )
    require_int8(target.conditions.runtime)


def source_of(
    target: Target, num_classes: int = 1000, int8: bool = False
) -> Callable[[Sequence[PublishedModel]], list[ZooLatency]]:
    """Returns what finds latencies of networks on ``target``, in the order given."""
    if target.at_hand:
        return lambda models: measured(models, target, num_classes, int8)
    table = LatencyTable(target.conditions, {}, {})
    if target.path.exists():
        table = LatencyTable.load(target.path)
    return lambda models: [_predicted(model, target, table, num_classes) for model in models]


def measured(
    models: Sequence[PublishedModel],
    target: Target,
    num_classes: int = 1000,
    int8: bool = False,
    *,
    limits: Limits | None = None,
) -> list[ZooLatency]:
    """Measures networks on this machine, interleaved, in the target's precision or in int8.

    What a runtime cannot run costs the others nothing: they are then measured one by one.
    """
    conditions, pool = target.conditions, WeightPool(target.conditions)
    try:
        subjects = [_subject(model, target, num_classes, int8, pool) for model in models]
        found = measure_subjects(subjects, conditions, limits=limits or _QUICK)
    except Exception as error:  # whatever compilers and exporters raise of networks not ours
        if len(models) > 1:
            one_by_one = (
                measured([model], target, num_classes, int8, limits=limits) for model in models
            )
            return [latency for single in one_by_one for latency in single]
        reason = f"{conditions.runtime} cannot run it: {first_line(error):.120}"
        return [ZooLatency(None, "measured", reason)]
    return [
        ZooLatency(
            one.latency_ms,
            "measured",
            low_ms=one.low_ms,
            disturbed=bool(one.warnings),
        )
        for one in found
    ]


def _subject(
    model: PublishedModel, target: Target, num_classes: int, int8: bool, pool: WeightPool
) -> Subject:
    conditions, architecture = target.conditions, model.architecture
    if architecture is not None and int8:
        architecture = in_precision(architecture, INT8)
    if architecture is not None:
        return network_subject(architecture, num_classes, conditions, pool)
    network = deployed(model.name, model.image_size, num_classes)
    network = network.to(pool.device, pool.dtype).to(memory_format=torch.channels_last)
    images = pool.take((conditions.batch_size, 3, model.image_size, model.image_size))
    settle = find_runtime(conditions.runtime).settle
    return Subject(Quantised(network) if int8 else network, images, settle)


def _predicted(
    model: PublishedModel, target: Target, table: LatencyTable, num_classes: int
) -> ZooLatency:
    """Of the table of a device that is not at hand; an empty one of a datasheet estimates."""
    estimated, architecture = target.kind == "datasheet", model.architecture
    origin: Origin = "estimated" if estimated else "predicted"
    if architecture is not None:
        try:
            return ZooLatency(predict_network(table, architecture, num_classes), origin)
        except MissingLatencyError:
            return ZooLatency(None, origin, f"the table of {target.name} lacks parts of it")
    if not estimated:
        return ZooLatency(None, origin, f"it is no sum of the table of {target.name}")
    conditions = target.conditions
    launched, _, _ = trace(
        lambda: deployed(model.name, model.image_size, num_classes),
        (conditions.batch_size, 3, model.image_size, model.image_size),
        DTYPES[conditions.precision],
    )
    by = table.calibration or table.typical_correction()
    value = estimate_operators(conditions, launched).latency_ms
    return ZooLatency(by.offset_ms + by.scale * value, origin)


def measured_together(
    models: Sequence[PublishedModel],
    target: Target,
    num_classes: int = 1000,
    int8: bool = False,
) -> list[ZooLatency]:
    """Measures rivals at length, interleaved, so that their order is right."""
    found = measured(models, target, num_classes, int8, limits=_LONG)
    return [replace(latency, together=True) for latency in found]
