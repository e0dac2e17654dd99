"""``nas proxies``: training-free proxies, and the scores of networks by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from nas.cli.options import (
    SEED,
    answer,
    check_compute_device,
    console,
    count_option,
    image_sizes,
    json_option,
    option,
    quiet_option,
)
from search_space.errors import InvalidArchitectureError, UsageError

if TYPE_CHECKING:
    from predictors.proxies import Network, Score

_FILES = (".yaml", ".yml", ".json")


@click.group()
def proxies() -> None:
    """What networks promise before they are trained."""


@proxies.command(name="list")
@json_option
def list_(as_json: bool) -> None:
    """All proxies, and what they make of norms, attention and gates."""
    from predictors.proxies import proxy, proxy_names

    listed = [proxy(name) for name in proxy_names()]
    width = max(len(item.name) for item in listed)
    indent = " " * (width + 2)
    lines = []
    for item in listed:
        kind = "closed form" if item.closed_form else "sampled"
        better = "larger" if item.larger_is_better else "smaller"
        lines.append(f"{item.name:{width}}  {kind:11}  {better:7} is better  {item.summary}")
        lines.append(click.wrap_text(item.applies, 96, indent, indent))
    keys = ("name", "closed_form", "larger_is_better", "summary", "applies")
    answer(as_json, [{key: getattr(item, key) for key in keys} for item in listed], lines)


@proxies.command()
@click.argument("networks", nargs=-1, required=True, metavar="ARCH_OR_TIMM_MODEL...")
@click.option(
    "--proxy",
    "names",
    multiple=True,
    metavar="NAME",
    help="Proxy to score with; repeat it for several (default: all closed forms).",
)
@option("--seed", type=SEED, default=0, show_default=True, help="Of the first repeat.")
@count_option("--repeats", default=5, help="With fresh weights and inputs; closed forms need none.")
@count_option("--batch-size", default=16, help="Images per repeat.")
@option("--image-size", type=image_sizes(), help="Side of the images (default: each one's own).")
@click.option("--device", default="cpu", show_default=True, help="Where networks run.")
@json_option
@quiet_option
def score(
    networks: tuple[str, ...],
    names: tuple[str, ...],
    seed: int,
    repeats: int,
    batch_size: int,
    image_size: int | None,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Scores of networks: known designs, YAML or JSON files, or timm models (untrained).

    A proxy that is not defined for a network says why.
    """
    from dataclasses import asdict

    from predictors.proxies import ScoreSettings, proxy, proxy_names

    chosen = [proxy(name) for name in dict.fromkeys(names)]
    chosen = chosen or [item for item in map(proxy, proxy_names()) if item.closed_form]
    check_compute_device("--device", device)
    loaded = [_network(name, image_size) for name in networks]
    settings = ScoreSettings(seed, repeats, batch_size, device)
    rows: list[tuple[Network, dict[str, Score]]] = []
    with console({"quiet": quiet}).phase("scoring") as progress:
        for network in loaded:
            scores: dict[str, Score] = {}
            for item in chosen:
                progress(
                    len(rows) * len(chosen) + len(scores), len(loaded) * len(chosen), item.name
                )
                scores[item.name] = item.score(network, settings)
            rows.append((network, scores))
    width = max(len(item.name) for item in chosen)
    data, lines = [], []
    for network, scores in rows:
        plain = {name: asdict(value) for name, value in scores.items()}
        data.append({"network": network.name, "image_size": network.image_size, "scores": plain})
        lines.append(f"{network.name}, {network.image_size} px")
        lines += [f"  {name:{width}}  {_as_text(value)}" for name, value in scores.items()]
    answer(as_json, data, lines)


def _network(name: str, image_size: int | None) -> Network:
    """The known design, the network in the file, or else the timm model ``name``."""
    from dataclasses import replace

    import timm

    from predictors.proxies import Network
    from search_space import known_names, load_architecture

    if name in known_names() or Path(name).suffix in _FILES:
        architecture = load_architecture(name)
        if image_size is not None:
            try:
                architecture = replace(architecture, resolution=image_size)
            except InvalidArchitectureError as error:
                raise UsageError(f"{name} takes no images of {image_size} px: {error}") from None
        return Network.of_architecture(architecture, name=name)
    if not timm.is_model(name.partition(".")[0]):
        raise UsageError(_unknown(name, [*known_names(), *timm.list_models()], known_names()))
    network = Network.of_timm(name, image_size=image_size)
    if image_size is not None:
        try:
            _ = network.structure  # runs without data
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageError(f"{name} takes no images of {image_size} px: {reason}") from None
    return network


def _unknown(name: str, all_names: list[str], designs: list[str]) -> str:
    import difflib

    nearest = difflib.get_close_matches(name, all_names, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return (
        f"unknown network {name!r}.{hint} Give a known design ({', '.join(designs)}), a YAML or "
        "JSON file, or the name of a timm model."
    )


def _as_text(value: Score) -> str:
    if value.value is None:
        return f"undefined: {value.reason}"
    spread = "" if value.spread is None else f" ± {value.spread:.2g}"
    return f"{value.value:.5g}{spread}"
