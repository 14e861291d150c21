"""Finds the side data of pictures that encodes may lose: closed captions and stereo 3D."""

from pathlib import Path
from typing import Any

from vqaloop.bitstream.demux import main_video
from vqaloop.core.scopes import check_cancelled
from vqaloop.media.container import opened

_WITH_CAPTIONS = ("av1", "h264", "hevc", "mpeg2video", "vvc")
"""Codecs with a place for captions in their bitstream."""
_ATSC = b"GA94\x03"
"""ATSC's identifier and its code of cc_data (CEA-708, 4.4)."""
_BEFORE_ATSC = (b"\xb5\x00\x31", b"\x00\x00\x01\xb2")
"""ITU-T T.35's country and provider in SEI messages and OBUs; user_data of MPEG-2 video."""
_MOST_CC_BYTES = 2 + 3 * 31 + 3 * 31 // 2
"""cc_data with 31 entries, and the bytes that prevent start codes."""


def holds_captions(packet: bytes) -> bool:
    """Whether a coded picture holds CEA-608 or CEA-708 captions that are not empty (A/53)."""
    at = packet.find(_ATSC)
    while at >= 0:
        if packet.endswith(_BEFORE_ATSC, max(0, at - 4), at):
            start = at + len(_ATSC)
            data = packet[start : start + _MOST_CC_BYTES].replace(b"\0\0\3", b"\0\0")
            count = data[0] & 31 if data else 0
            entries = (data[2 + 3 * n : 5 + 3 * n] for n in range(count))
            # encoders fill up with entries that are not valid, or with pairs of nulls
            if any(len(e) == 3 and e[0] & 4 and (e[1] | e[2]) & 0x7F for e in entries):
                return True
        at = packet.find(_ATSC, at + 1)
    return False


def find_captions(path: Path) -> bool:
    """Whether any picture of a file holds closed captions; nothing is decoded.

    Args:
        path: The file.

    Returns:
        False also for codecs that have no place for captions.

    Raises:
        InputError: The file cannot be read.
    """
    with opened(path) as container:
        stream = main_video(container)
        if stream is None or stream.codec_context is None:
            return False
        if stream.codec_context.codec.canonical_name not in _WITH_CAPTIONS:
            return False
        for packet in container.demux(stream):
            check_cancelled()
            if holds_captions(bytes(packet)):
                return True
    return False


def is_stereo(container: Any, stream: Any) -> bool:
    """Whether the first picture packs two views, by the tags of its container or bitstream."""
    frame = next(container.decode(stream), None)
    tags = [data for data in (frame.side_data if frame else ()) if data.type.name == "STEREO3D"]
    # libavutil's AVStereo3D begins with the type as an int, of which 0 is a single view
    return any(any(bytes(data)[:4]) for data in tags)


def source_notes(path: Path) -> tuple[str, ...]:
    """Notes on side data of a source's pictures that not every encode keeps.

    Args:
        path: The file.

    Returns:
        Sentences for people.

    Raises:
        InputError: The file cannot be read.
    """
    notes = []
    if find_captions(path):
        notes.append(
            "Closed captions in the pictures (CEA-608, CEA-708) are carried by H.264 rungs and "
            "`encode --one-run` with H.264; all other encodes are without."
        )
    with opened(path) as container:
        stream = main_video(container)
        if stream is not None and is_stereo(container, stream):
            notes.append(
                "The pictures are stereo 3D; of rungs those of H.264 alone tell players so."
            )
    return tuple(notes)
