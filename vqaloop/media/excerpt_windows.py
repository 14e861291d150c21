"""Chooses the windows of a long title that make its excerpt, by stratified sampling of complexity.

Complexity is estimated from sparse pairs of downscaled luma frames, in no more than MOST_SAMPLED
windows' worth of the title, as an encoder's lookahead does: per block the smaller of intra and
motion-compensated residual (motion by least squares, Lucas & Kanade 1981), as the bits of a
Gaussian source, 1/2 log2(1 + variance / distortion); a scene cut costs one more intra picture.
Sets of windows are then drawn, one window from each stratum of equal count by that cost, and of
many sets the one is kept whose mean features come nearest to the title's.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.demux import main_video
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.text import quoted
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.media.container import opened
from vqaloop.media.excerpt import GOP_S
from vqaloop.media.frames import any_of
from vqaloop.records import Source

SECONDS, WINDOW_SECONDS = 20.0, 4.0
"""Duration of an excerpt, and of a window of it, about."""
MOST_SAMPLED = 64
"""Most windows' worth of a title in which frames are sampled, evenly spread where it is longer."""
AREA = 160 * 90
"""Pixels, about, of the two views of a frame: all of it downscaled, and its middle at full size,
since downscaling removes grain."""
BLOCK = 8
"""Pixels a side of a block that is predicted; sides of views are whole blocks."""
PAIR_STEPS = (2, 3, 7, 11, 13, 17, 23, 31, 43, 61, 83, 113, 151, 199)
"""Frames from one pair to the next; primes, not to fall in step with repeated frames (2:3)."""
LEAST_PAIRS_PER_S = 3.4
"""Pairs sampled in a second at the least, where there are so many frames."""

DISTORTIONS = (2.0, 20.0, 200.0)
"""Mean squared errors of encodes, from high to low quality."""
KEY_WEIGHT = 3.0
"""Bits of an intra picture over its estimate: it is coded finer than the pictures predicted from
it."""
CUT_THRESHOLD = 0.5
"""Squared difference of two frames' block means, as a part of their variances, above which there
is a scene cut between them; of unrelated pictures it is 1."""
SPREAD_WEIGHT = 0.03
"""Weight of an even spread of windows over the title's length, against 1 for each feature: it
decides between sets that match alike."""
DRAWS = 20_000
"""Sets of windows that are drawn, of which the best is kept."""

_BATCH = 128
"""Pairs processed at once, which bounds memory."""

Pairs = npt.NDArray[np.uint8]
"""(N, 2 frames, 2 views, H, W) grey."""
Values = npt.NDArray[np.float64]


def choose_windows(
    source: Source,
    *,
    ffmpeg: str,
    seconds: float = SECONDS,
    window_seconds: float = WINDOW_SECONDS,
    seed: int = 0,
) -> tuple[tuple[int, int], ...]:
    """Choose windows that represent a title in detail, motion and cuts, spread over its length.

    At most MOST_SAMPLED windows' worth is decoded, with what lies between each and the key frame
    before, and never more than the title once.

    Args:
        source: The title.
        ffmpeg: The ffmpeg program.
        seconds: Duration of all windows together, about; titles of no more than 1.25 times it
            become one window.
        window_seconds: Duration of a window, about; windows are whole numbers of GOPs.
        seed: The same seed gives the same windows.

    Returns:
        Start frame and number of frames of each window, ascending.

    Raises:
        InputError: A duration is not above 0.
        DecodeFailed: The title does not decode.
    """
    if not (0 < seconds < math.inf and 0 < window_seconds < math.inf):
        raise InputError(f"windows need durations above 0: {seconds = }, {window_seconds = }")
    count, length, gop = _shape(source, seconds, window_seconds)
    if count == 0:
        return ((0, source.frames),)
    rng = np.random.default_rng(seed)
    tilings, ranges = _tilings(source.frames, count, length, gop, rng)
    pair_step = max(
        step
        for step in PAIR_STEPS
        if step == PAIR_STEPS[0] or step * LEAST_PAIRS_PER_S <= source.fps
    )
    pairs = sample_pairs(source, ranges, pair_step, ffmpeg=ffmpeg)
    at = np.concatenate([start + np.arange(0, n - 1, pair_step) for start, n in ranges])
    costs, cuts = pair_costs(pairs), _cuts(pairs, np.diff(at, prepend=at[0]) == pair_step)
    features = [_features(costs, cuts, at, starts, length, gop) for starts in tilings]
    parts = [(starts + length // 2) * count // source.frames for starts in tilings]
    return tuple((start, length) for start in _nearest(tilings, features, parts, count, rng))


def excerpt_frames(
    source: Source, *, seconds: float = SECONDS, window_seconds: float = WINDOW_SECONDS
) -> int:
    """Frames of the windows that `choose_windows` would choose; nothing is decoded."""
    count, length, _ = _shape(source, seconds, window_seconds)
    return count * length or source.frames


def _shape(source: Source, seconds: float, window_seconds: float) -> tuple[int, int, int]:
    """How many windows there are, and frames of each and of a GOP; 0 where the title is one."""
    gop = round(GOP_S * source.fps)
    length = max(1, round(window_seconds / GOP_S)) * gop
    count = min(max(1, round(seconds * float(source.fps) / length)), source.frames // length)
    return 0 if source.duration_s <= 1.25 * seconds else count, length, gop


def _tilings(
    frames: int, count: int, length: int, gop: int, rng: np.random.Generator
) -> tuple[list[npt.NDArray[np.int64]], list[tuple[int, int]]]:
    """Starts of the candidate windows, as sets without overlap, and the ranges to sample."""
    sampled = max(MOST_SAMPLED, 2 * count)
    if frames <= sampled * length:
        ranges = [(0, frames)]
        # all windows end to end, and the same again some steps later
        spare = frames - count * length
        step = max(1, gop // 2)
        phase = int(rng.integers(min(step, spare + 1)))
        tilings = [
            np.arange(first, frames - length + 1, length)
            for first in range(phase, min(length, spare + 1), step)
        ]
    else:
        edges = [frames * part // sampled for part in range(sampled + 1)]
        rooms = np.diff(edges) - length + 1
        tilings = [np.array(edges[:-1]) + rng.integers(rooms)]
        ranges = [(int(start), length) for start in tilings[0]]
    return tilings, ranges


def sample_pairs(
    source: Source, ranges: Sequence[tuple[int, int]], step: int, *, ffmpeg: str
) -> Pairs:
    """Decode pairs of neighbouring frames, by seeking where that saves decoding.

    Args:
        source: The title.
        ranges: Start frame and number of frames, at least two, of each range; ascending. Where
            `prep` changes the rate, ranges that are sought are a few frames off.
        step: Frames from one pair to the next in a range.
        ffmpeg: The ffmpeg program.

    Returns:
        All pairs in order.

    Raises:
        DecodeFailed: The title does not decode.
    """
    if _seeking_pays(source, ranges):
        # fails where key frames are not where the index has them
        with contextlib.suppress(DecodeFailed):
            return np.concatenate([_read(source, [r], step, ffmpeg, sought=True) for r in ranges])
    return _read(source, ranges, step, ffmpeg)


def _seeking_pays(source: Source, ranges: Sequence[tuple[int, int]]) -> bool:
    # where the range changes inside the file, decoded samples depend on what was decoded before
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
    step: int,
    ffmpeg: str,
    *,
    sought: bool = False,
) -> Pairs:
    """The pairs of all ranges in one run of ffmpeg, or of a single one that is `sought`."""
    width, height = _view(source)
    wanted = sum(len(range(0, count - 1, step)) for _, count in ranges)
    options, name, skipped = input_arguments(source.input_options), "INPUT", 0
    if sought:
        start, count = ranges[0]
        ranges = [(0, count)]
        if source.is_raw:
            # ffmpeg would read its way there; frames of one size give the offset
            name, skipped = "pipe:0", start * (os.stat(source.path).st_size // source.frames)
        else:
            options["ss"] = f"{max(0.0, float((start - Fraction(1, 2)) / source.fps)):.6f}"
    inside = [
        f"between(n,{first},{first + (count - 2) // step * step + 1})*lt(mod(n-{first},{step}),2)"
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
        raise DecodeFailed(f"{quoted(source.path)} could not be sampled: {why}")
    return np.frombuffer(done.stdout, np.uint8).reshape(wanted, 2, 2, height, width)


def _view(source: Source) -> tuple[int, int]:
    """Width and height of a view: whole blocks, no larger than the picture."""
    scale = math.sqrt(AREA / (source.canvas[0] * source.canvas[1]))
    width, height = (
        max(1, min(round(side * scale), side) // BLOCK) * BLOCK for side in source.canvas
    )
    return width, height


def pair_costs(pairs: Pairs) -> Values:
    """Estimated bits per pixel of each pair's second frame, as intra and as inter picture.

    Args:
        pairs: (N, 2 frames, 2 views, H, W) grey.

    Returns:
        (N, 2 views, len(DISTORTIONS), 2: intra and inter).
    """
    flat = pairs.reshape(-1, *pairs.shape[1:]).swapaxes(0, 1).reshape(2, -1, *pairs.shape[3:])
    parts = [
        _costs(flat[:, i : i + _BATCH].astype(np.float32)) for i in range(0, flat.shape[1], _BATCH)
    ]
    return np.concatenate(parts).reshape(len(pairs), 2, len(DISTORTIONS), 2)


def _costs(frames: npt.NDArray[np.float32]) -> Values:
    before, now = frames
    # Lucas & Kanade: one displacement per block explains dt by the gradients, in least squares
    dy, dx = np.gradient(now, axis=(1, 2))
    dt = now - before
    # intra: what horizontal and vertical neighbours do not predict
    residual = np.square(np.diff(now, axis=2, append=now[:, :, -1:]))
    residual += np.square(np.diff(now, axis=1, append=now[:, -1:]))
    intra = _blocks(residual) / 2
    # plus one: flat blocks have no gradients to solve by
    xx, yy, xy = _blocks(dx * dx) + 1, _blocks(dy * dy) + 1, _blocks(dx * dy)
    xt, yt = _blocks(dx * dt), _blocks(dy * dt)
    moved = (yy * xt * xt - 2 * xy * xt * yt + xx * yt * yt) / (xx * yy - xy * xy)
    # an encoder chooses intra blocks in inter pictures where they are cheaper
    inter = np.minimum(np.maximum(_blocks(dt * dt) - moved, 0), intra)
    bits = [
        [np.log2(1 + left / distortion).mean(axis=(1, 2)) / 2 for left in (intra, inter)]
        for distortion in DISTORTIONS
    ]
    return np.array(bits, dtype=np.float64).transpose(2, 0, 1)


def _blocks(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Means of the blocks of (N, H, W)."""
    n, height, width = x.shape
    tiles = x.reshape(n, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    means: npt.NDArray[np.float32] = tiles.mean(axis=(2, 4))
    return means


def _cuts(pairs: Pairs, follows: npt.NDArray[np.bool_]) -> Values:
    """(N,) scene cuts inside each pair, and between it and the one before if it `follows` that."""
    parts = [
        _blocks(pairs[i : i + _BATCH, :, 0].reshape(-1, *pairs.shape[3:]).astype(np.float32))
        for i in range(0, len(pairs), _BATCH)
    ]
    means = np.concatenate(parts).reshape(len(pairs), 2, -1)
    inside = _is_cut(means[:, 0], means[:, 1])
    between = np.append(False, _is_cut(means[:-1, 1], means[1:, 0])) & follows
    return inside.astype(np.float64) + between


def _is_cut(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    # the constant keeps noise of nearly flat pictures from counting
    apart: npt.NDArray[np.bool_] = np.square(a - b).mean(axis=1) > CUT_THRESHOLD * (
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
    """(windows, F): features whose means over windows should be the title's.

    The first orders the strata.
    """
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
    """Ascending starts of the drawn set whose mean features come nearest to those of all windows.

    `parts` is the index of each window among `count` equal parts of the title.
    """
    weights = np.append(np.ones(features[0].shape[1]), np.full(count, SPREAD_WEIGHT))
    spaced = [np.hstack([f, np.eye(count)[p]]) for f, p in zip(features, parts, strict=True)]
    every = np.concatenate(spaced)
    mean, spread = every.mean(axis=0), every.std(axis=0) + 1e-6
    # memory: draws times windows stays below two million
    draws = max(1, min(DRAWS, 2_000_000 // count) // len(tilings))
    least, chosen = math.inf, tilings[0][:count]
    # windows of one tiling do not overlap, those of two may
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
