"""Chosen networks: their judgement on the test split, their cards, and untrained exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nas.config import TrainedConfig, TrainingFreeConfig
from nas.workflows.measuring import Measured
from predictors.tables.folder import provenance
from predictors.tables.latency_table import LatencyTable
from results.export.card import ModelCard
from results.export.write import export_network
from results.journal import Evaluation
from results.report.data import Chosen, Export
from search_space import Architecture
from search_space.metrics import LATENCY, SCORE, TABLE, format_metric, metric_named, title_of
from search_space.precision import quantised
from search_space.preprocessing import Preprocessing
from supernet import Backbone, build
from supernet.data.dataset import ImageData
from supernet.data.evaluation_batches import eval_batches
from supernet.training.evaluation import Quality, evaluate

CHECKED_IMAGES = 1000  # of the validation split, by which a file in int8 is verified


def judged(
    inherited: Backbone,
    network: Backbone,
    evaluation: Evaluation,
    measured: Measured | None,
    data: ImageData,
    amp: str,
) -> Chosen:
    """Judges the chosen network on the test split, with ``inherited`` weights and fine-tuned.

    This is the one place where a search opens the test split. ``amp`` is that of the fine-tuning.
    """
    data = data.at(network.architecture.resolution)
    before = evaluate(inherited, eval_batches(data.test), amp=amp)
    quality = qualities(network, data, amp)
    return Chosen(
        digest=evaluation.digest,
        architecture=evaluation.architecture,
        predicted=evaluation.metrics,
        measured={} if measured is None else measured.metrics,
        test_accuracy_before=before.accuracy,
        test_accuracy=quality["test"].accuracy,
        quality={split: value.to_dict() for split, value in quality.items()},
        class_names=data.class_names,
    )


def qualities(network: torch.nn.Module, data: ImageData, amp: str) -> dict[str, Quality]:
    """Quality of a trained network on the splits ``test`` and ``validation``."""
    splits = {"test": data.test, "validation": data.validation}
    return {name: evaluate(network, eval_batches(split), amp=amp) for name, split in splits.items()}


def card_figures(metrics: Mapping[str, float | None], latency: str | None = None) -> dict[str, str]:
    """Costs of a network for its card; ``latency`` says more than the prediction."""
    texts = {
        title_of(name): format_metric(name, value)
        for name, value in metrics.items()
        if metric_named(name).source == TABLE
    }
    if LATENCY in metrics:
        texts[title_of(LATENCY)] = latency or f"{texts[title_of(LATENCY)]}, predicted"
    return texts


def latency_text(
    predicted: Mapping[str, float | None], measured: Mapping[str, float | None], table: LatencyTable
) -> str:
    """A network's latency for its card: how it is known, and under which conditions."""
    how = "measured" if measured else provenance(table)
    latency = (measured or predicted)[LATENCY]
    return f"{format_metric(LATENCY, latency)}, {how}; {table.conditions}"


def export_trained(
    network: Backbone,
    folder: Path,
    figures: Mapping[str, str],
    data: ImageData,
    config: TrainedConfig,
    *,
    notes: Sequence[str] = (),
    reference: Callable[[Tensor], Tensor] | None = None,
) -> list[Export]:
    """Export a network that was trained on a run's images, in every format.

    Raises:
        ExportError: A format does not reproduce the network, or else ``reference``.
    """
    architecture = network.architecture
    images = data.at(architecture.resolution)
    return export_network(
        network,
        folder,
        preprocessing=images.preprocessing,
        opset=config.opset,
        card=ModelCard(
            title=f"{config.data_name} network {architecture.digest}",
            metrics=figures,
            class_names=data.class_names,
            trained_on=f"{config.data_name}, {len(data.train)} images",
            notes=notes,
        ),
        reference=reference,
        validation=[x for x, _ in eval_batches(images.validation, limit=CHECKED_IMAGES)]
        if quantised(architecture)
        else (),
    )


def export_untrained(
    evaluation: Evaluation, folder: Path, config: TrainingFreeConfig, latency: str | None = None
) -> list[Export]:
    """Export a scored architecture with the random weights of the run's seed, in every format.

    ``latency`` is the model card's text on it, by default the prediction.
    """
    architecture = Architecture.from_dict(evaluation.architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = build(architecture, config.num_classes)
    return export_network(
        network,
        folder,
        preprocessing=Preprocessing(resolution=architecture.resolution),
        opset=config.opset,
        card=ModelCard(
            title=f"Untrained network {architecture.digest}",
            metrics={
                "score (not an accuracy)": format_metric(SCORE, evaluation.metrics[SCORE]),
                **card_figures(evaluation.metrics, latency),
            },
        ),
    )
