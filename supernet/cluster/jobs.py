"""Jobs of workers on other machines: what they are told, on what, and with which images."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from search_space.errors import DataError, NasError
from supernet.cluster.connection import Resources, connected, share_of
from supernet.data.dataset import ImageData
from supernet.training.checkpoints import CheckpointFolder
from supernet.training.config import TrainConfig


@contextmanager
def hired(
    storage: CheckpointFolder, address: str | None, count: int, gpus: float | None
) -> Iterator[tuple[str, Resources]]:
    """Claims a storage and connects to a cluster until the context ends.

    Yields:
        The token that ``storage`` was claimed with, and the resources of each worker.

    Raises:
        RunError: Storage or cluster cannot be used, or so many workers do not fit.
    """
    token = uuid.uuid4().hex
    storage.claim(token)
    try:
        with connected(address):
            yield token, share_of(address, count, gpus)
    finally:
        storage.close()


@dataclass(frozen=True, kw_only=True)
class Job:
    """Holds what a worker must know, whatever it trains; pickled once.

    Attributes:
        open_images: Opens the images there.
        fingerprint: Of the images that the command opened.
        storage: Where the command left ``token`` and checkpoints are kept.
        resources: Of each worker.
    """

    num_classes: int
    config: TrainConfig
    open_images: Callable[[], ImageData]
    fingerprint: str
    storage: CheckpointFolder
    token: str
    resources: Resources
    loader_workers: int
    checkpoint_seconds: float

    def images(self) -> ImageData:
        """Opens the images, on a worker.

        Raises:
            DataError: The storage is not seen there, or the images cannot be opened, or are
                others.
        """
        where = f"the worker on {ray.util.get_node_ip_address()}"
        if not self.storage.is_shared(self.token):
            raise DataError(
                f"{where} does not see the storage {self.storage}; give a folder or URL that all "
                "nodes of the cluster share, with --storage"
            )
        try:
            data = self.open_images()
        except NasError as error:
            raise DataError(f"{where} cannot open the images: {error}") from None
        if data.fingerprint != self.fingerprint:
            raise DataError(
                f"{where} finds other images (fingerprint {data.fingerprint}, here "
                f"{self.fingerprint}); the same must be at the same path on all nodes"
            )
        return data
