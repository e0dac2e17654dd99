"""The fixed teacher that a configuration asks for: a network, or its predictions from a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from search_space.errors import UsageError
from supernet.data.dataset import Batch, ImageData, augmented_batches
from supernet.training.config import TrainConfig
from supernet.training.parallel import Group
from supernet.training.stored_logits import ImageIdentity, StoredLogits, write_logits
from supernet.training.teachers import load_teacher

TOP_K = 10  # TinyViT keeps 10 of ImageNet-1k's classes


@dataclass(frozen=True)
class OpenedTeacher:
    """``logits(batch)``: (n, classes); ``identity``: what they depend on, JSON-able."""

    logits: Callable[[Batch], torch.Tensor]
    identity: Any


def open_teacher(
    config: TrainConfig,
    data: ImageData,
    device: str | torch.device,
    folder: Path | None,
    *,
    workers: int = 0,
    group: Group | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> OpenedTeacher | None:
    """The teacher of ``config``, None where it names none.

    With ``teacher_variants`` its predictions are stored below ``folder`` first, as far as they are
    not there; ``progress`` is told (images done, all images).

    Raises UsageError, DataError and CorruptFileError as ``load_teacher`` and ``write_logits``.
    """
    if config.teacher is None:
        return None
    teacher = load_teacher(
        config.teacher,
        data.num_classes,
        config.teacher_weights,
        data_mean=data.mean,
        data_std=data.std,
        device=device,
        amp=config.amp,
    )
    if not config.teacher_variants:
        return OpenedTeacher(teacher.logits, teacher.identity)
    if folder is None:
        raise UsageError(
            f"teacher_variants is {config.teacher_variants}, but there is no folder to store the "
            "teacher's predictions in; give one, or set it to 0."
        )
    images = ImageIdentity.of(data, config.seed, config.augment)
    top_k = min(TOP_K, data.num_classes)

    def batches(variant: int) -> Any:
        return augmented_batches(
            data, config.batch_size, variant, config.seed, workers, augment=config.augment
        )

    contents = [images.to_dict(), teacher.identity, top_k, config.teacher_variants]
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / digest
    if group is not None and group.rank > 0:  # the first one stores the teacher's predictions
        group.barrier()
    write_logits(
        teacher,
        batches,
        path,
        images=images,
        top_k=top_k,
        variants=config.teacher_variants,
        progress=progress,
    )
    if group is not None and group.rank == 0:
        group.barrier()
    stored = StoredLogits.open(
        path, images, teacher=teacher.identity, top_k=top_k, variants=config.teacher_variants
    )
    return OpenedTeacher(stored.logits, stored.identity)
