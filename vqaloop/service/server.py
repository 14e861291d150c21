"""`vqaloop serve`: the server as a whole, from its folders to its socket."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.core import scopes
from vqaloop.core.documents import read_start
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.service.child import TOKEN_VARIABLE
from vqaloop.service.gate import Access, Gate, is_loopback
from vqaloop.service.job_store import JobStore
from vqaloop.service.places import make_places
from vqaloop.service.runner import JobRunner

LEAST_TOKEN = 16
"""Characters of a token."""
LOOK_S = 0.1
GRACE_S = 3
"""Seconds that open requests have at the end."""
LOCK = ".lock"
JOBS = "jobs.db"


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, what it reads and writes, and its bounds."""

    folder: Path
    media: tuple[Path, ...]
    host: str
    port: int
    """0: any that is free."""
    token_file: Path | None
    allow_hosts: tuple[str, ...]
    jobs: int
    """Made at a time."""
    most_queued: int
    largest_upload: int
    """Bytes."""
    per_minute: float
    """Requests of one client."""
    settings: Path | None
    """The settings file with profiles."""


def serve(options: ServeOptions, report: Callable[[str], None]) -> None:
    """Serve until this thread's work is cancelled.

    Args:
        options: What is served, where.
        report: Called with a line once requests are answered, and at the end.

    Raises:
        InputError: Something is refused before anything is served.
        CalledOff: The work was cancelled; jobs that ran wait again.
    """
    uvicorn = _uvicorn()
    import filelock

    token = read_token(options.token_file)
    if token is None and not is_loopback(options.host):
        raise InputError(
            f"--host {options.host} is reached from other machines, which takes a token: give "
            f"--token-file FILE, or set ${TOKEN_VARIABLE}, to at least {LEAST_TOKEN} characters"
        )
    places = make_places(options.folder, list(options.media))
    lock = filelock.FileLock(places.folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"another server uses {quoted(options.folder)}; end it, or name another folder"
        ) from None
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        listening = stack.enter_context(_listening(options.host, options.port))
        store = stack.enter_context(contextlib.closing(JobStore(places.folder / JOBS)))
        if again := store.recover():
            report(f"going on: {again} jobs that ran when the server ended wait again")
        runner = JobRunner(store, places, options.jobs)
        stack.callback(runner.stop)
        service, app = _made(runner, options, token)
        port = listening.getsockname()[1]
        runner.start()
        name = f"[{options.host}]" if ":" in options.host else options.host
        report(f"serving on http://{name}:{port}")
        config = uvicorn.Config(
            app,
            log_level="warning",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            limit_concurrency=256,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=GRACE_S,
        )
        asyncio.run(_served(uvicorn.Server(config), listening, service))
    scopes.check_cancelled()


def _uvicorn() -> Any:
    """The server's library; with it come the others of the extra."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(
            f"`vqaloop serve` needs {error.name}: pip install 'vqaloop[serve]' (in a clone: "
            "pip install '.[serve]')"
        ) from error
    return uvicorn


def _made(runner: JobRunner, options: ServeOptions, token: str | None) -> tuple[Any, Gate]:
    from vqaloop.service.app import Service
    from vqaloop.service.metrics import Figures

    service = Service(runner, options.settings, options.most_queued)
    hosts = {"localhost", "127.0.0.1", "::1", options.host, *options.allow_hosts}
    access = Access(token, frozenset(hosts), options.per_minute, options.largest_upload)
    gate = Gate(service.app(), access)
    service.figures = Figures(runner, gate)
    return service, gate


async def _served(server: Any, listening: socket.socket, service: Any) -> None:
    """Serve until this thread's scope is cancelled."""
    scope = scopes.current()

    async def look() -> None:
        while not (scope is not None and scope.called_off):
            await asyncio.sleep(LOOK_S)
        service.stopping = True
        server.should_exit = True

    looking = asyncio.create_task(look())
    try:
        await server.serve(sockets=[listening])
    finally:
        looking.cancel()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Any:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
        except (OSError, UnicodeError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot listen on {host} port {port}: {why}; give another --host or --port"
            ) from error
        yield made
    finally:
        made.close()


def read_token(file: Path | None) -> str | None:
    """The token of a file, else of the environment, if there is one. Raises InputError."""
    text, place = os.environ.get(TOKEN_VARIABLE), f"${TOKEN_VARIABLE}"
    if file is not None:
        place = f"--token-file {quoted(file)}"
        try:
            text = read_start(file, 4096).decode("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{place} cannot be read: {error}") from error
    if file is None and not text:
        return None
    token = (text or "").strip()
    if len(token) < LEAST_TOKEN or not token.isprintable() or " " in token or not token.isascii():
        raise InputError(
            f"{place}: a token is one word of at least {LEAST_TOKEN} printable ASCII characters, "
            "such as `openssl rand -hex 32` prints"
        )
    return token
