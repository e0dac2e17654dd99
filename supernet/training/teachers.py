"""Fixed external teachers: any timm network, or an export of ours, with weights from local files.

Nothing is fetched and nothing is unpickled: tensors are read by ``tensor_files.read_tensors`` and
handed to timm, whose own translation of older parameter names then applies. A teacher sees
training images as the student does, resized and normalised as it was trained itself.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from search_space.errors import CorruptFileError, DataError, UsageError
from search_space.preprocessing import Preprocessing
from supernet.data.batches import Batch, augmented_batches, resize_images
from supernet.data.dataset import ImageData
from supernet.network.exported import WEIGHTS, load_exported, read_card
from supernet.network.tensor_files import read_tensors
from supernet.training.config import TrainConfig
from supernet.training.parallel import Group
from supernet.training.precision import autocast
from supernet.training.stored_logits import identity_of, store_logits

_MISMATCH = re.compile(r"size mismatch for (\S+)\.(?:weight|bias): .*?torch\.Size\(\[(\d+)")


class Teacher:
    """A network that is never trained: ``teacher(images)`` gives logits.

    Args:
        network: Images (n, 3, side, side) → logits (n, classes).
        identity: What its logits depend on, JSON-able.
        expected: What is done to the images that it expects, of which resolution, mean and
            deviation count.
        data: What was done to those that come.
        amp: As ``supernet.training.precision.autocast``.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        identity: dict[str, Any],
        expected: Preprocessing,
        data: Preprocessing,
        device: str | torch.device = "cpu",
        amp: str = "auto",
    ) -> None:
        self.device, self.amp = torch.device(device), amp
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.resolution, mean, std = expected.resolution, list(expected.mean), list(expected.std)
        self.identity = identity | {"resolution": self.resolution, "mean": mean, "std": std}
        # (x·s + m − m′) / s′, which commutes with resizing, whose weights add up to 1
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (data.mean, data.std, mean, std)
        )
        self._scale = (old_std / new_std).float().to(self.device)
        self._shift = ((old_mean - new_mean) / new_std).float().to(self.device)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits (n, classes), float32, without gradient, on the teacher's device.

        Args:
            images: (n, 3, height, width), normalised with the data's mean and standard deviation.
        """
        images = images.to(self.device, non_blocking=True)
        images = resize_images(images, self.resolution) * self._scale + self._shift
        with autocast(self.device, self.amp):
            logits: torch.Tensor = self.network(images)
        return logits.float()

    def logits(self, batch: Batch) -> torch.Tensor:
        """Computes the logits of a batch's images, mixed or not."""
        return self(batch.images)


def load_teacher(
    name: str,
    num_classes: int,
    weights: str | Path | None = None,
    *,
    data: Preprocessing,
    device: str | torch.device = "cpu",
    amp: str = "auto",
) -> Teacher:
    """Loads a teacher with weights from a local file, for data of ``num_classes`` classes.

    Example:
        >>> teacher = load_teacher("resnet18", 10, "r18.safetensors", data=data.preprocessing)
        >>> logits = teacher(images)

    Args:
        name: A timm model's name, with or without its pretrained tag, or the folder of an export.
        weights: A ``.safetensors`` file, or one that ``torch.load(weights_only=True)`` reads; an
            export has its own.
        data: What was done to the images that it will see.
        amp: As ``supernet.training.precision.autocast``.

    Raises:
        UsageError: Name and weights do not go together.
        CorruptFileError: A file is missing, damaged or a pickle.
        DataError: The classes differ from the data's.
    """
    folder = Path(name)
    if folder.is_dir():
        if weights is not None:
            raise UsageError(
                f"teacher {name} is a folder with weights of its own, and {weights} is given "
                "besides; leave one of them out."
            )
        network, source, config = _load_export(folder, num_classes)
        identity = {"name": f"nas_backbone {network.architecture.digest}"}
    else:
        _check_name(name)
        if weights is None:
            raise UsageError(
                f"teacher {name} has no weights, and none are downloaded; give the path of a "
                "checkpoint file of it, such as model.safetensors of the timm repository of this "
                "name."
            )
        source = Path(weights)
        network = _load_timm(name, source, num_classes)
        config = dict(network.pretrained_cfg)
        identity = {"name": name}
    with source.open("rb") as file:
        identity["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return Teacher(
        network,
        identity=identity,
        expected=Preprocessing(
            resolution=int(config["input_size"][-1]),
            mean=tuple(map(float, config["mean"])),
            std=tuple(map(float, config["std"])),
        ),
        data=data,
        device=device,
        amp=amp,
    )


def _check_name(name: str) -> None:
    import timm

    known = timm.list_models()
    architecture = name.split(".")[0]
    if architecture not in known:
        near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
        hint = f" Nearest in timm: {', '.join(near)}." if near else ""
        raise UsageError(
            f"unknown teacher {name!r}: it must be a model of timm's or an existing folder of an "
            f"export.{hint} timm.list_models() lists all."
        )
    tagged = timm.list_models(architecture, pretrained=True)
    if name not in (architecture, *tagged):
        raise UsageError(
            f"unknown teacher {name!r}: timm knows {architecture} with the tags of "
            f"{', '.join(tagged) or 'none'}; take one of these, or the name without a tag."
        )


def _load_timm(name: str, path: Path, num_classes: int) -> Any:
    import timm

    tensors = read_tensors(path)
    if not tensors:  # timm takes an empty state dict for none and would look elsewhere
        raise CorruptFileError(f"{path} holds no tensors; give a checkpoint of {name}.")
    # The state dict is timm's first choice of source; the others are taken away besides.
    overlay: dict[str, Any] = {
        "state_dict": tensors,
        "num_classes": num_classes,
        **dict.fromkeys(("url", "file", "hf_hub_id", "hf_hub_filename", "source")),
    }
    try:
        config = timm.get_pretrained_cfg(name)
        network: Any = timm.create_model(
            name, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay
        )
    except Exception as error:  # translations of names fail in many ways on foreign tensors
        text = " ".join(str(error).split())
        classifier = () if config is None else config.classifier or ()
        heads = {classifier} if isinstance(classifier, str) else set(classifier)
        shapes = _MISMATCH.findall(text)
        if shapes and {module for module, _ in shapes} <= heads:
            raise _classes_differ(name, path, int(shapes[0][1]), num_classes) from None
        raise CorruptFileError(
            f"the weights in {path} do not fit {name} ({text[:200]}); give a checkpoint of this "
            "network, or the name that the checkpoint belongs to."
        ) from None
    del network.pretrained_cfg["state_dict"]  # a second copy of the weights
    return network


def _load_export(folder: Path, num_classes: int) -> tuple[Any, Path, dict[str, Any]]:
    """Loads network, weights file and preprocessing of an export (``results.export.write``)."""
    architecture, card = read_card(folder)
    path = folder / WEIGHTS
    if card.num_classes != num_classes:
        name = f"export {architecture.digest}"
        raise _classes_differ(name, path, card.num_classes, num_classes)
    return load_exported(folder), path, card.pretrained_cfg.model_dump()


def _classes_differ(name: str, path: Path, classes: int, needed: int) -> DataError:
    return DataError(
        f"the weights of teacher {name} in {path} are for {classes} classes, the data has "
        f"{needed}; a teacher must know the data's classes: fine-tune it on this data first, or "
        "take another."
    )


@dataclass(frozen=True)
class OpenedTeacher:
    """Gives logits (n, classes) of a batch; ``identity`` is what they depend on, JSON-able."""

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
) -> OpenedTeacher | None:
    """Opens the teacher of ``config``; None where it names none.

    With ``teacher_variants`` its predictions are stored below ``folder`` first, as far as they are
    not there. Where several workers train, all of them store, each what no other is at, and all
    have all predictions when this returns.

    Raises:
        UsageError, DataError, CorruptFileError: As ``load_teacher`` and ``store_logits``.
    """
    if config.teacher is None:
        return None
    teacher = load_teacher(
        config.teacher,
        data.num_classes,
        config.teacher_weights,
        data=data.preprocessing,
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
    identity = identity_of(teacher.identity, data, config)

    def batches(variant: int) -> Iterable[Batch]:
        return augmented_batches(
            data, config.batch_size, variant, config.seed, workers, augment=config.augment
        )

    with (group or Group()).patient() as wait_for_all:
        stored = store_logits(teacher, batches, folder, identity)
        wait_for_all()
    return OpenedTeacher(stored.logits, stored.identity)
