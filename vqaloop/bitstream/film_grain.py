"""Film-grain synthesis of AV1 files: whether a file has any, and how it is decoded without.

An encoder may remove a picture's grain and leave a table by which decoders add grain of the same
strength after decoding (AV1 Bitstream & Decoding Process Specification, 7.18.3). That grain is
nowhere where the source's is, so a comparison sample by sample counts it as error: files are
scored without it, and delivered with it.
"""

import functools
from pathlib import Path

import av

from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.formats import ENCODES
from vqaloop.bitstream.obu import SEQUENCE_HEADER, read_obus
from vqaloop.core.files import as_of

NO_SYNTHESIS = (("c:v", "libdav1d"), ("export_side_data", "film_grain"))
"""ffmpeg's options before -i: dav1d, which unlike libaom's decoder can leave the grain out."""
PYAV_NO_SYNTHESIS = {"export_side_data": "film_grain"}
"""The same for a codec context of PyAV, whose decoder of AV1 is dav1d."""

_CONFIGURATION_BYTES = 4
"""Of an av1C box, before its OBUs."""


def has_synthesis(path: Path) -> bool:
    """Whether decoders add grain to a file's pictures.

    Args:
        path: The file.

    Returns:
        True where its AV1 sequence header has film_grain_params_present; False also for a file
        that cannot be read.
    """
    try:
        return _has_synthesis(path, as_of(path))
    except (av.FFmpegError, OSError, ValueError, StopIteration):
        return False


def without_synthesis(path: Path) -> tuple[tuple[str, str], ...]:
    """ffmpeg's options before the -i of a file that leave synthesised grain out.

    Args:
        path: The file.

    Returns:
        None where it has no such grain.
    """
    return NO_SYNTHESIS if has_synthesis(path) else ()


@functools.lru_cache(maxsize=256)
def _has_synthesis(path: Path, as_of: tuple[int, ...]) -> bool:
    """`as_of` only tells one state of the file from another."""
    with open_video(path, ENCODES) as container:
        stream = main_video(container)
        # of a codec without a decoder there is no context, whatever the types say
        context = getattr(stream, "codec_context", None)
        if context is None or context.codec.canonical_name != "av1":
            return False
        headers = [bytes(context.extradata or b"")[_CONFIGURATION_BYTES:]]
        headers.append(next(bytes(p) for p in container.demux(stream) if p.size))
    for data in headers:
        for obu in read_obus(data):
            if obu.type == SEQUENCE_HEADER and obu.is_whole:
                return _last_flag(obu.payload)
    return False


def _last_flag(payload: bytes) -> bool:
    """film_grain_params_present, the last bit of a sequence header before the 1 that ends it."""
    bits = int.from_bytes(payload, "big")
    return bool(bits and bits >> (bits & -bits).bit_length() & 1)
