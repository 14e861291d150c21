"""The manifests: HLS playlists (RFC 8216 and its successor) and the DASH MPD (ISO/IEC 23009-1).

Text only, from tracks that were measured as they were written. Names in them are our own: nothing
of a ladder's or source's text gets in.
"""

import math
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from vqaloop.boxes import VideoEntry
from vqaloop.codecstrings import video_range
from vqaloop.segments import (
    AUDIO_CHANNELS,
    AUDIO_RATE,
    INIT,
    Track,
    mean_rate,
    peak_rate,
    target_duration,
)

MEDIA = "media.m3u8"
IFRAMES = "iframes.m3u8"
MASTER = "master.m3u8"
MPD = "manifest.mpd"
FIRST_BPS = 2_000_000
"""Bits a second of the variant to start with, by Apple's authoring specification."""
_HLS_VERSION = 7
_START_ORDER = ("h264", "hevc", "av1")


@dataclass(frozen=True)
class Rates:
    """Bits a second, measured."""

    peak: int
    mean: int


def track_rates(track: Track) -> Rates:
    """Of the segments as they are fetched, container included."""
    parts = [(s.size_bytes, s.duration) for s in track.segments]
    return Rates(peak_rate(parts), mean_rate(parts))


def iframe_rates(track: Track) -> Rates:
    """Of the key frames alone."""
    parts = [(k.size_bytes, k.duration) for k in track.keyframes]
    return Rates(peak_rate(parts), mean_rate(parts))


def variant_rates(track: Track, audio: Track | None) -> Rates:
    """What a player of this rung fetches: pictures and sound."""
    video = track_rates(track)
    sound = track_rates(audio) if audio else Rates(0, 0)
    return Rates(video.peak + sound.peak, video.mean + sound.mean)


def media_playlist(track: Track) -> str:
    """All segments of a track."""
    lines = [
        *_head([s.duration for s in track.segments]),
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{INIT}"',
    ]
    for segment in track.segments:
        lines += [f"#EXTINF:{float(segment.duration):.6f},", segment.file]
    return _text([*lines, "#EXT-X-ENDLIST"])


def iframe_playlist(track: Track) -> str:
    """The key frames of a track, each a range of bytes of a segment."""
    lines = [
        *_head([k.duration for k in track.keyframes]),
        "#EXT-X-I-FRAMES-ONLY",
        f'#EXT-X-MAP:URI="{INIT}"',
    ]
    for key in track.keyframes:
        lines += [
            f"#EXTINF:{float(key.duration):.6f},",
            f"#EXT-X-BYTERANGE:{key.size_bytes}@{key.offset}",
            key.file,
        ]
    return _text([*lines, "#EXT-X-ENDLIST"])


def _head(durations: Sequence[Fraction]) -> list[str]:
    return [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_HLS_VERSION}",
        f"#EXT-X-TARGETDURATION:{target_duration(durations)}",
        "#EXT-X-MEDIA-SEQUENCE:1",
        "#EXT-X-PLAYLIST-TYPE:VOD",
    ]


def master_playlist(tracks: Sequence[Track], audio: Track | None) -> str:
    """All variants; first the one a player should start with, the others ascending."""
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{_HLS_VERSION}", "#EXT-X-INDEPENDENT-SEGMENTS"]
    if audio:
        language = f',LANGUAGE="{audio.language}"' if audio.language else ""
        lines.append(
            f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="audio",NAME="Main"{language},DEFAULT=YES,'
            f'AUTOSELECT=YES,CHANNELS="{AUDIO_CHANNELS}",URI="{audio.name}/{MEDIA}"'
        )
    # NONE speaks for all variants; where nothing is said players look into the pictures
    captions = "" if any(track.captions for track in tracks) else ",CLOSED-CAPTIONS=NONE"
    first = _start(tracks, audio)
    for track in [first, *(t for t in tracks if t is not first)]:
        entry, rates = _entry(track), variant_rates(track, audio)
        codecs = f"{track.codecs},{audio.codecs}" if audio else track.codecs
        group = ',AUDIO="audio"' if audio else ""
        lines += [
            f"#EXT-X-STREAM-INF:BANDWIDTH={rates.peak},AVERAGE-BANDWIDTH={rates.mean},"
            f'CODECS="{codecs}",RESOLUTION={entry.width}x{entry.height},'
            f"FRAME-RATE={float(track.fps):.3f},VIDEO-RANGE={video_range(entry)}{group}"
            f"{captions}",
            f"{track.name}/{MEDIA}",
        ]
    for track in tracks:
        entry, rates = _entry(track), iframe_rates(track)
        lines.append(
            f"#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH={rates.peak},AVERAGE-BANDWIDTH={rates.mean},"
            f'CODECS="{track.codecs}",RESOLUTION={entry.width}x{entry.height},'
            f'VIDEO-RANGE={video_range(entry)},URI="{track.name}/{IFRAMES}"'
        )
    return _text(lines)


def _start(tracks: Sequence[Track], audio: Track | None) -> Track:
    known = [t for codec in _START_ORDER for t in tracks if t.codec == codec]
    same = [t for t in known if t.codec == known[0].codec]
    return min(same, key=lambda t: abs(variant_rates(t, audio).mean - FIRST_BPS))


def mpd(tracks: Sequence[Track], audio: Track | None) -> str:
    """One AdaptationSet a codec, its rungs ascending, and one for the sound.

    `tracks` of one codec have the same segment boundaries.
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
            # a player that has this much never runs dry at @bandwidth, which is a segment's peak
            "minBufferTime": _seconds(max(s.duration for t in tracks for s in t.segments)),
        },
    )
    # some players take what stands here for relative to their own folder otherwise
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
    largest = max((_entry(t) for t in tracks), key=lambda e: e.width * e.height)
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
            "maxWidth": str(max(_entry(t).width for t in tracks)),
            "maxHeight": str(max(_entry(t).height for t in tracks)),
        },
    )
    if video_range(largest) != "SDR":
        # code points of ISO/IEC 23091-2, or a player would take it for BT.709
        for name, code in (
            ("ColourPrimaries", largest.primaries),
            ("TransferCharacteristics", largest.transfer),
            ("MatrixCoefficients", largest.matrix),
        ):
            ET.SubElement(
                group,
                "SupplementalProperty",
                {"schemeIdUri": f"urn:mpeg:mpegB:cicp:{name}", "value": str(code)},
            )
    _role(group)
    _template(group, tracks)
    for place, track in enumerate(tracks):
        entry = _entry(track)
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
    """Where segments lie and how long they last: the same for all tracks of the set."""
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


def _entry(track: Track) -> VideoEntry:
    assert track.entry is not None
    return track.entry


def _rate(fps: Fraction) -> str:
    return str(fps.numerator) if fps.denominator == 1 else f"{fps.numerator}/{fps.denominator}"


def _seconds(time: Fraction) -> str:
    return f"PT{float(time):.6f}".rstrip("0").rstrip(".") + "S"


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
