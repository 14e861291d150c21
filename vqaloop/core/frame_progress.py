"""Numbers of frames that a running ffmpeg has put out, from its -progress option."""

import contextlib
import os
import re
import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence

REPORT_S = 5.0
"""Seconds between two reports of one program."""

QUIET = ["-nostdin", "-v", "error", "-y"]
"""First options of every ffmpeg command line that `ffmpeg.compiled` makes."""

_thread = threading.local()
"""The `report` to which this thread's programs are reported."""


@contextlib.contextmanager
def counted_frames(report: Callable[[int], object]) -> Iterator[None]:
    """While inside, `report` is given the number of frames that the ffmpeg which this thread runs
    has put out so far, every REPORT_S seconds; what it raises ends the program."""
    before, _thread.report = getattr(_thread, "report", None), report
    try:
        yield
    finally:
        _thread.report = before


def reporter() -> Callable[[int], None]:
    """For work in this process: takes the number of frames done so far, and reports it as a
    program's is reported, every REPORT_S seconds to whom `counted_frames` names."""
    report, last = getattr(_thread, "report", None), time.monotonic()

    def done(frames: int) -> None:
        nonlocal last
        if report and time.monotonic() - last >= REPORT_S:
            last = time.monotonic()
            report(frames)

    return done


class FrameCounts:
    """A pipe to which one ffmpeg writes its progress."""

    def __init__(self, report: Callable[[int], object]) -> None:
        self._report = report
        self._reader, self.writer = os.pipe()
        self.options = ["-progress", f"pipe:{self.writer}"]

    def follow(self, program: int) -> None:
        """Report what the program (its process id) writes, until it ends."""
        poll, last = select.poll(), time.monotonic()
        poll.register(self._reader, select.POLLIN)
        while os.waitid(os.P_PID, program, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            # bounded, to see that the program has ended: a child of its own may hold the pipe open
            if not poll.poll(200):
                continue
            # closed by the program, which may run on without reporting
            if not (text := os.read(self._reader, 65536)):
                return
            frames = re.findall(rb"^frame=\s*(\d+)", text, re.MULTILINE)
            if frames and time.monotonic() - last >= REPORT_S:
                last = time.monotonic()
                self._report(int(frames[-1]))

    def close_writer(self) -> None:
        """In this process, once the program has it: else the pipe would never end."""
        os.close(self.writer)

    def close(self) -> None:
        """Close the end that is read."""
        os.close(self._reader)


def frame_counts(argv: Sequence[str]) -> FrameCounts | None:
    """For a program that is about to run; None where nobody asked, or it is no ffmpeg of ours."""
    report = getattr(_thread, "report", None)
    # only of what `ffmpeg.compiled` made is it known that it is an ffmpeg
    return FrameCounts(report) if report and list(argv[1:2]) == QUIET[:1] else None
