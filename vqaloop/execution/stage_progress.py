"""What is told of stages that are no trials: probing, the excerpt, what goes through a title."""

import contextlib
import threading
from collections.abc import Iterator, Sequence

from vqaloop.core import frame_progress
from vqaloop.core.text import quoted
from vqaloop.records import Event, Source, Watcher

NOTICE_S = 1.0
"""Seconds after which a watcher is told what takes so long."""


@contextlib.contextmanager
def told_if_slow(progress: Watcher, event: Event) -> Iterator[None]:
    """An announcement of what takes long, so that a quick refusal comes alone; then the frames
    that its programs have put out."""

    def tell(frames: int) -> None:
        progress(Event(event.stage, f"{event.message}: {frames} frames"))

    timer = threading.Timer(NOTICE_S, progress, [event])
    timer.daemon = True
    timer.start()
    try:
        with frame_progress.counted_frames(tell):
            yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def counted_cut(progress: Watcher, windows: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Tells of an excerpt: its windows, and how many of its frames are cut."""
    total, said = sum(count for _, count in windows), f"{len(windows)} windows stand for the title"
    progress(Event("excerpt", said, 0, total))
    with frame_progress.counted_frames(
        lambda frames: progress(Event("excerpt", said, min(frames, total), total))
    ):
        yield


@contextlib.contextmanager
def counted_of(source: Source, progress: Watcher, stage: str, message: str) -> Iterator[None]:
    """Tells of a stage that goes through all frames of a source, and of how many it has."""

    def tell(frames: int) -> None:
        progress(Event(stage, message, min(frames, source.frames), source.frames))

    tell(0)
    with frame_progress.counted_frames(tell):
        yield
    tell(source.frames)


def described(source: Source) -> str:
    """What probing found, in one line."""
    width, height = source.canvas
    rate = f"{float(source.fps):.6g} frames a second"
    return f"{quoted(source.path)}: {width}x{height}, {rate}, {source.frames} frames"
