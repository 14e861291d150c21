"""The DASH manifest (MPD) of a delivery: ISO/IEC 23009-1, one period of CMAF segments."""

import math
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from fractions import Fraction

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.bitstream.mp4_boxes import VideoEntry
from vqaloop.delivery.content import (
    ORIGINAL,
    AudioRendition,
    Content,
    Sheets,
    TextRendition,
)
from vqaloop.delivery.encryption import Keys, pssh_system
from vqaloop.delivery.rates import text_rates, track_rates
from vqaloop.delivery.segments import INIT, Track
from vqaloop.delivery.single_file import MEDIA_FILE

MPD = "manifest.mpd"
_LIVE, _ON_DEMAND = (
    "urn:mpeg:dash:profile:isoff-live:2011",
    ("urn:mpeg:dash:profile:isoff-on-demand:2011"),
)
_ROLE = "urn:mpeg:dash:role:2011"
_PURPOSE = "urn:tva:metadata:cs:AudioPurposeCS:2007"
_CICP_CHANNELS = "urn:mpeg:mpegB:cicp:ChannelConfiguration"
_MPEG_CHANNELS = "urn:mpeg:dash:23003:3:audio_channel_configuration:2011"
_TILES = "http://dashif.org/guidelines/thumbnail_tile"
_CENC = "urn:mpeg:cenc:2013"


def mpd(content: Content, keys: Keys | None = None) -> str:
    """The MPD: an AdaptationSet for each codec, its rungs ascending, and one for each rendition of
    audio, subtitles and preview images.

    Pictures of one codec must have the same segment boundaries.
    """
    tracks, audio = content.videos, [a for a in content.audio if "dash" in a.kinds]
    every = [*tracks, *(item.track for item in audio)]
    longest = max(t.duration for t in tracks)
    single = tracks[0].index is not None
    ET.register_namespace("cenc", _CENC)
    root = ET.Element(
        "MPD",
        {
            "xmlns": "urn:mpeg:dash:schema:mpd:2011",
            "profiles": f"{_ON_DEMAND if single else _LIVE},urn:mpeg:dash:profile:cmaf:2019",
            "type": "static",
            "mediaPresentationDuration": _seconds(longest),
            "maxSegmentDuration": _seconds(max(s.duration for t in every for s in t.segments)),
            # a player with this much buffered never stalls at @bandwidth, a segment's peak
            "minBufferTime": _seconds(max(s.duration for t in every for s in t.segments)),
        },
    )
    # without it some players resolve URLs against their own folder
    ET.SubElement(root, "BaseURL").text = "./"
    period = ET.SubElement(root, "Period", {"id": "0", "start": "PT0S"})
    codecs = list(dict.fromkeys(t.codec for t in tracks))
    number = len(codecs)
    for place, codec in enumerate(codecs):
        _video_set(period, place, [t for t in tracks if t.codec == codec], keys)
    for item in audio:
        _audio_set(period, number, item, keys)
        number += 1
    for text in content.texts:
        _text_set(period, number, text)
        number += 1
    if content.sheets:
        _image_set(period, number, content.sheets)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _video_set(
    period: ET.Element, number: int, tracks: Sequence[Track], keys: Keys | None
) -> None:
    largest = max((t.video for t in tracks), key=lambda e: e.width * e.height)
    shape = Fraction(largest.width * largest.sar[0], largest.height * largest.sar[1])
    group = ET.SubElement(
        period,
        "AdaptationSet",
        {
            "id": str(number),
            "contentType": "video",
            "mimeType": "video/mp4",
            **_alignment(tracks[0]),
            "frameRate": _rate(max(t.fps for t in tracks)),
            "par": f"{shape.numerator}:{shape.denominator}",
            "maxWidth": str(max(t.video.width for t in tracks)),
            "maxHeight": str(max(t.video.height for t in tracks)),
        },
    )
    _protection(group, keys, audio=False)
    _colour(group, largest)
    _role(group, "main")
    _template(group, tracks)
    for place, track in enumerate(tracks):
        entry = track.video
        item = ET.SubElement(
            group,
            "Representation",
            {
                "id": track.name,
                "codecs": track.codecs,
                "bandwidth": str(track_rates(track).peak),
                "width": str(entry.width),
                "height": str(entry.height),
                "frameRate": _rate(track.fps),
                "sar": f"{entry.sar[0]}:{entry.sar[1]}",
                # 1 is the best
                "qualityRanking": str(len(tracks) - place),
            },
        )
        _one_file(item, track)


def _colour(group: ET.Element, entry: VideoEntry) -> None:
    """The code points (ISO/IEC 23091-2) of HDR, or a player would take it for BT.709."""
    kind = video_range(entry)
    if kind == "SDR":
        return
    # a player that does not know PQ must not play it; HLG is made to be shown by SDR displays too
    needed = "EssentialProperty" if kind == "PQ" else "SupplementalProperty"
    for name, code in (
        ("ColourPrimaries", entry.primaries),
        ("TransferCharacteristics", entry.transfer),
        ("MatrixCoefficients", entry.matrix),
    ):
        scheme = f"urn:mpeg:mpegB:cicp:{name}"
        ET.SubElement(group, needed, {"schemeIdUri": scheme, "value": str(code)})


def _audio_set(period: ET.Element, number: int, audio: AudioRendition, keys: Keys | None) -> None:
    track, label = audio.track, audio.label
    attributes = {"id": str(number), "contentType": "audio", "mimeType": "audio/mp4"}
    attributes |= _alignment(track)
    if label.language:
        attributes["lang"] = label.language
    group = ET.SubElement(period, "AdaptationSet", attributes)
    _protection(group, keys, audio=True)
    ET.SubElement(group, "Label").text = label.name
    if purpose := {"visual_impaired": "1", "hearing_impaired": "2"}.get(
        next(iter(label.roles), "")
    ):
        ET.SubElement(group, "Accessibility", {"schemeIdUri": _PURPOSE, "value": purpose})
    # of two codings of the default programme the source's own is the better one
    best = ORIGINAL in audio.tiers or not audio.tiers
    if "comment" in label.roles:
        _role(group, "commentary")
    else:
        _role(group, "main" if label.default and best else "alternate")
    if "dub" in label.roles:
        _role(group, "dub")
    _template(group, [track])
    item = ET.SubElement(
        group,
        "Representation",
        {
            "id": track.name,
            "codecs": track.codecs,
            "bandwidth": str(track_rates(track).peak),
            "audioSamplingRate": str(audio.rate),
        },
    )
    channels = {"schemeIdUri": _MPEG_CHANNELS, "value": str(audio.channels)}
    if audio.channels > 6:
        # 7.1, which has no code in the older scheme
        channels = {"schemeIdUri": _CICP_CHANNELS, "value": "12"}
    ET.SubElement(item, "AudioChannelConfiguration", channels)
    _one_file(item, track)


def _text_set(period: ET.Element, number: int, text: TextRendition) -> None:
    attributes = {"id": str(number), "contentType": "text", "mimeType": "text/vtt"}
    if text.label.language:
        attributes["lang"] = text.label.language
    group = ET.SubElement(period, "AdaptationSet", attributes)
    ET.SubElement(group, "Label").text = text.label.name
    roles = text.label.roles
    _role(group, "caption" if "hearing_impaired" in roles else "subtitle")
    if text.label.default:
        _role(group, "main")
    if "forced" in roles:
        _role(group, "forced-subtitle")
    rate = math.ceil(text.whole.size_bytes * 8 / text.whole.duration)
    item = ET.SubElement(group, "Representation", {"id": text.name, "bandwidth": str(rate)})
    ET.SubElement(item, "BaseURL").text = f"{text.name}/{text.whole.file}"


def _image_set(period: ET.Element, number: int, sheets: Sheets) -> None:
    group = ET.SubElement(
        period,
        "AdaptationSet",
        {"id": str(number), "contentType": "image", "mimeType": "image/jpeg"},
    )
    length = sheets.across * sheets.down * sheets.every_s
    ET.SubElement(
        group,
        "SegmentTemplate",
        {
            "timescale": str(length.denominator),
            "duration": str(length.numerator),
            "media": "$RepresentationID$/$Number%05d$.jpg",
            "startNumber": "1",
        },
    )
    item = ET.SubElement(
        group,
        "Representation",
        {
            "id": sheets.name,
            "bandwidth": str(text_rates(sheets).peak),
            "width": str(sheets.width * sheets.across),
            "height": str(sheets.height * sheets.down),
        },
    )
    grid = f"{sheets.across}x{sheets.down}"
    ET.SubElement(item, "EssentialProperty", {"schemeIdUri": _TILES, "value": grid})


def _role(group: ET.Element, value: str) -> None:
    ET.SubElement(group, "Role", {"schemeIdUri": _ROLE, "value": value})


def _alignment(track: Track) -> dict[str, str]:
    if track.index is None:
        return {"segmentAlignment": "true", "startWithSAP": "1"}
    return {"subsegmentAlignment": "true", "subsegmentStartsWithSAP": "1"}


def _protection(group: ET.Element, keys: Keys | None, audio: bool) -> None:
    """The scheme and the key's id, and what systems of rights management are given."""
    if keys is None:
        return
    id = str(uuid.UUID(keys.of(audio).key_id))
    ET.SubElement(
        group,
        "ContentProtection",
        {
            "schemeIdUri": "urn:mpeg:dash:mp4protection:2011",
            "value": keys.scheme,
            f"{{{_CENC}}}default_KID": id,
        },
    )
    for box in keys.dash.pssh:
        system = {"schemeIdUri": f"urn:uuid:{pssh_system(box)}"}
        place = ET.SubElement(group, "ContentProtection", system)
        ET.SubElement(place, f"{{{_CENC}}}pssh").text = box


def _one_file(item: ET.Element, track: Track) -> None:
    """Where the index and the initialisation segment are in the file of a representation."""
    if track.index is None:
        return
    ET.SubElement(item, "BaseURL").text = f"{track.name}/{MEDIA_FILE}"
    index = f"{track.index.start}-{track.index.stop - 1}"
    base = ET.SubElement(item, "SegmentBase", {"indexRange": index, "indexRangeExact": "true"})
    ET.SubElement(base, "Initialization", {"range": f"0-{track.index.start - 1}"})


def _template(group: ET.Element, tracks: Sequence[Track]) -> None:
    """URLs and durations of the segments, the same for all tracks of the set."""
    if tracks[0].index is not None:
        return
    # one timescale in which the durations of all tracks are whole
    clock = math.lcm(*(t.time_base.denominator for t in tracks))
    template = ET.SubElement(
        group,
        "SegmentTemplate",
        {
            "timescale": str(clock),
            "initialization": f"$RepresentationID$/{INIT}",
            "media": "$RepresentationID$/$Number%05d$.m4s",
            "startNumber": "1",
        },
    )
    timeline = ET.SubElement(template, "SegmentTimeline")
    # runs of equal durations: ticks, and how often they are repeated
    runs: list[list[int]] = []
    for segment in tracks[0].segments:
        ticks = round(segment.duration * clock)
        if runs and runs[-1][0] == ticks:
            runs[-1][1] += 1
        else:
            runs.append([ticks, 0])
    for place, (ticks, again) in enumerate(runs):
        start = {"t": str(round(tracks[0].segments[0].start * clock))} if place == 0 else {}
        repeat = {"r": str(again)} if again else {}
        ET.SubElement(timeline, "S", {**start, "d": str(ticks), **repeat})


def _rate(fps: Fraction) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{fps.numerator}/{fps.denominator}"


def _seconds(time: Fraction) -> str:
    return f"PT{float(time):.6f}".rstrip("0").rstrip(".") + "S"
