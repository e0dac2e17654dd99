"""Members of a contracted family with the weights of the network that they are made of."""

from __future__ import annotations

from pathlib import Path

from results.export.card import ModelCard
from results.export.write import export_network
from search.scaling.base import Family
from search.scaling.shapes import without_skips
from search_space.metrics import format_metric, title_of
from search_space.preprocessing import Preprocessing
from supernet import Backbone, build
from supernet.inherit.contraction import contracted
from supernet.inherit.parents import Parent


def export_members(
    parent: Parent, network: Backbone, family: Family, folder: Path
) -> dict[str, Path]:
    """Writes each member with its part of a trained network's weights.

    Args:
        parent: What the network is.
        network: With its weights; its architecture is the family's seed.
        family: By contraction.
        folder: Gets a folder for each member.

    Returns:
        These folders by the members' names.
    """
    members = [member.architecture for member in family.members]
    result = {}
    networks = contracted(_without_skips(network), members)
    for member, smaller in zip(family.members, networks, strict=True):
        result[member.name] = folder / member.name
        images = Preprocessing(
            resolution=member.architecture.resolution, mean=parent.mean, std=parent.std
        )
        name = Path(parent.name).name
        card = ModelCard(
            title=f"{name} contracted to {member.name}",
            metrics={title_of(m): format_metric(m, value) for m, value in member.costs.items()},
            trained_on=f"the images that {name} was trained on, as that network",
            notes=(
                f"The weights are those of {name}, of which the largest were kept; nothing was "
                f"trained since. `nas search --from {folder / member.name}` trains it on images.",
            ),
        )
        export_network(
            smaller, result[member.name], preprocessing=images, card=card, formats=("timm",)
        )
    return result


def _without_skips(network: Backbone) -> Backbone:
    """The same network as one without positions that are skipped, as families have it."""
    seed = without_skips(network.architecture)
    if seed == network.architecture:
        return network
    result = build(seed, network.num_classes)
    values = network.state_dict().values()  # in the order of the modules, which is the same
    result.load_state_dict(dict(zip(result.state_dict(), values, strict=True)))
    return result.eval()
