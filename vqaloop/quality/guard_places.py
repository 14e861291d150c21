"""The guard's metrics at sampled places of a title.

A place is three successive frames, of which the middle one is measured; the others give it its
motion. libvmaf's motion of a frame needs the frames before and after it, XPSNR's the one or two
before, so each value is the one that the frame has within the whole title. All places go through
one run of ffmpeg, one libvmaf and one decode of rung and source; of the source's frames, which all
rungs of a title need, a file without a name is kept.
"""

import os
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import frame_progress, process
from vqaloop.core.cpu_time import METER
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.files import scratch
from vqaloop.core.text import counted, quoted
from vqaloop.errors import DecodeFailed
from vqaloop.media.activity import activity_of
from vqaloop.media.frames import PIXELS, each_of_source, encode_reader
from vqaloop.media.planes import Frames
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.full_reference import (
    CEILING_DB,
    filters_of,
    frame_values,
    graph_of,
    is_of_libvmaf,
    label_of,
    logged_values,
    read_frames,
    stored_samples,
)
from vqaloop.quality.sampling_precision import interval_of
from vqaloop.quality.source_cache import SourceCache, source_key
from vqaloop.records import Score, Source

REVISION = 1
"""Raised whenever the same files would get other values; part of cache keys."""
WINDOW = 3
"""Frames of a place, of which one is measured."""
_LEAD = WINDOW - 1
"""Frames before the first place, so that libvmaf's n_subsample of WINDOW meets the middle ones."""
BATCH_BYTES = 512 << 20
"""Of samples on disk that one run of ffmpeg takes of either video."""
SOURCE_BYTES = 1 << 30
"""Of sources' samples kept on disk; those used longest ago go first."""
LIMIT_S = 5.0
"""Seconds that the filters may take for a million samples of a plane, beside two minutes."""


class _Stored:
    """Frames of a source in a file that has no name, and goes with this object or process."""

    def __init__(self, frames: Iterable[Frames]) -> None:
        file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, file.close)
        _write(file, frames, lambda count: None)
        file.flush()
        self.nbytes, self._number = file.tell(), file.fileno()

    @property
    def path(self) -> Path:
        """Where programs that this process starts find it."""
        return Path(f"/proc/{os.getpid()}/fd/{self._number}")


_STORED: SourceCache[_Stored] = SourceCache(lambda kept: kept.nbytes, lambda: SOURCE_BYTES)


@dataclass(frozen=True)
class _Run:
    """What one run of ffmpeg measures, and how."""

    source: Source
    metrics: Sequence[str]
    bits: int
    ffmpeg: str
    threads: int


def windows_of(source: Source, sampling: CropSampling) -> dict[int, float]:
    """First frame of each place of a title, and the part of the title that it stands for."""
    found: dict[int, float] = {}
    for start, share in sampling.places(activity_of(source)).items():
        first = max(0, min(start, source.frames - WINDOW))
        found[first] = found.get(first, 0.0) + share
    return found


def measure_places(
    source: Source,
    path: Path,
    metrics: Sequence[str],
    sampling: CropSampling,
    *,
    decoder: str,
    ffmpeg: str,
    threads: int,
) -> dict[str, Score]:
    """Scores of an encode by metrics of `full_reference`, psnr among them, at sampled places.

    Raises:
        InputError: As `full_reference.measure`.
        DecodeFailed: Either file lacks a frame, or ffmpeg cannot measure them.
    """
    windows = windows_of(source, sampling)
    with METER.measured() as spent:
        bits = 10 if max(source.bit_depth, stored_samples(path, {}, source, None).bits) > 8 else 8
        read = encode_reader(source, path, decoder, ffmpeg=ffmpeg, bits=bits)
        run = _Run(source, metrics, bits, ffmpeg, threads)
        each = _measured(run, list(windows), read)
    shares = np.array(list(windows.values()))
    scenes = sampling.scenes_of(activity_of(source), windows)
    return {
        name: Score(
            value=float(values @ shares),
            metric=name,
            mode="full-reference",
            clips=tuple(values.tolist()),
            interval=interval_of(values, shares, scenes, sampling.seed),
            moments=tuple(zip((first + 1 for first in windows), values.tolist(), strict=True)),
            shares=tuple(shares.tolist()),
            label=f"{label_of(name, source, 1)}, {len(windows)} of {source.frames} frames",
            cpu_s=spent.cpu_s / len(metrics),
            wall_s=spent.wall_s / len(metrics),
        )
        for name, values in each.items()
    }


def _measured(
    run: _Run, firsts: Sequence[int], read: Callable[[list[int]], Iterable[Frames]]
) -> dict[str, npt.NDArray[np.float64]]:
    """Values at all places, by metric."""
    width, height = run.source.canvas
    place_bytes = WINDOW * width * height * 3 // 2 * (1 if run.bits == 8 else 2)
    size = max(1, BATCH_BYTES // place_bytes)
    report, parts = frame_progress.reporter(), []
    for at in range(0, len(firsts), size):
        batch = firsts[at : at + size]
        with scratch() as folder:
            distorted = Path(folder) / "distorted"
            # reading the frames counts for one half of them, measuring them for the other
            begin, middle = at * WINDOW, at * WINDOW + len(batch) * WINDOW // 2
            with distorted.open("wb") as file:
                _write(file, _in_order(batch, read), _halved(report, begin))
            with frame_progress.counted_frames(_halved(report, middle)):
                parts.append(_values(run, batch, distorted, Path(folder)))
    return {name: np.concatenate([part[name] for part in parts]) for name in run.metrics}


def _halved(report: Callable[[int], object], begin: int) -> Callable[[int], object]:
    return lambda count: report(begin + count // 2)


def _values(
    run: _Run, firsts: Sequence[int], distorted: Path, folder: Path
) -> dict[str, npt.NDArray[np.float64]]:
    """Values at some places, of whose frames of the encode there is the file `distorted`."""
    source = run.source
    reference = _STORED.get(
        f"{source_key(source)} {run.bits} {list(firsts)}",
        lambda: _Stored(_in_order(firsts, lambda wanted: _source_frames(run, wanted))),
    )
    width, height = source.canvas
    shape = [
        ("f", "rawvideo"),
        ("pix_fmt", PIXELS[run.bits]),
        ("video_size", f"{width}x{height}"),
        # by the rate XPSNR decides how far back it looks
        ("framerate", f"{source.fps.numerator}/{source.fps.denominator}"),
    ]
    raw = input_arguments(shape)
    legs = ffmpeg_graph.input("DISTORTED", **raw), ffmpeg_graph.input("REFERENCE", **raw)
    # libvmaf takes every so many-th frame, the others take all
    filters = filters_of(dict.fromkeys(run.metrics, WINDOW), source, folder, run.threads)
    argv = compiled(
        graph_of(legs, filters),
        run.ffmpeg,
        {"DISTORTED": distorted, "REFERENCE": reference.path},
    )
    count = _LEAD + WINDOW * len(firsts)
    limit_s = 120 + count * width * height / 1e6 * LIMIT_S
    done = process.run(argv, timeout_s=limit_s)
    if done.returncode != 0:
        raise DecodeFailed(
            f"an encode could not be measured against {quoted(source.path)} at "
            f"{counted(len(firsts), 'place')}: {done.reason()}"
        )
    frames = read_frames(done.stdout.decode("utf-8", "replace"))
    found = {}
    for name in run.metrics:
        if is_of_libvmaf(name):
            # the first is of the lead
            values = logged_values(name, source, folder, WINDOW)[1:]
        else:
            # XPSNR looks back by two frames at high rates: of a place only the last has both
            middle = WINDOW - 1 if name == "xpsnr" else 1
            values = list(frame_values(name, frames, CEILING_DB[run.bits]))
            values = values[_LEAD + middle :: WINDOW]
        if len(values) != len(firsts):
            raise DecodeFailed(
                f"{name} gave {len(values)} values at {counted(len(firsts), 'place')} of "
                f"{quoted(source.path)}; try --guard full"
            )
        found[name] = np.array(values)
    return found


def _source_frames(run: _Run, wanted: list[int]) -> Iterator[Frames]:
    return each_of_source(run.source, wanted, ffmpeg=run.ffmpeg, bits=run.bits)


def _in_order(
    firsts: Sequence[int], read: Callable[[list[int]], Iterable[Frames]]
) -> Iterator[Frames]:
    """The frames of places, each in turn; no more than those of one place are held."""
    wanted = sorted({first + step for first in firsts for step in range(WINDOW)})
    decoded = zip(wanted, read(wanted), strict=True)
    held: dict[int, Frames] = {}
    for first in firsts:
        held = {at: frame for at, frame in held.items() if at >= first}
        while first + WINDOW - 1 not in held:
            at, frame = next(decoded)
            held[at] = frame
        yield from (held[first + step] for step in range(WINDOW))
    # all that the decoder has to say about the file
    for _ in decoded:
        pass


def _write(file: IO[bytes], frames: Iterable[Frames], report: Callable[[int], object]) -> None:
    """Raw frames, the first of them once more for each of the lead."""
    for number, frame in enumerate(frames):
        data = np.ascontiguousarray(frame).tobytes()
        file.write(data if number else data * (1 + _LEAD))
        report(number + 1)
