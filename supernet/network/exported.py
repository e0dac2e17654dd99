"""Networks read back from folders that this tool exported."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from search_space.architecture import Architecture
from search_space.boundary import read_model
from search_space.errors import CorruptFileError, UsageError
from search_space.files import load_architecture, read_mapping
from supernet.network.backbone import Backbone, build
from supernet.network.tensor_files import read_tensors

CONFIG, WEIGHTS, VERIFIED = "config.json", "model.safetensors", "verified.json"
AGAIN = "Export again with `nas export`."


class Images(BaseModel):
    """How a network's images were prepared, as timm's ``pretrained_cfg`` says it."""

    input_size: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Card(BaseModel):
    """The part of an export's ``config.json`` that is needed to use its network."""

    num_classes: int
    pretrained_cfg: Images


class _Verified(BaseModel):
    sha256: dict[str, str]


def is_export(folder: Path) -> bool:
    """Says whether a folder looks like an export of a network."""
    return (folder / CONFIG).exists()


def read_card(folder: Path) -> tuple[Architecture, Card]:
    """Reads what an export says of its network.

    Raises:
        UsageError: The folder holds another kind of network.
        CorruptFileError: A file is missing or damaged.
    """
    kind = read_mapping(folder / CONFIG).get("architecture")
    if kind != "nas_backbone":
        raise UsageError(
            f"{folder / CONFIG} is of {kind!r}, not an export of nas; for a timm model give its "
            f"name, and {folder / WEIGHTS} as its weights."
        )
    architecture = load_architecture(str(folder / CONFIG))
    return architecture, read_model(folder / CONFIG, Card, fix=AGAIN)


def load_exported(folder: Path) -> Backbone:
    """Builds an export's network with its weights, which are checked by its checksum.

    Raises:
        UsageError, CorruptFileError: As ``read_card``; or the weights are of another network.
    """
    architecture, card = read_card(folder)
    recorded = None
    if (folder / VERIFIED).exists():
        verified = read_model(folder / VERIFIED, _Verified, fix=AGAIN)
        recorded = verified.sha256.get(WEIGHTS, "none")
    network = build(architecture, card.num_classes)
    try:
        network.load_state_dict(read_tensors(folder / WEIGHTS, sha256=recorded))
    except RuntimeError as error:
        raise CorruptFileError(
            f"{folder / WEIGHTS} does not hold the weights of {architecture} "
            f"({str(error).splitlines()[-1]}). {AGAIN}"
        ) from None
    return network
