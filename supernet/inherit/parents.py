"""Trained networks to start from: timm's that are points of our spaces, and our own exports.

A name is that of a known design or of a timm model with or without its pretrained tag, or the
folder of an export. Weights of timm come from a file, or from where timm itself fetches them.
"""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch
from pydantic import BaseModel
from torch import Tensor

from search_space.architecture import Architecture
from search_space.boundary import read_model
from search_space.errors import CorruptFileError, NasError, UsageError, first_line
from search_space.known import known, known_names
from search_space.names import Digest
from search_space.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from supernet.network.backbone import Backbone, build
from supernet.network.exported import WEIGHTS, is_export, load_exported, read_card
from supernet.network.tensor_files import read_tensors
from supernet.network.timm_models import PUBLISHED
from supernet.network.timm_weights import from_timm, in_order

RESULT, EXPORT = "result.json", "export"  # of a run
FIX = "where there is no network, give a file of them with --from-weights."


class _Chosen(BaseModel):
    digest: Digest


class _Result(BaseModel):
    chosen: _Chosen


@dataclass(frozen=True)
class Parent:
    """A trained network to start from, before its weights are read.

    Attributes:
        name: A timm model with its tag, or an export's folder.
        architecture: At the resolution that it was trained at.
        mean: Per channel, of pixel values in 0..1, as its images were normalised.
        std: Likewise.
        weights: A file of them; None where timm fetches them.
    """

    name: str
    architecture: Architecture
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    weights: Path | None = None

    def load(self, fix: str = FIX) -> Backbone:
        """Builds the network with its weights and its own classes.

        Args:
            fix: What to do where timm cannot fetch them; ends that error.

        Raises:
            UsageError: timm cannot fetch the weights.
            CorruptFileError: The file is damaged, or holds the weights of another network.
        """
        if Path(self.name).is_dir():
            return load_exported(Path(self.name))
        network = build(self.architecture, _classes_of(self.name))
        state = self._of_timm(fix) if self.weights is None else read_tensors(self.weights)
        if self.weights is not None:
            state = _with_names_of_timm(state, self.name, self.weights)
        try:
            ours = from_timm(state, network)
        except NasError as error:
            raise CorruptFileError(
                f"the weights in {self.weights} are not those of {self.name} ({error}) Give a "
                "checkpoint of this network, or the name that the checkpoint belongs to."
            ) from None
        network.load_state_dict(ours)
        return network

    def fingerprint(self) -> str | None:
        """Returns 12 hexadecimal digits for the file of weights; None where there is none.

        Those that timm fetches are known by the network's name and tag.
        """
        file = Path(self.name) / WEIGHTS if Path(self.name).is_dir() else self.weights
        if file is None or not file.exists():
            return None
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()[:12]

    def _of_timm(self, fix: str) -> dict[str, Tensor]:
        try:
            return dict(timm.create_model(self.name, pretrained=True).state_dict())
        except Exception as error:  # whatever the hub's client raises without a network
            raise UsageError(
                f"timm cannot fetch the weights of {self.name} ({first_line(error):.200}); {fix}"
            ) from None


def find_parent(name: str, weights: str | Path | None = None) -> Parent:
    """Finds the network of a name, without reading its weights.

    Args:
        name: A known design, a timm model with or without its tag, or the folder of an export or
            of a run, whose chosen network it then is.
        weights: A file of timm weights; an export has its own.

    Raises:
        UsageError: There is no such network, it is no point of a space, or an export is given
            weights besides.
        CorruptFileError: An export's files are damaged.
    """
    folder = Path(name)
    if folder.is_dir():
        if weights is not None:
            raise UsageError(
                f"--from {name} is a folder with weights of its own, and --from-weights {weights} "
                "is given besides; leave one of them out."
            )
        return _export(folder)
    ours = _our_name(name)
    theirs = PUBLISHED[ours] if name in known_names() else name
    config = timm.get_pretrained_cfg(theirs)
    if config is None or config.mean is None or config.std is None:
        config = timm.get_pretrained_cfg(PUBLISHED[ours])
    architecture = known(ours)
    if config is None:
        return Parent(theirs, architecture, weights=None if weights is None else Path(weights))
    if config.input_size is not None:  # some weights are of larger images
        architecture = replace(architecture, resolution=int(config.input_size[-1]))
    tagged = f"{config.architecture}.{config.tag}" if config.tag else theirs
    return Parent(
        theirs if "." in theirs else tagged,
        architecture,
        tuple(map(float, config.mean)),
        tuple(map(float, config.std)),
        None if weights is None else Path(weights),
    )


def _export(folder: Path) -> Parent:
    if (folder / RESULT).exists():  # a run's own export of the network that it chose
        result = read_model(folder / RESULT, _Result)
        folder = folder / EXPORT / result.chosen.digest
    if not is_export(folder):
        raise UsageError(
            f"--from {folder} holds no config.json, so it is no export of a network; give a folder "
            f"such as runs/NAME/export/DIGEST, or one of {', '.join(known_names()[:5])} …"
        )
    architecture, card = read_card(folder)
    images = card.pretrained_cfg
    return Parent(str(folder), architecture, images.mean, images.std)


def _our_name(name: str) -> str:
    """The known design that a name of ours or of timm's is.

    Raises:
        UsageError: There is none.
    """
    if name in known_names():
        return name
    base, _, tag = name.partition(".")
    for ours, theirs in PUBLISHED.items():
        if base == theirs:
            tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{base}.*")]
            if tag and tag not in tags:
                raise UsageError(
                    f"timm has no {name}; of {base} it knows the tags {', '.join(tags) or 'none'}."
                )
            return ours
    names = [*known_names(), *PUBLISHED.values()]
    near = difflib.get_close_matches(base, names, n=5, cutoff=0.4) or names[:5]
    starts = f"Networks to start from are near: {', '.join(dict.fromkeys(near))}."
    if timm.is_model(base):
        raise UsageError(
            f"{name} is no point of a space: its {_foreign_modules(base)} have no counterpart "
            f"here. {starts} `nas zoo` measures it as it is."
        )
    raise UsageError(
        f"there is no network {name!r} to start from: it is neither a known design nor a timm "
        f"model nor the folder of an export. {starts}"
    )


def _foreign_modules(name: str) -> str:
    """Classes of a timm model's modules that none of the known designs of timm has."""

    def classes(model: str) -> Counter[str]:
        with torch.device("meta"):
            network = timm.create_model(model)
        # layers of torch are everywhere; what a network is made of has a class of its own
        own = (m for m in network.modules() if not type(m).__module__.startswith("torch.nn"))
        return Counter(type(module).__name__ for module in own)

    familiar: Counter[str] = Counter()
    for each in ("resnet18", "tf_efficientnet_lite0", "mobilenetv3_large_100", "convnext_atto"):
        familiar |= classes(each)
    for each in ("swin_tiny_patch4_window7_224", "poolformer_s12", "caformer_s18"):
        familiar |= classes(each)
    foreign = [f"{n} × {c}" for c, n in classes(name).most_common() if c not in familiar]
    return ", ".join(foreign[:4]) or "arrangement of blocks"


def _classes_of(name: str) -> int:
    config = timm.get_pretrained_cfg(name)
    return 1000 if config is None else int(config.num_classes)


def _with_names_of_timm(state: Mapping[str, Tensor], name: str, path: Path) -> dict[str, Tensor]:
    """Tensors of a file with timm's names, which another implementation's get by their order."""
    with torch.device("meta"):
        theirs = timm.create_model(name.partition(".")[0]).state_dict()
    if set(theirs) & set(state):
        return dict(state)
    try:
        return in_order(state, theirs)
    except NasError as error:
        raise CorruptFileError(
            f"the weights in {path} are not those of {name}: {error} Give a checkpoint of this "
            "network, or the name that the checkpoint belongs to."
        ) from None
