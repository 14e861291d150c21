"""CODECS strings (RFC 6381), VIDEO-RANGE and VP9 levels of MP4 tracks.

Strings have the forms that each codec's own file format defines: ISO/IEC 14496-15 for avc1 and
hvc1, "VP Codec ISO Media File Format Binding" for vp09, "AV1 Codec ISO Media File Format Binding"
for av01. All is read from the decoder configuration, nothing is assumed.
"""

from fractions import Fraction

from vqaloop.bitstream.colour_tags import HDR_TRANSFERS, TRANSFERS
from vqaloop.bitstream.mp4_boxes import VideoEntry
from vqaloop.errors import ToolError

AAC_LC = "mp4a.40.2"
"""MPEG-4 audio, object type 2: AAC low complexity."""

_VP9_LEVELS = (
    (10, 829_440, 36_864, 512),
    (11, 2_764_800, 73_728, 768),
    (20, 4_608_000, 122_880, 960),
    (21, 9_216_000, 245_760, 1344),
    (30, 20_736_000, 552_960, 2048),
    (31, 36_864_000, 983_040, 2752),
    (40, 83_558_400, 2_228_224, 4160),
    (41, 160_432_128, 2_228_224, 4160),
    (50, 311_951_360, 8_912_896, 8384),
    (51, 588_251_136, 8_912_896, 8384),
    (52, 1_176_502_272, 8_912_896, 8384),
    (60, 1_176_502_272, 35_651_584, 16_832),
    (61, 2_353_004_544, 35_651_584, 16_832),
    (62, 4_706_009_088, 35_651_584, 16_832),
)
"""Levels of VP9, ten times each, and their limits: luma samples/s, luma samples of a picture,
pixels of its longer side."""
_IMPLIED = (1, 2)
"""Code points that a short form stands for: BT.709 and unspecified."""


def codec_string(entry: VideoEntry) -> str:
    """The CODECS string of a track, in the shortest form that the rules allow.

    Args:
        entry: The track's sample entry.

    Returns:
        The string, such as "avc1.64001F".

    Raises:
        ToolError: The codec is none of avc1, hvc1, vp09 and av01, or its configuration is cut
            short.
    """
    forms = {"avc1": _avc1, "hvc1": _hvc1, "vp09": _vp09, "av01": _av01}
    if entry.kind not in forms:
        raise ToolError(f"no codec string is known for the sample entry {entry.kind!r}")
    try:
        return forms[entry.kind](entry)
    except IndexError as error:
        raise ToolError(f"the decoder configuration of {entry.kind} is cut short") from error


def video_range(entry: VideoEntry) -> str:
    """HLS's VIDEO-RANGE of a track: SDR, PQ or HLG."""
    return HDR_TRANSFERS.get(TRANSFERS.get(entry.transfer, ""), "SDR")


def _avc1(entry: VideoEntry) -> str:
    # profile, constraints, level: bytes 1 to 3 of avcC
    profile, constraints, level = entry.config[1], entry.config[2], entry.config[3]
    return f"avc1.{profile:02X}{constraints:02X}{level:02X}"


def _hvc1(entry: VideoEntry) -> str:
    config = entry.config
    space = ("", "A", "B", "C")[config[1] >> 6]
    tier = "H" if config[1] & 0x20 else "L"
    # the string has the 32 compatibility flags in reverse order of bits
    compatible = int(f"{int.from_bytes(config[2:6], 'big'):032b}"[::-1], 2)
    constraints = config[6:12].rstrip(b"\0")
    parts = [f"hvc1.{space}{config[1] & 0x1F}", f"{compatible:X}", f"{tier}{config[12]}"]
    return ".".join([*parts, *(f"{byte:X}" for byte in constraints)])


def _vp09(entry: VideoEntry) -> str:
    # vpcC begins with four bytes of version and flags
    config = entry.config
    profile, level, depth, chroma = config[4], config[5], config[6] >> 4, config[6] >> 1 & 7
    short = f"vp09.{profile:02d}.{level:02d}.{depth:02d}"
    colour = config[7], config[8], config[9]
    full = config[6] & 1
    # 0 and 1 are the two sitings of 4:2:0, which decoders treat alike
    if chroma <= 1 and not full and all(code in _IMPLIED for code in colour):
        return short
    tags = ".".join(f"{code:02d}" for code in colour)
    return f"{short}.{chroma:02d}.{tags}.{full:02d}"


def vp9_level(width: int, height: int, fps: Fraction) -> int:
    """The lowest level of VP9 that takes pictures of this size at this rate; bitrate aside.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        fps: Frame rate.

    Returns:
        Ten times the level; the highest level's for what is beyond it.
    """
    size = width * height
    return next(
        (
            level
            for level, rate, area, side in _VP9_LEVELS
            if size * fps <= rate and size <= area and max(width, height) <= side
        ),
        _VP9_LEVELS[-1][0],
    )


def _av01(entry: VideoEntry) -> str:
    config = entry.config
    profile, level, flags = config[1] >> 5, config[1] & 0x1F, config[2]
    tier = "H" if flags & 0x80 else "M"
    depth = (12 if flags & 0x20 else 10) if flags & 0x40 else 8
    short = f"av01.{profile}.{level:02d}{tier}.{depth:02d}"
    mono, across, down = flags >> 4 & 1, flags >> 3 & 1, flags >> 2 & 1
    siting = flags & 3 if across and down else 0
    colour = entry.primaries, entry.transfer, entry.matrix
    plain = not mono and across and down and all(code in _IMPLIED for code in colour)
    if plain and not entry.full_range:
        return short
    tags = ".".join(f"{code:02d}" for code in colour)
    return f"{short}.{mono}.{across}{down}{siting}.{tags}.{int(entry.full_range)}"
