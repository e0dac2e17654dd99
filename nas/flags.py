"""Flags of the command line, declared once: beside the field of a configuration that they fill.

A field's annotation carries a ``Flag``; its type and bounds are the field's. The command line's
options are made from these (``nas.cli.options``), and the configuration knows by which flag a value
came. To add an option, add a field:

    window: Annotated[int | None, Flag("--window", "Candidates proposed ahead.")] = Field(
        default=None, ge=1
    )
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from supernet.training.config import MAX_BATCH_SIZE

# Largest values that are no slip of the keyboard: beyond them a machine runs out of something.
SEED = 2**63 - 1  # what all random generators take
BATCH_SIZE = MAX_BATCH_SIZE
NUM_CLASSES = 1_000_000
THREADS = 1024
POPULATION = 100_000


@dataclass(frozen=True)
class Flag:
    """A field's option on the command line; metadata of its annotation.

    Args:
        name: With dashes. The environment variable ``NAS_<NAME>`` sets the field too.
        help: A sentence.
        metavar: What stands for the value in the help text.
        part: The entry that is meant, where the field's value has several.
    """

    name: str
    help: str
    metavar: str | None = None
    part: str = ""


@dataclass(frozen=True)
class Declared:
    """A flag with what its field says: the type without None, and bounds as pydantic keeps them."""

    path: str
    flag: Flag
    type: Any
    bounds: tuple[Any, ...]

    @property
    def is_assigned(self) -> bool:
        """Whether the flag is given as NAME=TEXT, once for each entry of a mapping."""
        return get_origin(self.type) is dict and get_args(self.type)[1] is not Any


def declared(model: type[BaseModel], prefix: str = "") -> Iterator[Declared]:
    """All flags of a configuration and of those inside it, in the order of the fields."""
    for name, field in model.model_fields.items():
        path, kind = f"{prefix}{name}", _without_none(field.annotation)
        bounds = tuple(item for item in field.metadata if not isinstance(item, Flag))
        for flag in field.metadata:
            if isinstance(flag, Flag) and flag.part:
                hint = get_type_hints(kind, include_extras=True)[flag.part]
                limits = getattr(hint, "__metadata__", ())
                part = _without_none(get_args(hint)[0] if limits else hint)
                yield Declared(f"{path}.{flag.part}", flag, part, limits)
            elif isinstance(flag, Flag):
                yield Declared(path, flag, kind, bounds)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from declared(kind, f"{path}.")


def get(data: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of nested mappings; None where there is none."""
    for key in path.split("."):
        if not isinstance(data, Mapping) or key not in data:
            return None
        data = data[key]
    return data


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        rest = [item for item in get_args(annotation) if item is not NoneType]
        return rest[0] if len(rest) == 1 else annotation
    return annotation
