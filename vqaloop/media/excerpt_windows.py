"""Choosing the windows that stand for a long title, by what is in it.

The title is looked at cheaply: pairs of neighbouring frames, small and grey, a few a second, in no
more than LOOKS places. What an encoder would spend on them is foretold as its own lookahead does
it: block by block, the lesser of what the pixels beside and what the frame before leave
unexplained (motion by least squares, Lucas & Kanade 1981), as the bits of a Gaussian source, 1/2
log2(1 + variance / distortion); a cut costs one more picture without a reference. Sets of windows
are then drawn, one window from each stratum of equal count by that cost (stratified sampling), and
of many sets the one is kept whose means come nearest to the title's.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from fractions import Fraction

import ffmpeg as ffmpeg_graph
import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.demux import main_video
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.container import opened
from vqaloop.media.excerpt import GOP_S
from vqaloop.media.frames import any_of
from vqaloop.records import Source

LOOKS = 64
"""Most windows' worth of a title that are looked at, evenly spread where it is longer."""
AREA = 160 * 90
"""Pixels, about, of the two views of a frame: all of it made small, and its middle as it is, since
grain does not outlive scaling."""
BLOCK = 8
"""Pixels a side of what is predicted in one piece; sides of views are whole blocks."""
PACES = (2, 3, 7, 11, 13, 17, 23, 31, 43, 61, 83, 113, 151, 199)
"""Frames from one pair to the next; primes, not to fall in step with repeated frames (2:3)."""
PAIRS_A_SECOND = 3.4
"""Least pairs looked at in a second, where there are so many frames."""

DISTORTIONS = (2.0, 20.0, 200.0)
"""Squared errors that encoders leave, from high to low quality."""
KEY_WEIGHT = 3.0
"""Bits of a picture without reference over those of its detail: it is coded finer than the rest,
which is predicted from it."""
CUT = 0.5
"""Squared difference of two frames' block means, as a part of their variances, above which there
is a cut between them; of unrelated pictures it is 1."""
SPREAD_WEIGHT = 0.03
"""Weight of each equal part of the title's length having its share of the windows, against 1 for
each feature: it decides between sets that match alike."""
DRAWS = 20_000
"""Sets of windows among which the one nearest to the title is kept."""

_SLICE = 128
"""Pairs worked on at once, for memory."""

Pairs = npt.NDArray[np.uint8]
"""(N, 2 frames, 2 views, H, W) grey."""
Values = npt.NDArray[np.float64]


def choose_windows(
    source: Source,
    *,
    ffmpeg: str,
    seconds: float = 20.0,
    window_seconds: float = 4.0,
    seed: int = 0,
) -> tuple[tuple[int, int], ...]:
    """Windows (start frame, number of frames) that stand for a title, in ascending order.

    The whole title where it lasts no more than 1.25 x `seconds`; else about `seconds` of it in
    windows of about `window_seconds`, a whole number of GOPs each, alike the title in detail,
    change and cuts, and spread over its length. The same seed gives the same windows. At most
    LOOKS windows' worth is decoded for it, with what lies between each and the key frame before,
    and never more than the title once. Raises InputError for a duration that is not above 0,
    DecodeFailed for a title that does not decode.
    """
    if not (0 < seconds < math.inf and 0 < window_seconds < math.inf):
        raise InputError(f"windows need durations above 0: {seconds = }, {window_seconds = }")
    gop = round(GOP_S * source.fps)
    length = max(1, round(window_seconds / GOP_S)) * gop
    count = min(max(1, round(seconds * float(source.fps) / length)), source.frames // length)
    if source.duration_s <= 1.25 * seconds or count == 0:
        return ((0, source.frames),)
    rng = np.random.default_rng(seed)
    looks = max(LOOKS, 2 * count)
    if source.frames <= looks * length:
        ranges = [(0, source.frames)]
        # all windows end to end, and the same again some steps later
        spare = source.frames - count * length
        step = max(1, gop // 2)
        phase = int(rng.integers(min(step, spare + 1)))
        tilings = [
            np.arange(first, source.frames - length + 1, length)
            for first in range(phase, min(length, spare + 1), step)
        ]
    else:
        edges = [source.frames * part // looks for part in range(looks + 1)]
        rooms = np.diff(edges) - length + 1
        tilings = [np.array(edges[:-1]) + rng.integers(rooms)]
        ranges = [(int(start), length) for start in tilings[0]]
    pace = max(p for p in PACES if p == PACES[0] or p * PAIRS_A_SECOND <= source.fps)
    pairs = look(source, ranges, pace, ffmpeg=ffmpeg)
    at = np.concatenate([start + np.arange(0, n - 1, pace) for start, n in ranges])
    costs, cuts = pair_costs(pairs), _cuts(pairs, np.diff(at, prepend=at[0]) == pace)
    features = [_features(costs, cuts, at, starts, length, gop) for starts in tilings]
    parts = [(starts + length // 2) * count // source.frames for starts in tilings]
    return tuple((start, length) for start in _nearest(tilings, features, parts, count, rng))


def look(source: Source, ranges: Sequence[tuple[int, int]], pace: int, *, ffmpeg: str) -> Pairs:
    """Every `pace`-th frame and the one after it in each range (start, number of frames).

    Ranges ascend and hold at least two frames. By seeking, where that saves decoding; a place is
    then true to a few frames where `prep` changes the rate. Raises DecodeFailed.
    """
    if _seeking_pays(source, ranges):
        # fails where key frames are not where they are said to be
        with contextlib.suppress(DecodeFailed):
            return np.concatenate([_read(source, [r], pace, ffmpeg, sought=True) for r in ranges])
    return _read(source, ranges, pace, ffmpeg)


def _seeking_pays(source: Source, ranges: Sequence[tuple[int, int]]) -> bool:
    # of a range that changes, what is read depends on what was read before
    if source.changes:
        return False
    if len(ranges) == 1 or source.is_raw:
        return len(ranges) > 1
    decoded = Fraction(0)
    try:
        with opened(source.path) as container:
            stream = main_video(container)
            begin = stream.start_time or 0
            for start, count in ranges:
                place = begin + int(start / source.fps / stream.time_base)
                container.seek(place, stream=stream)
                key = next(container.demux(stream)).pts
                if key is None or key > place:
                    return False
                decoded += (place - key) * stream.time_base * source.fps + count
    except (InputError, StopIteration):
        return False
    return decoded < source.frames


def _read(
    source: Source,
    ranges: Sequence[tuple[int, int]],
    pace: int,
    ffmpeg: str,
    *,
    sought: bool = False,
) -> Pairs:
    """The pairs of all ranges in one run of ffmpeg; `sought`: of the one range, and no more."""
    width, height = _view(source)
    wanted = sum(len(range(0, count - 1, pace)) for _, count in ranges)
    options, name, skipped = process.input_arguments(source.input_options), "INPUT", 0
    if sought:
        start, count = ranges[0]
        ranges = [(0, count)]
        if source.is_raw:
            # ffmpeg would read its way to the place, where the size of a frame tells it
            name, skipped = "pipe:0", start * (os.stat(source.path).st_size // source.frames)
        else:
            options["ss"] = f"{max(0.0, float((start - Fraction(1, 2)) / source.fps)):.6f}"
    inside = [
        f"between(n,{first},{first + (count - 2) // pace * pace + 1})*lt(mod(n-{first},{pace}),2)"
        for first, count in ranges
    ]
    chain = ",".join(
        [*source.prep, f"select='{any_of(inside)}'", "format=gray", "split[all][middle]"]
    )
    graph = ffmpeg_graph.input(name, **options).output(
        "pipe:1",
        map="0:V:0",
        vf=f"{chain};[all]scale={width}:{height}:flags=area[small];"
        f"[middle]crop={width}:{height}[cut];[small][cut]vstack",
        fps_mode="passthrough",
        f="rawvideo",
        **{"frames:v": 2 * wanted},
    )
    argv = compiled(graph, ffmpeg, {"INPUT": source.path})
    pair_bytes = 4 * width * height
    # far slower than any machine decodes 4K; a hang must end all the same
    frames = source.frames if not sought else 1000
    try:
        with open(source.path, "rb", buffering=0) as file:
            file.seek(skipped)
            done = process.run(
                argv,
                timeout_s=300 + 2.0 * frames,
                stdin=file,
                max_stdout=pair_bytes * (wanted + 1),
            )
    except OSError as error:
        raise DecodeFailed(f"{quoted(source.path)} cannot be read: {error.strerror}") from error
    count = len(done.stdout) // pair_bytes
    if done.returncode or count != wanted:
        why = done.reason() if done.returncode else f"{count} of {wanted} pairs of frames came"
        raise DecodeFailed(f"{quoted(source.path)} could not be looked at: {why}")
    return np.frombuffer(done.stdout, np.uint8).reshape(wanted, 2, 2, height, width)


def _view(source: Source) -> tuple[int, int]:
    """Width and height of a view: whole blocks, no larger than the picture."""
    scale = math.sqrt(AREA / (source.canvas[0] * source.canvas[1]))
    width, height = (
        max(1, min(round(side * scale), side) // BLOCK) * BLOCK for side in source.canvas
    )
    return width, height


def pair_costs(pairs: Pairs) -> Values:
    """(N, 2 views, len(DISTORTIONS), 2): bits a pixel without and with the frame before."""
    flat = pairs.reshape(-1, *pairs.shape[1:]).swapaxes(0, 1).reshape(2, -1, *pairs.shape[3:])
    parts = [
        _costs(flat[:, i : i + _SLICE].astype(np.float32)) for i in range(0, flat.shape[1], _SLICE)
    ]
    return np.concatenate(parts).reshape(len(pairs), 2, len(DISTORTIONS), 2)


def _costs(frames: npt.NDArray[np.float32]) -> Values:
    before, now = frames
    dy, dx = np.gradient(now, axis=(1, 2))
    dt = now - before
    beside = np.square(np.diff(now, axis=2, append=now[:, :, -1:]))
    beside += np.square(np.diff(now, axis=1, append=now[:, -1:]))
    intra = _blocks(beside) / 2
    xx, yy, xy = _blocks(dx * dx) + 1, _blocks(dy * dy) + 1, _blocks(dx * dy)
    xt, yt = _blocks(dx * dt), _blocks(dy * dt)
    moved = (yy * xt * xt - 2 * xy * xt * yt + xx * yt * yt) / (xx * yy - xy * xy)
    inter = np.minimum(np.maximum(_blocks(dt * dt) - moved, 0), intra)
    bits = [
        [np.log2(1 + left / distortion).mean(axis=(1, 2)) / 2 for left in (intra, inter)]
        for distortion in DISTORTIONS
    ]
    return np.array(bits, dtype=np.float64).transpose(2, 0, 1)


def _blocks(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(N, H, W) to the means of blocks."""
    n, height, width = x.shape
    tiles = x.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    means: npt.NDArray[np.float32] = tiles.mean(axis=(2, 4))
    return means


def _cuts(pairs: Pairs, follows: npt.NDArray[np.bool_]) -> Values:
    """(N,) cuts inside each pair, and between it and the pair before where it `follows` that."""
    parts = [
        _blocks(pairs[i : i + _SLICE, :, 0].reshape(-1, *pairs.shape[3:]).astype(np.float32))
        for i in range(0, len(pairs), _SLICE)
    ]
    means = np.concatenate(parts).reshape(len(pairs), 2, -1)
    inside = _differ(means[:, 0], means[:, 1])
    between = np.append(False, _differ(means[:-1, 1], means[1:, 0])) & follows
    return inside.astype(np.float64) + between


def _differ(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    # the constant keeps noise of nearly flat pictures from counting
    apart: npt.NDArray[np.bool_] = np.square(a - b).mean(axis=1) > CUT * (
        a.var(axis=1) + b.var(axis=1) + 20
    )
    return apart


def _features(
    costs: Values,
    cuts: Values,
    at: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    length: int,
    gop: int,
) -> Values:
    """(windows, F) of which windows should have the title's means; the first orders the strata."""
    rows = []
    for start in starts:
        low, high = np.searchsorted(at, [start, start + length])
        intra, inter = np.moveaxis(costs[low:high].mean(axis=0), -1, 0)
        cut = cuts[low:high].sum()
        bits = (inter + KEY_WEIGHT * intra * (length / gop + cut) / length).ravel()
        middle = len(DISTORTIONS) // 2
        rows.append([bits[middle], *bits, *np.log(bits + 1e-3), *intra[:, middle], cut])
    return np.array(rows)


def _nearest(
    tilings: Sequence[npt.NDArray[np.int64]],
    features: Sequence[Values],
    parts: Sequence[npt.NDArray[np.int64]],
    count: int,
    rng: np.random.Generator,
) -> list[int]:
    """Ascending starts of the drawn set whose mean features come nearest to those of all.

    `parts` tells in which of `count` equal parts of the title each window lies.
    """
    weights = np.append(np.ones(features[0].shape[1]), np.full(count, SPREAD_WEIGHT))
    spaced = [np.hstack([f, np.eye(count)[p]]) for f, p in zip(features, parts, strict=True)]
    every = np.concatenate(spaced)
    mean, spread = every.mean(axis=0), every.std(axis=0) + 1e-6
    draws = max(1, min(DRAWS, 2_000_000 // count) // len(tilings))
    least, chosen = math.inf, tilings[0][:count]
    for starts, rows in zip(tilings, spaced, strict=True):
        order = np.argsort(rows[:, 0], kind="stable")
        edges = np.arange(count + 1) * len(starts) // count
        picks = order[(edges[:-1] + rng.random((draws, count)) * np.diff(edges)).astype(int)]
        total = np.zeros((draws, rows.shape[1]))
        for column in picks.T:
            total += rows[column]
        miss = np.square((total / count - mean) / spread) @ weights
        best = int(miss.argmin())
        if miss[best] < least:
            least, chosen = float(miss[best]), starts[picks[best]]
    return sorted(int(start) for start in chosen)
