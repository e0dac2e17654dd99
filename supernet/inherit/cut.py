"""Weights of alternatives that are smaller copies of a trained network's modules, or linear maps.

Of each axis the units that a criterion finds the most important are kept, and what was cut off is
folded into what is kept. Smaller kernels come first: all alternatives at a place that have the same
kernels are cut out of one module with these kernels and all units, so that two passes of the
parent, one for taps and one for units, serve every place and any number of alternatives. With the
units come the linear maps that stand where a block is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from search_space.components import components
from search_space.errors import DataError, UsageError
from supernet.inherit.bank import Entry, WeightBank
from supernet.inherit.fold import fit_map, refit
from supernet.inherit.importance import CRITERIA, Units
from supernet.inherit.importance.criteria import readers, writers
from supernet.inherit.local_distillation import is_learnable
from supernet.inherit.moments import Watched, sum_up
from supernet.inherit.observing import static
from supernet.inherit.smaller import cut, difference, inner_units, with_middles
from supernet.network.axes import StaticModule
from supernet.network.backbone import Backbone
from supernet.network.blocks import Projection
from supernet.training.evaluation import Batches

IMPORTANCE = "reconstruction"  # the best of benchmarks/importance.py
RIDGE = 1e-3
_MEMORY = 2**30  # bytes of moments that are summed up in one pass

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Variant:
    """The parent's module at a path with the kernels of some alternatives, and these.

    Attributes:
        path: Of the module.
        parent: The parent's module.
        module: With other kernels; the parent's where they are the same.
        alternatives: Entries to be cut out of ``module``, with the units that each has fewer of.
        linear: An entry that is a linear map, of the module that is the parent's, and its module.
    """

    path: str
    parent: StaticModule
    module: StaticModule
    alternatives: tuple[tuple[Entry, tuple[frozenset[str], ...]], ...]
    linear: tuple[Entry, Projection] | None = None

    @property
    def tapped(self) -> list[str]:
        """Convolutions of which taps are cut off."""
        theirs = dict(self.module.named_modules())
        return [
            name
            for name, layer in self.parent.named_modules()
            if isinstance(layer, nn.Conv2d)
            and layer.weight[0].numel() > theirs[name].weight[0].numel()
        ]

    def folded(self, fewer: Sequence[frozenset[str]]) -> list[str]:
        """Layers that read fewer units, or units that a smaller kernel has changed."""
        tapped = self.tapped
        sets = [
            names
            for names in inner_units(self.parent)
            if names in fewer or not set(tapped).isdisjoint(writers(self.parent, names))
        ]
        return list(dict.fromkeys(name for names in sets for name in readers(self.parent, names)))


def cut_alternatives(
    bank: WeightBank,
    batches: Batches,
    *,
    entries: Collection[Entry] | None = None,
    importance: str = IMPORTANCE,
    fold: bool = True,
    ridge: float = RIDGE,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Entry]:
    """Fills the entries of a bank that are smaller copies of the parent's modules, or linear maps.

    Example:
        A network with a quarter of the hidden channels less, before any training::

            bank = WeightBank(around(parent.architecture), parent)
            cut_alternatives(bank, calibration_batches(data, 1024))
            network = bank.extract(architecture)

    Args:
        bank: Of which the missing entries are filled; others stay missing.
        batches: Some hundred training images or more, as ``evaluate`` takes them, to be iterated
            over several times.
        entries: Which of the missing entries; None for all.
        importance: The criterion of the units to keep, one of ``importance.CRITERIA``.
        fold: Whether what is cut off is folded into what is kept. Linear maps are the identity
            otherwise, as if there was no block.
        ridge: Of the regression, as a part of the variance of what is kept; above 0.
        seed: Of the positions at which maps are looked at.
        progress: Called with the numbers of entries that are filled and that will be.

    Returns:
        The entries that were filled, in the bank's order of paths.

    Raises:
        UnknownNameError: There is no such criterion.
        UsageError: The ridge is not above 0, or batches can be iterated over only once.
        DataError: There are no images.
    """
    measure = CRITERIA[importance].call
    if not ridge > 0:
        raise UsageError(
            f"ridge={ridge!r} must be above 0, as 0.001; it is a part of the variance."
        )
    if iter(batches) is batches:
        raise UsageError("batches can be iterated over only once; give a list, or EvalBatches.")
    if next(iter(batches), None) is None:
        raise DataError("there are no images to measure units by; give some hundred of training.")
    parent = bank.extract(bank.parent).eval()
    missing = bank.missing()
    wanted = missing if entries is None else [entry for entry in missing if entry in entries]
    variants = list(_variants(bank, parent, wanted))
    units = {
        Units(variant.path, names)
        for variant in variants
        for _, fewer in variant.alternatives
        for names in fewer
    }
    scores = measure(parent, sorted(units, key=lambda one: (one.path, min(one.names))), batches)
    if fold:
        _fold_taps(parent, variants, batches, ridge, seed)
    done: list[Entry] = []
    total = sum(len(one.alternatives) + (one.linear is not None) for one in variants)
    for group in _groups(variants, fold):
        if fold:
            sum_up(parent, [watched for _, watched in group], batches, seed)
        for variant, watched in group:
            if variant.linear is not None:
                entry, projection = variant.linear
                fit_map(projection, watched.moments[""] if fold else None, ridge)
                bank.put(entry, projection)
                done.append(entry)
                if progress is not None:
                    progress(len(done), total)
            for entry, fewer in variant.alternatives:
                small = bank.fresh(entry).eval()
                kept = {
                    name: _best(scores[Units(variant.path, names)], small.sizes()[name])
                    for names in fewer
                    for name in names
                }
                cut(variant.module, small, kept)
                for layer in variant.folded(fewer) if fold else ():
                    refit(variant.module, small, layer, watched.moments[layer], kept, ridge)
                bank.put(entry, small)
                done.append(entry)
                if progress is not None:
                    progress(len(done), total)
    return done


def _variants(bank: WeightBank, parent: Backbone, entries: Sequence[Entry]) -> Iterator[_Variant]:
    """The parent's modules with the kernels that alternatives have."""
    specs = {item.path: item.spec for item in components(bank.parent, bank.num_classes)}
    found: dict[Entry, list[tuple[Entry, tuple[frozenset[str], ...]]]] = {}
    maps: dict[str, tuple[Entry, Projection]] = {}
    for path, spec in entries:
        if path not in specs:
            continue
        how = difference(spec, specs[path])
        if how is not None:
            found.setdefault((path, how.same_units), []).append(((path, spec), how.units))
        elif (projection := _linear(bank, (path, spec))) is not None:
            maps[path] = (path, spec), projection
            found.setdefault((path, specs[path]), [])
    for (path, spec), alternatives in found.items():
        module = own = static(parent, path)
        if spec != specs[path]:
            module = bank.fresh((path, spec)).eval()
            cut(own, module)
        linear = maps.get(path) if module is own else None
        yield _Variant(path, own, module, tuple(alternatives), linear)


def _linear(bank: WeightBank, entry: Entry) -> Projection | None:
    """The module of an entry that is a map of each position, from the parent's input to output."""
    options = entry[1].as_dict()
    alike = options.get("dim") == options.get("out_dim") and options.get("stride") == 1
    if not alike or not is_learnable(bank, entry):
        return None
    module = bank.fresh(entry).eval()
    return module if isinstance(module, Projection) else None


def _fold_taps(
    parent: Backbone, variants: Sequence[_Variant], batches: Batches, ridge: float, seed: int
) -> None:
    """Folds the taps that smaller kernels lack into those that they have."""
    layers: dict[str, set[str]] = {}
    for variant in variants:
        layers.setdefault(variant.path, set()).update(variant.tapped)
    watched = {
        path: Watched.of(path, static(parent, path), sorted(names))
        for path, names in layers.items()
        if names
    }
    if watched:
        sum_up(parent, list(watched.values()), batches, seed)
    for variant in variants:
        kept = with_middles(variant.parent, variant.module, {})
        for layer in variant.tapped:
            moments = watched[variant.path].moments[layer]
            refit(variant.parent, variant.module, layer, moments, kept, ridge)


def _groups(variants: Sequence[_Variant], fold: bool) -> Iterator[list[tuple[_Variant, Watched]]]:
    """Variants whose moments are summed up together, within ``_MEMORY`` if possible."""
    group: list[tuple[_Variant, Watched]] = []
    for variant in variants:
        fewer = {names for _, sets in variant.alternatives for names in sets}
        layers = variant.folded(sorted(fewer, key=min)) if fold else []
        linear = variant.linear[1].conv if variant.linear is not None and fold else None
        watched = Watched.of(variant.path, variant.module, layers, linear)
        if group and sum(one.num_bytes for _, one in group) + watched.num_bytes > _MEMORY:
            yield group
            group = []
        group.append((variant, watched))
    if group:
        yield group


def _best(scores: Tensor, count: int) -> list[int]:
    """The units with the largest scores, ascending; of equal ones the first."""
    return sorted(scores.argsort(descending=True, stable=True)[:count].tolist())
