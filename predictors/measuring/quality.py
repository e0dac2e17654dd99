"""Measures a quality table: one block of a trained network is replaced, and what it loses is seen.

The same held-out images pass the network with and without each change, so differences are known
image by image, and a thousand images tell alternatives apart. Up to the changed block all
alternatives of a place are the parent, which runs once for all of them.

Averages of batch norms after a changed block are no longer those of what reaches them. They are
made anew from a few training images for each change, as they will be for a network that has it;
the parent's are made from the same images.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from predictors.tables.quality import Change, Key, QualityTable, Source, asked
from search_space import Architecture, Block, SearchSpace
from search_space.components import Component, ModuleSpec, components
from search_space.errors import RunError, UsageError
from supernet.network.norms import BatchNorm, pooled
from supernet.network.tensor_files import digest_of

Batches = Iterable[tuple[Tensor, Tensor]]
Entry = tuple[str, ModuleSpec]
Module = TypeVar("Module", bound=nn.Module)
_PACKAGES = ("nas", "torch", "timm", "numpy")


class Bank(Protocol):
    """What is measured: a parent and its alternatives, as ``WeightBank`` holds them."""

    space: SearchSpace
    base: Architecture
    num_classes: int

    def __contains__(self, entry: object) -> bool: ...

    def chain(self, architecture: Architecture) -> Iterable[tuple[Component, nn.Module]]: ...


@torch.no_grad()
def measure_quality(
    bank: Bank,
    batches: Callable[[int], Batches],
    calibration: Callable[[int], Batches] | None = None,
    *,
    file: Path | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> QualityTable:
    """Measures every alternative of a bank that has weights, each alone in the parent.

    Example:
        A thousand held-out training images, and 256 others for batch norms::

            table = measure_quality(
                bank,
                lambda side: eval_batches(data.at(side).validation, limit=1000),
                lambda side: calibration_batches(data.at(side), 256),
                file=run / "quality.parquet",
            )

    Args:
        bank: The parent and its alternatives; it stays as it is.
        batches: Gives for a resolution the batches that are seen, (images (n, 3, side, side)
            float32 normalised, labels (n,)), the same whenever they are asked for. None of their
            images should have trained the parent or chosen what is cut.
        calibration: Gives for a resolution the training images of which averages of batch norms
            are made; None to keep those that the modules have.
        file: Where the table is kept after each place. What is there already is not measured
            again, unless the alternative has other weights, so a whole table takes no time.
        device: What computes.
        progress: Called after each place with how many are done, and how many there are.

    Raises:
        UsageError: ``file`` holds a table of another parent, other weights or other images; there
            are fewer than two images; or the space is none around the parent.
        CorruptFileError: ``file`` is damaged.
        RunError: An alternative computes what is not finite. What was measured before is kept.
    """
    keys, side = asked(bank.space, bank.base), bank.base.resolution
    modules = {(item.path, item.spec): module for item, module in bank.chain(bank.base)}
    parent = _copy(nn.Sequential(*modules.values()), device)
    own = dict(zip(modules, parent, strict=True))
    source = Source(
        *(bank.base, bank.num_classes, digest_of(parent.state_dict())),
        _digest_of(batches(side)),
        _digest_of(calibration(side)) if calibration else "",
    )

    @cache
    def seen() -> _Seen:
        if calibration is not None:
            _calibrate(nn.Sequential(), [parent], calibration(side))
        return _Seen.by(parent, batches(side))

    versions = {name: version(name) for name in _PACKAGES}
    if file is not None and file.exists():
        table = replace(_continued(file, source), space=bank.space.digest, versions=versions)
    else:
        figures = seen().loss, seen().accuracy
        table = QualityTable(source, *figures, {}, bank.space.digest, versions, _now())
    places = [list(group) for _, group in groupby(keys, key=lambda key: (key[0], key[2]))]
    for done, place in enumerate(places, 1):
        found = {key: _changed(bank, key, own, device) for key in place}
        new = {
            key: changed
            for key, changed in found.items()
            if changed is not None
            and (key not in table.changes or table.changes[key].weights != changed.weights)
        }
        if new:
            at, after = place[0][2], {key: changed.after for key, changed in new.items()}
            before = parent[: min(changed.start for changed in new.values())]
            images = seen()
            if calibration is not None:
                _calibrate(before, list(after.values()), calibration(at))
            tallies = images.compare(before, after, batches(at))
            measured = {key: tally.change(key, new[key].weights) for key, tally in tallies.items()}
            table = table.with_changes(measured, _now())
        if file is not None and (new or done == len(places)):
            table.save(file)
        if progress is not None:
            progress(done, len(places))
    return table


# What is changed ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Changed:
    """A change of the parent: where its modules begin to be others, and those from there on.

    The modules have parameters in common with the parent's, and averages of batch norms of their
    own. ``weights`` is the digest of those that are not the parent's.
    """

    start: int
    after: nn.Sequential
    weights: str


def _changed(
    bank: Bank, key: Key, own: Mapping[Entry, nn.Module], device: str | torch.device
) -> _Changed | None:
    """Returns a change with modules of the parent, ``own``, and of the bank; None without them."""
    path, block, _ = key
    architecture = bank.base if block is None else _with_block(bank.base, path, block)
    entries = [(item.path, item.spec) for item in components(architecture, bank.num_classes)]
    if any(entry not in own and entry not in bank for entry in entries):
        return None
    start = 0
    if block is not None:
        start = next(
            i for i, (mine, its) in enumerate(zip(own, entries, strict=False)) if mine != its
        )
    modules, brought = [], nn.ModuleList()
    for entry, (_, module) in list(zip(entries, bank.chain(architecture), strict=True))[start:]:
        if entry not in own:
            brought.append(_copy(module, device))
        modules.append(own[entry] if entry in own else brought[-1])
    after = nn.Sequential(*modules)
    shared: dict[int, object] = {id(parameter): parameter for parameter in after.parameters()}
    weights = digest_of(brought.state_dict()) if len(brought) else ""
    return _Changed(start, copy.deepcopy(after, shared), weights)


def _with_block(architecture: Architecture, path: str, block: Block) -> Architecture:
    _, i, _, j = path.split(".")
    stages = list(architecture.stages)
    blocks = list(stages[int(i)].blocks)
    blocks[int(j)] = block
    stages[int(i)] = replace(stages[int(i)], blocks=tuple(blocks))
    return replace(architecture, stages=tuple(stages))


def _copy(module: Module, device: str | torch.device) -> Module:
    return copy.deepcopy(module).eval().requires_grad_(False).to(device)


def _norms(*modules: nn.Module) -> list[BatchNorm]:
    return [part for module in modules for part in module.modules() if isinstance(part, BatchNorm)]


def _calibrate(before: nn.Module, after: list[nn.Sequential], batches: Batches) -> None:
    """Makes averages in ``after``, all of which see what ``before`` makes of the images.

    Those in ``before`` are made again, as they were: each batch is normalised by itself there too,
    as it is where a whole network gets its averages.
    """
    if not _norms(*after):
        return
    norms = _norms(before, *after)
    device = norms[0].weight.device
    with pooled(norms):
        for images, _ in batches:
            maps = before(images.to(device))
            for module in after:
                module(maps)


# What is seen ---------------------------------------------------------------------------------


@dataclass
class _Tally:
    """What images say of one change: differences of loss and hits, and divergences, each (n,)."""

    loss: list[Tensor] = field(default_factory=list)
    kl: list[Tensor] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)

    def add(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Adds images by their logits without and with the change, (n, classes) both."""
        before, after = F.log_softmax(before.double(), 1), F.log_softmax(after.double(), 1)
        gain = (before - after).gather(1, labels[:, None])[:, 0]
        kl = (before.exp() * (before - after)).sum(1).clamp(min=0)
        hits = (after.argmax(1) == labels).double() - (before.argmax(1) == labels).double()
        for values, new in ((self.loss, gain), (self.kl, kl), (self.hits, hits)):
            values.append(new.cpu())

    def change(self, key: Key, weights: str) -> Change:
        """Returns means and their standard errors.

        Raises:
            RunError: One is not finite.
        """
        figures: dict[str, float] = {}
        for name, parts in (("loss", self.loss), ("kl", self.kl), ("accuracy", self.hits)):
            values = torch.cat(parts)
            figures[name] = float(values.mean())
            figures[f"{name}_error"] = float(values.std()) / math.sqrt(len(values))
        if not all(map(math.isfinite, figures.values())):
            path, block, side = key
            what = f"{block.to_dict()} at {path}" if block else f"the parent at {side} pixels"
            raise RunError(
                f"{what} computes outputs that are no finite numbers; fit its weights again, or "
                "leave it out of the space. What was measured before is kept."
            )
        return Change(**figures, images=sum(map(len, self.kl)), weights=weights)


@dataclass(frozen=True)
class _Seen:
    """Held-out images, by the parent's logits (n, classes) and their labels (n,)."""

    logits: Tensor
    labels: Tensor

    @classmethod
    def by(cls, parent: nn.Sequential, batches: Batches) -> _Seen:
        """Shows the parent all images once."""
        logits, labels = [], []
        device = next(parent.parameters()).device
        for images, targets in batches:
            logits.append(parent(images.to(device)).float())
            labels.append(targets.to(device))
        if sum(map(len, labels)) < 2:
            raise UsageError(
                f"{sum(map(len, labels))} held-out images say nothing of the quality of blocks; "
                "give at least 2, better a thousand."
            )
        return cls(torch.cat(logits), torch.cat(labels))

    @property
    def loss(self) -> float:
        """The parent's mean cross entropy, in nats."""
        return float(F.cross_entropy(self.logits.double(), self.labels))

    @property
    def accuracy(self) -> float:
        """The parent's top-1 accuracy, a share."""
        return float((self.logits.argmax(1) == self.labels).double().mean())

    def compare(
        self, before: nn.Module, after: Mapping[Key, nn.Module], batches: Batches
    ) -> dict[Key, _Tally]:
        """Shows all images what comes ``after`` the same modules ``before``, for each change."""
        tallies = {key: _Tally() for key in after}
        at = 0
        for images, targets in batches:
            part = slice(at, at + len(images))
            at, labels = part.stop, self.labels[part]
            if not torch.equal(targets.to(labels.device), labels):
                raise _other_images()
            maps = before(images.to(labels.device))
            for key, module in after.items():
                tallies[key].add(self.logits[part], module(maps), labels)
        if at != len(self.labels):
            raise _other_images()
        return tallies


def _other_images() -> UsageError:
    return UsageError(
        "the held-out images are others at each pass, so changes cannot be compared; give batches "
        "in a fixed order, the same at all resolutions, that can be read again and again."
    )


def _digest_of(batches: Batches) -> str:
    """Returns 12 hexadecimal digits for images and labels, whatever their batches."""
    if iter(batches) is batches:
        raise _other_images()
    pixels, labels = hashlib.sha256(), hashlib.sha256()
    for images, targets in batches:
        pixels.update(images.cpu().contiguous().numpy().data)
        labels.update(targets.cpu().contiguous().numpy().data)
    return hashlib.sha256(pixels.digest() + labels.digest()).hexdigest()[:12]


# What is there --------------------------------------------------------------------------------


def _continued(file: Path, source: Source) -> QualityTable:
    """Loads the table in a file, whose source must be the same."""
    table = QualityTable.load(file)
    names = {
        "parent": "the parent's architecture",
        "num_classes": "the number of classes",
        "weights": "the parent's weights",
        "data": "the held-out images",
        "calibration": "the images that made averages of batch norms",
    }
    other = [
        words
        for name, words in names.items()
        if getattr(table.source, name) != getattr(source, name)
    ]
    if other:
        raise UsageError(
            f"{file} was measured with other values of {' and '.join(other)}, so it cannot be "
            "continued; give the same again, or another file."
        )
    return table


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
