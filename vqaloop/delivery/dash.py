"""The DASH manifest (MPD) of a delivery: ISO/IEC 23009-1, one period of CMAF segments."""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from fractions import Fraction

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.bitstream.mp4_boxes import VideoEntry
from vqaloop.delivery.rates import track_rates
from vqaloop.delivery.segments import (
    AUDIO_CHANNELS,
    AUDIO_RATE,
    INIT,
    Track,
)

MPD = "manifest.mpd"


def mpd(tracks: Sequence[Track], audio: Track | None) -> str:
    """The MPD: an AdaptationSet for each codec, its rungs ascending, and one for the audio.

    `tracks` of one codec must have the same segment boundaries.
    """
    longest = max(t.duration for t in tracks)
    root = ET.Element(
        "MPD",
        {
            "xmlns": "urn:mpeg:dash:schema:mpd:2011",
            "profiles": "urn:mpeg:dash:profile:isoff-live:2011,urn:mpeg:dash:profile:cmaf:2019",
            "type": "static",
            "mediaPresentationDuration": _seconds(longest),
            "maxSegmentDuration": _seconds(max(s.duration for t in tracks for s in t.segments)),
            # a player with this much buffered never stalls at @bandwidth, a segment's peak
            "minBufferTime": _seconds(max(s.duration for t in tracks for s in t.segments)),
        },
    )
    # without it some players resolve URLs against their own folder
    ET.SubElement(root, "BaseURL").text = "./"
    period = ET.SubElement(root, "Period", {"id": "0", "start": "PT0S"})
    codecs = list(dict.fromkeys(t.codec for t in tracks))
    for number, codec in enumerate(codecs):
        _video_set(period, number, [t for t in tracks if t.codec == codec])
    if audio:
        _audio_set(period, len(codecs), audio)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _video_set(period: ET.Element, number: int, tracks: Sequence[Track]) -> None:
    largest = max((t.video for t in tracks), key=lambda e: e.width * e.height)
    shape = Fraction(largest.width * largest.sar[0], largest.height * largest.sar[1])
    group = ET.SubElement(
        period,
        "AdaptationSet",
        {
            "id": str(number),
            "contentType": "video",
            "mimeType": "video/mp4",
            "segmentAlignment": "true",
            "startWithSAP": "1",
            "frameRate": _rate(max(t.fps for t in tracks)),
            "par": f"{shape.numerator}:{shape.denominator}",
            "maxWidth": str(max(t.video.width for t in tracks)),
            "maxHeight": str(max(t.video.height for t in tracks)),
        },
    )
    _colour(group, largest)
    _role(group)
    _template(group, tracks)
    for place, track in enumerate(tracks):
        entry = track.video
        ET.SubElement(
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


def _audio_set(period: ET.Element, number: int, audio: Track) -> None:
    attributes = {
        "id": str(number),
        "contentType": "audio",
        "mimeType": "audio/mp4",
        "segmentAlignment": "true",
        "startWithSAP": "1",
    }
    if audio.language:
        attributes["lang"] = audio.language
    group = ET.SubElement(period, "AdaptationSet", attributes)
    _role(group)
    _template(group, [audio])
    track = ET.SubElement(
        group,
        "Representation",
        {
            "id": audio.name,
            "codecs": audio.codecs,
            "bandwidth": str(track_rates(audio).peak),
            "audioSamplingRate": str(AUDIO_RATE),
        },
    )
    ET.SubElement(
        track,
        "AudioChannelConfiguration",
        {
            "schemeIdUri": "urn:mpeg:dash:23003:3:audio_channel_configuration:2011",
            "value": str(AUDIO_CHANNELS),
        },
    )


def _role(group: ET.Element) -> None:
    ET.SubElement(group, "Role", {"schemeIdUri": "urn:mpeg:dash:role:2011", "value": "main"})


def _template(group: ET.Element, tracks: Sequence[Track]) -> None:
    """URLs and durations of the segments, the same for all tracks of the set."""
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
        start = {"t": "0"} if place == 0 else {}
        repeat = {"r": str(again)} if again else {}
        ET.SubElement(timeline, "S", {**start, "d": str(ticks), **repeat})


def _rate(fps: Fraction) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{fps.numerator}/{fps.denominator}"


def _seconds(time: Fraction) -> str:
    return f"PT{float(time):.6f}".rstrip("0").rstrip(".") + "S"
