"""Probes an input: its properties, and the filters that bring it to the form the loop works on.

A `Source` is a constant-rate, progressive, upright, square-pixel view of the file, described by
`Source.input_options` and `Source.prep`; what cannot be brought to that is refused with one
message. Headers are checked against the limits and against the file's size before anything is
allocated for them.
"""

import os
import re
import stat
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av

from vqaloop.bitstream.avs2 import has_avs2_name, starts_as_avs2
from vqaloop.bitstream.colour_tags import HDR_DEPTH, HDR_TRANSFERS, to_ycbcr
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.text import counted, quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.container import (
    LOSSLESS,
    DecodedVideo,
    StreamHeader,
    decode_all,
    dolby_vision,
    pixel_shapes,
    read_stream,
)
from vqaloop.media.frame_properties import FrameLog, Normalised, normalise, refuse_change
from vqaloop.media.framerate import (
    Regrid,
    best_regrid,
    follows,
    mean_rate,
    parse_rate,
    regrid,
    regular_rate,
    snapped,
)
from vqaloop.media.hdr import HdrUse, check_hdr, completed, dropped, tone_mapped
from vqaloop.media.limits import check_rate, check_size
from vqaloop.media.picture_data import source_notes
from vqaloop.media.rawvideo import Y4M_MAGIC, count_raw_frames, count_y4m_frames
from vqaloop.media.telecine import (
    LEAST_SHARE,
    Deinterlacing,
    inverse_telecine,
    is_ntsc,
    share_note,
    soft_telecine,
    telecined_share,
)
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
    hdr: HdrUse | None = None,
    deinterlace: str = "auto",
    ffmpeg: str | None = None,
) -> Source:
    """Describe an input as the loop sees it: constant rate, progressive, upright, square pixels.

    The whole file is read once, and unless it is raw, decoded once; twice where filters change
    its frames in time, and once more where it may be telecined.

    Args:
        path: A video file: y4m, mp4, mov, mkv, webm or raw.
        video_size: Of raw video, width and height in pixels: "1920x1080".
        pix_fmt: Of raw video, ffmpeg's name of the pixel format.
        framerate: In fps, "30000/1001" or "29.97". Of raw video, its rate; of others, the constant
            rate that they are brought to in place of the one that their time stamps suggest.
        allow_hdr: Take HDR (PQ, HLG, Dolby Vision), whatever scores it.
        hdr: What is done with HDR; None: no metric is made for it, dynamic metadata are dropped.
        deinterlace: auto, frames, fields or telecine: what is made of interlaced video.
        ffmpeg: The ffmpeg program, None for the one that is installed.

    Returns:
        The source, with notes on all that is changed or lost.

    Raises:
        InputError: The file cannot be read or is not taken; the message names it, what is wrong
            and what to do.
        ToolError: The ffmpeg program does not do what is needed.
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
        if deinterlace != "auto":
            raise InputError(
                f"{name}: raw video is taken for progressive; leave out --deinterlace, or "
                "deinterlace it first: `ffmpeg ... -vf bwdif -c:v ffv1 OUTPUT.mkv`"
            )
        return _probe_raw(source_path, video_size, pix_fmt, framerate)
    if has_avs2_name(source_path) or starts_as_avs2(head):
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
    wanted = _Wanted(rate, allow_hdr, hdr or HdrUse(), deinterlace)
    return _probe_container(source_path, expected, wanted, ffmpeg_path(ffmpeg))


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file.

    Args:
        path: The file.

    Returns:
        At most 16 bytes.

    Raises:
        InputError: It is no regular file, cannot be read, or is empty.
    """
    name = quoted(path)
    head = b""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                head = file.read(16)
    except FileNotFoundError as error:
        raise InputError(_absent(path)) from error
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


def _absent(path: Path) -> str:
    """Why there is no such file, where its name tells that."""
    # a Path has one slash where the URL had two
    if url := re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", os.fspath(path)):
        address = quoted(f"{url[1]}://{url[2]}")
        return (
            f"{address} is a URL, and the input is a file that is read more than once; download "
            "it first, and name the file"
        )
    if os.fspath(path) == "-":
        return (
            "'-' would be standard input, and the input is read more than once; save it to a "
            "file first, and name that"
        )
    return f"{quoted(path)} does not exist; check the path"


def _probe_raw(path: Path, video_size: str, pix_fmt: str, framerate: str) -> Source:
    match = re.fullmatch(r"([0-9]{1,9})x([0-9]{1,9})", video_size)
    if not match:
        raise InputError(f"--video-size {video_size!r} is not a size; write it as 1920x1080")
    width, height, fps = int(match[1]), int(match[2]), parse_rate(framerate)
    check_size(f"--video-size for {quoted(path)}", width, height)
    frames = count_raw_frames(path, pix_fmt, width, height)
    layout = av.VideoFormat(pix_fmt, 64, 64)
    bit_depth, notes = _sample_format(layout, pix_fmt)
    # raw samples have no tags but the old names of full-range formats
    tags = (("color_range", "pc"),) if pix_fmt.startswith("yuvj") else ()
    ycbcr, colour, colour_notes = to_ycbcr(layout, (width, height), bit_depth, tags)
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
        prep=(*ycbcr, *crop),
        colour=colour,
        notes=(*notes, *colour_notes, *crop_notes),
    )


@dataclass(frozen=True)
class _Decoded:
    """A source's video as decoded, and the filters that make all its frames alike."""

    header: StreamHeader
    video: DecodedVideo
    same: Normalised

    @property
    def layout(self) -> av.VideoFormat:
        return av.VideoFormat(self.header.pix_fmt, 64, 64)


@dataclass(frozen=True)
class _Wanted:
    """How a file with a container is to be read."""

    rate: Fraction | None
    """The requested frame rate."""
    allow_hdr: bool
    hdr: HdrUse
    deinterlace: str = "auto"


def _probe_container(path: Path, packets: int | None, wanted: _Wanted, ffmpeg: str) -> Source:
    """`packets` is the number of frames where the container has it."""
    name, rate, use = quoted(path), wanted.rate, wanted.hdr
    header = read_stream(path)
    vision = dolby_vision(path, header.codec, ffmpeg)
    hdr_notes = check_hdr(path, header.hdr, vision, wanted.allow_hdr, use)
    decoded, dynamic = _decode(path, header, ffmpeg)
    if vision:
        # frames do not say which profile
        dynamic = [
            f"Dolby Vision profile {vision[0]}",
            *(d for d in dynamic if d != "Dolby Vision"),
        ]
    cleaned, drop_notes = dropped(path, dynamic, use)
    bit_depth, notes = _describe(path, decoded, packets)
    undo = _progressive(path, decoded, wanted.deinterlace, ffmpeg)
    timing = _timing(decoded, rate, undo, name)
    width, height, to_square, size_notes = _square(decoded.video)
    check_size(name, width, height)
    check_rate(name, timing.fps)
    whole, colour, whole_notes = completed(decoded.header.colour, decoded.layout.is_rgb)
    ycbcr, colour, colour_notes = to_ycbcr(decoded.layout, (width, height), bit_depth, colour)
    frames, rate_notes = _count_frames(path, decoded, timing, rate, ffmpeg)
    kind = HDR_TRANSFERS.get(dict(colour).get("color_trc", ""))
    is_hdr = bool(kind or (vision and not vision[1]))
    mapped, depth_notes = None, tuple[str, ...]()
    if use.tonemap and kind:
        mapped = tone_mapped(kind, colour, header.static_hdr)
        is_hdr, bit_depth, colour = False, 8, mapped.colour
    elif kind and bit_depth < HDR_DEPTH:
        depth_notes = (f"Samples have {bit_depth} bits; HDR is delivered with {HDR_DEPTH}.",)
    return Source(
        path=path,
        sha256=file_sha256(path),
        width=width,
        height=height,
        fps=timing.fps,
        frames=frames,
        pix_fmt=decoded.header.pix_fmt,
        bit_depth=bit_depth,
        input_options=(REUSE,) if decoded.same.filters else (),
        prep=(
            *decoded.same.filters,
            *cleaned,
            *whole,
            *ycbcr,
            *timing.filters,
            *to_square,
            # last: it takes even sides alone
            *(mapped.filters if mapped else ()),
        ),
        colour=colour,
        hdr=is_hdr,
        static_hdr=header.static_hdr if is_hdr else None,
        dynamic_hdr=tuple(dynamic),
        notes=(
            *(["Transparency is dropped."] if header.alpha else []),
            *hdr_notes,
            *drop_notes,
            *whole_notes,
            *(mapped.notes if mapped else depth_notes),
            *notes,
            *timing.notes,
            *rate_notes,
            *colour_notes,
            *size_notes,
        ),
    )


def _decode(path: Path, header: StreamHeader, ffmpeg: str) -> tuple[_Decoded, list[str]]:
    """Decode everything once, and see by the log which properties of frames change, and which
    dynamic HDR metadata they have."""
    name, log = quoted(path), FrameLog()
    try:
        video = decode_all(path, (), ffmpeg, log)
    except InputError:
        # ffmpeg may fail on the change itself, which its errors do not name
        if log.changed_to:
            refuse_change(name, f"changes to {log.changed_to}", log.frames, log.last_s)
        raise
    if not log.runs:
        raise ToolError(
            f"{ffmpeg} does not describe the frames of {name}: its showinfo filter writes what is "
            "not understood here; name another with --ffmpeg"
        )
    same = normalise(
        name,
        log,
        rotated=header.orientation is not None,
        interlaced=bool(video.interlaced or header.field_order),
    )
    if same.filters:
        common = same.properties
        header = replace(header, pix_fmt=common.pix_fmt, colour=common.colour())
        video = replace(video, width=common.width, height=common.height, sar=common.sar)
    return _Decoded(header, video, same), log.dynamic


def _describe(path: Path, decoded: _Decoded, packets: int | None) -> tuple[int, list[str]]:
    """Bit depth of the encodes, and the notes on what they do not keep of the source."""
    video, orientation = decoded.video, decoded.header.orientation
    bit_depth, format_notes = _sample_format(decoded.layout, decoded.header.pix_fmt)
    notes = [*format_notes, *decoded.same.notes, *_shape_notes(path, video)]
    if video.complaint:
        notes.append(f"ffmpeg said while decoding: {video.complaint[:200]}")
    if packets is not None and len(video.times_s) != packets:
        raise InputError(
            f"{quoted(path)} has {packets} frames and {len(video.times_s)} of them decode; "
            f"{LOSSLESS}"
        )
    notes += source_notes(path)
    if orientation:
        notes.append(f"{orientation}; turned upright.")
    return bit_depth, notes


def _shape_notes(path: Path, video: DecodedVideo) -> tuple[str, ...]:
    """A note where the pixel shape changes in the stream, which ffmpeg does not follow."""
    shapes = pixel_shapes(path)
    if len(shapes) < 2:
        return ()
    ratios = ", ".join(dict.fromkeys(f"{s.numerator}:{s.denominator}" for _, s in shapes))
    return (
        f"The pixel shape changes inside the stream ({ratios}; first at {shapes[1][0]:.3f} s); "
        f"{video.sar.numerator}:{video.sar.denominator}, which the container or its first frame "
        "tells, holds for all.",
    )


@dataclass(frozen=True)
class _Timing:
    """What makes a video progressive and of constant rate."""

    fps: Fraction
    regrid: Regrid | None
    """How frames come to that rate, None where they follow it, or deinterlacing changes it."""
    filters: tuple[str, ...]
    notes: tuple[str, ...]
    film: bool = False
    """Whether it is soft telecine."""


def _timing(decoded: _Decoded, rate: Fraction | None, undo: Deinterlacing, name: str) -> _Timing:
    """Deinterlacing, then the requested rate or the one that the time stamps suggest."""
    video, times_s = decoded.video, decoded.video.times_s
    mean = mean_rate(times_s)
    if not mean:
        raise InputError(f"{name} has frames whose times do not advance; {LOSSLESS}")
    # a frame an hour would ask for thousands of repeated frames
    check_rate(name, Fraction(mean))
    hints = tuple(snapped(hint) for hint in decoded.header.rates)
    # the rate that is asked for is the one behind deinterlacing
    fps = (rate if undo.ratio == 1 else None) or regular_rate(times_s, video.tick_s, hints)
    film = None if fps else soft_telecine(times_s, video.tick_s)
    fps = fps or film
    way = None
    if fps is None or not follows(times_s, video.tick_s, fps):
        moved_s = times_s - times_s[0]
        way = regrid(moved_s, fps) if fps else best_regrid(moved_s, video.tick_s, hints)
        fps = way.fps
    if undo.ratio != 1:
        return _at_another_rate(video, fps, rate, way, undo)
    filters, notes = list(undo.filters), list(undo.notes)
    late = float(times_s[0]) > _LATE_START / float(fps)
    if late:
        notes.append(f"Video starts {float(times_s[0]):.3f} s late; moved to the start.")
    if late or (way and times_s[0]):
        filters.append("setpts=PTS-STARTPTS")
    if way:
        filters += way.filters
    elif late:
        filters.append(f"fps={fps.numerator}/{fps.denominator}")
    return _Timing(fps, way, tuple(filters), tuple(notes), film is not None)


def _at_another_rate(
    video: DecodedVideo,
    fps: Fraction,
    rate: Fraction | None,
    way: Regrid | None,
    undo: Deinterlacing,
) -> _Timing:
    """A constant rate, then deinterlacing that changes it, then the requested rate."""
    filters, notes = list[str](), list(undo.notes)
    if video.times_s[0]:
        filters.append("setpts=PTS-STARTPTS")
    if way:
        filters += way.filters
        notes.append(f"Variable frame rate; brought to {float(fps):.6g} fps before that.")
    made = rate or fps * undo.ratio
    filters += undo.filters
    # frames that are no fields come out once
    if made != fps * undo.ratio or undo.ratio > 1:
        filters.append(f"fps={made.numerator}/{made.denominator}")
    return _Timing(made, None, tuple(filters), tuple(notes))


def _count_frames(
    path: Path, decoded: _Decoded, timing: _Timing, rate: Fraction | None, ffmpeg: str
) -> tuple[int, tuple[str, ...]]:
    """Frames behind the filters of timing, and the note on how their rate was made constant."""
    before = frames = len(decoded.video.times_s)
    if timing.filters:
        # what fps, setpts and bwdif do with the last frames is best seen by running them
        filters = (*decoded.same.filters, *timing.filters)
        frames = len(decode_all(path, filters, ffmpeg).times_s)
    way = timing.regrid
    if not way:
        return frames, ()
    repeated = counted(frames - before + way.lost, "frame")
    dropped = f", {way.lost} dropped" if way.lost else ", none dropped"
    varied = "Soft telecine, film pictures shown for 2 and 3 fields in turn"
    what = "Frame rate as asked" if rate else varied if timing.film else "Variable frame rate"
    note = (
        f"{what} ({mean_rate(decoded.video.times_s):.3f} on average); brought to "
        f"{float(way.fps):.6g} a second: {repeated} repeated{dropped}."
    )
    return frames, (note,)


def _progressive(path: Path, decoded: _Decoded, way: str, ffmpeg: str) -> Deinterlacing:
    """What deinterlaces, with its notes; nothing where no frame needs it."""
    header, video = decoded.header, decoded.video
    frames, flagged = len(video.times_s), video.interlaced
    whole = flagged == frames or (not flagged and header.field_order is not None)
    # filters take frames that are not flagged themselves for top field first
    unflagged = not flagged and header.field_order is not None
    if way == "telecine":
        order = (header.field_order if unflagged else None) or "auto"
        return inverse_telecine(order, recognised=False)
    if not (whole or flagged):
        return Deinterlacing()
    notes = []
    if way == "auto" and is_ntsc(mean_rate(video.times_s)):
        share = telecined_share(path, frames, ffmpeg)
        if share is not None and share >= LEAST_SHARE:
            order = (header.field_order if unflagged else None) or "auto"
            return inverse_telecine(order, recognised=True)
        notes = [share_note(share)] if share and share >= 1 - LEAST_SHARE else []
    ratio = Fraction(2 if way == "fields" else 1)
    mode = "bwdif=mode=" + ("send_field" if way == "fields" else "send_frame")
    each = "field" if way == "fields" else "pair of fields"
    if whole:
        return Deinterlacing(
            (mode + (":parity=bff" if unflagged and header.field_order == "bff" else ""),),
            (f"Interlaced; deinterlaced with bwdif, one frame for each {each}.", *notes),
            ratio,
        )
    note = (
        f"{flagged} of {frames} frames are interlaced; those are deinterlaced with bwdif, one "
        f"frame for each {each}."
    )
    return Deinterlacing((f"{mode}:deint=interlaced",), (note, *notes), ratio)


def _square(video: DecodedVideo) -> tuple[int, int, tuple[str, ...], tuple[str, ...]]:
    """Displayed size, and the filters that make pixels square or sides even, with their notes."""
    shape = f"Pixels are {video.sar.numerator}:{video.sar.denominator}"
    if abs(video.sar - 1) < _SQUARE_TOLERANCE:
        crop, notes = _even_crop(video.width, video.height)
        if video.sar != 1:
            crop, notes = (*crop, "setsar=1"), (f"{shape}; taken as square.", *notes)
        return video.width, video.height, crop, notes
    # widened or heightened, never reduced: no line of the original is thrown away
    width = round(video.width * max(video.sar, Fraction(1)))
    height = round(video.height / min(video.sar, Fraction(1)))
    width, height = width + width % 2, height + height % 2
    note = f"{shape}; scaled from {video.width}x{video.height} to {width}x{height} square ones."
    return width, height, (f"scale={width}:{height}:flags=lanczos", "setsar=1"), (note,)


def _even_crop(width: int, height: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The filter that makes sides even, with its note; neither where they are."""
    if width % 2 == height % 2 == 0:
        return (), ()
    crop = width // 2 * 2, height // 2 * 2
    note = f"Cropped from {width}x{height} to {crop[0]}x{crop[1]}, since 4:2:0 needs even sides."
    return (f"crop={crop[0]}:{crop[1]}:0:0",), (note,)


def _sample_format(layout: av.VideoFormat, pix_fmt: str) -> tuple[int, tuple[str, ...]]:
    """Bit depth of the encodes (8 or 10), and the notes on what is lost on the way to 4:2:0.

    `layout` is that of pictures of 64x64 pixels.
    """
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
