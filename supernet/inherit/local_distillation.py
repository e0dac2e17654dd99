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
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from search_space.components import ModuleSpec, components, input_shape
from search_space.errors import InvalidArchitectureError
from supernet.data.augmentation import mix_seed
from supernet.inherit.bank import Entry, WeightBank, entry_name
from supernet.inherit.shared_weights import copy_shared
from supernet.inherit.stored_bank import load_entries, parent_identity, save_entries
from supernet.inherit.students import SLOWER, Distillation, Progress, Student, distil
from supernet.network.axes import StaticModule
from supernet.network.templates import template
from supernet.network.tensor_files import digest_of
from supernet.training.evaluation import Batches


@dataclass(frozen=True)
class Taught:
    """An alternative with the weights that it has learnt; those of its start where it failed."""

    entry: Entry
    module: StaticModule
    failed: bool


Group = Sequence[Entry]
"""Alternatives that are trained at a time."""
Teaching = Callable[
    [WeightBank, Batches, Sequence[Group], Distillation, Progress | None],
    Generator[list[Taught], None, None],
]
"""Trains groups of alternatives, and yields each as it is finished, in any order."""


def teach(
    bank: WeightBank,
    batches: Batches,
    group: Group,
    settings: Distillation,
    progress: Progress | None = None,
) -> list[Taught]:
    """Trains a group of alternatives; the bank stays as it is."""
    students = [_student(bank, entry, settings.seed) for entry in group]
    failed = distil(bank, batches, students, settings, progress=progress)
    return [Taught(student.entry, student.module, student in failed) for student in students]


def teach_here(
    bank: WeightBank,
    batches: Batches,
    groups: Sequence[Group],
    settings: Distillation,
    progress: Progress | None = None,
) -> Generator[list[Taught], None, None]:
    """Trains one group after the other in this process."""
    total = len(groups) * settings.steps
    for k, group in enumerate(groups):

        def told(step: int, _: int, figures: dict[str, float], before: int = k) -> None:
            if progress is not None:
                progress(before * settings.steps + step, total, figures)

        yield teach(bank, batches, group, settings, told)


def distil_alternatives(
    bank: WeightBank,
    batches: Batches,
    *,
    entries: Iterable[Entry] | None = None,
    settings: Distillation | None = None,
    folder: Path | None = None,
    data: str = "",
    progress: Progress | None = None,
    teaching: Teaching = teach_here,
) -> list[Entry]:
    """Gives alternatives weights by which they compute nearly what the parent's blocks compute.

    One that has no weights starts from what it shares with the parent's module, and anew elsewhere.
    Its weights are the same whatever others are trained beside it, bit for bit on CPUs with as many
    threads, so what is interrupted goes on with what is not in ``folder``. One whose loss is not
    finite, even at a tenth of the learning rate, keeps its start, and a warning names it.

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
        teaching: Where they are trained: here, or as ``supernet.cluster.distillation`` says.

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
    with closing(teaching(bank, batches, groups, settings, progress)) as finished:
        for taught in finished:
            for one in taught:
                bank.put(one.entry, one.module)
                if one.failed:
                    _warn(one.entry, settings.lr)
            if folder is not None:
                save_entries(folder, bank, [one.entry for one in taught], identity=identity)
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


def _warn(entry: Entry, lr: float) -> None:
    path, spec = entry
    warnings.warn(
        f"the loss of {spec} at {path} is not finite at learning rates of {lr:g} and "
        f"{SLOWER * lr:g}; it keeps the weights that it started from: give a lower lr",
        stacklevel=3,
    )


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
