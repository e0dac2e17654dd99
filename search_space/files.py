"""Architectures and spaces by name or from YAML and JSON files."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from search_space.architecture import Architecture
from search_space.boundary import read_data
from search_space.errors import CorruptFileError, NasError, UnknownNameError
from search_space.known import known, known_names
from search_space.space import SearchSpace
from search_space.space_definition import space_from_dict

_SUFFIXES = (".yaml", ".yml", ".json")


def space_names() -> list[str]:
    """Returns the names of the preset spaces."""
    folder = resources.files("search_space.presets")
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_space(name: str) -> SearchSpace:
    """Returns the preset space ``name``, or the space in the YAML or JSON file ``name``.

    Raises:
        UnknownNameError: It is neither; names the nearest preset.
        CorruptFileError: The file cannot be read.
        InvalidSpaceError: Its content breaks a rule; names the file.
    """
    if name in space_names():
        text = (resources.files("search_space.presets") / f"{name}.yaml").read_text("utf-8")
        return space_from_dict(yaml.safe_load(text))
    path = Path(name)
    if path.suffix not in _SUFFIXES:
        raise UnknownNameError("space", name, space_names())
    data = read_mapping(path)
    try:
        return space_from_dict({"name": path.stem, **data})
    except NasError as error:
        raise error.located(path) from None


def load_architecture(name: str) -> Architecture:
    """Returns the known design ``name``, or the architecture in the YAML or JSON file ``name``.

    An export's ``config.json`` and a run's ``best`` entry hold an architecture too: the key
    ``architecture`` or ``model_args.architecture`` is followed, and a ``digest`` beside it is
    checked.

    Raises:
        UnknownNameError: It is neither; names the nearest design.
        CorruptFileError: The file cannot be read, or its digest is another.
        InvalidArchitectureError: Its content breaks a rule; names the file.
    """
    if name in known_names():
        return known(name)
    path = Path(name)
    if path.suffix not in _SUFFIXES:
        raise UnknownNameError("design", name, known_names())
    data = read_mapping(path)
    stated = {key: data[key] for key in ("digest",) if key in data}
    for key in ("model_args", "architecture"):
        if isinstance(data.get(key), dict):
            data = {**stated, **data[key]}
    try:
        return Architecture.from_dict(data)
    except NasError as error:
        raise error.located(path) from None


def dump_architecture(architecture: Architecture) -> str:
    """Returns YAML that people can read, and that ``load_architecture`` checks by its digest."""
    return _dump({"digest": architecture.digest, **architecture.to_dict()})


def dump_space(space: SearchSpace) -> str:
    """Returns YAML that people can read and edit, and that ``load_space`` reads as the same space.

    Positions of a stage with the same choices are aliases of the first of them.
    """
    data = space.to_dict()
    for stage in data["stages"]:
        if "positions" in stage:
            first: dict[str, Any] = {}
            stage["positions"] = [first.setdefault(str(c), c) for c in stage["positions"]]
    return _dump(data)


def _dump(data: dict[str, Any]) -> str:
    class Dumper(yaml.SafeDumper):
        def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
            super().increase_indent(flow, False)

    def represent(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.Node:
        flow = "mixer" in value or "block" in value  # one line per block
        return dumper.represent_mapping("tag:yaml.org,2002:map", value.items(), flow_style=flow)

    def represent_list(dumper: yaml.SafeDumper, value: list[Any]) -> yaml.Node:
        flow = not any(isinstance(item, (dict, list)) for item in value)
        return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flow)

    Dumper.add_representer(dict, represent)
    Dumper.add_representer(list, represent_list)
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, width=120)


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping in a YAML or JSON file; raises CorruptFileError naming the file."""
    try:
        data = read_data(path)
    except FileNotFoundError:
        raise CorruptFileError(
            f"{path} does not exist; give the path of a YAML or JSON file."
        ) from None
    if not isinstance(data, dict):
        raise CorruptFileError(f"{path} must hold a mapping, not {type(data).__name__}.")
    return data
