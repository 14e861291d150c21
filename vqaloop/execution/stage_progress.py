"""Progress events of stages that are no trials: probing, the excerpt, passes through a title."""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vqaloop.core import frame_progress
from vqaloop.core.text import quoted
from vqaloop.records import Event, Source, Watcher

NOTICE_S = 1.0
"""Seconds after which a stage is announced: a refusal that comes sooner stands alone."""


class TimeLeft:
    """A watcher that adds to events how long their stages will take, by their pace so far.

    Pace is items by time since the stage's first event, of the first stage since this was made;
    until one more is done there is none.
    Safe to call from any thread.
    """

    def __init__(self, progress: Watcher) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._stage: tuple[str, int] | None = None
        self._began = self._at = time.monotonic()
        self._first = self._done = 0

    def __call__(self, event: Event) -> None:
        with self._lock:
            event = replace(event, left_s=self._left_s(event))
        self._progress(event)

    def _left_s(self, event: Event) -> float | None:
        now, stage = time.monotonic(), (event.stage, event.total)
        if self._stage is None:
            self._stage = stage
        elif stage != self._stage or event.done < self._done:
            self._stage, self._began, self._first = stage, now, event.done
            self._done, self._at = event.done, now
        if event.done > self._done:
            self._done, self._at = event.done, now
        if not event.total or self._done == self._first:
            return None
        # counted items alone: an event between two of them brings the end no nearer by itself
        pace = (self._at - self._began) / (self._done - self._first)
        return max(0.0, pace * (event.total - self._done) - (now - self._at))


@contextlib.contextmanager
def report_if_slow(progress: Watcher, event: Event) -> Iterator[None]:
    """Around a stage: reports it after NOTICE_S seconds, then the frames that its programs have
    put out."""
    timer = threading.Timer(NOTICE_S, progress, [event])
    timer.daemon = True
    timer.start()
    try:
        with _frames_in_message(progress, event):
            yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def counted_in_message(progress: Watcher, event: Event) -> Iterator[None]:
    """Around a part of a stage that counts other things: reports it, then the frames as above."""
    progress(event)
    with _frames_in_message(progress, event):
        yield


def _frames_in_message(progress: Watcher, event: Event) -> contextlib.AbstractContextManager[None]:
    return frame_progress.counted_frames(
        lambda frames: progress(replace(event, message=f"{event.message}: {frames} frames"))
    )


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
