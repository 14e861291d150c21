"""Faults of an encoded file: whether it decodes, and which of its frames are missing.

Decoding is always done by one trusted ffmpeg, never by the build under test.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqaloop.bitstream.coded_frames import Bitstream, is_cut_mp4, read_bitstream
from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.files import scratch
from vqaloop.core.text import quoted
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import ToolError, VqaloopError

THUMB = (32, 18)
"""Width and height of the small grey pictures by which frames are matched."""
_REORDER = 16
"""Frames that any codec here may hold back: near a cut, so many before it may be gone too."""
_NEAR = 8
"""A gap is accepted where moving it by up to so many frames either way adds at least ..."""
_CLEAR = 0.3
"""... this share of the mean coding error, ..."""
_LEAST = 0.2
"""... and at least so many grey levels."""


class BuildFailed(VqaloopError):
    """A build failed at one run. `kind` is one of:

    crash (signal or exit status), hang (time limit), no-output, undecodable (cannot be parsed, or
    the decoder complains), truncated (ends early), frame-count (decodes to another number).
    """

    def __init__(self, kind: str, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.kind, self.status = kind, status
        """`status` is the exit status of a program that gave up by itself, else 0."""


@dataclass(frozen=True)
class Decoded:
    """What decoding a whole file gave."""

    frames: int
    md5: str
    """Over the samples of all frames, planar, as `ffmpeg -i FILE -f md5 -` prints it."""
    complaint: str
    """The decoder's first complaint; empty when it had none."""
    hung: bool
    """True when it was stopped at its time limit, as libdavs2 must be at some cut streams."""


def decode_md5(path: Path, spec: EncoderSpec, *, ffmpeg: str, frames: int) -> str:
    """MD5 over all decoded frames (planar, 8 or 10 bits a sample); `frames` is their right number.

    Raises BuildFailed of the kind truncated, undecodable or frame-count.
    """
    stream = parse(path, spec)
    decoded = decode(path, stream, ffmpeg=ffmpeg, frames=frames)
    if decoded.frames == frames and not decoded.complaint:
        return decoded.md5
    raise _failure(path, stream, decoded, frames, None, ffmpeg)


def parse(path: Path, spec: EncoderSpec) -> Bitstream:
    """The file's coded frames; BuildFailed truncated or undecodable where they cannot be read."""
    try:
        return read_bitstream(path, spec.codec)
    except ToolError as error:
        why = str(error).removeprefix(f"{quoted(path)} ")
        if is_cut_mp4(path):
            raise BuildFailed("truncated", f"the file ends early: it {why}") from error
        raise BuildFailed("undecodable", f"the file {why}") from error


def check_count(
    path: Path, stream: Bitstream, original: Path, frames: int, *, ffmpeg: str
) -> None:
    """Raise BuildFailed unless the file is whole and decodes to `frames` frames.

    Decodes it only where its packets leave a doubt. `original` is what was encoded; by it the
    missing frames are named.
    """
    if stream.frames == frames and not stream.cut:
        return
    decoded = decode(path, stream, ffmpeg=ffmpeg, frames=frames)
    if decoded.frames == frames and not decoded.complaint and not stream.cut:
        return  # an encoder may hand out a hidden frame as a packet of its own
    missing = None
    if 0 < decoded.frames < frames and not decoded.hung:
        missing = missing_frames(original, path, ffmpeg=ffmpeg, frames=frames)
    raise _failure(path, stream, decoded, frames, missing, ffmpeg)


def _failure(
    path: Path,
    stream: Bitstream,
    decoded: Decoded,
    frames: int,
    missing: tuple[int, ...] | None,
    ffmpeg: str,
) -> BuildFailed:
    """The failure with its kind; `missing`: indices of the missing frames, where known."""
    why = f"; the decoder says: {decoded.complaint}" if decoded.complaint else ""
    count = decoded.frames
    counts = f"{count} frames, not {frames}" if count > frames else f"{count} of {frames} frames"
    if missing:
        counts += f", missing {_ranges(missing)} (counted from 0)"
    tail = missing and missing[-1] == frames - 1 and missing[0] >= frames - len(missing) - _REORDER
    # one frame short, and sound: that the encoder lost it is likelier than a cut just there
    lost = missing and len(missing) == 1 and not decoded.complaint
    if stream.cut or (tail and not lost):
        return BuildFailed("truncated", f"the stream ends early: {counts}{why}")
    if count and (missing or not decoded.complaint):
        return BuildFailed("frame-count", f"the stream decodes to {counts}{why}")
    if _whole_but_for_the_last(path, stream, ffmpeg):
        return BuildFailed("truncated", f"the stream ends early, inside a frame: {counts}{why}")
    return BuildFailed("undecodable", f"the stream does not decode: {counts}{why}")


def _ranges(indices: tuple[int, ...]) -> str:
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1] = [runs[-1][0], index]
        else:
            runs.append([index])
    shown = [" to ".join(map(str, run)) for run in runs[:8]]
    return ", ".join(shown) + (" and more" if len(runs) > 8 else "")


def _whole_but_for_the_last(path: Path, stream: Bitstream, ffmpeg: str) -> bool:
    """Whether a raw stream decodes without complaint once its last coded frame is taken away."""
    if not stream.last_at:
        return False
    with scratch(path.parent) as folder:
        part = Path(folder) / f"part{path.suffix}"
        with path.open("rb") as whole, part.open("wb") as file:
            shutil.copyfileobj(whole, file)
            file.truncate(stream.last_at)
        decoded = decode(part, stream, ffmpeg=ffmpeg, frames=stream.frames)
    return decoded.frames > 0 and not decoded.complaint


def decode(path: Path, stream: Bitstream, *, ffmpeg: str, frames: int) -> Decoded:
    """Decode all of a file; `frames`, the expected number, only sets the time limit."""
    source = ffmpeg_graph.input("INPUT")["v:0"]
    whole = source.output("pipe:1", f="md5", fps_mode="passthrough")
    each = source.output("pipe:1", f="framecrc", fps_mode="passthrough", **{"c:v": "rawvideo"})
    argv = compiled(ffmpeg_graph.merge_outputs(whole, each), ffmpeg, {"INPUT": path})
    megapixels = stream.size[0] * stream.size[1] / 1e6
    # far slower than any machine decodes, however busy
    limit_s = 10 + frames * (0.2 + 0.4 * megapixels)
    done = process.run(argv, timeout_s=limit_s, again=False)
    text = done.stdout.decode("ascii", "replace")
    count = len(re.findall(r"^0, ", text, re.MULTILINE))
    md5 = re.search(r"^MD5=(\w{32})$", text, re.MULTILINE)
    words = (re.sub(r" @ 0x[0-9a-f]+|\x1b\[[\d;]*m", "", s) for s in done.stderr.splitlines())
    # libdavs2 prints its version whatever the log level
    lines = [line.strip()[:300] for line in words if line.strip() and "[davs2 info]" not in line]
    complaint = lines[0] if lines else done.reason() if done.returncode or not md5 else ""
    return Decoded(count, md5[1] if md5 else "", complaint, done.timed_out)


def missing_frames(
    original: Path, path: Path, *, ffmpeg: str, frames: int
) -> tuple[int, ...] | None:
    """Which frames of `original` the shorter `path` lacks, by the pictures; None if ambiguous.

    Frames keep their order, so this is the monotone alignment of least total difference, by
    dynamic programming. Ambiguous where the picture stands still, or is coded so coarsely that
    neighbouring frames do not differ.
    """
    have = _thumbnails(path, ffmpeg, frames)
    wanted = _thumbnails(original, ffmpeg, frames)
    gap = len(wanted) - len(have)
    if gap <= 0 or not len(have):
        return None
    # cost[j, s]: frame j of the encode taken for frame j + s of the original
    cost = np.stack(
        [np.abs(have - wanted[s : s + len(have)]).mean(axis=1) for s in range(gap + 1)], axis=1
    )
    shifts = _least_path(cost)
    margin = max(_LEAST, _CLEAR * float(cost[np.arange(len(have)), shifts].mean()))
    # before the first frame and after the last one stand the ends of the original
    steps = [0, *shifts, gap]
    for at in range(len(have) + 1):
        before, after = steps[at], steps[at + 1]
        dearer = cost[:, after] - cost[:, before]
        earlier = np.cumsum(dearer[max(0, at - _NEAR) : at][::-1])
        later = np.cumsum(-dearer[at : at + _NEAR])
        if before != after and min([*earlier, *later]) < margin:
            return None
    kept = {at + shift for at, shift in enumerate(shifts)}
    return tuple(index for index in range(len(wanted)) if index not in kept)


def _least_path(cost: npt.NDArray[np.float32]) -> list[int]:
    """The column of each row, never falling, of least sum; the leftmost of equals."""
    total = cost[0]
    came = []
    for row in cost[1:]:
        least = np.minimum.accumulate(total)
        # where the running minimum fell last
        falls = np.r_[True, total[1:] < least[:-1]]
        came.append(np.maximum.accumulate(np.where(falls, np.arange(len(total)), 0)))
        total = least + row
    path = [int(np.argmin(total))]
    for places in reversed(came):
        path.append(int(places[path[-1]]))
    return path[::-1]


def _thumbnails(path: Path, ffmpeg: str, frames: int) -> npt.NDArray[np.float32]:
    """Small grey pictures of all frames: (N, pixels), 0..255."""
    width, height = THUMB
    vf = f"scale={width}:{height}:flags=area,format=gray"
    graph = ffmpeg_graph.input("INPUT").output(
        "pipe:1", map="0:V:0", vf=vf, f="rawvideo", fps_mode="passthrough"
    )
    argv = compiled(graph, ffmpeg, {"INPUT": path})
    done = process.run(argv, timeout_s=120 + 2.0 * frames)
    pixels = np.frombuffer(done.stdout, np.uint8)
    whole = len(pixels) // (width * height) * width * height
    return pixels[:whole].reshape(-1, width * height).astype(np.float32)
