"""What a title's pictures hold, from a few pairs of neighbouring frames: detail, motion, stillness
and about how many bits a codec spends on them.

Blocks are predicted from the frame before by a search for their motion, as an encoder does, and
what is left is transformed; where the block itself is cheaper it counts, as an intra block. The
few pairs are read at full size, since downscaling removes grain; of a long title by seeking, so
that its length costs nothing.
"""

import functools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from scipy.fft import dctn

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.errors import ToolError
from vqaloop.media.frames import any_of
from vqaloop.records import Source

PAIRS = 6
"""Pairs of frames that are looked at, evenly over the title."""
BLOCKS = 256
"""Blocks of a frame that are looked at, about, evenly over it."""
BLOCK = 16
"""Pixels a side of a block."""
REACH = 16
"""Pixels within which a block's motion is searched, for each REACH_WIDTH of the picture's."""
REACH_WIDTH = 640
QUANTISER = 16.0
"""Step of the quantiser for which bits are estimated."""
INTRA_SHARE = 0.04
"""Part of the pictures that are intra pictures."""
STILL = 2.0
"""Levels by which no pixel of a block that stands still is off its prediction."""
MOST_DECODED = 150e6
"""Pixels that are decoded, about; of a title with more, pairs are sought."""
TIMEOUT_S = 120.0
"""Wall seconds of a run of ffmpeg, far more than it needs."""

Plane = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Content:
    """What a title's pictures hold; logarithms are to base 2."""

    bits: float
    """Log of estimated bits a pixel, at QUANTISER."""
    detail: float
    """The same of intra pictures alone: texture, grain and edges."""
    motion: float
    """Log of the mean length of motion vectors, as a part of the picture's width."""
    still: float
    """Part of the blocks that their prediction gives exactly: screens, titles, flat areas."""

    def values(self) -> tuple[float, ...]:
        """Its numbers, in the order of the fields."""
        return astuple(self)


@functools.lru_cache(maxsize=64)
def content_of(source: Source, *, ffmpeg: str) -> Content | None:
    """What the pictures of a title hold, at the cost of about a second of CPU time.

    Args:
        source: The title.
        ffmpeg: The ffmpeg program.

    Returns:
        None of a title of one frame, or smaller than two blocks, or where no pair could be read.
    """
    if source.frames < 2 or min(source.canvas) < 2 * BLOCK:
        return None
    found = [_looked_at(before, now) for before, now in frame_pairs(source, ffmpeg)]
    if not found:
        return None
    inter, intra, motion, still = np.mean(found, axis=0).tolist()
    # the constants keep a black or a still picture finite
    return Content(
        math.log2(INTRA_SHARE * intra + (1 - INTRA_SHARE) * inter + 1e-3),
        math.log2(intra + 1e-3),
        math.log2(motion + 2e-3),
        still,
    )


def frame_pairs(source: Source, ffmpeg: str) -> Iterator[tuple[Plane, Plane]]:
    """Pairs of luma of neighbouring frames; those that cannot be read are passed over."""
    pixels = math.prod(source.canvas)
    at = np.unique(np.linspace(0, source.frames - 2, PAIRS).astype(int)).tolist()
    if source.frames * pixels <= MOST_DECODED:
        yield from _read(source, at, ffmpeg)
        return
    # frames behind the key frame that is sought: not the same of each GOP
    reach = MOST_DECODED / PAIRS / pixels
    for i, place in enumerate(at):
        yield from _read(source, [round(reach * i / PAIRS)], ffmpeg, sought=place)


def _read(
    source: Source, at: Sequence[int], ffmpeg: str, sought: int | None = None
) -> Iterator[tuple[Plane, Plane]]:
    """Pairs that begin with these frames, of one run of ffmpeg; counted from the key frame at or
    before the frame that is `sought`."""
    options: dict[str, object] = {**input_arguments(source.input_options)}
    name, skipped = "INPUT", 0
    if sought is not None and source.is_raw:
        # ffmpeg would read its way there; frames of one size give the offset
        name, skipped = "pipe:0", sought * (os.stat(source.path).st_size // source.frames)
    elif sought is not None:
        # half a frame on, since time stamps are rounded
        place = (sought + Fraction(1, 2)) / source.fps
        options |= {"ss": f"{float(place):.6f}", "noaccurate_seek": None}
    wanted = sorted({i for first in at for i in (first, first + 1)})
    chosen = any_of([f"eq(n,{i})" for i in wanted])
    graph = ffmpeg_graph.input(name, **options).output(
        "pipe:1",
        map="0:V:0",
        vf=",".join([*source.prep, f"select='{chosen}'", "format=gray"]),
        fps_mode="passthrough",
        f="rawvideo",
        **{"frames:v": len(wanted)},
    )
    width, height = source.canvas
    argv = compiled(graph, ffmpeg, {"INPUT": source.path})
    try:
        with open(source.path, "rb", buffering=0) as file:
            file.seek(skipped)
            done = process.run(
                argv,
                timeout_s=TIMEOUT_S,
                stdin=file,
                max_stdout=width * height * (len(wanted) + 1),
            )
    except (OSError, ToolError):
        return
    count = len(done.stdout) // (width * height)
    read = np.frombuffer(done.stdout, np.uint8, count * width * height)
    frames = read.reshape(count, height, width).astype(np.float32)
    planes = dict(zip(wanted, frames, strict=False))
    for first in at:
        if first + 1 in planes:
            yield planes[first], planes[first + 1]


@dataclass(frozen=True)
class Blocks:
    """Blocks of a frame, evenly over it, and their predictions from the frame before."""

    samples: Plane
    """(N, BLOCK, BLOCK)."""
    rests: Plane
    """(N, BLOCK, BLOCK) what is left of them when their predictions are taken away."""
    lengths: tuple[float, ...]
    """Of their motion vectors, in pixels."""


def blocks_of(before: Plane, now: Plane) -> Blocks:
    """About BLOCKS blocks of a frame, predicted from the one before."""
    height, width = now.shape
    # of a small picture its blocks, and none twice
    rows = min(max(1, round(math.sqrt(BLOCKS * height / width))), height // BLOCK)
    columns = min(max(1, BLOCKS // rows), width // BLOCK)
    tops = np.linspace(0, height - BLOCK, rows).astype(int)
    lefts = np.linspace(0, width - BLOCK, columns).astype(int)
    blocks, rests, lengths = [], [], []
    for top in tops.tolist():
        for left in lefts.tolist():
            block = now[top : top + BLOCK, left : left + BLOCK]
            rest, length = _moved(before, block, top, left)
            blocks.append(block)
            rests.append(rest)
            lengths.append(length)
    return Blocks(np.array(blocks), np.array(rests), tuple(lengths))


def _looked_at(before: Plane, now: Plane) -> tuple[float, float, float, float]:
    """Bits a pixel as inter and as intra picture, mean motion, and the part of blocks that are
    still."""
    found = blocks_of(before, now)
    intra = _bits(found.samples, without_mean=True)
    inter = np.minimum(_bits(found.rests), intra)
    still = np.abs(found.rests).max((1, 2)) < STILL
    return (
        float(inter.mean()),
        float(intra.mean()),
        float(np.mean(found.lengths)) / now.shape[1],
        float(still.mean()),
    )


def _moved(before: Plane, block: Plane, top: int, left: int) -> tuple[Plane, float]:
    """What is left of a block when the best match in the frame before is taken away, and how far
    that match is."""
    height, width = before.shape
    scale = max(1, round(width / REACH_WIDTH))
    reach, step = REACH * scale, 2 * scale
    first, begin = max(0, top - reach), max(0, left - reach)
    view = before[first : min(height, top + reach + BLOCK), begin : left + reach + BLOCK]
    windows = np.lib.stride_tricks.sliding_window_view(view, (BLOCK, BLOCK))
    # coarsely on every other pixel, then all around the best of these
    coarse = np.abs(windows[::step, ::step, ::2, ::2] - block[::2, ::2]).sum((2, 3))
    y, x = (int(i) * step for i in np.unravel_index(coarse.argmin(), coarse.shape))
    low_y, low_x = max(0, y - step + 1), max(0, x - step + 1)
    around = windows[low_y : y + step, low_x : x + step]
    fine = np.abs(around - block).sum((2, 3))
    i, j = np.unravel_index(fine.argmin(), fine.shape)
    y, x = low_y + int(i), low_x + int(j)
    # of equals the block's own place: flat areas do not move
    own = windows[top - first, left - begin]
    if np.abs(own - block).sum() <= fine[i, j] + 2 * BLOCK:
        return block - own, 0.0
    return block - windows[y, x], math.hypot(y + first - top, x + begin - left)


def _bits(blocks: Plane, without_mean: bool = False) -> npt.NDArray[np.float64]:
    """Estimated bits a pixel of each block of (N, BLOCK, BLOCK), as 8x8 transforms."""
    tiles = blocks.reshape(-1, BLOCK // 8, 8, BLOCK // 8, 8).swapaxes(2, 3)
    if without_mean:
        tiles = tiles - tiles.mean((-2, -1), keepdims=True)
    level = dctn(tiles, axes=(-2, -1), norm="ortho") / QUANTISER
    # of a Gaussian source
    bits = np.log2(1 + np.square(level)) / 2
    mean: npt.NDArray[np.float64] = bits.mean((1, 2, 3, 4), dtype=np.float64)
    return mean
