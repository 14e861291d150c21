"""Pictures of the places where a ladder scores worst: the source, and the same of every rung.

The places are chosen from the scores; only the frames shown are decoded. The pictures lie as WebP
in pictures.json beside ladder.json, from which a report is made again without the source.
"""

import base64
import binascii
import hashlib
import io
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from vqaloop.core.documents import Whole, read_document
from vqaloop.core.rounding import finite
from vqaloop.core.text import quoted
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError, ToolError
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.planes import CLIP_SIZE, Frames, cut
from vqaloop.records import Ladder, Rung, Score, Source, rounded

SCHEMA = "vqaloop.pictures/1"
PLACES = 4
"""Places that are shown."""
WIDTH, HEIGHT = 384, 256
"""Largest picture, in pixels of the source."""
MOST_BYTES = 1 << 20
"""Of all pictures of a report together; as base64 they take a third more."""
QUALITIES = (92, 85, 75, 60, 40)
"""Of WebP; the first with which the pictures fit is taken."""
NO_PLACES = "the scores of this ladder were not kept by time and place"
FARTHEST = 1 << 20
"""Pixels from a corner of a frame beyond which no box of ours lies."""
Frame = npt.NDArray[np.uint8]
"""(H·3/2, W) planar 4:2:0, or (H, W, 3) RGB."""
Box = tuple[int, int, int, int]
"""Left, top, width and height in luma pixels of the source; all even."""


@dataclass(frozen=True)
class Place:
    """A part of a frame, and what it looks like."""

    frame: int
    box: Box
    scores: tuple[float | None, ...]
    """Of each rung there; None where it is not known."""
    pictures: dict[int, str] = field(default_factory=dict)
    """Base64 of WebP files by the number of their rung, from 1 up; 0 is the source."""


@dataclass(frozen=True)
class Pictures:
    """What can be shown of a ladder, and why the rest cannot."""

    places: tuple[Place, ...] = ()
    trouble: str = ""


def worst_json(source: Source, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The places where the rungs together score worst, the worst first, as ladder.json has them.

    `scores` are those of the rungs. `left` and `top`, of the crop that was scored, are None for a
    full-frame metric. Nothing where scores are neither by place nor by frame.
    """
    found: dict[tuple[int, int | None, int | None], list[float]] = {}
    for score in scores:
        values: Any = zip(score.places, score.clips, strict=False)
        if not score.places and score.moments:
            values = (((n, None, None), value) for n, value in dict(score.moments).items())
        elif not score.places and len(score.clips) == source.frames:
            values = (((n, None, None), value) for n, value in enumerate(score.clips))
        for place, value in values:
            found.setdefault(tuple(place), []).append(value)
    # rungs may have been looked at in different places
    common = [place for place, values in found.items() if len(values) == len(scores)]
    common.sort(key=lambda place: sum(found[place]))
    kept: list[tuple[int, int | None, int | None]] = []
    # fewer places rather than the same picture twice
    apart = source.frames / (2 * PLACES)
    for place in common:
        if len(kept) < PLACES and all(abs(place[0] - other[0]) >= apart for other in kept):
            kept.append(place)
    return [
        {
            "frame": frame,
            "left": left,
            "top": top,
            "size": None if left is None else CLIP_SIZE,
            "scores": [rounded(value, 2) for value in found[frame, top, left]],
        }
        for frame, top, left in sorted(kept, key=lambda place: sum(found[place]))
    ]


def take_pictures(ladder: Ladder, source: Source, *, ffmpeg: str) -> Pictures:
    """Decode the frames shown, of the source and of every rung; an error becomes `trouble`."""
    worst = shown_places(ladder)
    indices = sorted({place["frame"] for place in worst})
    if not worst:
        return Pictures(trouble=NO_PLACES)
    if not 0 <= indices[0] <= indices[-1] < source.frames:
        return Pictures(trouble="ladder.json names a frame that the source does not have")
    try:
        decoder = get_encoder(ladder.about["encoder"]["name"]).decoder
        frames = read_source(source, indices, ffmpeg=ffmpeg)
    except (InputError, ToolError) as error:
        return Pictures(trouble=str(error))
    rows = [indices.index(place["frame"]) for place in worst]
    missing: list[str] = []

    def of_rung(rung: Rung) -> Frames | None:
        path, size = ladder.folder / rung.file, source.canvas
        try:
            if not path.is_file():
                raise InputError(f"{quoted(path)} is not there, or is no file")
            # as players show it
            how: dict[str, Any] = {"decoder": decoder, "ffmpeg": ffmpeg, "grain": True}
            return read_encode(path, indices, size, source.fps, **how)
        except (InputError, ToolError) as error:
            missing.append(str(error))
            return None

    other: Frames | None = None
    if any(_is_whole(place) for place in worst):
        # of a full-frame metric: show where the middle rung differs most from the source
        other = of_rung(ladder.rungs[len(ladder.rungs) // 2])
    other = frames if other is None else other
    boxes = [
        _box_of(place, frames[row], other[row]) for place, row in zip(worst, rows, strict=True)
    ]
    cuts = {0: _cut_all(frames, rows, boxes)}
    for number, rung in enumerate(ladder.rungs, 1):
        # one at a time: of a large picture some frames are many bytes
        found = of_rung(rung)
        if found is not None:
            cuts[number] = _cut_all(found, rows, boxes)
    if len(cuts) == 1:
        return Pictures(trouble=missing[0])
    files = _encoded([[_rgb(part, source) for part in parts] for parts in cuts.values()])
    return Pictures(
        tuple(
            Place(
                place["frame"],
                box,
                tuple(place["scores"]),
                {
                    number: base64.b64encode(of_one[at]).decode()
                    for number, of_one in zip(cuts, files, strict=True)
                },
            )
            for at, (place, box) in enumerate(zip(worst, boxes, strict=True))
        )
    )


def find_pictures(ladder: Ladder, ffmpeg: str | None = None) -> Pictures:
    """Pictures for a report that is made again: those in pictures.json, else new ones.

    New ones need the source where ladder.json says it was, and unchanged.
    """
    from vqaloop.core.ffmpeg import ffmpeg_path
    from vqaloop.media.hdr import HdrUse
    from vqaloop.media.probe import probe_source

    kept = kept_pictures(ladder)
    if kept.places or kept.trouble:
        return kept
    about = ladder.about["source"]
    path = Path(about["path"])
    try:
        if not _is_source(path, about):
            return Pictures(trouble=f"the source {quoted(path)} is not the file it was")
        ffmpeg = ffmpeg_path(ffmpeg)
        raw, asked = about.get("input_options") or {}, ladder.about.get("asked") or {}
        rate = raw.get("framerate") or asked.get("framerate")
        source = probe_source(
            path,
            video_size=raw.get("video_size"),
            pix_fmt=raw.get("pixel_format") or raw.get("pix_fmt"),
            framerate=str(rate) if rate else None,
            allow_hdr=True,
            hdr=HdrUse(tonemap=asked.get("tonemap") is True),
            deinterlace=str(asked.get("deinterlace") or "auto"),
            ffmpeg=ffmpeg,
        )
    except (InputError, ToolError) as error:
        return Pictures(trouble=str(error))
    except (OSError, ValueError):
        return Pictures(
            trouble=f"the source {quoted(path)} is not there; pictures of it and the rungs need "
            "it: put it back, and run vqaloop report again"
        )
    # frames are named by their number, which another rate gives to other frames
    now = source.frames, f"{source.fps.numerator}/{source.fps.denominator}"
    then = about.get("frames", now[0]), about.get("fps_exact", now[1])
    if now != then:
        return Pictures(
            trouble=f"the source {quoted(path)} is read as {now[0]} frames at {now[1]} fps here, "
            f"and ladder.json was made of {then[0]} at {then[1]} fps; make the ladder again"
        )
    return take_pictures(ladder, source, ffmpeg=ffmpeg)


def _is_source(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether that file is the source of a ladder. Raises OSError and ValueError.

    Others may have written its path: a pipe would be waited for, a device read without end, so
    both are ruled out before anything is opened.
    """
    from vqaloop.core.files import file_sha256

    status, size = os.stat(path), about.get("size_bytes")
    # what the kernel makes up has a size of 0, and may be endless for all that
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    return size in (None, status.st_size) and file_sha256(path) == about.get("sha256")


def pictures_json(ladder: Ladder, pictures: Pictures) -> dict[str, Any]:
    """The document `vqaloop.pictures/1`."""
    return {
        "schema": SCHEMA,
        "ladder": _digest(ladder),
        "places": [{"box": place.box, "pictures": place.pictures} for place in pictures.places],
    }


class _PlaceDocument(Struct):
    box: list[Whole]
    pictures: dict[str, str]


class _Document(Struct):
    """What of pictures.json is read back."""

    ladder: str
    places: list[_PlaceDocument]


def kept_pictures(ladder: Ladder) -> Pictures:
    """The pictures in the pictures.json beside a ladder, where it is of this very ladder."""
    worst = shown_places(ladder)
    if not worst:
        return Pictures(trouble=NO_PLACES)
    path = ladder.folder / "pictures.json"
    remedy = "run vqaloop report again"
    try:
        document = read_document(path, _Document, schema=SCHEMA, give=remedy, remedy=remedy)
        if document.ladder != _digest(ladder):
            return Pictures()
        return Pictures(
            tuple(
                Place(
                    place["frame"],
                    _checked_box(kept.box),
                    tuple(place["scores"]),
                    _checked_pictures(kept.pictures, len(ladder.rungs)),
                )
                for place, kept in zip(worst, document.places, strict=True)
            )
        )
    except (InputError, ValueError):  # none, or damaged
        return Pictures()


def _checked_box(box: Sequence[int]) -> Box:
    """Raises ValueError for a box that `take_pictures` never writes."""
    left, top, width, height = box
    if not (0 < width <= WIDTH and 0 < height <= HEIGHT):
        raise ValueError("a box without area, or larger than ours")
    if not (0 <= left <= FARTHEST and 0 <= top <= FARTHEST):
        raise ValueError("a box outside of any frame")
    return left, top, width, height


def _checked_pictures(pictures: Mapping[str, str], rungs: int) -> dict[int, str]:
    """By number; those that are no WebP are left out.

    Raises ValueError for a number without a rung, and without the source or any rung beside it.
    """
    numbers = {str(number): number for number in range(rungs + 1)}
    if not pictures.keys() <= numbers.keys():
        raise ValueError("a picture of no rung")
    found = {numbers[key]: data for key, data in pictures.items() if _is_webp(data)}
    if 0 not in found or len(found) == 1:
        raise ValueError("nothing to hold side by side")
    return found


def shown_places(ladder: Ladder) -> list[dict[str, Any]]:
    """The places that a report shows: the worst, and one of a rung with too much banding."""
    worst, banding = ladder.about.get("worst") or [], ladder.about.get("banding")
    return [*worst[:PLACES], *([{**banding, "scores": []}] if banding else [])]


def _digest(ladder: Ladder) -> str:
    """Tells pictures of this ladder from those of another."""
    document = ladder.to_json()
    shown = [document["source"].get("sha256"), document["rungs"], document.get("worst")]
    shown += [document["banding"]] if document.get("banding") else []
    text = json.dumps(finite(shown), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_webp(data: str) -> bool:
    try:
        return base64.b64decode(data, validate=True)[8:12] == b"WEBP"
    except (binascii.Error, ValueError):
        return False


def _box_of(place: dict[str, Any], one: Frame, other: Frame) -> Box:
    """The part of a frame that is shown: around the crop that was scored, or where two differ."""
    width, height = one.shape[1], one.shape[0] * 2 // 3
    wide, tall = min(WIDTH, width), min(HEIGHT, height)
    if _is_whole(place):
        left, top = _most_different(one[:height], other[:height], wide, tall)
    else:
        left = place["left"] + (place["size"] - wide) // 2
        top = place["top"] + (place["size"] - tall) // 2
    left, top = (
        min(max(at, 0), room) // 2 * 2 for at, room in ((left, width - wide), (top, height - tall))
    )
    return left, top, wide, tall


def _is_whole(place: dict[str, Any]) -> bool:
    """Whether the place is known in time alone."""
    return None in (place.get("left"), place.get("top"), place.get("size"))


def _most_different(one: Frame, other: Frame, wide: int, tall: int) -> tuple[int, int]:
    """Left and top of the part in which two pictures differ most, by the mean of |a - b|."""
    error = np.abs(one.astype(np.int32) - other)
    sums = np.zeros((error.shape[0] + 1, error.shape[1] + 1), np.int64)
    sums[1:, 1:] = error.cumsum(0, dtype=np.int64).cumsum(1)
    inside = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(left), int(top)


def _cut_all(frames: Frames, rows: Sequence[int], boxes: Sequence[Box]) -> list[Frame]:
    return [
        cut(frames[row][None], top, left, tall, wide)[0]
        for row, (left, top, wide, tall) in zip(rows, boxes, strict=True)
    ]


def _rgb(part: Frame, source: Source) -> Frame:
    """(H·3/2, W) planar 4:2:0 as (H, W, 3), by the source's matrix, or what its size suggests."""
    from av.video.frame import VideoFrame
    from av.video.reformatter import ColorRange, Colorspace

    tags = dict(source.colour)
    matrix = tags.get("colorspace") or ("bt709" if source.height >= 720 else "smpte170m")
    full = tags.get("color_range") == "pc"
    picture = VideoFrame.from_ndarray(np.ascontiguousarray(part), format="yuv420p").reformat(
        format="rgb24",
        src_colorspace=Colorspace.ITU709 if matrix in ("bt709", "bt2020nc") else Colorspace.ITU601,
        src_color_range=ColorRange.JPEG if full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    found: Frame = picture.to_ndarray().astype(np.uint8, copy=False)
    return found


def _encoded(pictures: Sequence[Sequence[Frame]]) -> list[list[bytes]]:
    """WebP files of the best quality with which all of them are small enough."""
    files: list[list[bytes]] = []
    for quality in QUALITIES:
        files = [[_webp(picture, quality) for picture in row] for row in pictures]
        if sum(len(data) for row in files for data in row) <= MOST_BYTES:
            break
    return files


def _webp(picture: Frame, quality: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()
