"""``nas proxies``: training-free proxies, and the scores of networks by them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nas.cli import options as opt
from search_space.errors import InvalidArchitectureError, UsageError

if TYPE_CHECKING:
    from predictors.proxies import Network, Score

_FILES = (".yaml", ".yml", ".json")


@click.group()
def proxies() -> None:
    """What networks promise before they are trained."""


@proxies.command(name="list")
@opt.json_option
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
    opt.answer(as_json, [{key: getattr(item, key) for key in keys} for item in listed], lines)


@proxies.command()
@click.argument("networks", nargs=-1, required=True, metavar="ARCH_OR_TIMM_MODEL...")
@click.option(
    "--proxy",
    "names",
    multiple=True,
    metavar="NAME",
    help="Proxy to score with; repeat it for several (default: all closed forms).",
)
@opt.option("--seed", type=opt.SEED, default=0, show_default=True, help="Of the first repeat.")
@opt.count_option(
    "--repeats", default=5, help="With fresh weights and inputs; closed forms need none."
)
@opt.count_option("--batch-size", default=16, help="Images per repeat.")
@opt.option(
    "--image-size", type=opt.image_sizes(), help="Side of the images (default: each one's own)."
)
@click.option("--device", default="cpu", show_default=True, help="Where networks run.")
@opt.json_option
@opt.quiet_option
def score(networks: tuple[str, ...], names: tuple[str, ...], **options: Any) -> None:
    """Scores of networks: known designs, YAML or JSON files, or timm models (untrained).

    A proxy that is not defined for a network says why.
    """
    from dataclasses import asdict

    from predictors.proxies import ScoreSettings, proxy, proxy_names

    chosen = [proxy(name) for name in dict.fromkeys(names)]
    chosen = chosen or [item for item in map(proxy, proxy_names()) if item.closed_form]
    device = options["device"]
    opt.check_compute_device("--device", device)
    loaded = [_network(name, options["image_size"]) for name in networks]
    settings = ScoreSettings(options["seed"], options["repeats"], options["batch_size"], device)
    rows: list[tuple[Network, dict[str, Score]]] = []
    with opt.console(options).phase("scoring") as progress:
        for i, network in enumerate(loaded):
            scores: dict[str, Score] = {}
            for j, item in enumerate(chosen, i * len(chosen)):
                progress(j, len(loaded) * len(chosen), item.name)
                scores[item.name] = item.score(network, settings)
            rows.append((network, scores))
    width = max(len(item.name) for item in chosen)
    data, lines = [], []
    for network, scores in rows:
        plain = {name: asdict(value) for name, value in scores.items()}
        data.append({"network": network.name, "image_size": network.image_size, "scores": plain})
        lines.append(f"{network.name}, {network.image_size} px")
        lines += [f"  {name:{width}}  {_as_text(value)}" for name, value in scores.items()]
    opt.answer(options["as_json"], data, lines)


def _network(name: str, image_size: int | None) -> Network:
    """The known design, the network in the file, or else the timm model ``name``."""
    import difflib
    from dataclasses import replace

    import timm

    from predictors.proxies import Network
    from search_space import known_names, load_architecture

    designs = known_names()
    is_ours = name in designs or Path(name).suffix in _FILES
    if not is_ours and not timm.is_model(name.partition(".")[0]):
        known = [*designs, *timm.list_models()]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise UsageError(
            f"unknown network {name!r}.{hint} Give a known design ({', '.join(designs)}), a YAML "
            "or JSON file, or the name of a timm model."
        )
    architecture = load_architecture(name) if is_ours else None
    try:
        if architecture is not None:
            if image_size is not None:
                architecture = replace(architecture, resolution=image_size)
            return Network.of_architecture(architecture, name=name)
        network = Network.of_timm(name, image_size=image_size)
        if image_size is not None:
            _ = network.structure  # runs without data
        return network
    except (AssertionError, InvalidArchitectureError, RuntimeError, ValueError) as error:
        if image_size is None:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{name} takes no images of {image_size} px: {reason}") from None


def _as_text(value: Score) -> str:
    if value.value is None:
        return f"undefined: {value.reason}"
    spread = "" if value.spread is None else f" ± {value.spread:.2g}"
    return f"{value.value:.5g}{spread}"
