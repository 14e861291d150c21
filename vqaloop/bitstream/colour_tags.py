"""Colour tags (matrix, primaries, transfer, range), and the ffmpeg filters that handle them.

ffmpeg converts samples wherever the two ends of a filter are tagged differently, takes all grey
for full range, and refuses some matrices even where it has nothing to convert. So samples that
are to stay as stored are untagged, and tags are set without conversion.
"""

from av.video.format import VideoFormat

from vqaloop.records import Source

# ITU-T H.273 code points that ffmpeg names, unspecified and reserved ones left out
PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film",
    9: "bt2020", 10: "smpte428", 11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
TRANSFERS = {
    1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 7: "smpte240m", 8: "linear",
    9: "log100", 10: "log316", 11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1",
    14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084", 17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
MATRICES = {
    1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco",
    9: "bt2020nc", 10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc",
    13: "chroma-derived-c", 14: "ictcp", 15: "ipt-c2", 16: "ycgco-re", 17: "ycgco-ro",
}  # fmt: skip
HDR_DEPTH = 10
"""Least bits a sample of HDR (ITU-R BT.2100)."""
HDR_TRANSFERS = {"smpte2084": "PQ", "arib-std-b67": "HLG"}
"""The transfer characteristics of HDR, by ffmpeg's names, and what HLS calls them."""

UNTAGGED = "setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"
"""The filter that removes tags but the range, so that no later filter converts samples by them."""

RANGES = {1: "tv", 2: "pc"}
"""ffmpeg's numbers of the ranges, limited and full."""

SCALER_MATRICES = {"bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc"}
"""Matrices that ffmpeg's scale filter converts; it refuses frames that are tagged with others."""

_HD_TAGS = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}

Tags = tuple[tuple[str, str], ...]
"""ffmpeg's output options for colour tags, as in `Source.colour`."""


def colour_range(source: Source) -> str:
    """The range of a source's samples; without a tag it is limited, as players assume.

    Args:
        source: The source.

    Returns:
        "tv" (limited) or "pc" (full).
    """
    return dict(source.colour).get("color_range") or "tv"


def video_range_of(colour: Tags) -> str:
    """What HLS calls the dynamic range of samples with these tags: SDR, PQ or HLG."""
    return HDR_TRANSFERS.get(dict(colour).get("color_trc", ""), "SDR")


def bits_of(source: Source) -> int:
    """Bits a sample at which metrics for HDR look at a source and its encodes: 10 of HDR."""
    return 8 if video_range_of(source.colour) == "SDR" else HDR_DEPTH


def in_range(own: str | None, wanted: str | None) -> str:
    """Options of ffmpeg's scale filter that convert samples from one range to another.

    Args:
        own: The range of the samples, None where it is unknown.
        wanted: The range to convert to, None for their own.

    Returns:
        The options with a colon before them, empty where there is nothing to convert.
    """
    return f":in_range={own}:out_range={wanted}" if own and wanted and own != wanted else ""


def matrix_tag(colour: Tags) -> tuple[str, ...]:
    """The filter that tags samples with the output's matrix again, converting nothing.

    Only for matrices that the scale filter refuses: `to_ycbcr` has removed the tag, and ffmpeg
    would convert untagged samples to the matrix of the output.

    Args:
        colour: The output's tags.

    Returns:
        One filter, or none where the samples are still tagged.
    """
    matrix = dict(colour).get("colorspace")
    known = matrix is None or matrix in SCALER_MATRICES
    return () if known else (f"setparams=colorspace={matrix}",)


def to_ycbcr(
    layout: VideoFormat, size: tuple[int, int], bits: int, colour: Tags
) -> tuple[tuple[str, ...], Tags, tuple[str, ...]]:
    """The filters by which decoded samples become Y'CbCr, converted only where they must be.

    RGB is converted by the matrix of `colour`, or the one that players assume at its size, and
    tagged with it. Grey keeps its range. Untagged pictures of a size for which players assume
    BT.709 are tagged with it, since for the small renditions they would assume BT.601.

    Args:
        layout: The pixel format, PyAV's.
        size: Width and height in pixels.
        bits: Bits a sample in the encodes, 8 or 10.
        colour: The tags of the file.

    Returns:
        Filters for `Source.prep`, the tags after them, and notes for people.
    """
    tags, depth = dict(colour), "10le" if bits > 8 else ""
    is_hd = size[0] >= 1280 or size[1] > 576
    filters: tuple[str, ...]
    visible = [c for c in layout.components if not c.is_alpha]
    # one bit is black or white, without a range
    if layout.is_rgb or layout.has_palette or visible[0].bits == 1:
        matrix = tags.get("colorspace")
        if matrix not in SCALER_MATRICES:
            matrix = "bt709" if is_hd else "smpte170m"
        tags |= {"colorspace": matrix, "color_range": "tv"}
        convert = (
            f"scale=out_color_matrix={matrix}:out_range=tv:flags=accurate_rnd+full_chroma_int"
        )
        filters = (convert, f"format=yuv444p{depth}", f"setparams=colorspace={matrix}:range=tv")
        return filters, tuple(tags.items()), ()
    if len(visible) == 1:
        tags["color_range"] = own = tags.get("color_range") or "tv"
        matrix = tags.get("colorspace") or "unknown"
        tag = f"setparams=range={own}:colorspace={matrix}"
        # full range at both ends of the filter, whatever it is: then no sample changes
        whole = f"{UNTAGGED}:range=pc"
        filters = (whole, "scale=out_range=pc:flags=accurate_rnd", f"format=yuv420p{depth}", tag)
        return filters, tuple(tags.items()), ()
    if matrix_tag(colour):
        # or the scale filter refuses the frames
        return (UNTAGGED,), colour, ()
    if is_hd and not _HD_TAGS.keys() & tags.keys():
        tag = "setparams=" + ":".join(f"{key}={value}" for key, value in _HD_TAGS.items())
        note = "No colour tags; renditions are tagged BT.709, as players show this size."
        return (tag,), (*_HD_TAGS.items(), *colour), (note,)
    return (), colour, ()
