"""Clean-up after a process that is killed outright, by a guardian process.

The guardian is started with the first program that is run. It waits for the end of its stdin,
which the kernel closes however the process that held it dies. Then it kills the programs that
carry the mark of that process in their environment, and removes the unfinished files that carry it
in their names, in the folders that were sent to it. So after SIGKILL no program runs on without a
reader, and no temporary file stays.

Run as a program of its own (by path) it imports nothing of the package.
"""

import atexit
import contextlib
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "VQALOOP_RUN"
"""In the environment of every program that is run: the mark of the process that runs it."""

GIVE_UP_S = 10.0
"""Seconds after which programs that cannot be stopped are left."""


class _State:
    """Of this process; a fork starts afresh."""

    def __init__(self) -> None:
        self.mark = f"{os.getpid()}-{secrets.token_hex(6)}"
        self.lock = threading.Lock()
        self.folders: dict[bytes, None] = {}
        self.process: subprocess.Popen[bytes] | None = None
        # once is enough to know that there is no Python to run
        self.possible = bool(sys.executable)


_state = _State()
_apart = False


def live_apart() -> None:
    """Have the guardian, once it is started, be no child of this process.

    For processes of which another kills the children, as Ray does with its workers'.
    """
    global _apart
    _apart = True


class _Apart(subprocess.Popen[bytes]):
    """A guardian that forks and whose first process ends at once, so that it is nobody's child: it
    lives as long as its end of the pipe is open."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        super().__init__(
            [*argv, "apart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env=env,
        )
        super().wait()

    def poll(self) -> int | None:
        return 0 if self._ended(0) else None

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return 0

    def _ended(self, timeout: float | None) -> bool:
        if self.stdout is None:
            return True
        # select would refuse descriptors from 1024 on
        life = select.poll()
        life.register(self.stdout, select.POLLIN)
        return bool(life.poll(None if timeout is None else timeout * 1000))


def _afresh() -> None:
    """In a forked child: it needs a mark and a guardian of its own."""
    global _state
    if _state.process is not None and _state.process.stdin is not None:
        # ours would keep the parent's guardian waiting after the parent is gone
        with contextlib.suppress(OSError):
            os.close(_state.process.stdin.fileno())
        _state.process.returncode = 0
    _state = _State()


os.register_at_fork(after_in_child=_afresh)


def mark() -> str:
    """The mark of this process: part of the names of its unfinished files, and of its programs'
    environment."""
    return _state.mark


def environment() -> dict[str, str]:
    """For a program of this process, so that it does not outlive it."""
    return {**os.environ, VARIABLE: _state.mark}


def is_needed() -> bool:
    """Whether this process has begun anything that it would leave if it ended now."""
    return _state.process is not None


def watch(folder: str | os.PathLike[str]) -> None:
    """Have unfinished files in this folder, if they carry our mark, removed after our end."""
    state, path = _state, os.fsencode(os.path.abspath(folder))
    with state.lock:
        if path in state.folders and state.process is not None and state.process.poll() is None:
            return
        state.folders[path] = None
        _send(state, path)


def _send(state: _State, path: bytes) -> None:
    """Send a folder to the guardian; all folders where it has to be started anew."""
    if not state.possible:
        return
    for paths in ([path], list(state.folders)):
        if state.process is None or state.process.poll() is not None:
            paths = list(state.folders)
            _start(state)
        if state.process is None or state.process.stdin is None:
            return
        try:
            state.process.stdin.write(b"".join(each + b"\0" for each in paths))
            state.process.stdin.flush()
            return
        except OSError:  # it was just killed
            state.process.wait()


def _start(state: _State) -> None:
    # -I -S: isolated and without site-packages, so that it starts fast and whatever is installed
    argv = [sys.executable, "-I", "-S", os.path.abspath(__file__), state.mark]
    # of a process that another one of ours runs: whoever kills it by its mark leaves its guardian
    env = {name: value for name, value in os.environ.items() if name != VARIABLE}
    try:
        if _apart:
            state.process = _Apart(argv, env)
            return
        # a session of its own: what ends us, Ctrl-C or a closed terminal, shall not end it
        state.process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
            env=env,
        )
    except OSError:
        state.possible, state.process = False, None


@atexit.register
def _leave() -> None:
    process = _state.process
    if process is not None and process.stdin is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            process.stdin.close()
            process.wait(timeout=GIVE_UP_S)


def _marked(text: bytes) -> Iterator[int]:
    """Processes that carry the mark in their environment."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if text in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def _clean(own: str, folders: list[str]) -> None:
    """Stop what carries the mark, then remove the files that do."""
    text = f"{VARIABLE}={own}".encode()
    end = time.monotonic() + GIVE_UP_S
    while time.monotonic() < end:
        left = list(_marked(text))
        if not left:
            break
        # again and again: one that is being killed may have started another
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for folder in folders:
        names: list[str] = []
        with contextlib.suppress(OSError):
            names = os.listdir(folder)
        for path in (os.path.join(folder, name) for name in names if own in name):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _main() -> None:
    # what ends a session or a job must not end its clean-up
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # apart: the parent ends, and this process belongs to init
    if sys.argv[2:] and os.fork():
        os._exit(0)
    sent = sys.stdin.buffer.read()
    _clean(sys.argv[1], [os.fsdecode(path) for path in sent.split(b"\0") if path])


if __name__ == "__main__":
    _main()
