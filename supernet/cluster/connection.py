"""Connection to a Ray cluster, or one of this machine alone, and what its nodes have room for.

Ray speaks to its own log files only. A cluster that is started here listens on 127.0.0.1 only;
one that is joined is its operator's. Tokens are checked by a cluster that is started here, and by
one that is joined where its token is found.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from search_space.errors import RunError, first_line

DEFAULT_PORT = 6379
REACH_SECONDS = 5.0
GROW_SECONDS = 60.0  # that an autoscaler gets to add nodes
OBJECT_STORE_BYTES = 256 * 2**20  # of a cluster of this machine: only small things go through it
_SMALLEST_SHARE = 1e-4  # Ray counts in steps of this
_QUIET = {
    # Ray prints failures of machines to standard output, where results go.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Short trainings report every few seconds, and each report waits for the next look at it.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
}


def prepare(address: str | None) -> None:
    """Sets what Ray reads when it is imported: before that, with the address of ``connected``."""
    quieten()
    if "ray" in sys.modules:
        return  # it would tell its other processes what this one does not know
    if address is None:
        # What Ray does on a Mac: nodes are 127.0.0.1 to each other, and listen there only.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    elif _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray does so by itself for auto only


def quieten() -> None:
    """Keeps Ray from printing; to be called before it is imported, when it reads its settings."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def fit_aside(
    fit: Callable[[], object], seconds: float, hear: Callable[[], None]
) -> BaseException | None:
    """Fits in a thread, since in the main one Ray would take an interruption for itself.

    Args:
        seconds: Between two calls of ``hear``.
        hear: Called in this thread until the fitting ends.

    Returns:
        The error that the fitting ended with, if any.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(seconds)
        hear()
    return errors[0] if errors else None


def connection_lost(error: BaseException) -> RunError:
    """Gives the error that a user is told when Ray fails on the way."""
    return RunError(
        f"the Ray cluster does not answer any more: {one_line(error)}. What was done is kept; "
        "bring the cluster back, or take another, and continue with --resume"
    )


def one_line(error: BaseException) -> str:
    """Gives the beginning of an error's text without line breaks."""
    return " ".join(str(error).split())[:300]


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or os.path.exists(os.path.expanduser("~/.ray/auth_token"))


@contextmanager
def connected(address: str | None = None) -> Iterator[bool]:
    """Connects this process to Ray for a while; what is started here ends with the context.

    A connection that this process has is used and left open.

    Args:
        address: ``auto`` for the cluster that this machine is a node of, or its head as ``HOST``
            or ``HOST:PORT``; None starts one of this machine alone, which listens on the loopback
            interface unless this process had imported Ray before ``prepare`` was called.

    Yields:
        Whether a Ray of this machine alone was started.

    Raises:
        RunError: There is no such cluster, or this process is connected to another one.
    """
    prepare(address)
    import ray

    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address is not None and head_address(address) not in ("auto", here):
            raise RunError(
                f"this process uses the Ray cluster at {here} already, and cannot use the one at "
                f"{address} besides; call ray.shutdown() first, or ask for the former."
            )
        yield False
        return
    _connect(address)
    try:
        yield address is None
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        options |= {"address": "local", "include_dashboard": False}
        options |= {"object_store_memory": OBJECT_STORE_BYTES}
    else:
        options["address"] = _reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = first_line(error).rstrip(".")
        raise RunError(
            f"the Ray cluster at {address or 'this machine'!r} cannot be used: {reason}. Start the "
            "command on one of its nodes (`ray start --address=HEAD:6379` makes this machine one), "
            "with the head's ~/.ray/auth_token"
        ) from None
    if threading.current_thread() is threading.main_thread() and callable(before):
        signal.signal(signal.SIGTERM, before)  # Ray puts its own in its place


def head_address(address: str) -> str:
    """Checks an address and completes it: ``auto``, or the head's ``HOST:PORT``.

    Raises:
        RunError: It is neither.
    """
    if "://" in address:
        raise RunError(
            f"address is {address!r}; it must be 'auto' or the head's HOST or HOST:PORT. Start the "
            "command on a node of the cluster instead of going through Ray's client"
        )
    if address == "auto":
        return address
    host, _, port = address.partition(":")
    if port and not port.isdigit():
        raise RunError(f"address is {address!r}; its port must be a number, as in {host}:6379")
    return f"{host}:{port or DEFAULT_PORT}"


def _reachable(address: str) -> str:
    """Gives the address of a head that answers; Ray itself would try for long, and noisily."""
    address = head_address(address)
    if address == "auto":
        return address
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise RunError(
            f"nothing answers at {address} ({error}); start the head there with `ray start "
            f"--head --port={port}`, or give its HOST:PORT"
        ) from None
    return address


# What there is room for

Resources = Mapping[str, float]
"""Of a node or a worker, as in ``{"CPU": 8.0, "GPU": 1.0}``."""


def nodes() -> dict[str, Resources]:
    """Lists the resources of each living node by its id; RunError where the cluster is gone."""
    import ray

    try:
        return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        raise connection_lost(error) from error


def room(free: Iterable[Resources], need: Resources) -> int:
    """Counts the workers that fit on nodes, each with ``need`` and none on two of them."""
    wanted = {name: amount for name, amount in need.items() if amount}
    return sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items())
        for node in free
    )


def cpu_share(free: Collection[Resources], count: int, gpus: float = 0.0) -> float:
    """Gives the cores for each of ``count`` workers such that as many as can fit on nodes do.

    It is the largest whole number that leaves room for all, else an equal part of a core; 1 where
    the nodes have no core, or not the GPUs, for any of them (more nodes may come).
    """
    wanted = min(count, room(free, {"CPU": _SMALLEST_SHARE, "GPU": gpus}))
    if wanted == 0:
        return 1.0
    most = int(max(node.get("CPU", 0.0) for node in free))
    shares = itertools.chain(range(most, 0, -1), (1 / parts for parts in itertools.count(2)))
    found = next(each for each in shares if room(free, {"CPU": each, "GPU": gpus}) >= wanted)
    return found if found >= 1 else int(found / _SMALLEST_SHARE) * _SMALLEST_SHARE


def share(free: Collection[Resources], count: int, gpus: float | None = None) -> Resources:
    """Shares resources among ``count`` alike workers: the same number of cores, as many as fit.

    Args:
        gpus: Per worker; None for one where any node has some. Workers with a GPU get one core.

    Raises:
        RunError: They do not fit.
    """
    if gpus is None:
        gpus = float(any(node.get("GPU") for node in free))
    least = {"CPU": 1.0} | ({"GPU": gpus} if gpus else {})
    if room(free, least) >= count:
        return least if gpus else {"CPU": float(cpu_share(free, count))}
    needed = " and ".join(f"{amount:g} {name}" for name, amount in least.items())
    totals = {name: sum(node.get(name, 0.0) for node in free) for name in ("CPU", "GPU")}
    raise RunError(
        f"{count} workers with {needed} each do not fit: the cluster has {len(free)} node(s) with "
        f"{totals['CPU']:g} CPU and {totals['GPU']:g} GPU in all, room for {room(free, least)}. "
        "Ask for fewer --workers or --gpus-per-worker, or add nodes"
    )


def share_of(address: str | None, count: int, gpus: float | None = None) -> Resources:
    """Shares the connected cluster, see ``share``; an autoscaler may add nodes to a joined one.

    There is no public way to ask for an autoscaler, so it is asked for nodes, and waited for.
    """
    from ray.autoscaler.sdk import request_resources

    deadline = time.monotonic() + (0.0 if address is None else GROW_SECONDS)
    try:
        while True:
            try:
                return share(nodes().values(), count, gpus)
            except RunError:
                if time.monotonic() >= deadline:
                    raise
            request_resources(bundles=[{"CPU": 1.0} | ({"GPU": gpus} if gpus else {})] * count)
            time.sleep(1.0)
    finally:
        if address is not None:  # a request stands until it is withdrawn, and keeps nodes up
            request_resources(bundles=[])
