"""HLS playlists of a delivery (RFC 8216 and its successor): master, media and I-frame playlists.

Text only, from tracks measured as written. Of a source's own text it holds the titles of audio and
subtitle tracks alone, which `tracks.py` cleans.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.delivery.content import (
    AudioGroup,
    AudioRendition,
    Content,
    Label,
    Sheets,
    TextRendition,
    audio_groups,
)
from vqaloop.delivery.encryption import Keys
from vqaloop.delivery.rates import iframe_rates, target_duration, text_rates, variant_rates
from vqaloop.delivery.segments import INIT, Segment, Track
from vqaloop.delivery.single_file import MEDIA_FILE

MEDIA = "media.m3u8"
IFRAMES = "iframes.m3u8"
MASTER = "master.m3u8"
IMAGES = "images.m3u8"
FIRST_BPS = 2_000_000
"""Average bit/s of the variant to start with, by Apple's authoring specification."""
_HLS_VERSION = 7
_START_ORDER = ("h264", "hevc", "av1")
_CHARACTERISTICS = {
    "hearing_impaired": (
        "public.accessibility.transcribes-spoken-dialog",
        "public.accessibility.describes-music-and-sound",
    ),
    "visual_impaired": ("public.accessibility.describes-video",),
}
"""Of EXT-X-MEDIA, by ffmpeg's names of dispositions."""


def media_playlist(track: Track, keys: Keys | None = None, audio: bool = False) -> str:
    """The media playlist of a track: all its segments."""
    lines = [
        *_head([s.duration for s in track.segments]),
        "#EXT-X-INDEPENDENT-SEGMENTS",
        *_key_line(keys, audio),
        _map_line(track),
    ]
    return _text([*lines, *_listed(track.segments), "#EXT-X-ENDLIST"])


def text_playlist(text: TextRendition) -> str:
    """The media playlist of subtitles."""
    head = _head([s.duration for s in text.segments])
    return _text([*head, *_listed(text.segments), "#EXT-X-ENDLIST"])


def iframe_playlist(track: Track, keys: Keys | None = None) -> str:
    """The I-frame playlist of a track: its key frames, each a byte range of a segment."""
    lines = [
        *_head([k.duration for k in track.keyframes]),
        "#EXT-X-I-FRAMES-ONLY",
        *_key_line(keys, audio=False),
        _map_line(track),
    ]
    for key in track.keyframes:
        lines += [
            f"#EXTINF:{float(key.duration):.6f},",
            f"#EXT-X-BYTERANGE:{key.size_bytes}@{key.offset}",
            key.file,
        ]
    return _text([*lines, "#EXT-X-ENDLIST"])


def image_playlist(sheets: Sheets) -> str:
    """The image playlist: sheets of pictures at equal distances in time."""
    tiles = (
        f"#EXT-X-TILES:RESOLUTION={sheets.width}x{sheets.height},"
        f"LAYOUT={sheets.across}x{sheets.down},DURATION={float(sheets.every_s):.6f}"
    )
    lines = [*_head([s.duration for s in sheets.segments]), "#EXT-X-IMAGES-ONLY"]
    for segment in sheets.segments:
        lines += [f"#EXTINF:{float(segment.duration):.6f},", tiles, segment.file]
    return _text([*lines, "#EXT-X-ENDLIST"])


def _head(durations: Sequence[Fraction]) -> list[str]:
    return [
        "#EXTM3U",
        f"#EXT-X-VERSION:{_HLS_VERSION}",
        f"#EXT-X-TARGETDURATION:{target_duration(durations)}",
        "#EXT-X-MEDIA-SEQUENCE:1",
        "#EXT-X-PLAYLIST-TYPE:VOD",
    ]


def _map_line(track: Track) -> str:
    if track.index is None:
        return f'#EXT-X-MAP:URI="{INIT}"'
    return f'#EXT-X-MAP:URI="{MEDIA_FILE}",BYTERANGE="{track.index.start}@0"'


def _listed(segments: Sequence[Segment]) -> Iterator[str]:
    for segment in segments:
        yield f"#EXTINF:{float(segment.duration):.6f},"
        if segment.offset is not None:
            yield f"#EXT-X-BYTERANGE:{segment.size_bytes}@{segment.offset}"
        yield segment.file


def _key_line(keys: Keys | None, audio: bool, tag: str = "EXT-X-KEY") -> list[str]:
    if keys is None or keys.hls is None:
        return []
    method = "SAMPLE-AES" if keys.scheme == "cbcs" else "SAMPLE-AES-CTR"
    return [
        f'#{tag}:METHOD={method},URI="{keys.hls.uri_of(audio)}",'
        f'KEYFORMAT="{keys.hls.keyformat}",KEYFORMATVERSIONS="{keys.hls.keyformatversions}"'
    ]


def master_playlist(content: Content, keys: Keys | None = None) -> str:
    """The master playlist: first the variant a player should start with, the others ascending.

    With several groups of audio each rung is a variant with each, what every player decodes first.
    """
    tracks, groups = content.videos, audio_groups(content.audio) or (None,)
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{_HLS_VERSION}", "#EXT-X-INDEPENDENT-SEGMENTS"]
    # the same key of pictures and audio is said once
    lines += dict.fromkeys(
        line for audio in (False, True) for line in _key_line(keys, audio, "EXT-X-SESSION-KEY")
    )
    lines += [_audio_line(group, item) for group in groups if group for item in group.members]
    lines += [_text_line(text) for text in content.texts]
    # NONE holds for all variants; without the attribute players search the coded frames
    captions = "" if any(track.captions for track in tracks) else ",CLOSED-CAPTIONS=NONE"
    texts = ',SUBTITLES="subtitles"' if content.texts else ""
    first = _start(tracks, groups[0], content.texts)
    ordered = [first, *(t for t in tracks if t is not first)]
    for group, track in ((group, track) for group in groups for track in ordered):
        entry, rates = track.video, variant_rates(track, group, content.texts)
        codecs = ",".join(dict.fromkeys([track.codecs, *_audio_codecs(group)]))
        audio = f',AUDIO="{group.id}"' if group else ""
        score = content.scores.get(track.name)
        scored = f",SCORE={score:.2f}" if score is not None else ""
        lines += [
            f"#EXT-X-STREAM-INF:BANDWIDTH={rates.peak},AVERAGE-BANDWIDTH={rates.mean},"
            f'CODECS="{codecs}",RESOLUTION={entry.width}x{entry.height},'
            f"FRAME-RATE={float(track.fps):.3f},VIDEO-RANGE={video_range(entry)}{scored}{audio}"
            f"{texts}{captions}",
            f"{track.name}/{MEDIA}",
        ]
    for track in tracks:
        entry, rates = track.video, iframe_rates(track)
        lines.append(
            f"#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH={rates.peak},AVERAGE-BANDWIDTH={rates.mean},"
            f'CODECS="{track.codecs}",RESOLUTION={entry.width}x{entry.height},'
            f'VIDEO-RANGE={video_range(entry)},URI="{track.name}/{IFRAMES}"'
        )
    if content.sheets:
        sheets, rates = content.sheets, text_rates(content.sheets)
        lines.append(
            f"#EXT-X-IMAGE-STREAM-INF:BANDWIDTH={rates.peak},AVERAGE-BANDWIDTH={rates.mean},"
            f'CODECS="jpeg",RESOLUTION={sheets.width}x{sheets.height},'
            f'URI="{sheets.name}/{IMAGES}"'
        )
    return _text(lines)


def _audio_line(group: AudioGroup, item: AudioRendition) -> str:
    channels = "16/JOC" if item.atmos else str(item.channels)
    # commentary is never what a player should choose by itself
    auto = item.label.default or "comment" not in item.label.roles
    return (
        f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="{group.id}",{_named(item.label)},'
        f"DEFAULT={_yes(item.label.default)},AUTOSELECT={_yes(auto)}"
        f'{_characteristics(item.label)},CHANNELS="{channels}",URI="{item.track.name}/{MEDIA}"'
    )


def _text_line(text: TextRendition) -> str:
    forced = ",FORCED=YES" if "forced" in text.label.roles else ""
    return (
        f'#EXT-X-MEDIA:TYPE=SUBTITLES,GROUP-ID="subtitles",{_named(text.label)},'
        f"DEFAULT={_yes(text.label.default)},AUTOSELECT=YES{forced}"
        f'{_characteristics(text.label)},URI="{text.name}/{MEDIA}"'
    )


def _named(label: Label) -> str:
    return f'NAME="{label.name}"' + (f',LANGUAGE="{label.language}"' if label.language else "")


def _yes(value: bool) -> str:
    return "YES" if value else "NO"


def _characteristics(label: Label) -> str:
    found = [kind for role in label.roles for kind in _CHARACTERISTICS.get(role, ())]
    return f',CHARACTERISTICS="{",".join(found)}"' if found else ""


def _audio_codecs(group: AudioGroup | None) -> list[str]:
    return [item.track.codecs for item in group.members] if group else []


def _start(
    tracks: Sequence[Track], group: AudioGroup | None, texts: Sequence[TextRendition]
) -> Track:
    # the codec that most players take, and of it the rung nearest to the rate to start with
    known = [t for codec in _START_ORDER for t in tracks if t.codec == codec]
    same = [t for t in known if t.codec == known[0].codec]
    return min(same, key=lambda t: abs(variant_rates(t, group, texts).mean - FIRST_BPS))


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
