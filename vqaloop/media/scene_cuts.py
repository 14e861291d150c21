"""Splits a title into scenes at its cuts, which ffmpeg's scdet filter detects.

One pass over downscaled luma: `scdet` gives the mean absolute difference of neighbouring
frames, less that of the pair before, so that steady motion does not count. Before it a median over
three frames in time (`tmedian`): it leaves a cut where it is, and removes flashes of one frame and
most camera shake. Dissolves and fades are no cuts, and stay inside a scene.
"""

import bisect
import contextlib
import math
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.excerpt import GOP_S, as_excerpt, excerpt
from vqaloop.records import Source

AREA = 160 * 90
"""Pixels, about, of the pictures that are compared."""
THRESHOLD = 6.0
"""scdet's score, in percent of the range of luma, from which a change is a cut."""
SHIFT = 1
"""Frames by which tmedian's output precedes the middle frame of its window."""
MOST_CUTS = 1000
"""Most cuts of a title, the strongest ones; a film of two hours has about that many."""
LEAST_S, MOST_S = 1.0, 20.0
"""Default duration of the shortest and the longest scene, in seconds."""

EXCERPTS_BYTES = 8 << 30
"""Bytes on disk that lossless excerpts of scenes may take at a time."""

_SCORES = re.compile(r"^frame:\d+\s+pts:(\d+)\b.*\n+lavfi\.scd\.score=([0-9.]+)", re.M)


@dataclass(frozen=True, order=True)
class Scene:
    """A run of frames of a title that is encoded with one knob."""

    start_frame: int
    end_frame: int
    """The first frame that is not in it."""

    @property
    def frames(self) -> int:
        return self.end_frame - self.start_frame


def find_scenes(
    source: Source,
    *,
    ffmpeg: str,
    least_s: float = LEAST_S,
    most_s: float = MOST_S,
    gop_s: float = GOP_S,
) -> tuple[Scene, ...]:
    """Split a title into scenes that cover all its frames without gap or overlap.

    Args:
        source: The title.
        ffmpeg: The ffmpeg program.
        least_s: Shortest scene in seconds, unless the title is shorter; weaker cuts that would
            make shorter ones are ignored.
        most_s: Longest scene in seconds; longer ones are split at whole GOPs from their start.
        gop_s: Duration of a GOP in seconds.

    Returns:
        The scenes, ascending.

    Raises:
        InputError: The durations contradict each other.
        DecodeFailed: The title does not decode.
    """
    if not (0 <= least_s < math.inf and max(least_s, gop_s) <= most_s and gop_s > 0):
        raise InputError(
            f"scenes of {least_s:g} to {most_s:g} s cannot be made of GOPs of {gop_s:g} s: "
            "the longest must last as long as the shortest and as a GOP"
        )
    shots = find_shots(source, ffmpeg=ffmpeg, least_s=least_s)
    return split_shots(shots, source.fps, most_s=most_s, gop_s=gop_s)


def find_shots(source: Source, *, ffmpeg: str, least_s: float = LEAST_S) -> tuple[Scene, ...]:
    """The runs of frames between the cuts of a title; arguments as of `find_scenes`.

    Raises DecodeFailed for a title that does not decode.
    """
    cuts = find_cuts(source, ffmpeg=ffmpeg)
    kept = keep_cuts(cuts, source.frames, math.ceil(round(least_s * source.fps, 6)))
    return tuple(Scene(start, end) for start, end in pairwise([0, *kept, source.frames]))


def split_shots(
    shots: Sequence[Scene], fps: Fraction, *, most_s: float = MOST_S, gop_s: float = GOP_S
) -> tuple[Scene, ...]:
    """Shots as scenes: those longer than `most_s` are split; arguments as of `find_scenes`."""
    gop = max(1, round(gop_s * fps))
    most = max(gop, math.floor(round(most_s * fps, 6)))
    return tuple(part for shot in shots for part in split(shot, gop, most))


def find_cuts(source: Source, *, ffmpeg: str) -> dict[int, float]:
    """Detect scene cuts, in one decode of the title.

    Args:
        source: The title.
        ffmpeg: The ffmpeg program.

    Returns:
        First frame of each new scene, with scdet's score (THRESHOLD..100).

    Raises:
        DecodeFailed: The title does not decode.
    """
    scale = min(1.0, math.sqrt(AREA / (source.canvas[0] * source.canvas[1])))
    width, height = (max(8, round(side * scale)) for side in source.canvas)
    chain = [
        *source.prep,
        f"scale={width}:{height}:flags=area",
        "format=gray",
        f"tmedian=radius={SHIFT}",
        "setpts=N",
        "scdet=threshold=100",
        f"metadata=select:key=lavfi.scd.score:function=greater:value={THRESHOLD}",
        "metadata=print:key=lavfi.scd.score:file=pipe\\\\:1",
    ]
    options = input_arguments(source.input_options)
    graph = ffmpeg_graph.input("INPUT", **options).output(
        "-", map="0:V:0", vf=",".join(chain), fps_mode="passthrough", f="null"
    )
    argv = compiled(graph, ffmpeg, {"INPUT": source.path})
    done = process.run(
        argv, timeout_s=300 + 2.0 * source.frames, max_stdout=1 << 16 | 200 * source.frames
    )
    if done.returncode:
        raise DecodeFailed(f"{quoted(source.path)} could not be split: {done.reason()}")
    log = done.stdout.decode("ascii", "replace")
    found = ((int(at) + SHIFT, float(score)) for at, score in _SCORES.findall(log))
    return {at: score for at, score in found if 0 < at < source.frames}


def keep_cuts(cuts: dict[int, float], frames: int, least: int) -> list[int]:
    """The cuts that leave no scene under `least` frames, strongest first; ascending."""
    kept = [0, frames]
    for at in sorted(cuts, key=lambda at: (-cuts[at], at)):
        place = bisect.bisect(kept, at)
        if not 0 < at < frames or min(at - kept[place - 1], kept[place] - at) < max(1, least):
            continue
        kept.insert(place, at)
        if len(kept) - 2 == MOST_CUTS:
            break
    return kept[1:-1]


def split(scene: Scene, gop: int, most: int) -> list[Scene]:
    """Split a long scene into equal parts.

    Args:
        scene: The scene.
        gop: Frames of a GOP.
        most: Most frames of a part, at least a GOP; the last part may be longer by less than one.

    Returns:
        The parts, each but the last a whole number of GOPs.
    """
    whole = scene.frames // gop
    parts = -(-scene.frames // most)
    while parts < whole and max(_parts(whole, parts)) * gop > most:
        parts += 1
    if parts <= 1 or whole < 2:
        return [scene]
    edges = [scene.start_frame]
    for count in _parts(whole, min(parts, whole)):
        edges.append(edges[-1] + count * gop)
    edges[-1] = scene.end_frame
    return [Scene(start, end) for start, end in pairwise(edges)]


def _parts(whole: int, parts: int) -> list[int]:
    return [whole * (i + 1) // parts - whole * i // parts for i in range(parts)]


def even_gop(frames: int, usual: int) -> int:
    """GOP length in frames, near the `usual` one, that divides a scene evenly.

    A last GOP of a few frames would cost a key frame for little.
    """
    return math.ceil(frames / max(1, round(frames / usual)))


def bounded_gop(frames: int, most: int) -> int:
    """The longest GOP of at most `most` frames that divides a scene evenly.

    For what players switch between: key frames may not lie further apart there.
    """
    return math.ceil(frames / math.ceil(frames / most))


class SceneExcerpts:
    """Lossless excerpts of single scenes; the oldest are deleted above EXCERPTS_BYTES.

    Any number of threads may use it.
    """

    def __init__(self, source: Source, folder: Path, ffmpeg: str) -> None:
        self.source, self.folder, self.ffmpeg = source, folder, ffmpeg
        self._made: dict[Scene, Source] = {}
        self._lock = threading.Lock()
        self._users: Counter[Scene] = Counter()
        self._writing: dict[Scene, threading.Lock] = {}

    def known(self, scene: Scene) -> Source:
        """The scene as a source of its own, whose file may not be there: to look up its
        encodes."""
        path = self.folder / f"scene{scene.start_frame}-{scene.end_frame}.mkv"
        # sampled as the scene is in the title, where its cuts are known too
        window = (scene.start_frame, scene.frames)
        return replace(as_excerpt(self.source, [window], path), windows=(0,))

    @contextlib.contextmanager
    def held(self, scene: Scene) -> Iterator[Source]:
        """The scene as a source of its own, whose file stays while inside, and afterwards as long
        as there is room."""
        with self._lock:
            self._users[scene] += 1
            writing = self._writing.setdefault(scene, threading.Lock())
        try:
            with writing:
                if scene not in self._made:
                    known, window = self.known(scene), (scene.start_frame, scene.frames)
                    made = excerpt(self.source, [window], known.path, ffmpeg=self.ffmpeg)
                    self._made[scene] = replace(known, pix_fmt=made.pix_fmt)
            yield self._made[scene]
        finally:
            with self._lock:
                self._users[scene] -= 1
                # this one last: it may be asked for next
                for other in sorted(self._made, key=lambda other: other == scene):
                    if self._bytes() <= EXCERPTS_BYTES:
                        break
                    self._delete(other)

    def drop(self, scenes: Iterable[Scene]) -> None:
        """Delete the excerpts of scenes that are done."""
        with self._lock:
            for scene in scenes:
                self._delete(scene)

    def _delete(self, scene: Scene) -> None:
        if not self._users[scene] and scene in self._made:
            self._made.pop(scene).path.unlink(missing_ok=True)

    def _bytes(self) -> int:
        return sum(part.path.stat().st_size for part in list(self._made.values()))
