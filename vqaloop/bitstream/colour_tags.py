"""Colour tags: matrix, primaries, transfer and range of samples, and what ffmpeg does by them.

ffmpeg converts samples wherever the two ends of a filter are tagged differently, takes all grey
for full range, and refuses some matrices even where it has nothing to convert. So samples that
are to stay as stored are untagged, and tags are set without conversion.
"""

from av.video.format import VideoFormat

from vqaloop.records import Source

UNTAGGED = "setparams=colorspace=unknown:color_primaries=unknown:color_trc=unknown"
"""The filter before samples that only have to keep their values; the range stays."""

RANGES = {1: "tv", 2: "pc"}
"""ffmpeg's numbers of the ranges, limited and full."""

_CONVERTED = (None, "bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "bt2020nc")
"""Matrices that ffmpeg's scaler knows; frames with others it refuses."""

_ASSUMED = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}

Tags = tuple[tuple[str, str], ...]


def colour_range(source: Source) -> str:
    """The range of a source's samples, tv or pc; without a tag it is limited, as players assume.

    Args:
        source: The source.

    Returns:
        The value of color_range.
    """
    return dict(source.colour).get("color_range") or "tv"


def in_range(own: str | None, wanted: str | None) -> str:
    """Options of the scale filter that bring samples of one range to another.

    Args:
        own: The range of the samples, None where it is unknown.
        wanted: The range they are to have, None for their own.

    Returns:
        The options with a colon before them, empty where there is nothing to convert.
    """
    return f":in_range={own}:out_range={wanted}" if own and wanted and own != wanted else ""


def retagged(colour: Tags) -> tuple[str, ...]:
    """What tags samples before an output that has `colour` for options, converting nothing.

    Only for matrices that the scaler refuses: they were taken from the samples by `as_stored`, and
    ffmpeg would convert to the one that the output is to have.

    Args:
        colour: As in `Source`.

    Returns:
        Filters, none where the samples are still tagged.
    """
    matrix = dict(colour).get("colorspace")
    return () if matrix in _CONVERTED else (f"setparams=colorspace={matrix}",)


def as_stored(
    layout: VideoFormat, size: tuple[int, int], bits: int, colour: Tags
) -> tuple[tuple[str, ...], Tags, tuple[str, ...]]:
    """How decoded samples become Y'CbCr of which nothing was converted that need not be.

    RGB is converted by the matrix of `colour`, or that which players assume at its size, and
    tagged with it. Grey keeps its range. Pictures without any tag of a size for which players
    assume BT.709 are tagged so, since of the small renditions they would assume BT.601.

    Args:
        layout: The pixel format, PyAV's.
        size: Width and height in pixels.
        bits: Bits a sample in the encodes, 8 or 10.
        colour: The tags of the file, as in `Source`.

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
        if not matrix or matrix not in _CONVERTED:
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
        # both full, whatever they are: then no sample changes
        whole = f"{UNTAGGED}:range=pc"
        filters = (whole, "scale=out_range=pc:flags=accurate_rnd", f"format=yuv420p{depth}", tag)
        return filters, tuple(tags.items()), ()
    if tags.get("colorspace") not in _CONVERTED:
        return (UNTAGGED,), colour, ()
    if is_hd and not _ASSUMED.keys() & tags.keys():
        tag = "setparams=" + ":".join(f"{key}={value}" for key, value in _ASSUMED.items())
        note = "No colour tags; renditions are tagged BT.709, as players show this size."
        return (tag,), (*_ASSUMED.items(), *colour), (note,)
    return (), colour, ()
