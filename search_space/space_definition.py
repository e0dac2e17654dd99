"""A search space from its plain form, as YAML files and configurations hold it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from search_space.architecture import Block, Macro, Mixer
from search_space.errors import InvalidSpaceError, NasError
from search_space.space import SearchSpace, StageSpace


def space_from_dict(data: object) -> SearchSpace:
    """Makes a space of its plain form.

    A stage lists either ``blocks``, or ``mixers`` (each a name with lists of parameter values) and
    ``mlp_ratio``, whose product its choices are.

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


def _stage_from_dict(raw: object) -> StageSpace:
    raw = _entries(raw, "stage", ("width", "depth"), ("blocks", "mixers", "mlp_ratio"))
    if ("blocks" in raw) == ("mixers" in raw):
        raise InvalidSpaceError("give either 'blocks' or 'mixers'.")
    if "blocks" in raw:
        listed = _list(raw["blocks"], "blocks")
        blocks = [Block.from_dict(block, f"blocks[{j}]") for j, block in enumerate(listed)]
    else:
        mixers = [
            mixer for entry in _list(raw["mixers"], "mixers") for mixer in _mixers_from_entry(entry)
        ]
        ratios = _tuple(raw.get("mlp_ratio", 4.0))
        blocks = [Block(mixer, ratio) for mixer in mixers for ratio in ratios]
    return StageSpace(_tuple(raw["width"]), _tuple(raw["depth"]), tuple(blocks))


def _mixers_from_entry(entry: object) -> list[Mixer]:
    """``pooling``, or ``{window_attention: {window: [4, 8], head_dim: 16}}``."""
    if isinstance(entry, str):
        return [Mixer.of(entry)]
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise InvalidSpaceError(f"{entry!r:.60} is not a mixer: write a name, or name: {{…}}.")
    ((name, params),) = entry.items()
    params = params or {}
    if not isinstance(params, Mapping):
        raise InvalidSpaceError(f"the parameters of mixer {name!r} must be a mapping.")
    keys = [str(key) for key in params]
    combinations = itertools.product(*(_tuple(values) for values in params.values()))
    return [Mixer.of(str(name), **dict(zip(keys, values, strict=True))) for values in combinations]
