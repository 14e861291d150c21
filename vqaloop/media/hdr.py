"""HDR of a source: what is refused, which metadata are kept and dropped, what users are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqaloop.bitstream.colour_tags import Tags, video_range_of
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.records import StaticHdr

_SIDE_DATA = {
    "HDR10+": ("DYNAMIC_HDR_PLUS",),
    "HDR Vivid": ("DYNAMIC_HDR_VIVID",),
    "Dolby Vision": ("DOVI_RPU_BUFFER", "DOVI_METADATA"),
}
"""ffmpeg's names of the side data that is removed of frames: some encoders would write it, though
it need not fit scaled and coded pictures, and others cannot."""

_BT2020 = {"color_primaries": "bt2020", "colorspace": "bt2020nc"}
_NAMES = {"color_primaries": "primaries", "colorspace": "a matrix"}
_WIDE = ("bt2020", "ictcp")
"""How the matrices of BT.2100 begin."""
_ZSCALE = {"t": "color_trc", "p": "color_primaries", "m": "colorspace"}
"""How the options of zscale that say what comes in begin, and the tags they take."""
_WHITE_NITS = 100
"""Luminance of SDR's white, in cd/m²."""
_PEAK_NITS = 1000
"""Peak of content that does not tell its own, in cd/m²; that of HLG's reference display."""


@dataclass(frozen=True)
class HdrUse:
    """What is done with an HDR input."""

    judged: bool = False
    """Whether the metric that scores it is made for HDR."""
    tonemap: bool = False
    """Make it SDR, as part of how it is read."""
    refuse_dynamic: bool = False
    """Refuse inputs with dynamic metadata, which are dropped otherwise."""
    tonemaps: bool = True
    """Whether the command has --tonemap, which refusals name then."""


def check_hdr(
    path: Path, kind: str | None, dolby_vision: tuple[int, int] | None, allow: bool, use: HdrUse
) -> tuple[str, ...]:
    """Refuse an HDR input that nobody has asked for, before it is decoded.

    Args:
        path: The file.
        kind: PQ or HLG; None by its tags SDR.
        dolby_vision: Profile and compatibility id by its container.
        allow: The user wants it, whatever the metric.
        use: What is done with it.

    Returns:
        Notes for people.

    Raises:
        InputError: It is HDR and the metric is not made for that, or its pictures cannot be shown
            without the metadata that are dropped.
    """
    profile, compatibility = dolby_vision or (0, -1)
    bare = compatibility == 0
    if not (kind or bare):
        return ()
    name = f"Dolby Vision profile {profile}" if bare else f"{kind} transfer"
    if bare and not allow:
        raise InputError(
            f"{quoted(path)} is HDR ({name}): without its metadata, which no encoder here writes, "
            "its pictures have wrong colours; take a master in HDR10 or HLG, or give --allow-hdr "
            "to go on all the same"
        )
    if use.tonemap and kind:
        return ()
    if not (allow or use.judged):
        raise InputError(
            f"{quoted(path)} is HDR ({name}): VMAF, PSNR and the student were made for "
            "SDR, and their scores do not hold there; give --metric cvvdp, which is made for HDR, "
            f"{'--tonemap to make it SDR, ' * use.tonemaps}or --allow-hdr to go on all the same"
        )
    notes = []
    if not use.judged:
        notes.append(doubt_note(name))
    if bare:
        notes.append(
            "Without the Dolby Vision metadata players show wrong colours: its base layer is made "
            "for no other display."
        )
    return tuple(notes)


def doubt_note(name: str) -> str:
    """That what scores an HDR input, of "PQ transfer" say, is not made for it."""
    return (
        f"HDR ({name}); scores of SDR metrics, and of students through PU21, are not to be "
        "trusted on it: --metric cvvdp is made for HDR."
    )


def dropped(
    path: Path, dynamic: Sequence[str], use: HdrUse
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The filters that remove dynamic HDR metadata, and notes for people.

    Args:
        path: The file.
        dynamic: Kinds of metadata, such as "HDR10+" and "Dolby Vision profile 8".
        use: What is done with it.

    Raises:
        InputError: Such inputs are refused.
    """
    if not dynamic:
        return (), ()
    what = " and ".join(dynamic)
    if use.refuse_dynamic:
        raise InputError(
            f"{quoted(path)} has dynamic HDR metadata ({what}), which every encode here would "
            "lose; leave out --dynamic-hdr refuse to drop them, or make its encodes with a tool "
            "of that format"
        )
    types = [t for name, types in _SIDE_DATA.items() for t in types if what.find(name) >= 0]
    filters = tuple(f"sidedata=mode=delete:type={type}" for type in types)
    return filters, (drop_note(dynamic),)


def drop_note(dynamic: Sequence[str]) -> str:
    """That encodes lose these dynamic metadata."""
    what = " and ".join(dynamic)
    return f"{what}: dynamic metadata are dropped; encodes have the base layer alone."


def completed(colour: Tags, is_rgb: bool) -> tuple[tuple[str, ...], Tags, tuple[str, ...]]:
    """The tags of BT.2020 for PQ and HLG that lack them: MP4 has a place for all or none.

    Args:
        colour: The tags of the file.
        is_rgb: Whether its samples are R'G'B', which have no matrix yet.

    Returns:
        Filters that set them, all tags, and notes for people; as they were of SDR.
    """
    tags, kind = dict(colour), video_range_of(colour)
    if kind == "SDR":
        return (), colour, ()
    lacking = {name: value for name, value in _BT2020.items() if name not in tags}
    own = {name: value for name, value in lacking.items() if not (is_rgb and name == "colorspace")}
    notes = []
    if own:
        what = " and ".join(_NAMES[name] for name in own)
        notes.append(f"{kind} without {what}; taken for BT.2020, and tagged so.")
    tags = lacking | tags
    if tags["color_primaries"] != "bt2020" or not tags["colorspace"].startswith(_WIDE):
        notes.append(
            f"{kind} with primaries {tags['color_primaries']} and matrix {tags['colorspace']}, "
            "kept so; players expect BT.2020 of both."
        )
    filters = ["setparams=" + ":".join(f"{k}={v}" for k, v in own.items())] if own else []
    return tuple(filters), tuple(tags.items()), tuple(notes)


@dataclass(frozen=True)
class ToneMapped:
    """An HDR source made SDR."""

    filters: tuple[str, ...]
    colour: Tags
    """The tags behind the filters."""
    notes: tuple[str, ...]


def tone_mapped(kind: str, colour: Tags, static: StaticHdr | None) -> ToneMapped:
    """The filters that make PQ or HLG limited-range BT.709, 10 bit, and the same on every run.

    What is brighter than the content's MaxCLL, or else its mastering display, is clipped.

    Args:
        kind: PQ or HLG.
        colour: The source's tags, `completed`.
        static: Its static metadata.
    """
    tags, peak = dict(colour), _PEAK_NITS
    if static and static.light and static.light[0] > _WHITE_NITS:
        peak = static.light[0]
    elif static and static.luminance and static.luminance[1] > _WHITE_NITS:
        peak = round(static.luminance[1])
    own = tags.get("color_range", "tv")
    given = ":".join(f"{name}in={tags[tag]}" for name, tag in _ZSCALE.items()) + f":rin={own}"
    filters = (
        f"zscale={given}:t=linear:npl={_WHITE_NITS}",
        "format=gbrpf32le",
        "zscale=p=bt709",
        f"tonemap=tonemap=hable:desat=0:peak={peak / _WHITE_NITS:g}",
        "zscale=t=bt709:m=bt709:r=tv",
        "format=yuv420p10le",
        # or encoders would carry them into SDR
        "sidedata=mode=delete:type=MASTERING_DISPLAY_METADATA",
        "sidedata=mode=delete:type=CONTENT_LIGHT_LEVEL",
    )
    made = {name: "bt709" for name in ("color_primaries", "color_trc", "colorspace")}
    note = f"Tone-mapped from {kind} (peak {peak} cd/m²) to SDR, BT.709; scored against that."
    return ToneMapped(filters, (*made.items(), ("color_range", "tv")), (note,))
