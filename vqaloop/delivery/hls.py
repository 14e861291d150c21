"""HLS playlists of a delivery (RFC 8216 and its successor): master, media and I-frame playlists.

Text only, from tracks measured as written. All names in it are vqaloop's own: no text of a ladder
or a source is copied.
"""

from collections.abc import Sequence
from fractions import Fraction

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.delivery.rates import iframe_rates, target_duration, variant_rates
from vqaloop.delivery.segments import AUDIO_CHANNELS, INIT, Track

MEDIA = "media.m3u8"
IFRAMES = "iframes.m3u8"
MASTER = "master.m3u8"
FIRST_BPS = 2_000_000
"""Average bit/s of the variant to start with, by Apple's authoring specification."""
_HLS_VERSION = 7
_START_ORDER = ("h264", "hevc", "av1")


def media_playlist(track: Track) -> str:
    """The media playlist of a track: all its segments."""
    lines = [
        *_head([s.duration for s in track.segments]),
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{INIT}"',
    ]
    for segment in track.segments:
        lines += [f"#EXTINF:{float(segment.duration):.6f},", segment.file]
    return _text([*lines, "#EXT-X-ENDLIST"])


def iframe_playlist(track: Track) -> str:
    """The I-frame playlist of a track: its key frames, each a byte range of a segment."""
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
    """The master playlist: first the variant a player should start with, the others ascending."""
    lines = ["#EXTM3U", f"#EXT-X-VERSION:{_HLS_VERSION}", "#EXT-X-INDEPENDENT-SEGMENTS"]
    if audio:
        language = f',LANGUAGE="{audio.language}"' if audio.language else ""
        lines.append(
            f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="audio",NAME="Main"{language},DEFAULT=YES,'
            f'AUTOSELECT=YES,CHANNELS="{AUDIO_CHANNELS}",URI="{audio.name}/{MEDIA}"'
        )
    # NONE holds for all variants; without the attribute players search the coded frames
    captions = "" if any(track.captions for track in tracks) else ",CLOSED-CAPTIONS=NONE"
    first = _start(tracks, audio)
    for track in [first, *(t for t in tracks if t is not first)]:
        entry, rates = track.video, variant_rates(track, audio)
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
        entry, rates = track.video, iframe_rates(track)
        lines.append(
            f"#EXT-X-I-FRAME-STREAM-INF:BANDWIDTH={rates.peak},AVERAGE-BANDWIDTH={rates.mean},"
            f'CODECS="{track.codecs}",RESOLUTION={entry.width}x{entry.height},'
            f'VIDEO-RANGE={video_range(entry)},URI="{track.name}/{IFRAMES}"'
        )
    return _text(lines)


def _start(tracks: Sequence[Track], audio: Track | None) -> Track:
    # the codec that most players take, and of it the rung nearest to the rate to start with
    known = [t for codec in _START_ORDER for t in tracks if t.codec == codec]
    same = [t for t in known if t.codec == known[0].codec]
    return min(same, key=lambda t: abs(variant_rates(t, audio).mean - FIRST_BPS))


def _text(lines: Sequence[str]) -> str:
    return "\n".join(lines) + "\n"
