"""Connection of a search to Ray, and what share of its machines a worker gets.

Without an address a Ray of our own runs on this machine for as long as the search does. Ray is
kept quiet: what its workers print stays in its own logs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from search_space.errors import NasError
from supernet.cluster.connection import connect, head_address

_SMALLEST_SHARE = 1e-4  # Ray counts in steps of this


class ClusterError(NasError):
    """The Ray cluster cannot be reached, or gives no worker."""


class RayConnection:
    """Connects this process to Ray, or takes the connection that it has.

    Args:
        address: As of ``supernet.cluster.connection.connect``.

    Raises:
        RunError: There is no cluster at the address.
        ClusterError: This process is connected to another one.
    """

    def __init__(self, address: str | None = None) -> None:
        self.owned = not ray.is_initialized()
        self.local = self.owned and address is None
        if self.owned:
            connect(address)
        elif address is not None and head_address(address) not in (
            "auto",
            ray.get_runtime_context().gcs_address,
        ):
            raise ClusterError(
                f"this process uses the Ray cluster at {ray.get_runtime_context().gcs_address} "
                f"already, and cannot use the one at {address} besides; call ray.shutdown() first, "
                "or ask for the former."
            )

    def nodes(self) -> dict[str, Node]:
        """Lists the living nodes by their id. Raises ClusterError where the cluster is gone."""
        try:
            nodes = ray.nodes()
        except (OSError, RuntimeError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"the Ray cluster does not answer any more: {error}. What was evaluated is kept; "
                "bring the cluster back, or take another, and continue with --resume."
            ) from error
        return {
            node["NodeID"]: Node(node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in nodes
            if node["Alive"]
        }

    def close(self) -> None:
        """Leaves Ray, and ends it where it was started here; one that was there before stays."""
        if self.owned:
            self.owned = False
            ray.shutdown()


@dataclass(frozen=True)
class Node:
    """Holds what Ray may give of a machine to workers."""

    cpus: float
    gpus: float = 0.0

    def room(self, cpus: float, gpus: float) -> int:
        """Counts the workers of so many CPUs and GPUs that fit onto it."""
        fits = min(self.cpus / cpus, self.gpus / gpus if gpus > 0 else math.inf)
        return int(fits + 1e-9)  # ten tenths of a GPU are a GPU


def cpu_share(nodes: Sequence[Node], workers: int, gpus: float = 0.0) -> float:
    """Gives the CPUs for each of ``workers`` such that as many as can fit onto the nodes do.

    It is the largest whole number that leaves room for all, else an equal part of a CPU; 1 where
    the nodes have no CPU, or not the GPUs, for any of them (more nodes may come).

    Args:
        gpus: What each worker needs.
    """
    with_gpus = [node for node in nodes if node.cpus > 0 and node.gpus >= gpus]
    wanted = workers
    if gpus > 0:
        wanted = min(workers, sum(node.room(_SMALLEST_SHARE, gpus) for node in with_gpus))
    if not with_gpus or wanted == 0:
        return 1.0

    def enough(share: float) -> bool:
        return sum(node.room(share, gpus) for node in with_gpus) >= wanted

    for whole in range(int(max(node.cpus for node in with_gpus)), 0, -1):
        if enough(whole):
            return float(whole)
    parts = 2
    while not enough(1 / parts):
        parts += 1
    return max(_SMALLEST_SHARE, int(1 / parts / _SMALLEST_SHARE) * _SMALLEST_SHARE)
