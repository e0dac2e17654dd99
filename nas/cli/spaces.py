"""``nas spaces``: the choices of a space, and the space around a network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.cli import options as opt
from search_space.errors import NasError, UsageError

if TYPE_CHECKING:
    from search_space import Block
    from search_space.space import SearchSpace
    from search_space.stage_space import StageSpace


LIST = "A,B,…|none"


@click.command()
@click.argument("name", required=False, metavar="[NAME|FILE]")
@click.option(
    "--around",
    metavar="NETWORK",
    help="The space around a known design, a YAML or JSON file, or an export's config.json.",
)
@click.option(
    "--ratios", metavar=LIST, help="With --around: parts of inner widths that may be kept."
)
@click.option(
    "--mixer-ratios",
    metavar=LIST,
    help="The same of heads and other parts of mixers.",
)
@click.option("--mixers", metavar=LIST, help="Other mixers that its blocks may have.")
@click.option("--resolutions", metavar=LIST, help="Lower image sides.")
@click.option("--yaml", "as_yaml", is_flag=True, help="The whole space, as --space FILE reads it.")
@opt.json_option
def spaces(name: str | None, around: str | None, as_yaml: bool, **options: Any) -> None:
    """Preset search spaces, or the choices of one, which may be a YAML file of yours.

    With --around it is the space around a network: its blocks narrower inside, with smaller kernels
    or left out, at lower resolutions.
    """
    from search_space import load_space
    from search_space.files import dump_space

    as_json = options.pop("as_json")
    if name is not None and around is not None:
        raise UsageError(f"{name} and --around {around} are two spaces; give one of them.")
    if around is not None:
        space = _around(around, options)
    else:
        for option, value in options.items():
            if value is not None:
                raise UsageError(
                    f"{_flag(option)} {value} says what is around a network; give --around."
                )
        if name is None:
            if as_yaml:
                raise UsageError("--yaml writes one space; give its name, a file or --around.")
            _presets(as_json)
            return
        space = load_space(name)
    if as_yaml:
        click.echo(dump_space(space), nl=False)
        return
    opt.answer(as_json, {**space.to_dict(), **facts(space)}, _lines(space))


def facts(space: SearchSpace) -> dict[str, Any]:
    """Returns what identifies a space: name, number of architectures and digest."""
    return {"name": space.name, "size": space.size, "digest": space.digest}


def _presets(as_json: bool) -> None:
    from search_space import MIXERS, load_space, space_names

    known = [load_space(item) for item in space_names()]
    lines = [
        f"{s.name:8} {s.size:9.1e} architectures, {', '.join(map(str, s.resolutions))} px"
        for s in known
    ]
    lines.append(f"mixers that spaces choose from: {', '.join(MIXERS)}")
    opt.answer(as_json, [facts(space) for space in known], lines)


def _around(network: str, options: dict[str, str | None]) -> SearchSpace:
    from search_space import Around, Mixer, around, load_architecture

    given: dict[str, Any] = {}
    for key, kind in (
        *(("ratios", float), ("mixer_ratios", float), ("resolutions", int)),
        ("mixers", Mixer.of),
    ):
        if (text := options[key]) is not None:
            given[key] = _values(_flag(key), text, kind)
    return around(load_architecture(network), Around(**given), f"around-{Path(network).stem}")


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _values(flag: str, text: str, kind: Callable[[str], object]) -> tuple[object, ...]:
    """The values of a list that commas separate, of which ``none`` is the empty one."""
    items = [] if text.strip() == "none" else opt.listed(flag, text)
    try:
        return tuple(map(kind, items))
    except NasError:
        raise
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise UsageError(f"{flag} {text!r} must be {what} with commas between them.") from None


def _lines(space: SearchSpace) -> Iterator[str]:
    """A space as people read it: what each stage and each of its positions chooses from."""
    yield f"{space.name}: {space.size:.2e} architectures, digest {space.digest}"
    yield f"resolution {', '.join(map(str, space.resolutions))} px"
    for i, stage in enumerate(space.stages):
        yield (
            f"stage {i + 1}: width {list(stage.widths)}, depth {list(stage.depths)}, "
            f"stride {stage.stride}"
        )
        for where, choices in _by_positions(stage):
            labels = dict.fromkeys(block.label for block in choices)
            number = f"{len(choices)} block choice{'s' if len(choices) > 1 else ''}"
            sorts = (label + _varying(label, choices) for label in labels)
            yield f"  {where}: {number} of {', '.join(sorts)}"


def _varying(label: str, choices: tuple[Block, ...]) -> str:
    """The values of the parameters by which choices of one label differ."""
    traits = [block.values for block in choices if block.label == label]
    keys = dict.fromkeys(key for row in traits for key in row)
    values = {key: list(dict.fromkeys(row[key] for row in traits if key in row)) for key in keys}
    texts = (
        f"{key} {', '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in several)}"
        for key, several in values.items()
        if len(several) > 1
    )
    return f" ({shown})" if (shown := "; ".join(texts)) else ""


def _by_positions(stage: StageSpace) -> list[tuple[str, tuple[Block, ...]]]:
    """The choices of a stage's blocks, those of equal neighbours together."""
    result, number = [], 1
    for choices, group in itertools.groupby(stage.positions):
        last = number + len(list(group)) - 1
        where = f"block {number}" if last == number else f"blocks {number} to {last}"
        result.append((where, choices))
        number = last + 1
    return result
