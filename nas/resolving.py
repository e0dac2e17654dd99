"""Configurations from flags over environment over file over defaults, or from a run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from nas.config import RunConfig, TrainedConfig, TrainingFreeConfig, kind_of
from nas.flags import declared, get
from results.store import CONFIG, RESTORE, is_run
from search import window_for
from search.samplers.registry import check_sampler
from search_space.architecture import Architecture
from search_space.boundary import explain
from search_space.errors import CorruptFileError, NasError, RunError, UsageError
from search_space.files import load_space, read_mapping
from supernet.data.augmentation import AugmentConfig

FINETUNING = frozenset({"run", "networks", "trials"})
"""Keys that the configuration of a fine-tuning has, and that of a run has not."""
KEPT_PARENT = "parents/kept.json"
"""Of a run that tried several parents: what the one that it kept changes in its configuration."""

# The defaults are those of the narrow `digits` space; hundreds of channels diverge at its rate.
_WIDER = {"lr": 5e-4, "batch_size": 64, "weight_decay": 0.05}
# A fine-tuning at a tenth of the training's rate gains little (``finetuning.py``); what balances
# classes in the one does so in the other.
_SHARED = ("optimizer", "lr", "batch_size", "weight_decay", "class_weights", "sampling")
_BALANCE = ("class_weights", "sampling")
_GENTLE = ("layer_decay", "patience")  # what a trained network is spared by
_BUDGET = ("target_latency", "target_throughput", "max", "min")


def resolve(
    options: Mapping[str, Any],
    file: str | None = None,
    *,
    with_budget: bool = True,
    say: Callable[[str], None] | None = None,
) -> RunConfig:
    """Configuration from flags over a file over the defaults.

    Args:
        options: Values by dotted path, as in ``train.epochs``; None where none is there.
        file: A YAML file with the keys of the configuration.
        with_budget: Whether networks are searched: then a limit must be there, and otherwise
            limits are left out.
        say: Is told why a space was chosen, where none is named.

    A space in a file of its own is stored whole, and the seed is passed on to both trainings.

    Raises:
        UsageError: Names the key, the value and the rule.
    """
    options = {path: value for path, value in options.items() if value is not None}
    data: dict[str, Any] = {} if file is None else read_mapping(Path(file))
    for key in _empty_texts(data):
        raise UsageError(f"{file}: {key} is empty; give a value, or leave it out.")
    for path, value in options.items():
        _put(data, path, value, file)
    if isinstance(inherited := get(data, "inherit.run"), str):
        from nas.workflows.parent_space import put_inherited

        put_inherited(data, Path(inherited))
    kind = kind_of(data)
    _check_kind(data, kind, options, file, with_budget)
    if not with_budget:
        for key in _BUDGET:
            data.pop(key, None)
    elif all(not data.get(key) for key in _BUDGET):
        raise UsageError(
            "'target_latency' is missing; give --target-latency or --max, or set it in a --config "
            "file."
        )
    if isinstance(data.get("parent"), str) and kind is TrainedConfig:
        from nas.workflows.parent_space import put_parent

        put_parent(data, say)
    if data.get("data") == "digits" or data.get("architecture") is not None:
        data.setdefault("space", "digits")
    if data.get("space") is None:
        # here heavy packages load, after what is quick to refuse has been refused
        provisional = resolve({**options, "space": "tiny"}, file, with_budget=with_budget)
        from nas.workflows.default_space import default_space

        data["space"], reason = default_space(provisional)
        if say is not None:
            say(f"space {data['space']}: {reason} --space names another.")
    if isinstance(data.get("space"), str):
        space = load_space(data["space"])
        if Path(data["space"]).suffix:
            data["space"] = space.to_dict()
    if kind is TrainedConfig:
        _fill_trainings(data, file)
    try:
        config = kind.model_validate(data)
        # units and names are checked now, not after training
        config.limits(), config.lower_limits(), config.minimised()
        if isinstance(config, TrainedConfig):
            check_sampler(config.search.sampler, config.search.optuna_storage)
            config = _with_window(config)
        elif isinstance(config, TrainingFreeConfig):
            config.check_precision()
            config.check_sampler()
        if not isinstance(config.space, str):
            config.search_space()
    except ValidationError as error:
        prefix = f"{file}: " if file else ""
        raise UsageError(prefix + "\n".join(dict.fromkeys(refused(error, kind)))) from None
    except NasError as error:  # a rule of a training, a quantity
        raise UsageError(str(error.located(file) if file else error)) from None
    for path, reason in config.useless().items():
        if path in options:
            raise UsageError(f"{_flag(kind, path)} {options[path]} does nothing {reason}.")
    return config


def stored_config(run: Path) -> RunConfig:
    """Configuration of the search or training in the folder ``run``.

    Where it tried several parents, this is that of a search from the one that it kept.

    Raises:
        RunError: There is none.
        CorruptFileError: Its file is damaged.
    """
    if not is_run(run):
        raise RunError(f"{run} is no run; give the directory of one, such as runs/NAME.")
    stored = read_mapping(run / CONFIG)
    if stored.keys() >= FINETUNING:
        raise RunError(f"{run} is no run of `nas search`; give the directory of one that is.")
    if (run / KEPT_PARENT).exists():
        stored |= read_mapping(run / KEPT_PARENT)
    try:
        config = kind_of(stored).model_validate(stored)
        config.search_space()
    except ValidationError as error:
        problems = explain(error).rstrip(".")
    except NasError as error:
        problems = str(error)
    else:
        return config
    raise CorruptFileError(
        f"{run / CONFIG} is not the configuration of a run ({problems}). {RESTORE}"
    )


def _put(data: dict[str, Any], path: str, value: Any, file: str | None) -> None:
    """Set a value at a dotted path; a mapping is added to the one that is there."""
    *parents, leaf = path.split(".")
    target = data
    for parent in parents:
        target = target.setdefault(parent, {})
        if not isinstance(target, dict):
            raise UsageError(f"{file}: {parent!r} must be a mapping.")
    if isinstance(value, Mapping) and leaf in ("max", "min", "costs"):
        there = target.get(leaf) or {}
        if not isinstance(there, dict):
            raise UsageError(f"{file}: {leaf}={there!r} must be a mapping, as in params: 5M.")
        value = {**there, **value}
    target[leaf] = value


def _check_kind(
    data: Mapping[str, Any],
    kind: type[RunConfig],
    options: Mapping[str, Any],
    file: str | None,
    with_budget: bool,
) -> None:
    """Refuses what only the other kind of run has."""
    images = kind is TrainedConfig
    if not images and not with_budget:
        raise UsageError("'data' is missing; give --data, or set it in a --config file.")
    other = TrainingFreeConfig if images else TrainedConfig
    known = {item.path for item in declared(kind)}
    for item in declared(other):
        if item.path in known or get(data, item.path) is None:
            continue
        name = item.flag.name if item.path in options else f"{file}: {item.path}"
        raise UsageError(
            f"{name} {get(data, item.path)} does nothing {'with' if images else 'without'} --data; "
            f"{'leave one of them out' if images else 'give --data, or leave it out'}."
        )


def _fill_trainings(data: dict[str, Any], file: str | None) -> None:
    """Spell out both trainings: the defaults depend on the space, and on each other."""
    trained = data.get("parent") is not None
    for part in ("train", "adapt", "finetune"):
        section = data.get(part, {})
        if not isinstance(section, dict):
            raise UsageError(f"{f'{file}: ' if file else ''}{part}={section!r} must be a mapping.")
        defaults = TrainedConfig.model_fields[part].default.to_dict()
        if part == "train" and _is_wide(data):
            defaults |= _WIDER
        if part == "adapt":
            defaults |= {key: data["train"][key] for key in _BALANCE}
        if part == "finetune":
            model = data["adapt" if trained else "train"]
            defaults |= {key: model[key] for key in (*_SHARED, *(_GENTLE if trained else ()))}
        data[part] = defaults | section | {"seed": data.get("seed", 0)}


def _is_wide(data: Mapping[str, Any]) -> bool:
    """Whether networks are wider than those of the ``digits`` space."""
    if data.get("architecture") is None:
        return data.get("space") != "digits"
    widest = load_space("digits").stages[-1].widths[-1]
    return max(Architecture.from_dict(data["architecture"]).widths) > widest


def _with_window(config: TrainedConfig) -> TrainedConfig:
    """Decide the window once: a run that goes on with other workers must propose the same."""
    if config.search.window is not None:
        return config
    window = window_for(config.workers, max(2, config.search.population // 2))
    return config.model_copy(update={"search": config.search.model_copy(update={"window": window})})


def _empty_texts(data: Any, key: str = "") -> Iterator[str]:
    """Keys whose value is empty text; as a path it would mean the current folder."""
    if data == "":
        yield key
    if isinstance(data, (dict, list)):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for inner, value in items:
            yield from _empty_texts(value, f"{key}.{inner}" if key else str(inner))


def _flag(model: type[BaseModel], path: str) -> str | None:
    return next((item.flag.name for item in declared(model) if item.path == path), None)


def refused(error: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """A line for each entry that is refused: the key, its value and the rule."""
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = _known_keys(model, item["loc"][:-1])
            nearest = difflib.get_close_matches(str(item["loc"][-1]), known, n=1, cutoff=0.4)
            hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
            yield f"unknown key {key!r}.{hint} Known: {', '.join(known)}."
        elif item["type"] == "missing":
            flag = _flag(model, key) or f"the key {key!r}"
            yield f"{key!r} is missing; give {flag}, or set it in a --config file."
        else:
            yield f"{key}={item['input']!r:.200}: {item['msg']}."


def _known_keys(model: type[BaseModel], parents: tuple[int | str, ...]) -> list[str]:
    """Keys at a place of a configuration."""
    if not parents:
        return sorted(model.model_fields)
    part = model.model_fields[str(parents[0])].default
    if "augment" in parents:
        part = AugmentConfig()
    return sorted(f.name for f in fields(part)) if is_dataclass(part) else sorted(part.model_fields)
