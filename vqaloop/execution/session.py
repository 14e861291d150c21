"""What a job on one title holds open: its tools, the probed source, cache and workshop."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from vqaloop.core.cpu_time import JOBS
from vqaloop.core.text import quoted
from vqaloop.encoding import checks
from vqaloop.execution.cache import Cache
from vqaloop.execution.checks import check_metric
from vqaloop.execution.options import JobOptions, PathName
from vqaloop.execution.stage_progress import TimeLeft, report_if_slow
from vqaloop.execution.tools import Tools
from vqaloop.execution.workshop import Workshop
from vqaloop.media.excerpt_windows import choose_windows
from vqaloop.media.hdr import HdrUse, drop_note
from vqaloop.media.probe import probe_source
from vqaloop.quality.metric import FOR_HDR
from vqaloop.records import Event, Source

Asked = TypeVar("Asked", bound=JobOptions)


@dataclass(frozen=True)
class Session(Tools, Generic[Asked]):
    """A job on one title, ready to encode and score."""

    options: Asked
    source: Source
    sizes: tuple[tuple[int, int], ...]
    """Width and height to encode at, largest first."""
    depth: int
    """Bits a sample of the encodes."""
    shop: Workshop
    started: float
    """Seconds of the monotonic clock when it was opened."""
    spent_cpu_s: Callable[[], float]
    """CPU seconds that the job has taken on this machine so far, programs included."""

    def windows(self) -> tuple[tuple[int, int], ...]:
        """Start and length, in frames, of the windows that stand for the title."""
        looking = Event("excerpt", "looking for windows that stand for it")
        with report_if_slow(self.options.progress, looking):
            return choose_windows(self.source, ffmpeg=self.ffmpeg, seed=self.options.seed)


@contextlib.contextmanager
def open_session(input: PathName, options: Asked, tools: Tools) -> Iterator[Session[Asked]]:
    """Probe the input, check what is asked against it, and open cache and workshop.

    Raises InputError for an input that cannot be read, and for a size, bit depth or metric that
    does not suit it.
    """
    started = time.monotonic()
    options = replace(options, progress=TimeLeft(options.progress))
    with JOBS.running() as spent_cpu_s:
        source = _probed(input, options, tools)
        sizes = checks.choose_sizes(source, tools.spec, options.sizes(source))
        depth = checks.checked_depth(source, tools.spec, options.bit_depth)
        check_metric(tools.metric, options.weights or options.prompt, canvas=source.canvas)
        with (
            Cache(enabled=options.cache) as store,
            Workshop(
                tools.spec,
                tools.metric,
                store,
                ffmpeg=tools.ffmpeg,
                workers=options.workers,
                timeout_s=options.timeout_s,
                pool=options.pool,
            ) as shop,
        ):
            yield Session(
                **vars(tools),
                options=options,
                source=source,
                sizes=sizes,
                depth=depth,
                shop=shop,
                started=started,
                spent_cpu_s=spent_cpu_s,
            )


def _probed(input: PathName, options: JobOptions, tools: Tools) -> Source:
    with report_if_slow(options.progress, Event("probe", f"looking at {quoted(input)}")):
        source = probe_source(
            Path(input),
            video_size=options.video_size,
            pix_fmt=options.pix_fmt,
            framerate=options.framerate,
            allow_hdr=options.allow_hdr,
            hdr=HdrUse(
                judged=tools.metric.name in FOR_HDR,
                tonemap=options.tonemap,
                refuse_dynamic=options.dynamic_hdr == "refuse",
            ),
            deinterlace=options.deinterlace,
            ffmpeg=tools.ffmpeg,
        )
    # before any work: who needs them learns it now
    if source.dynamic_hdr:
        options.progress(Event("probe", drop_note(source.dynamic_hdr)))
    return source
