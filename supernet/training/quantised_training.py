"""Training of a network in int8: weights and scales learn to make good what rounding loses.

Rounding passes gradients on as if it were not there, and scales are learned (Jacob et al., 2018;
Esser et al., Learned step size quantization, 2020; see ``supernet.network.quantised``). What is
learnt are the logits of the float network (Hinton et al., 2015): they say more than labels of how
the network was before it was rounded, and cannot be learnt by heart in a few epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from torch import Tensor, nn

from search_space.errors import RunError
from supernet.data.batches import Batch
from supernet.data.dataset import ImageData
from supernet.network.backbone import Backbone
from supernet.network.norms import has_batch_norms
from supernet.network.quantised import fake_quantisers
from supernet.network.tensor_files import digest_of
from supernet.quantisation.calibration import same_tensors
from supernet.training.config import EpochMetrics, TrainConfig, check_batch_norms
from supernet.training.evaluation import at_trained_resolution, evaluation_mode
from supernet.training.loop import How, TrainingLoop
from supernet.training.objectives import NetworkObjective


def train_quantised(
    network: Backbone,
    teacher: Backbone,
    data: ImageData,
    config: TrainConfig,
    directory: Path | None = None,
    **how: Unpack[How],
) -> list[EpochMetrics]:
    """Trains a network in int8 in place, on the logits of its float twin.

    It computes in float32 whatever ``config.amp`` says, since 16 bits cannot tell the levels apart
    that are simulated. A few epochs at a hundredth of the float network's learning rate are enough,
    since ranges and biases are near their best: higher rates first undo that. Labels are not used
    but to judge epochs. Where the validation loss in the end is not below that of the start, the
    network is as it was at the start.

    Example:
        >>> network = quantised_network(teacher, in_precision(teacher.architecture, "int8"), images)
        >>> train_quantised(network, teacher, data, TrainConfig(epochs=3, lr=1e-5, patience=1))

    Args:
        network: Of ``quantised_network``, with ranges; what is trained.
        teacher: The float network that it was made of, or another of the same classes; it stays
            as it is and sees the same images, at its own resolution.
        data: At the larger resolution of both.
        config: How; without a teacher of its own. ``temperature`` is that of the logits.
        directory: Where checkpoints and metrics go, from which it continues; None to write nothing.
        how: See ``How``.

    Returns:
        The metrics of all epochs.

    Raises:
        RunError: The network is all in float, the teacher has other classes, the configuration
            names a teacher, or the checkpoint there is of another start or configuration.
        TrainingDivergedError: The loss stayed non-finite.
    """
    if not fake_quantisers(network):
        raise RunError(
            "the network has no component in int8, so there is no rounding to learn; make it with "
            "quantised_network, or train it with finetune"
        )
    if teacher.num_classes != network.num_classes:
        raise RunError(
            f"the teacher has {teacher.num_classes} classes, the network {network.num_classes}; "
            "give the float network that it was made of"
        )
    if config.teacher is not None:
        raise RunError(
            f"teacher is {config.teacher!r}, but a network in int8 learns from its float twin: "
            "leave it out"
        )
    if has_batch_norms(network):  # of components in float
        check_batch_norms(config, len(data.train))
    config = replace(config, amp="off")
    device = how.get("device", "cpu")
    identity = {
        "start": digest_of(network.state_dict()),
        "teacher": digest_of(teacher.state_dict()),
    }
    network.to(device)
    teacher.to(device)

    def wanted(batch: Batch) -> Tensor:
        logits: Tensor = teacher(at_trained_resolution(teacher, batch.images))
        return logits

    objective = NetworkObjective(network, config, teacher=wanted)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with evaluation_mode(teacher), _one_scale_a_tensor(network):
        loop = TrainingLoop(network, objective, data, config, directory, identity, **how)
        before = objective.qualities(loop.validation)[""].loss
        epochs = loop.run()
        if not objective.qualities(loop.validation)[""].loss < before:
            network.load_state_dict(start)
    return epochs


@contextmanager
def _one_scale_a_tensor(network: Backbone) -> Iterator[None]:
    """Trains one scale for all places that round the same tensor; each has its own again after."""
    side = network.architecture.resolution
    image = next(network.parameters()).new_zeros(1, network.in_chans, side, side)
    places = fake_quantisers(network)
    shared = [(places[a], places[b]) for a, b in same_tensors(network, image).items() if a != b]
    for place, first in shared:
        place.log_scale = first.log_scale
    try:
        yield
    finally:
        for place, first in shared:
            place.log_scale = nn.Parameter(first.log_scale.detach().clone())
