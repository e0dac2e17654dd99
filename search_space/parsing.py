"""YAML and JSON as people write them, read strictly: a key that is there twice is refused."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml


class UnreadableTextError(ValueError):
    """Text that is no YAML or JSON, or breaks a rule beyond; says what to change, and where."""


def parse_json(text: str) -> Any:
    """Data of JSON text; raises UnreadableTextError."""
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise UnreadableTextError(f"is not valid JSON: {error}.") from None
    except RecursionError:
        raise UnreadableTextError(_TOO_DEEP) from None
    except UnreadableTextError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise UnreadableTextError(f"holds what cannot be read: {error}.") from None


def parse_yaml(text: str) -> Any:
    """Data of YAML text; raises UnreadableTextError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        message = " ".join(str(error).split())
        raise UnreadableTextError(f"is not valid YAML: {message}.") from None
    except RecursionError:
        raise UnreadableTextError(_TOO_DEEP) from None
    except UnreadableTextError:
        raise
    # an integer of thousands of digits, a date in month 13, a tag that does not suit its value
    except (ValueError, KeyError, AttributeError) as error:
        raise UnreadableTextError(f"holds what cannot be read: {error}.") from None


_TOO_DEEP = "is nested too deeply to be read; a file for nas has a few levels, take the others out."


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
