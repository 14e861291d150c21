"""Connecting to a Ray cluster in bounded time, and listing its nodes.

Ray itself waits minutes for a cluster that is not there, and writes to both stdout and stderr.
"""

import contextlib
import importlib
import logging
import os
import re
import signal
import socket
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vqaloop.errors import InputError

ANSWER_S = 10.0
"""Seconds in which the head of a cluster must answer at all."""
CLIENT = "ray://"

# an HTTP/2 client's first words, which any gRPC server answers with its settings (RFC 9113, 3.4)
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
_SETTINGS = 4

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SCHEDULER_EVENTS": "0",
}


@dataclass(frozen=True)
class Node:
    """A machine of the cluster, or a part of one."""

    id: str
    name: str
    cpus: float
    gpus: int


def import_ray() -> Any:
    """The module. Raises InputError where it is not installed."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(
            f"this needs Ray ({error}): pip install 'vqaloop[ray]', here and on every node"
        ) from error


def connect(address: str, cpus: int | None = None) -> bool:
    """Connect this process, unless it is; whether there is now something to disconnect.

    "local" starts a cluster here, of `cpus` (by default all). Raises InputError, within a minute,
    for an address at which there is none.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    # Ray itself would wait minutes
    if address != "local":
        _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == "local":
        options |= {"include_dashboard": False, "num_cpus": cpus or len(os.sched_getaffinity(0))}
    try:
        with _handlers_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, **options)
    except (SystemExit, Exception) as error:
        with contextlib.suppress(Exception):
            ray.shutdown()
        raise InputError(f"no Ray cluster at {address!r}: {first_line(error)}") from error
    _hush()
    return True


def nodes() -> list[Node]:
    """The nodes that are there."""
    ray = import_ray()
    return [_node(entry) for entry in ray.nodes() if entry["Alive"]]


def dead_nodes() -> dict[str, str]:
    """Names of those that are gone, by id."""
    entries = import_ray().nodes()
    return {entry["NodeID"]: _node(entry).name for entry in entries if not entry["Alive"]}


def _node(entry: dict[str, Any]) -> Node:
    resources = entry["Resources"]
    return Node(
        id=entry["NodeID"],
        name=f"{entry['NodeManagerHostname']} ({entry['NodeManagerAddress']})",
        cpus=resources.get("CPU", 0.0),
        gpus=int(resources.get("GPU", 0)),
    )


def _check_reachable(address: str) -> None:
    """Raises InputError unless something answers there as the head of a cluster does."""
    meant = _running_here() if address == "auto" else address
    found = re.fullmatch(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[^\s:/]+):([0-9]{1,5})", meant)
    if not found or int(found[2]) > 65535:
        raise InputError(
            f"{address!r} is no address of a Ray cluster; give auto, local, HOST:PORT or "
            f"{CLIENT}HOST:PORT"
        )
    host, port = found[1].strip("[]"), int(found[2])
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S) as link:
            # behind TLS the greeting below would be no valid one
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            link.sendall(_HELLO)
            if link.recv(9)[3:4] != bytes([_SETTINGS]):
                raise InputError(f"what listens at {host}:{port} is no Ray cluster")
    except OSError as error:
        why = error.strerror or error
        raise InputError(
            f"no Ray cluster at {address!r}: {host}:{port} does not answer ({why}); start one "
            "there with `ray start --head`, or check the address"
        ) from error


def _running_here() -> str:
    """The address that "auto" means. Raises InputError."""
    meant = os.environ.get("RAY_ADDRESS", "")
    if meant and meant != "auto":
        return meant
    services = importlib.import_module("ray._private.services")
    try:
        return str(services.canonicalize_bootstrap_address_or_die("auto"))
    except Exception as error:
        raise InputError(
            "no Ray cluster runs on this machine; start one with `ray start --head`, join "
            "one with `ray start --address=HOST:PORT`, or give --ray local"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


def _hush() -> None:
    """No message of a node on this process's stdout, which belongs to the answer."""
    worker: Any = importlib.import_module("ray._private.worker")
    if hasattr(worker, "_worker_logs_enabled"):
        worker._worker_logs_enabled = False


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself; it stays ours."""
    ours = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if ours and before is not None:
            signal.signal(signal.SIGTERM, before)
