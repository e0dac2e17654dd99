"""Export of any architecture that a run evaluated, after the run."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from nas.cli.console import Console
from nas.config import TrainedConfig, TrainingFreeConfig
from nas.resolving import stored_config
from nas.workflows.finished_search import find_digest
from nas.workflows.finishing import card_figures, export_trained, export_untrained
from nas.workflows.inherited import read_bank
from nas.workflows.network_training import NETWORK
from nas.workflows.stitched_parents import read_stitched
from nas.workflows.trained_search import FINETUNE
from nas.workflows.with_images import CHECKPOINTS, IN_INT8, no_supernet, trained_in_precision
from results.export.write import check_replaceable
from results.journal import Evaluation, read_journal
from results.report.data import Export, read_result
from results.store import EXPORT, JOURNAL, RESULT, SUPERNET
from search_space import Architecture
from search_space.errors import RunError, UnknownNameError
from search_space.precision import in_precision
from search_space.registry import FLOAT
from supernet import Supernet
from supernet.data.dataset import ImageData, open_data
from supernet.inherit.parents import find_parent
from supernet.network.norms import has_batch_norms
from supernet.network.supernet import Subnets
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.recalibration import extract_for


def export_from_run(
    run: Path, digest: str | None, output: Path | None, console: Console, opset: int | None = None
) -> list[Export]:
    """Export an evaluated architecture with inherited weights, or the chosen network.

    Args:
        run: Folder of the run.
        digest: Of the architecture, or its unique beginning; None for the chosen network with its
            fine-tuned weights.
        output: Folder for the export, which must be empty or hold an earlier one.
        console: Shows the phases.
        opset: Of the ONNX file; the run's by default.

    Raises:
        RunError: The run lacks what is needed.
        UnknownNameError: The architecture was not evaluated.
        UsageError: The folder holds other things.
        ExportError: A format does not reproduce the subnet.
    """
    if output is not None:
        check_replaceable(output)
    config = stored_config(run)
    if opset is not None:
        config = config.model_copy(update={"opset": opset})
    if (run / NETWORK).exists():
        raise RunError(
            f"{run} trained one network, and its export is in {run / EXPORT}; there is no other."
        )
    if not (run / JOURNAL).exists():
        raise RunError(
            f"{run} evaluated no architectures; what it exported itself is in {run / EXPORT}."
        )
    evaluation = _find(run, digest)
    architecture = Architecture.from_dict(evaluation.architecture)
    # beside the export of the chosen network, never in its place: that one is fine-tuned, and its
    # card has what was measured of it
    name = architecture.digest
    if isinstance(config, TrainingFreeConfig):
        name += "-untrained"
    elif digest is not None:
        name += "-inherited"
    directory = run / EXPORT / name if output is None else output.resolve()
    if isinstance(config, TrainingFreeConfig):
        with console.phase(f"exporting {architecture.digest}"):
            return export_untrained(evaluation, directory, config)
    assert isinstance(config, TrainedConfig)
    space = config.search_space()
    data = open_data(config.data, space.resolutions[-1], **config.image_options())
    with console.python_warnings():
        supernet = _weights_of(run, config, data)
    images = data.at(architecture.resolution)
    wanted = architecture if digest is not None else in_precision(architecture, FLOAT)
    network = extract_for(supernet, wanted, images, config.train)
    source = "supernet" if config.parent is None else "parent"
    notes = [f"The weights are inherited from the {source}; fine-tuning usually adds accuracy."]
    if digest is None:
        with console.python_warnings():
            tuned = CheckpointFolder(run / FINETUNE / architecture.digest / CHECKPOINTS).newest()
        if tuned is None:
            raise RunError(
                f"{run} has no good checkpoint of its fine-tuned network. If the run is not "
                "finished, finish it with --resume; if it is, the network is in its folder "
                f"{EXPORT}, or give a DIGEST for one with inherited weights."
            )
        network.load_state_dict(tuned.trained_weights())
        folder = run / FINETUNE / f"{architecture.digest}{IN_INT8}"
        network = trained_in_precision(
            network, architecture, images, config.finetune, folder, seed=config.seed
        )
        notes = []

    def subnet(images: Tensor) -> Tensor:
        logits: Tensor = supernet(images, architecture)
        return logits

    with console.phase(f"exporting {architecture.digest}"):
        return export_trained(
            network,
            directory,
            card_figures(evaluation.metrics),
            data,
            config,
            notes=notes,
            reference=None if digest is None or has_batch_norms(network) else subnet,
        )


def _weights_of(run: Path, config: TrainedConfig, data: ImageData) -> Subnets:
    """The weights that networks of a run inherit: of its supernet, or around its parent."""
    if config.is_stitched:
        return read_stitched(run, config, data)
    if config.parent is not None:
        return read_bank(run, config, data, find_parent(config.parent, config.parent_weights))
    supernet = Supernet(config.search_space(), data.num_classes).eval()
    source = run if config.supernet is None else Path(config.supernet)
    checkpoint = CheckpointFolder(source / SUPERNET / CHECKPOINTS).newest()
    if checkpoint is None:
        raise RunError(no_supernet(source))
    supernet.load_state_dict(checkpoint.trained_weights())
    return supernet


def _find(run: Path, digest: str | None) -> Evaluation:
    evaluations = {e.digest: e for e in read_journal(run / JOURNAL) if e.status == "ok"}
    if digest is None:
        if not (run / RESULT).exists():
            raise RunError(f"{run} has not chosen a network yet; give a DIGEST, or finish the run.")
        chosen = read_result(run / RESULT).chosen
        if chosen is None:
            raise RunError(f"{run} chose no network; give a DIGEST.")
        digest = chosen.digest
    found = find_digest(digest, evaluations)
    if found is None:
        raise UnknownNameError("architecture of this run", digest, list(evaluations))
    return evaluations[found]
