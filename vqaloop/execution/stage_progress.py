"""Progress events of stages that are no trials: probing, the excerpt, passes through a title."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from vqaloop.core import frame_progress
from vqaloop.core.text import quoted
from vqaloop.records import Event, Source, Watcher

NOTICE_S = 1.0
"""Seconds after which a stage is announced: a refusal that comes sooner stands alone."""


@contextlib.contextmanager
def report_if_slow(progress: Watcher, event: Event) -> Iterator[None]:
    """Around a stage: reports it after NOTICE_S seconds, then the frames that its programs have
    put out."""

    def report(frames: int) -> None:
        progress(Event(event.stage, f"{event.message}: {frames} frames"))

    timer = threading.Timer(NOTICE_S, progress, [event])
    timer.daemon = True
    timer.start()
    try:
        with frame_progress.counted_frames(report):
            yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def counted_cut(progress: Watcher, windows: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Around the cutting of an excerpt: reports its windows, and how many frames are cut."""
    total = sum(count for _, count in windows)
    message = f"{len(windows)} windows stand for the title"
    progress(Event("excerpt", message, 0, total))
    with frame_progress.counted_frames(
        lambda frames: progress(Event("excerpt", message, min(frames, total), total))
    ):
        yield


@contextlib.contextmanager
def counted_of(total: int, progress: Watcher, stage: str, message: str) -> Iterator[None]:
    """Around a stage that goes through so many frames: reports how many it has done."""

    def report(frames: int) -> None:
        progress(Event(stage, message, min(frames, total), total))

    report(0)
    with frame_progress.counted_frames(report):
        yield
    report(total)


def described(source: Source) -> str:
    """A source in one line: size, frame rate, number of frames."""
    width, height = source.canvas
    rate = f"{float(source.fps):.6g} fps"
    return f"{quoted(source.path)}: {width}x{height}, {rate}, {source.frames} frames"
