"""Probing an input: what it is, and what brings it to the form the loop works on.

What leaves here is a constant-rate, progressive, upright, square-pixel view of the file, described
by `Source.input_options` and `Source.prep`; what cannot be brought to that is refused with one
message. Headers are checked against the limits and against the file's size before anything is
allocated for them.
"""

import os
import re
import stat
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av

from vqaloop.bitstream.colour_tags import as_stored
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.text import counted, quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.container import (
    LOSSLESS,
    DecodedFacts,
    VideoStream,
    deliver,
    dolby_vision,
    pixel_shapes,
    read_stream,
)
from vqaloop.media.frame_properties import FrameLog, normalise, refuse_change
from vqaloop.media.framerate import (
    Regrid,
    best_regrid,
    follows,
    mean_rate,
    parse_rate,
    regrid,
    regular_rate,
)
from vqaloop.media.limits import check_rate, check_size
from vqaloop.media.picture_data import source_notes
from vqaloop.media.rawvideo import Y4M_MAGIC, count_raw_frames, count_y4m_frames
from vqaloop.records import REUSE, Source

_LATE_START = 0.25
"""Frames by which the first picture may lag the container's start without being moved."""

_SQUARE_TOLERANCE = Fraction(1, 100)
"""Less than this from square is left by rounding when somebody scaled; real ones start at 6 %."""


def probe_source(
    path: str | os.PathLike[str],
    *,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    ffmpeg: str | None = None,
) -> Source:
    """Describe an input as the loop sees it: constant rate, progressive, upright, square pixels.

    `video_size` ("1920x1080") and `pix_fmt` describe raw video and go together with `framerate`
    (frames a second, "30000/1001" or "29.97"). To all else `framerate` is the constant rate that
    it is brought to, in place of the one that its time stamps suggest. HDR (PQ, HLG, Dolby Vision)
    needs `allow_hdr`. The whole file is read once, and unless it is raw, decoded once. Raises
    InputError with a message that names the file, what is wrong with it and what to do.
    """
    source_path = Path(path)
    head = read_head(source_path)
    name = quoted(path)
    if video_size or pix_fmt:
        if not (video_size and pix_fmt and framerate):
            raise InputError(
                f"{name}: raw video needs all of --video-size, --pix-fmt and --framerate, and "
                "other files at most --framerate"
            )
        return _probe_raw(source_path, video_size, pix_fmt, framerate)
    if source_path.suffix.lower() in (".avs2", ".avs") or head.startswith(b"\0\0\1\xb0"):
        raise InputError(
            f"{name} is a raw AVS2 stream, which carries no frame rate; decode it first: "
            "`ffmpeg -r RATE -i INPUT OUTPUT.y4m`"
        )
    expected = None
    if head.startswith(Y4M_MAGIC):
        expected = count_y4m_frames(source_path)
    elif source_path.suffix.lower() == ".yuv":
        raise InputError(
            f"{name} is raw video, which does not tell its own format; give --video-size, "
            "--pix-fmt and --framerate, such as --video-size 1920x1080 --pix-fmt yuv420p "
            "--framerate 25"
        )
    rate = parse_rate(framerate) if framerate else None
    return _probe_container(source_path, expected, rate, allow_hdr, ffmpeg_path(ffmpeg))


def read_head(path: Path) -> bytes:
    """First bytes of a readable, regular, non-empty file; InputError otherwise."""
    name = quoted(path)
    head = b""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                head = file.read(16)
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; check the path") from error
    except PermissionError as error:
        raise InputError(f"no permission to read {name}; check its mode and owner") from error
    except OSError as error:
        raise InputError(f"cannot open {name}: {error.strerror}; check the path") from error
    except ValueError as error:
        raise InputError(f"{name} cannot be a file name: {error}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{name} is a folder; name one video file in it")
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{name} is a pipe or device, and the input is read more than once; "
            "save it to a file first"
        )
    if not head:
        raise InputError(f"{name} is empty (0 bytes); make or copy it again")
    return head


def _probe_raw(path: Path, video_size: str, pix_fmt: str, framerate: str) -> Source:
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", video_size)
    if not match:
        raise InputError(f"--video-size {video_size!r} is not a size; write it as 1920x1080")
    width, height, fps = int(match[1]), int(match[2]), parse_rate(framerate)
    check_size(f"--video-size for {quoted(path)}", width, height)
    frames = count_raw_frames(path, pix_fmt, width, height)
    bit_depth, notes = _sample_format(pix_fmt)
    # the old names of full-range formats are the one thing by which raw samples tell their range
    told = (("color_range", "pc"),) if pix_fmt.startswith("yuvj") else ()
    stored, colour, colour_notes = as_stored(
        av.VideoFormat(pix_fmt, 64, 64), (width, height), bit_depth, told
    )
    crop, crop_notes = _even_crop(width, height)
    return Source(
        path=path,
        sha256=file_sha256(path),
        width=width,
        height=height,
        fps=fps,
        frames=frames,
        pix_fmt=pix_fmt,
        bit_depth=bit_depth,
        input_options=(
            ("f", "rawvideo"),
            ("video_size", f"{width}x{height}"),
            ("pixel_format", pix_fmt),
            ("framerate", f"{fps.numerator}/{fps.denominator}"),
        ),
        prep=(*stored, *crop),
        colour=colour,
        notes=(*notes, *colour_notes, *crop_notes),
    )


def _probe_container(
    path: Path, expected: int | None, rate: Fraction | None, allow_hdr: bool, ffmpeg: str
) -> Source:
    """`expected` is the number of frames where it is known without decoding, `rate` the asked."""
    name = quoted(path)
    stream = read_stream(path)
    notes = []
    if stream.alpha:
        notes.append("Transparency is dropped.")
    profile = dolby_vision(path, stream.codec, ffmpeg)
    hdr = f"Dolby Vision profile {profile}" if profile else stream.hdr and f"{stream.hdr} transfer"
    if hdr:
        if not allow_hdr:
            raise InputError(
                f"{name} is HDR ({hdr}): VMAF, PSNR and the student were made for "
                "SDR, and their scores do not hold there; tone-map it first, or give --allow-hdr "
                "to go on all the same"
            )
        notes.append(f"HDR ({hdr}); scores of SDR metrics are no more than a hint.")
    if profile:
        notes.append(
            "The Dolby Vision metadata is dropped, without which players show wrong colours: its "
            "base layer is made for no other display."
        )
    log = FrameLog()
    try:
        seen = deliver(path, (), ffmpeg, log)
    except InputError:
        if log.changed_to:
            refuse_change(name, f"changes to {log.changed_to}", log.frames, log.last_s)
        raise
    if not log.runs:
        raise ToolError(
            f"{ffmpeg} does not describe the frames of {name}: its showinfo filter writes what is "
            "not understood here; name another with --ffmpeg"
        )
    alike = normalise(
        name,
        log,
        rotated=stream.turned is not None,
        interlaced=bool(seen.interlaced or stream.field_order),
    )
    if alike.filters:
        of_all = alike.properties
        stream = replace(stream, pix_fmt=of_all.pix_fmt, colour=of_all.colour())
        seen = replace(seen, width=of_all.width, height=of_all.height, sar=of_all.sar)
    bit_depth, format_notes = _sample_format(stream.pix_fmt)
    notes += [*format_notes, *alike.notes, *_overruled(path, seen)]
    if seen.complaint:
        notes.append(f"ffmpeg said while decoding: {seen.complaint[:200]}")
    if expected is not None and len(seen.times_s) != expected:
        raise InputError(
            f"{name} has {expected} frames and {len(seen.times_s)} of them decode; {LOSSLESS}"
        )
    notes += source_notes(path)
    if stream.turned:
        notes.append(f"{stream.turned}; turned upright.")
    fps, way, temporal, timing_notes = _timing(stream, seen, rate, name)
    width, height, spatial, size_notes = _square(seen)
    check_size(name, width, height)
    check_rate(name, fps)
    stored, colour, colour_notes = as_stored(
        av.VideoFormat(stream.pix_fmt, 64, 64), (width, height), bit_depth, stream.colour
    )
    first = (*alike.filters, *stored)
    delivered = deliver(path, (*alike.filters, *temporal), ffmpeg) if temporal else seen
    if way:
        timing_notes.append(_rate_note(way, seen, len(delivered.times_s), rate))
    return Source(
        path=path,
        sha256=file_sha256(path),
        width=width,
        height=height,
        fps=fps,
        frames=len(delivered.times_s),
        pix_fmt=stream.pix_fmt,
        bit_depth=bit_depth,
        input_options=(REUSE,) if alike.filters else (),
        prep=(*first, *temporal, *spatial),
        colour=colour,
        hdr=hdr is not None,
        notes=(*notes, *timing_notes, *colour_notes, *size_notes),
    )


def _overruled(path: Path, seen: DecodedFacts) -> tuple[str, ...]:
    """A note where the pixel shape changes in the stream, which ffmpeg does not follow."""
    shapes = pixel_shapes(path)
    if len(shapes) < 2:
        return ()
    told = ", ".join(dict.fromkeys(f"{s.numerator}:{s.denominator}" for _, s in shapes))
    return (
        f"The pixel shape changes inside the stream ({told}; first at {shapes[1][0]:.3f} s); "
        f"{seen.sar.numerator}:{seen.sar.denominator}, which the container or its first frame "
        "tells, holds for all.",
    )


def _timing(
    stream: VideoStream, seen: DecodedFacts, rate: Fraction | None, name: str
) -> tuple[Fraction, Regrid | None, list[str], list[str]]:
    """Frame rate, how the frames come to it if they do not follow it, the filters that make it
    constant and progressive, and the notes on them."""
    mean = mean_rate(seen.times_s)
    if not mean:
        raise InputError(f"{name} has frames whose times do not advance; {LOSSLESS}")
    # a frame an hour would ask for thousands of repeated frames
    check_rate(name, Fraction(mean))
    prep, notes = _progressive(stream, seen)
    times_s, tick_s, way = seen.times_s, seen.tick_s, None
    fps = rate or regular_rate(times_s, tick_s, stream.rates)
    if fps is None or not follows(times_s, tick_s, fps):
        moved_s = times_s - times_s[0]
        way = regrid(moved_s, fps) if fps else best_regrid(moved_s, tick_s, stream.rates)
        fps = way.fps
    late = float(times_s[0]) > _LATE_START / float(fps)
    if late:
        notes.append(f"Video starts {float(times_s[0]):.3f} s late; moved to the start.")
    if late or (way and times_s[0]):
        prep.append("setpts=PTS-STARTPTS")
    if way:
        prep += way.filters
    elif late:
        prep.append(f"fps={fps.numerator}/{fps.denominator}")
    return fps, way, prep, notes


def _rate_note(way: Regrid, seen: DecodedFacts, made: int, rate: Fraction | None) -> str:
    """What became of the frames; `rate` is the asked one."""
    frames, mean = len(seen.times_s), mean_rate(seen.times_s)
    repeated = counted(made - frames + way.lost, "frame")
    dropped = f", {way.lost} dropped" if way.lost else ", none dropped"
    what = "Frame rate as asked" if rate else "Variable frame rate"
    return (
        f"{what} ({mean:.3f} on average); brought to {float(way.fps):.6g} a second: "
        f"{repeated} repeated{dropped}."
    )


def _progressive(stream: VideoStream, seen: DecodedFacts) -> tuple[list[str], list[str]]:
    """The filter that deinterlaces, with its note; neither where no frame needs it."""
    frames, flagged = len(seen.times_s), seen.interlaced
    if flagged == frames or (not flagged and stream.field_order):
        # bwdif takes frames that are not flagged themselves for top field first
        unflagged = not flagged and stream.field_order == "bff"
        return (
            ["bwdif=mode=send_frame" + (":parity=bff" if unflagged else "")],
            ["Interlaced; deinterlaced with bwdif, one frame for each pair of fields."],
        )
    if not flagged:
        return [], []
    return ["bwdif=mode=send_frame:deint=interlaced"], [
        f"{flagged} of {frames} frames are interlaced; those are deinterlaced with bwdif, one "
        "frame for each pair of fields."
    ]


def _square(seen: DecodedFacts) -> tuple[int, int, tuple[str, ...], tuple[str, ...]]:
    """Displayed size, and the filters that make pixels square or sides even, with their notes."""
    shape = f"Pixels are {seen.sar.numerator}:{seen.sar.denominator}"
    if abs(seen.sar - 1) < _SQUARE_TOLERANCE:
        crop, notes = _even_crop(seen.width, seen.height)
        if seen.sar != 1:
            crop, notes = (*crop, "setsar=1"), (f"{shape}; taken as square.", *notes)
        return seen.width, seen.height, crop, notes
    # widened or heightened, never reduced: no line of the original is thrown away
    width = round(seen.width * max(seen.sar, Fraction(1)))
    height = round(seen.height / min(seen.sar, Fraction(1)))
    width, height = width + width % 2, height + height % 2
    note = f"{shape}; scaled from {seen.width}x{seen.height} to {width}x{height} square ones."
    return width, height, (f"scale={width}:{height}:flags=lanczos", "setsar=1"), (note,)


def _even_crop(width: int, height: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The filter that makes sides even, with its note; neither where they are."""
    if width % 2 == height % 2 == 0:
        return (), ()
    crop = width // 2 * 2, height // 2 * 2
    note = f"Cropped from {width}x{height} to {crop[0]}x{crop[1]}, since 4:2:0 needs even sides."
    return (f"crop={crop[0]}:{crop[1]}:0:0",), (note,)


def _sample_format(pix_fmt: str) -> tuple[int, tuple[str, ...]]:
    """Bits a sample that encodes are made from (8 or 10), and what is lost on the way there."""
    layout = av.VideoFormat(pix_fmt, 64, 64)
    deepest = max((c.bits for c in layout.components), default=8)
    notes = []
    if deepest > 8 and deepest != 10:
        notes.append(f"Samples have {deepest} bits; they are delivered with 10.")
    if any(c.is_alpha for c in layout.components):
        notes.append("Transparency is dropped.")
    visible = [c for c in layout.components if not c.is_alpha]
    if layout.is_rgb or layout.has_palette:
        notes.append("RGB is delivered as YUV 4:2:0.")
    elif len(visible) < 3:
        notes.append("Grey is delivered as YUV 4:2:0.")
    elif (visible[1].width, visible[1].height) != (32, 32):
        notes.append(f"Chroma of {pix_fmt} is delivered as 4:2:0.")
    return (10 if deepest > 8 else 8), tuple(notes)
