"""Finding ffmpeg, and running programs so that none is left behind.

Every program runs in a process group of its own, without a shell, with a time limit; its CPU
seconds and peak memory are read from the kernel when it ends.
"""

import contextlib
import logging
import math
import os
import re
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from vqaloop.core import guardian
from vqaloop.errors import CalledOff, ToolError

log = logging.getLogger(__name__)

Made = TypeVar("Made")

STALL_S = 120.0
"""Seconds without any work after which a program is held to hang. A program that waits for a slow
disk or for a reader of its output does no work either, hence so many."""

LOOK_S = 5.0
"""Seconds between looks at whether a program still works."""
TELL_S = 5.0
"""Seconds from one word on how far a program is to the next."""
STILL = 0.2
"""Ticks of the kernel's clock in a second up to which a program does nothing: one that hangs may
still wake to look at the time."""
PAUSE_S = 10.0
"""Seconds by which a look comes late where this process was stopped, not merely busy."""
STDERR_KEPT = 16_384
"""Bytes of a program's last words kept for error messages."""

_running: dict[subprocess.Popen[bytes], "Scope | None"] = {}
_running_lock = threading.Lock()
_mine = threading.local()
"""Of this thread: the `scope` it is in, the `cpu_s` its programs have used, and who is `told` of
their frames."""


class Scope:
    """Work that can be called off as a whole, by whatever threads it is done.

    A scope is part of the one in which it was made, and is called off with it.
    """

    def __init__(self) -> None:
        self._whole: Scope | None = getattr(_mine, "scope", None)
        self._off = False

    @property
    def called_off(self) -> bool:
        return self._off or (self._whole is not None and self._whole.called_off)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """While inside, what this thread does is part of the scope. For any number of threads."""
        before, _mine.scope = getattr(_mine, "scope", None), self
        try:
            yield
        finally:
            _mine.scope = before

    def cancel(self) -> None:
        """Call it off: what runs in it is stopped at once, and it runs no more."""
        with _running_lock:
            self._off = True
            for process, scope in _running.items():
                if scope is not None and scope.called_off:
                    kill(process)


class Aside(Generic[Made]):
    """`work()` on a thread of its own, begun at once, that can be called off.

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
    """`submit(work, ...)` to threads of our own: called off as a whole by whatever is raised
    inside, and waited for."""
    scope = Scope()

    def within(work: Callable[..., Any], *args: Any) -> Any:
        with scope.entered():
            check_cancelled()
            return work(*args)

    pool = ThreadPoolExecutor(threads)
    try:
        yield lambda work, *args: pool.submit(within, work, *args)
        # here, so that an interruption of the waiting calls the work off as well
        pool.shutdown()
    except BaseException:
        scope.cancel()
        pool.shutdown(cancel_futures=True)
        raise


def check_cancelled() -> None:
    """Raises CalledOff in a thread whose work was called off."""
    scope: Scope | None = getattr(_mine, "scope", None)
    if scope is not None and scope.called_off:
        raise CalledOff("called off")


@contextlib.contextmanager
def counted_frames(told: Callable[[int], object]) -> Iterator[None]:
    """While inside, `told` is given the number of frames that the ffmpeg which this thread runs
    has put out so far, every TELL_S seconds; what it raises ends the program."""
    before, _mine.told = getattr(_mine, "told", None), told
    try:
        yield
    finally:
        _mine.told = before


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
        said = f": {last[-1][:300]}" if last else ""
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
            return f"killed by {name}{said}"
        return f"exit status {self.returncode}{said}"


def input_arguments(options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Options before -i as ffmpeg-python takes them: of a video_size it makes two letters."""
    return {"s" if key == "video_size" else key: value for key, value in options}


QUIET = ["-nostdin", "-v", "error", "-y"]


def run(
    argv: Sequence[str],
    *,
    timeout_s: float,
    idle_s: float | None = None,
    again: bool = True,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    max_stdout: int = 1 << 34,
    read_stderr: Callable[[bytes], bytes] = bytes,
) -> Finished:
    """Run a program to its end, its time limit, or an exception in this thread.

    A program that uses no processor for a while is held to hang and stopped as at its limit. It is
    run a second time, which is logged, unless another already has what it wrote.

    Args:
        argv: The program and its arguments.
        timeout_s: Wall seconds that it may take; each time, where it is run again.
        idle_s: Seconds without work after which it is stopped, by default STALL_S.
        again: False where the caller has its own way with a program that hung.
        stdin: A file that it reads from where that stands.
        stdout: Where it writes; a pipe is read to its end.
        read_stderr: Is given each piece of stderr, returns what to keep of it; of both runs.
        max_stdout: Bytes of stdout held in memory; a program that writes more is stopped.

    Returns:
        What it did; of two runs the second.

    Raises:
        ToolError: It cannot be started, or writes more than `max_stdout`.
        CalledOff: The work of this thread was called off.
    """
    stall_s = STALL_S if idle_s is None else idle_s
    file = stdin if isinstance(stdin, int) else stdin.fileno()
    begin = os.lseek(file, 0, os.SEEK_CUR) if file >= 0 else 0
    done = _run_once(argv, timeout_s, stall_s, stdin, stdout, max_stdout, read_stderr)
    if not (done.stalled and again and stdout in (subprocess.PIPE, subprocess.DEVNULL)):
        return done
    log.warning("%s was %s; it is run again", Path(argv[0]).name, done.reason())
    if file >= 0:
        os.lseek(file, begin, os.SEEK_SET)
    return _run_once(argv, timeout_s, stall_s, stdin, stdout, max_stdout, read_stderr)


def _run_once(
    argv: Sequence[str],
    timeout_s: float,
    idle_s: float,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    max_stdout: int,
    read_stderr: Callable[[bytes], bytes],
) -> Finished:
    check_cancelled()
    guardian.watch(tempfile.gettempdir())
    start = time.monotonic()
    # of what `compiled` made we know that it is an ffmpeg
    told = getattr(_mine, "told", None) if list(argv[1:2]) == QUIET[:1] else None
    counts, writer = os.pipe() if told else (-1, -1)
    counting = ["-progress", f"pipe:{writer}"] if told else []
    try:
        process = subprocess.Popen(
            [argv[0], *counting, *argv[1:]],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=guardian.environment(),
            pass_fds=[writer] if told else [],
        )
    except BaseException as error:
        if told:
            os.close(counts)
        if isinstance(error, OSError):
            raise ToolError(f"could not start {argv[0]}: {error.strerror}") from error
        raise
    finally:
        if told:
            os.close(writer)
    scope: Scope | None = getattr(_mine, "scope", None)
    with _running_lock:
        _running[process] = scope
        # it may have been while the program started
        if scope is not None and scope.called_off:
            kill(process)
    said = bytearray()
    wrote = bytearray()
    too_much = threading.Event()

    # ValueError: an interruption of this thread may close a pipe before its reader has begun
    def keep_tail(pipe: IO[bytes]) -> None:
        with contextlib.suppress(ValueError):
            while chunk := os.read(pipe.fileno(), 65536):
                said.extend(read_stderr(chunk))
                del said[:-STDERR_KEPT]

    def keep_all(pipe: IO[bytes]) -> None:
        with contextlib.suppress(ValueError):
            while chunk := pipe.read(1 << 20):
                wrote.extend(chunk)
                if len(wrote) > max_stdout:
                    too_much.set()
                    kill(process)
                    return

    threads = [threading.Thread(target=keep_tail, args=(process.stderr,), daemon=True)]
    if process.stdout is not None:
        threads.append(threading.Thread(target=keep_all, args=(process.stdout,), daemon=True))
    watch = _Watch(process, timeout_s, idle_s)
    try:
        for thread in threads:
            thread.start()
        watch.start()
        if told:
            _follow(process.pid, counts, told)
        # reaped only once it is out of the list, or who kills it might kill another of its number
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        watch.over.set()
        with _running_lock:
            _running.pop(process, None)
        # wait4 rather than wait: it is the only one that tells this one child's CPU time
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        kill(process)
        process.wait()
        raise
    finally:
        watch.over.set()
        with _running_lock:
            _running.pop(process, None)
        for thread in threads:
            if thread.ident is not None:
                thread.join(timeout=10)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if told:
            os.close(counts)
    check_cancelled()
    cpu_s = usage.ru_utime + usage.ru_stime
    _mine.cpu_s = spent_cpu_s() + cpu_s
    if too_much.is_set():
        raise ToolError(f"{Path(argv[0]).name} wrote more than {max_stdout} bytes; stopped")
    return Finished(
        returncode=process.returncode,
        stdout=bytes(wrote),
        stderr=said.decode("utf-8", "replace"),
        cpu_s=cpu_s,
        wall_s=time.monotonic() - start,
        peak_bytes=usage.ru_maxrss * 1024,
        timed_out=watch.timed_out,
        idle=watch.idle,
        stalled=watch.stalled,
    )


def _follow(program: int, counts: int, told: Callable[[int], object]) -> None:
    """Tell what ffmpeg writes of its progress to `counts`, until the program ends."""
    poll, last = select.poll(), time.monotonic()
    poll.register(counts, select.POLLIN)
    while os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if not poll.poll(200):
            continue
        if not (text := os.read(counts, 65536)):
            return
        frames = re.findall(rb"^frame=\s*(\d+)", text, re.MULTILINE)
        if frames and time.monotonic() - last >= TELL_S:
            last = time.monotonic()
            told(int(frames[-1]))


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
            ticks = _group_ticks(self.process.pid)
            # less than before: a part of it has ended
            self.idle = 0 <= ticks - before <= STILL * self.step
            before = ticks
            if not self.idle:
                since = now
            if now >= self.end or now - since >= self.idle_s:
                self.timed_out, self.stalled = True, now < self.end
                kill(self.process)
                return
        self.idle = False


def _group_ticks(group: int) -> int:
    """Processor time that the programs of a process group have used, in the kernel's ticks."""
    ticks = 0
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                with open(f"/proc/{entry.name}/stat", "rb") as file:
                    words = file.read().rpartition(b")")[2].split()
                if int(words[2]) == group:
                    ticks += int(words[11]) + int(words[12])
    return ticks


def spent_cpu_s() -> float:
    """CPU seconds of all programs that this thread has run so far."""
    return float(getattr(_mine, "cpu_s", 0.0))


def kill(process: subprocess.Popen[bytes]) -> None:
    """Stop a program and all it started, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()


def kill_all() -> None:
    """Stop every program still running."""
    with _running_lock:
        for process in _running:
            kill(process)
