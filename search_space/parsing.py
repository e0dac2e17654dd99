"""Strict reading of YAML and JSON as people write them: a key that is there twice is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml
from yaml.constructor import ConstructorError


class UnreadableTextError(ValueError):
    """Text that is no YAML or JSON, or breaks a rule beyond; says what to change, and where."""


def parse_json(text: str) -> Any:
    """Returns the data of JSON text; raises UnreadableTextError."""
    with _explained("JSON"):
        return json.loads(text, object_pairs_hook=_without_repetition)


def parse_yaml(text: str) -> Any:
    """Returns the data of YAML text; raises UnreadableTextError."""
    with _explained("YAML"):
        data = yaml.load(text, Loader=_Loader)
        _check_size(data)
        return data


@contextmanager
def _explained(language: str) -> Iterator[None]:
    """Turns whatever a parser raises into an UnreadableTextError."""
    try:
        yield
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        message = " ".join(str(error).split())
        raise UnreadableTextError(f"is not valid {language}: {message}.") from None
    except RecursionError:
        raise UnreadableTextError(
            "is nested too deeply to be read; a file for nas has a few levels, take the others out."
        ) from None
    except UnreadableTextError:
        raise
    # an integer of thousands of digits, a date in month 13, a tag that does not suit its value
    except (ValueError, KeyError, AttributeError) as error:
        raise UnreadableTextError(f"holds what cannot be read: {error}.") from None


_MOST_VALUES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Reads ``1e-6`` as the number that people mean; YAML 1.1 wants ``1.0e-6``."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # here, not where mappings are constructed: merge keys may repeat what they override
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                name, line = (key.tag, key.value), key.start_mark.line + 1
                if name in seen:
                    lines = f", in lines {seen[name]} and {line}"
                    raise UnreadableTextError(_repeated(key.value, lines))
                seen[name] = line
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # PyYAML 6.0.4 keeps the first of two equal keys in a mapping that is merged into another,
        # which is the merged one where the mapping itself has a key of that name.
        kept: dict[object, tuple[yaml.Node, yaml.Node]] = {}
        merged: list[tuple[yaml.Node, yaml.Node]] = []
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(source, yaml.MappingNode):
                        message = f"expected a mapping to merge, but found {source.id}"
                        raise ConstructorError(None, None, message, source.start_mark)
                    self.flatten_mapping(source)
                    merged += source.value
            else:
                if key.tag == "tag:yaml.org,2002:value":
                    key.tag = "tag:yaml.org,2002:str"
                kept[_identity(key)] = (key, value)
        for key, value in merged:
            kept.setdefault(_identity(key), (key, value))
        node.value = list(kept.values())


def _identity(key: yaml.Node) -> object:
    return (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)


def _check_size(data: object) -> None:
    """Raises UnreadableTextError where aliases make a text endless, or far larger than it looks."""
    left = [_MOST_VALUES]

    def visit(value: object, above: tuple[int, ...]) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise UnreadableTextError(
                f"has more than {_MOST_VALUES:,} values, aliases (*name) written out; use fewer."
            )
        if isinstance(value, (dict, list, set)):
            if id(value) in above:
                raise UnreadableTextError(
                    "has an alias (*name) inside what it names; write it out."
                )
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            for item in inner:
                visit(item, (*above, id(value)))

    visit(data, ())


# only with a sign in the exponent: a digest such as 12345e678901 stays text
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+[eE][-+]\d+$"), list("-+0123456789")
)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UnreadableTextError(_repeated(key))
        result[key] = value
    return result


def _repeated(key: object, where: str = "") -> str:
    return f"has the key {key!r} twice{where}; keep one of them, since the other would be ignored."
