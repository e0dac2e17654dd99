"""A search space from its plain form, as YAML files and configurations hold it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from search_space.blocks import BLOCKS, Block, Mixer, metaformer
from search_space.errors import InvalidSpaceError, NasError
from search_space.macro import Macro
from search_space.space import SearchSpace
from search_space.stage_space import MAX_DEPTH, StageSpace


def space_from_dict(data: object) -> SearchSpace:
    """Makes a space of its plain form.

    A stage says the choices of all its positions as ``blocks`` (each spelled out), as ``mixers``
    (each a name with lists of parameter values) with ``mlp_ratio``, whose product its choices are,
    or as ``choices`` (names of block kinds or mixers with lists of parameter values). ``first``
    lists choices of the first position in the same way as ``choices``, where they are others, and
    ``positions`` such a list for every position.

    Raises:
        InvalidSpaceError: A key is missing or unknown, or a value breaks a rule.
        UnknownNameError: A mixer or parameter is unknown.
    """
    data = _entries(data, "space", ("name", "resolution", "stages"), ("description", "macro"))
    stages = []
    for i, raw in enumerate(_list(data["stages"], "stages")):
        try:
            stages.append(_stage_from_dict(raw))
        except NasError as error:
            raise error.located(f"stages[{i}]") from None
    name = data["name"]
    if isinstance(name, bool) or not isinstance(name, (str, int, float)) or name == "":
        raise InvalidSpaceError(f"name {name!r} must be text, as in name: mine.")
    macro = Macro.from_dict(data.get("macro", {}))
    return SearchSpace(str(name), macro, _tuple(data["resolution"]), tuple(stages))


def _entries(
    data: object, kind: str, needed: Sequence[str], optional: Sequence[str]
) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidSpaceError(f"a {kind} is a mapping, not {data!r:.60}.")
    known = (*needed, *optional)
    for key in data:
        if key not in known:
            raise InvalidSpaceError(f"unknown key {key!r}; a {kind} has {', '.join(known)}.")
    for key in needed:
        if key not in data:
            raise InvalidSpaceError(f"key {key!r} is missing.")
    return data


def _tuple(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def _list(value: object, name: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise InvalidSpaceError(f"{name!r} must be a list, not {value!r:.60}.")
    return value


_SAYING = ("blocks", "mixers", "choices", "positions")


def _stage_from_dict(raw: object) -> StageSpace:
    raw = _entries(raw, "stage", ("width", "depth"), (*_SAYING, "mlp_ratio", "first", "stride"))
    if sum(key in raw for key in _SAYING) != 1:
        raise InvalidSpaceError(f"give one of {', '.join(map(repr, _SAYING))}.")
    depths = _tuple(raw["depth"])
    if "positions" in raw:
        if "first" in raw:
            raise InvalidSpaceError("'positions' lists the first position, too; leave out 'first'.")
        listed = _list(raw["positions"], "positions")
        positions = tuple(
            tuple(_choices(choices, f"positions[{j}]")) for j, choices in enumerate(listed)
        )
        return StageSpace(_tuple(raw["width"]), depths, positions, raw.get("stride"))
    if "blocks" in raw:
        listed = _list(raw["blocks"], "blocks")
        blocks = [Block.from_dict(block, f"blocks[{j}]") for j, block in enumerate(listed)]
    elif "choices" in raw:
        blocks = _choices(raw["choices"], "choices")
    else:
        mixers = [
            mixer for entry in _list(raw["mixers"], "mixers") for mixer in _mixers_from_entry(entry)
        ]
        ratios = _tuple(raw.get("mlp_ratio", 4.0))
        blocks = [metaformer(mixer, ratio) for mixer in mixers for ratio in ratios]
    if "first" not in raw:
        return StageSpace(_tuple(raw["width"]), depths, tuple(blocks), raw.get("stride"))
    first = tuple(_choices(raw["first"], "first"))
    last = depths[-1] if isinstance(depths[-1], int) else 1
    positions = (first, *((tuple(blocks),) * min(max(last - 1, 0), MAX_DEPTH)))
    return StageSpace(_tuple(raw["width"]), depths, positions, raw.get("stride"))


def _choices(listed: object, name: str) -> list[Block]:
    """The blocks of a list of plain forms, kinds and mixers, with lists of parameter values.

    ``skip``, ``{inverted_residual: {expansion: [3, 6]}}``, ``{pooling: {mlp_ratio: [2, 4]}}`` or
    ``{block: basic, ratio: 0.5}``.
    """
    result: list[Block] = []
    for entry in _list(listed, name):
        if isinstance(entry, Mapping) and {"block", "mixer"} & entry.keys():
            result.append(Block.from_dict(entry, name))
            continue
        kind, params = _named(entry, "block or mixer")
        for values in _product(params):
            if kind in BLOCKS.names():
                result.append(Block.from_dict({"block": kind, **values}, name))
            else:
                result.append(Block.from_dict({"mixer": kind, **values}, name))
    return result


def _mixers_from_entry(entry: object) -> list[Mixer]:
    """``pooling``, or ``{window_attention: {window: [4, 8], head_dim: 16}}``."""
    name, params = _named(entry, "mixer")
    return [Mixer.of(name, **values) for values in _product(params)]


def _named(entry: object, noun: str) -> tuple[str, Mapping[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise InvalidSpaceError(f"{entry!r:.60} is not a {noun}: write a name, or name: {{…}}.")
    ((name, params),) = entry.items()
    if not isinstance(params or {}, Mapping):
        raise InvalidSpaceError(f"the parameters of {noun} {name!r} must be a mapping.")
    return str(name), params or {}


def _product(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = [str(key) for key in params]
    combinations = itertools.product(*(_tuple(values) for values in params.values()))
    return [dict(zip(keys, values, strict=True)) for values in combinations]
