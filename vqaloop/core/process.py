"""Running programs so that none is left behind.

Every program runs in a process group of its own, without a shell, with a time limit; its CPU
seconds and peak memory are read from the kernel when it ends.
"""

import contextlib
import logging
import math
import os
import resource
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from vqaloop.core import guardian, scopes
from vqaloop.core.frame_progress import FrameCounts, frame_counts
from vqaloop.core.scopes import kill
from vqaloop.errors import ToolError

log = logging.getLogger(__name__)

STALL_S = 120.0
"""Seconds without CPU time after which a program counts as hung. One that waits for a slow disk or
for a reader of its output uses none either, hence so many."""

LOOK_S = 5.0
"""Seconds between two samples of a program's CPU time."""
STILL = 0.2
"""Clock ticks of CPU time a second up to which a program counts as idle: one that hangs may still
wake to look at the time."""
PAUSE_S = 10.0
"""Seconds by which a sample is late where this process was stopped, not merely busy."""
STDERR_KEPT = 16_384
"""Bytes of a program's last words kept for error messages."""
HELD_S = 2.0
"""Seconds for which the pipes of a program that has ended are read on where another one, which it
left behind, holds them open."""
PIPE_BYTES = 1 << 20
"""The most that a pipe holds, so the most that a program which has ended wrote and nobody read."""

_thread = threading.local()
"""The `cpu_s` that this thread's programs have used, the `folder` they work in, and `variables`
of their environment."""


@contextlib.contextmanager
def working_in(folder: Path | None, variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """While inside, programs that this thread runs have that working folder, and these variables
    in their environment beside this process's own; None: this process's own."""
    before = getattr(_thread, "folder", None), getattr(_thread, "variables", None)
    _thread.folder, _thread.variables = folder, variables
    try:
        yield
    finally:
        _thread.folder, _thread.variables = before


@dataclass(frozen=True)
class Finished:
    """What a program did."""

    returncode: int
    """Exit status; negative is the signal that killed it."""
    stdout: bytes
    """All it wrote to stdout (empty when stdout went elsewhere)."""
    stderr: str
    """The end of what it wrote to stderr."""
    cpu_s: float
    """User and system CPU seconds of the program and its threads."""
    wall_s: float
    """Seconds from start to end."""
    peak_bytes: int
    """Largest resident set."""
    timed_out: bool
    """True when we stopped it: at its time limit, or because it hung."""
    idle: bool = False
    """True when it did nothing at the time we stopped it."""
    stalled: bool = False
    """True when we stopped it because of that, before its time limit."""

    def reason(self) -> str:
        """In one line, why it failed: the time limit, the signal, or its last words."""
        last = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        words = f": {last[-1][:300]}" if last else ""
        if self.timed_out:
            if self.stalled:
                return f"stopped after {self.wall_s:.0f} s, since it did nothing any more"
            doing = ", doing nothing" if self.idle else ""
            return f"stopped at its time limit after {self.wall_s:.0f} s{doing}"
        if self.returncode < 0:
            try:
                name = signal.Signals(-self.returncode).name
            except ValueError:
                name = f"signal {-self.returncode}"
            return f"killed by {name}{words}"
        return f"exit status {self.returncode}{words}"


Reader = Callable[[bytes], bytes]
"""Takes a piece of what a program writes; returns what to keep of it."""


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    idle_s: float | None = None,
    again: bool = True,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    max_stdout: int = 1 << 34,
    stderr_reader: Callable[[], Reader] = lambda: bytes,
) -> Finished:
    """Run a program to its end, its time limit, or an exception in this thread.

    A program that uses no CPU time for a while counts as hung and is stopped as at its limit. It
    is run a second time, which is logged, unless its output went to another program already.

    Args:
        argv: The program and its arguments.
        timeout_s: Wall seconds that it may take; each time, where it is run again.
        idle_s: Seconds without work after which it is stopped, by default STALL_S.
        again: False where the caller has its own way with a program that hung.
        stdin: A file that it reads from where that stands.
        stdout: Where it writes; a pipe is read to its end.
        max_stdout: Bytes of stdout held in memory; a program that writes more is stopped.
        stderr_reader: Makes, for each run, the function that is given the pieces of stderr and
            returns what to keep of them. What it raises is raised here once the program has ended.

    Returns:
        What it did; of two runs the second. Without what programs that it left behind write later
        than HELD_S after its end.

    Raises:
        ToolError: It cannot be started, or writes more than `max_stdout`.
        CalledOff: The work of this thread was cancelled.
    """
    stall_s = STALL_S if idle_s is None else idle_s
    file = stdin if isinstance(stdin, int) else stdin.fileno()
    # a second run reads the same input from the same place
    begin = os.lseek(file, 0, os.SEEK_CUR) if file >= 0 else 0
    streams = _Streams(stdin, stdout, max_stdout, stderr_reader)
    done = _run_once(argv, timeout_s, stall_s, streams)
    if not (done.stalled and again and stdout in (subprocess.PIPE, subprocess.DEVNULL)):
        return done
    log.warning("%s was %s; it is run again", Path(argv[0]).name, done.reason())
    if file >= 0:
        os.lseek(file, begin, os.SEEK_SET)
    return _run_once(argv, timeout_s, stall_s, streams)


@dataclass(frozen=True)
class _Streams:
    """A program's standard streams, as `run` takes them."""

    stdin: int | IO[bytes]
    stdout: int | IO[bytes]
    max_stdout: int
    stderr_reader: Callable[[], Reader]


def _run_once(argv: Sequence[str], timeout_s: float, idle_s: float, streams: _Streams) -> Finished:
    """Start a program, drain its pipes while it is watched, and reap it."""
    scopes.check_cancelled()
    # starts the guardian too, before there is a program that it would have to clean up
    guardian.watch(tempfile.gettempdir())
    start = time.monotonic()
    counts = frame_counts(argv)
    process = _started(argv, streams, counts)
    scopes.add_program(process)
    drain, watch = _Drain(process, streams), _Watch(process, timeout_s, idle_s)
    try:
        drain.start()
        watch.start()
        if counts:
            counts.follow(process.pid)
        usage = _reap(process, watch)
    except BaseException:
        # also KeyboardInterrupt and CalledOff: no program outlives its caller
        kill(process)
        process.wait()
        raise
    finally:
        watch.over.set()
        scopes.remove_program(process)
        drain.close()
        if counts:
            counts.close()
    scopes.check_cancelled()
    cpu_s = usage.ru_utime + usage.ru_stime
    _thread.cpu_s = spent_cpu_s() + cpu_s
    if drain.held:
        log.warning(
            "%s left a program running that holds its output open; what that one writes from now "
            "on is not read",
            Path(argv[0]).name,
        )
    if drain.error is not None:
        raise drain.error
    if drain.too_much.is_set():
        name = Path(argv[0]).name
        raise ToolError(f"{name} wrote more than {streams.max_stdout} bytes; stopped")
    return Finished(
        returncode=process.returncode,
        stdout=bytes(drain.stdout),
        stderr=drain.stderr.decode("utf-8", "replace"),
        cpu_s=cpu_s,
        wall_s=time.monotonic() - start,
        peak_bytes=usage.ru_maxrss * 1024,
        timed_out=watch.timed_out,
        idle=watch.idle,
        stalled=watch.stalled,
    )


def _started(
    argv: Sequence[str], streams: _Streams, counts: FrameCounts | None
) -> "subprocess.Popen[bytes]":
    """The program, in a process group of its own. Raises ToolError."""
    try:
        return subprocess.Popen(
            [argv[0], *(counts.options if counts else []), *argv[1:]],
            stdin=streams.stdin,
            stdout=streams.stdout,
            stderr=subprocess.PIPE,
            cwd=getattr(_thread, "folder", None),
            # Ctrl-C reaches this process alone, and `kill` the program with all it started
            start_new_session=True,
            env={**guardian.environment(), **(getattr(_thread, "variables", None) or {})},
            pass_fds=[counts.writer] if counts else [],
        )
    except BaseException as error:
        if counts:
            counts.close()
        if isinstance(error, OSError):
            raise ToolError(f"could not start {argv[0]}: {error.strerror}") from error
        raise
    finally:
        if counts:
            counts.close_writer()


def _reap(process: "subprocess.Popen[bytes]", watch: "_Watch") -> resource.struct_rusage:
    """Wait for the end of a program, and set its return code; returns what it used."""
    # waited for without reaping: its number stays taken until nobody kills by it any more, or
    # another program that was given the number might be hit
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    watch.over.set()
    scopes.remove_program(process)
    # wait4 rather than wait: only it gives the CPU time of this one child
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage


class _Drain:
    """Reads a program's pipes on threads, so that a full pipe never stops it."""

    def __init__(self, process: "subprocess.Popen[bytes]", streams: _Streams) -> None:
        self._process, self._streams, self._read = process, streams, streams.stderr_reader()
        self.stdout, self.stderr = bytearray(), bytearray()
        self.too_much = threading.Event()
        """Set once the program has written more than it may."""
        self.error: Exception | None = None
        """What the reader of stderr raised."""
        self.held = False
        """True once a pipe was given up that another program still holds open."""
        self._until = math.inf
        pipes = [(self._keep_tail, process.stderr), (self._keep_all, process.stdout)]
        self._threads = [
            threading.Thread(target=keep, args=(pipe,), daemon=True)
            for keep, pipe in pipes
            if pipe is not None
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Wait for what an ended program has left in its pipes, and close them."""
        self._until = time.monotonic() + HELD_S
        for thread in self._threads:
            # an interruption may come before a thread has begun
            if thread.ident is not None:
                thread.join()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _keep_tail(self, pipe: IO[bytes]) -> None:
        for chunk in self._pieces(pipe):
            if self.error is None:
                try:
                    chunk = self._read(chunk)
                except Exception as error:
                    # read on, or the program would wait for room in the pipe
                    self.error = error
            self.stderr.extend(chunk)
            del self.stderr[:-STDERR_KEPT]

    def _keep_all(self, pipe: IO[bytes]) -> None:
        for chunk in self._pieces(pipe):
            self.stdout.extend(chunk)
            if len(self.stdout) > self._streams.max_stdout:
                self.too_much.set()
                kill(self._process)
                return

    def _pieces(self, pipe: IO[bytes]) -> Iterator[bytes]:
        """What is written to a pipe, until nobody holds it open or HELD_S after the program."""
        poll, left = select.poll(), PIPE_BYTES
        try:
            poll.register(pipe, select.POLLIN)
        except ValueError:
            # closed, since an interruption of the main thread came before its reader had begun
            return
        while left > 0:
            late = time.monotonic() >= self._until
            # bounded, to see that the program has ended: one of its own may hold the pipe open
            if poll.poll(0 if late else 200):
                if not (chunk := os.read(pipe.fileno(), 65536)):
                    return
                yield chunk
                # what the program itself wrote is read however late it is, and no more
                left -= late * len(chunk)
            elif late:
                break
        self.held = True


class _Watch(threading.Thread):
    """Stops a program at its time limit, or when it has done nothing for too long."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", timeout_s: float, idle_s: float
    ) -> None:
        super().__init__(daemon=True)
        self.process, self.idle_s = process, idle_s
        self.end = time.monotonic() + timeout_s
        self.step = min(LOOK_S, timeout_s / 4, idle_s / 4)
        self.over = threading.Event()
        self.timed_out = self.idle = self.stalled = False

    def run(self) -> None:
        before, since = -math.inf, time.monotonic()
        looked = since
        while not self.over.wait(min(self.step, max(0.0, self.end - time.monotonic()))):
            now = time.monotonic()
            # while we ourselves were stopped (Ctrl-Z) nobody read what the program writes
            if (paused := now - looked - self.step) > PAUSE_S:
                self.end, since = self.end + paused, since + paused
            looked = now
            try:
                # of the whole group: a script's programs work while the shell waits
                ticks = _group_ticks(self.process.pid)
            except OSError:
                # as with too many files open; it may be working
                self.idle = False
            else:
                # less than before: a part of it has ended
                self.idle = 0 <= ticks - before <= STILL * self.step
                before = ticks
            if not self.idle:
                since = now
            if now >= self.end or now - since >= self.idle_s:
                self.timed_out, self.stalled = True, now < self.end
                kill(self.process)
                return
        # it ended by itself, whatever it did at the last sample
        self.idle = False


def _group_ticks(group: int) -> int:
    """Processor time that the programs of a process group have used, in the kernel's ticks.

    Raises OSError where that cannot be read, other than of a program that has just ended.
    """
    ticks = 0
    ended = FileNotFoundError, ProcessLookupError, PermissionError, IndexError, ValueError
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(*ended):
                with open(f"/proc/{name}/stat", "rb") as file:
                    # after the name, which may hold spaces and brackets: state, parent, group
                    words = file.read().rpartition(b")")[2].split()
                if int(words[2]) == group:
                    ticks += int(words[11]) + int(words[12])
    return ticks


def spent_cpu_s() -> float:
    """CPU seconds of all programs that this thread has run so far."""
    return float(getattr(_thread, "cpu_s", 0.0))
