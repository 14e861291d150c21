"""What a bitstream is called in a manifest, and whether a coded picture starts anew.

Strings are those of RFC 6381 with the forms that each codec's own file format defines: ISO/IEC
14496-15 for avc1 and hvc1, "VP Codec ISO Media File Format Binding" for vp09, "AV1 Codec ISO Media
File Format Binding" for av01. All is read from the decoder configuration, nothing is assumed.
"""

from collections.abc import Iterator
from fractions import Fraction

from vqaloop.bitstream.mp4_boxes import VideoEntry
from vqaloop.errors import ToolError

AAC_LC = "mp4a.40.2"
"""MPEG-4 audio, object type 2: AAC low complexity."""
TRANSFER_RANGES = {16: "PQ", 18: "HLG"}
"""HLS's names of the transfer characteristics that are not SDR (ITU-T H.273)."""

_H264_SLICES, _H264_IDR = range(1, 6), 5
_HEVC_SLICES, _HEVC_IDR = range(32), (19, 20)
_AV1_HEADERS, _AV1_SEQUENCE = (3, 6), 1
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
"""Levels of VP9, ten times each, and the most they allow: luma samples a second, luma samples of a
picture, pixels of its longer side."""
_PLAIN = (1, 2)
"""Code points that a short form stands for: BT.709, and nothing said."""


def codec_string(entry: VideoEntry) -> str:
    """The CODECS name of a track, as short as the rules allow.

    Raises ToolError for a codec other than avc1, hvc1, vp09 and av01, or a configuration that is
    cut short.
    """
    forms = {"avc1": _avc1, "hvc1": _hvc1, "vp09": _vp09, "av01": _av01}
    if entry.kind not in forms:
        raise ToolError(f"no codec string is known for the sample entry {entry.kind!r}")
    try:
        return forms[entry.kind](entry)
    except IndexError as error:
        raise ToolError(f"the decoder configuration of {entry.kind} is cut short") from error


def video_range(entry: VideoEntry) -> str:
    """SDR, PQ or HLG: the value of VIDEO-RANGE."""
    return TRANSFER_RANGES.get(entry.transfer, "SDR")


def _avc1(entry: VideoEntry) -> str:
    # profile, constraints, level: bytes 1 to 3 of avcC
    profile, constraints, level = entry.config[1], entry.config[2], entry.config[3]
    return f"avc1.{profile:02X}{constraints:02X}{level:02X}"


def _hvc1(entry: VideoEntry) -> str:
    config = entry.config
    space = ("", "A", "B", "C")[config[1] >> 6]
    tier = "H" if config[1] & 0x20 else "L"
    # the 32 compatibility flags are told with the first flag in the lowest bit
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
    # the two sitings of 4:2:0 are not told apart by a decoder
    if chroma <= 1 and not full and all(code in _PLAIN for code in colour):
        return short
    told = ".".join(f"{code:02d}" for code in colour)
    return f"{short}.{chroma:02d}.{told}.{full:02d}"


def vp9_level(width: int, height: int, fps: Fraction) -> int:
    """Ten times the lowest level of VP9 that takes pictures of this size at this rate.

    Bitrate is not counted. The highest level for what is beyond it.
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
    plain = not mono and across and down and all(code in _PLAIN for code in colour)
    if plain and not entry.full_range:
        return short
    told = ".".join(f"{code:02d}" for code in colour)
    return f"{short}.{mono}.{across}{down}{siting}.{told}.{int(entry.full_range)}"


def starts_anew(codec: str, config: bytes, packet: bytes) -> bool:
    """Whether decoding may begin at this coded picture and needs nothing before it.

    `codec` is h264, hevc, vp9 or av1, `config` the track's avcC or hvcC. True for an IDR picture,
    for a shown AV1 key frame with its sequence header, and for a VP9 key frame.
    """
    if codec == "h264":
        size = (config[4] & 3) + 1 if len(config) > 4 else 4
        kinds = [unit[0] & 0x1F for unit in _units(packet, size) if unit]
        return next((kind for kind in kinds if kind in _H264_SLICES), None) == _H264_IDR
    if codec == "hevc":
        size = (config[21] & 3) + 1 if len(config) > 21 else 4
        kinds = [unit[0] >> 1 & 0x3F for unit in _units(packet, size) if unit]
        return next((kind for kind in kinds if kind in _HEVC_SLICES), None) in _HEVC_IDR
    if codec == "vp9":
        return _vp9_key(packet)
    return _av1_key(packet)


def _units(packet: bytes, length_size: int) -> Iterator[bytes]:
    at = 0
    while at + length_size <= len(packet):
        size = int.from_bytes(packet[at : at + length_size], "big")
        at += length_size
        yield packet[at : at + min(size, 1)]
        at += size


def _vp9_key(packet: bytes) -> bool:
    if not packet or packet[0] >> 6 != 2:
        return False
    profile = (packet[0] >> 5 & 1) | (packet[0] >> 4 & 1) << 1
    # profile 3 has a reserved bit before show_existing_frame and frame_type
    existing, inter = (packet[0] >> 2 & 1, packet[0] >> 1 & 1) if profile == 3 else (
        packet[0] >> 3 & 1, packet[0] >> 2 & 1
    )  # fmt: skip
    return not existing and not inter


def _av1_key(packet: bytes) -> bool:
    """AV1 specification 5.5, 5.9.2: a key frame that is shown, its sequence header before it."""
    at, sequence = 0, False
    while at < len(packet):
        kind, extended, sized = packet[at] >> 3 & 15, packet[at] >> 2 & 1, packet[at] >> 1 & 1
        at += 1 + extended
        size, shift = len(packet) - at, 0
        if sized:
            size = 0
            while at < len(packet):
                byte = packet[at]
                size |= (byte & 0x7F) << shift
                at, shift = at + 1, shift + 7
                if not byte & 0x80 or shift > 56:
                    break
        if kind == _AV1_SEQUENCE:
            sequence = True
        elif kind in _AV1_HEADERS:
            if at >= len(packet):
                return False
            existing, frame_type, shown = packet[at] >> 7, packet[at] >> 5 & 3, packet[at] >> 4 & 1
            return sequence and not existing and frame_type == 0 and bool(shown)
        at += size
    return False
