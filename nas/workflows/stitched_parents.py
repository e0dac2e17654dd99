"""What a search through several trained networks keeps of them, for itself and for exports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from nas.config import TrainedConfig
from nas.config_parts import parent_sources
from nas.workflows.inherited import JOINT, PARENT, read_parent
from nas.workflows.parent_space import ordered
from nas.workflows.with_images import CHECKPOINTS
from search_space.errors import RunError
from search_space.stitched import routes_of
from search_space.stitches import Route
from supernet import Backbone, build
from supernet.data.dataset import ImageData
from supernet.inherit.parents import Parent, find_parent
from supernet.inherit.stitching.network import StitchedNet
from supernet.network.tensor_files import SUFFIX, read_tensors
from supernet.training.checkpoints import CheckpointFolder

STITCHES = f"stitches{SUFFIX}"  # of a run: the layers between the parents, as they were fitted


def parents_of(config: TrainedConfig) -> list[Parent]:
    """The networks that a configuration stitches, from the smallest to the largest.

    Raises:
        UsageError: There are no such, or they are of different families.
    """
    assert config.parent is not None
    sources = parent_sources(config.parent, config.parent_weights)
    side = config.search_space().resolutions[-1]
    return ordered([find_parent(name, weights) for name, weights in sources], side)


def stitched_net(networks: Sequence[Backbone]) -> StitchedNet:
    """Adapted parents and all routes through them, whose stitches are random yet."""
    routes = routes_of([network.architecture for network in networks])
    return StitchedNet(networks, list(routes.values())).eval()


def read_stitched(run: Path, config: TrainedConfig, data: ImageData) -> StitchedNet:
    """All networks of a run that stitched its parents.

    Raises:
        RunError: The run has not come so far, or its parents were trained on other images.
    """
    networks = []
    for number, parent in enumerate(parents_of(config)):
        network = build(parent.architecture, data.num_classes)
        read_parent(run, network, data, folder_of(number))
        networks.append(network)
    net = stitched_net(networks)
    if not (run / STITCHES).exists():
        raise RunError(f"{run} has stitched nothing yet; finish it with --resume first.")
    net.layers.load_state_dict(read_tensors(run / STITCHES))
    jointly = CheckpointFolder(run / JOINT / CHECKPOINTS).newest()
    if config.inherit.joint_epochs and jointly is not None:
        net.load_state_dict(jointly.trained_weights())
    return net


def folder_of(number: int) -> str:
    """Folder of a parent in the run, by its number from the smallest."""
    return f"{PARENT}/{number}"


def route_words(route: Route, names: Sequence[str]) -> str:
    """Which parts of which parents a route has, in words; stages and blocks count from 1."""
    return ", ".join(_parts(route, names))


def _parts(route: Route, names: Sequence[str]) -> Iterator[str]:
    entered = ""
    for parent, stitch in zip(route.parents, (*route.stitches, None), strict=True):
        left = ""
        if stitch is not None:
            left = f" to block {stitch.leave + 1} of stage {stitch.stage + 1}"
        yield f"{names[parent]}{entered}{left}"
        if stitch is not None:
            entered = f" from block {stitch.enter + 1} of stage {stitch.stage + 1}"
