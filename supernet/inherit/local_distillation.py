"""Local distillation: alternatives learn what the parent's blocks compute, on the parent's inputs.

Each learns by itself, so n alternatives at each of m places are n·m small trainings instead of nᵐ,
and those that are no cut of the parent's block (another mixer, a larger kernel, another kind) get
weights, too. ``students.py`` says how they learn; here is which do, from what they start, and what
is kept. The loss is L1 where the mixer is another one and L2 where it is the same, as is best in
Grafting (arXiv 2506.05340).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from search_space.components import ModuleSpec, components, input_shape
from search_space.errors import InvalidArchitectureError
from supernet.data.augmentation import mix_seed
from supernet.inherit.bank import Entry, WeightBank, entry_name
from supernet.inherit.shared_weights import copy_shared
from supernet.inherit.stored_bank import load_entries, parent_identity, save_entries
from supernet.inherit.students import Distillation, Progress, Student, distil
from supernet.network.supernet import template
from supernet.network.tensor_files import digest_of
from supernet.training.evaluation import Batches


def distil_alternatives(
    bank: WeightBank,
    batches: Batches,
    *,
    entries: Iterable[Entry] | None = None,
    settings: Distillation | None = None,
    folder: Path | None = None,
    data: str = "",
    progress: Progress | None = None,
) -> list[Entry]:
    """Gives alternatives weights by which they compute nearly what the parent's blocks compute.

    One that has no weights starts from what it shares with the parent's module, and anew elsewhere.
    Its weights are the same whatever others are trained beside it, bit for bit on a CPU, so what
    is interrupted goes on with what is not in ``folder``.

    Example:
        After all that can be cut out of the parent, other mixers::

            distil_alternatives(bank, calibration_batches(data, 4096), folder=run / "distilled")

    Args:
        bank: Gets the modules.
        batches: (images (n, 3, side, side) float32 normalised, labels) pairs, iterable again and
            again in the same order, in batches of two or more; labels are not used.
        entries: Which alternatives. Those that have weights start from them. By default all that
            have none and that ``is_learnable``.
        settings: By default those of ``Distillation``.
        folder: Keeps what is finished, as ``stored_bank.save_entries``; None to write nothing.
        data: What the images depend on, such as their fingerprint.
        progress: Called after each step with (done steps, all steps, figures by name).

    Returns:
        The alternatives that have distilled weights now.

    Raises:
        InvalidArchitectureError: One is none of the space's, is the parent's own, or has other in-
            or outputs than the parent's module.
        DataError: There are no images, or the parent's outputs for them are not finite.
        RunError: The folder is of another parent, of other images or settings.
    """
    settings = settings or Distillation()
    chosen = _checked(bank, entries)
    identity = _identity(bank, chosen, settings, data)
    done = set() if folder is None else set(load_entries(folder, bank, chosen, identity=identity))
    groups = list(_groups([entry for entry in chosen if entry not in done], settings.places))
    for k, group in enumerate(groups):
        students = [_student(bank, entry, settings.seed) for entry in group]

        def told(step: int, _: int, figures: dict[str, float], before: int = k) -> None:
            if progress is not None:
                progress(before * settings.steps + step, len(groups) * settings.steps, figures)

        distil(bank, batches, students, settings, progress=told)
        for entry, student in zip(group, students, strict=True):
            bank.put(entry, student.module)
        if folder is not None:
            save_entries(folder, bank, group, identity=identity)
    return chosen


def is_learnable(bank: WeightBank, entry: Entry) -> bool:
    """Whether the parent shows what an alternative is to compute.

    That needs a module of the parent's in its place, another one, with in- and outputs of the same
    shapes.
    """
    own = {item.path: item for item in components(bank.parent, bank.num_classes)}
    path, spec = entry
    if path not in own or own[path].spec == spec:
        return False
    size = own[path].in_size
    shape = input_shape(own[path].spec, size)
    return shape == input_shape(spec, size) and _out(spec, shape) == _out(own[path].spec, shape)


# Which alternatives, and how they start -----------------------------------------------------------


def _checked(bank: WeightBank, entries: Iterable[Entry] | None) -> list[Entry]:
    """The alternatives in the order of the space, those of a place together."""
    if entries is None:
        return [entry for entry in bank.missing() if is_learnable(bank, entry)]
    wanted = set(entries)
    for path, spec in sorted(wanted - set(bank.entries), key=str):
        raise InvalidArchitectureError(
            f"space {bank.space.name!r} does not hold {spec} at {path}; take entries of the bank."
        )
    for path, spec in wanted:
        if not is_learnable(bank, (path, spec)):
            raise InvalidArchitectureError(
                f"{spec} at {path} cannot be distilled: it is the parent's own module, or the "
                "parent has none there with in- and outputs of the same shapes; leave it out."
            )
    return [entry for entry in bank.entries if entry in wanted]


def _out(spec: ModuleSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(template(spec)(torch.empty(shape, device="meta")).shape)


def _groups(entries: Sequence[Entry], places: int) -> Iterator[list[Entry]]:
    paths = list(dict.fromkeys(path for path, _ in entries))
    for k in range(0, len(paths), places):
        yield [entry for entry in entries if entry[0] in paths[k : k + places]]


def _student(bank: WeightBank, entry: Entry, seed: int) -> Student:
    path, spec = entry
    if entry in bank:
        module = copy.deepcopy(bank[entry])
    else:
        name = hashlib.sha256(entry_name(entry).encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix_seed(seed, int.from_bytes(name[:7])) >> 1)
            module = bank.fresh(entry)
        copy_shared(module, bank.parent_module(path))
    module.drop_path_rate = 0.0
    own = next(c.spec for c in components(bank.parent, bank.num_classes) if c.path == path)
    return Student(entry, module, 2 if _mixer(spec) == _mixer(own) else 1)


def _mixer(spec: ModuleSpec) -> Any:
    options = spec.as_dict()
    return options.get("mixer"), options.get("params")


def _identity(
    bank: WeightBank, entries: Sequence[Entry], settings: Distillation, data: str
) -> dict[str, Any]:
    """All that the distilled weights depend on."""
    own = asdict(settings)
    del own["places"]
    starts = {
        f"{entry_name(entry)}.{name}": value
        for entry in entries
        if entry in bank
        for name, value in bank[entry].state_dict().items()
    }
    return {
        "parent": parent_identity(bank),
        "data": data,
        "distillation": own,
        "starts": digest_of(starts) if starts else "of the parent",
    }
