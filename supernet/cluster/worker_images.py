"""The images of a worker on another machine, checked against those that the command opened."""

from __future__ import annotations

from collections.abc import Callable

import ray

from search_space.errors import DataError, NasError
from supernet.data.dataset import ImageData
from supernet.training.checkpoints import CheckpointFolder


def open_on_worker(
    open_images: Callable[[], ImageData], fingerprint: str, shared: CheckpointFolder, token: str
) -> ImageData:
    """Opens the images of a worker.

    Args:
        open_images: Opens them here.
        fingerprint: Of the images that the command opened.
        shared: The storage that the command left ``token`` in.

    Raises:
        DataError: The storage is not seen from here, or the images cannot be opened, or are others.
    """
    where = f"the worker on {ray.util.get_node_ip_address()}"
    if not shared.is_shared(token):
        raise DataError(
            f"{where} does not see the storage {shared}; give a folder or URL that all nodes of "
            "the cluster share, with --storage"
        )
    try:
        data = open_images()
    except NasError as error:
        raise DataError(f"{where} cannot open the images: {error}") from None
    if data.fingerprint != fingerprint:
        raise DataError(
            f"{where} finds other images (fingerprint {data.fingerprint}, here {fingerprint}); the "
            "same must be at the same path on all nodes"
        )
    return data
