"""Scopes of work that can be cancelled as a whole, with the programs that run in them.

Cancelling a scope kills its programs at once, and whatever its threads run next raises CalledOff.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

from vqaloop.errors import CalledOff

Made = TypeVar("Made")

_running: dict[subprocess.Popen[bytes], "Scope | None"] = {}
_running_lock = threading.Lock()
_thread = threading.local()
"""The `scope` that this thread is in."""


class Scope:
    """Work, done by any number of threads, that can be cancelled as a whole.

    A scope is part of the one in which it was made, and is cancelled with it.
    """

    def __init__(self) -> None:
        self._outer = current()
        self._off = False

    @property
    def called_off(self) -> bool:
        """Whether it, or one that it is part of, was cancelled."""
        return self._off or (self._outer is not None and self._outer.called_off)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """While inside, what this thread does is part of the scope. For any number of threads."""
        before, _thread.scope = current(), self
        try:
            yield
        finally:
            _thread.scope = before

    def cancel(self) -> None:
        """Kill what runs in it at once; it runs no more."""
        with _running_lock:
            self._off = True
            for process, scope in _running.items():
                if scope is not None and scope.called_off:
                    kill(process)


def current() -> Scope | None:
    """The scope that this thread is in."""
    scope: Scope | None = getattr(_thread, "scope", None)
    return scope


def check_cancelled() -> None:
    """Raises CalledOff in a thread whose work was cancelled."""
    scope = current()
    if scope is not None and scope.called_off:
        raise CalledOff("called off")


class BackgroundCall(Generic[Made]):
    """`work()` on a thread of its own, begun at once, that can be cancelled.

    Whoever waits for `over` in the main thread can be interrupted without the work being so.
    """

    def __init__(self, work: Callable[[], Made]) -> None:
        # no join: one that is interrupted may take the thread for ended (bpo-45274)
        self.scope, self.over = Scope(), threading.Event()
        self._made: list[Made] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], Made]) -> None:
        try:
            with self.scope.entered():
                self._made.append(work())
        except BaseException as error:
            self._error = error
        finally:
            self.over.set()

    def result(self) -> Made:
        """What the work returned, once it is `over`; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._made[0]


@contextlib.contextmanager
def team(threads: int) -> Iterator[Callable[..., Future[Any]]]:
    """A thread pool as `submit(work, *args)`: cancelled as a whole, with its programs, by whatever
    is raised inside, and waited for."""
    scope = Scope()

    def within(work: Callable[..., Any], *args: Any) -> Any:
        with scope.entered():
            check_cancelled()
            return work(*args)

    pool = ThreadPoolExecutor(threads)
    try:
        yield lambda work, *args: pool.submit(within, work, *args)
        # here, so that an interruption of the waiting cancels the work as well
        pool.shutdown()
    except BaseException:
        scope.cancel()
        pool.shutdown(cancel_futures=True)
        raise


def waited_for(future: "Future[Made]") -> Made:
    """The result of work that another thread does. Raises what it raised, and CalledOff."""
    while not wait([future], timeout=0.2).done:
        check_cancelled()
    return future.result()


class Beside:
    """Work on threads of its own, beside that of the thread that begins it."""

    def __init__(self, threads: int) -> None:
        self._scope, self._pool = Scope(), ThreadPoolExecutor(threads)

    def begin(self, work: Callable[[], Made]) -> "Future[Made]":
        """Have it done as soon as a thread is free."""

        def within() -> Made:
            with self._scope.entered():
                check_cancelled()
                return work()

        return self._pool.submit(within)

    def close(self) -> None:
        """Cancel what has not ended, with its programs, and wait for that."""
        self._scope.cancel()
        self._pool.shutdown(cancel_futures=True)


def add_program(process: subprocess.Popen[bytes]) -> None:
    """Make a program part of this thread's scope, so that it is killed with it."""
    scope = current()
    with _running_lock:
        _running[process] = scope
        # the scope may have been cancelled while the program started
        if scope is not None and scope.called_off:
            kill(process)


def remove_program(process: subprocess.Popen[bytes]) -> None:
    """Nobody kills it any more, so that it can be reaped."""
    with _running_lock:
        _running.pop(process, None)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program and all of its process group, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def kill_all() -> None:
    """Kill every program still running."""
    with _running_lock:
        for process in _running:
            kill(process)
