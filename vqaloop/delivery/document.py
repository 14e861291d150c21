"""The parts of delivery.json: what is said of variants and renditions."""

from typing import Any

from vqaloop.bitstream.codec_strings import video_range
from vqaloop.delivery.checks import RungInput
from vqaloop.delivery.content import (
    AudioGroup,
    AudioRendition,
    Content,
    Label,
    Sheets,
    TextRendition,
)
from vqaloop.delivery.hls import IFRAMES, IMAGES, MEDIA
from vqaloop.delivery.rates import iframe_rates, text_rates, track_rates, variant_rates
from vqaloop.delivery.segments import Track


def variant_json(track: Track, group: AudioGroup | None, content: Content) -> dict[str, Any]:
    """An HLS variant, its rates with audio and subtitles."""
    rates, keys = variant_rates(track, group, content.texts), iframe_rates(track)
    return {
        "id": track.name,
        "playlist": f"{track.name}/{MEDIA}",
        "audio": group.id if group else None,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "iframe_playlist": f"{track.name}/{IFRAMES}",
        "iframe_bandwidth": keys.peak,
        "iframe_average_bandwidth": keys.mean,
    }


def rendition_json(track: Track, item: RungInput) -> dict[str, Any]:
    """A rung as packaged, its rates without audio."""
    rates, entry = track_rates(track), track.video
    return {
        "id": track.name,
        "rung": item.rung.file,
        "codec": track.codec,
        "codecs": track.codecs,
        "width": entry.width,
        "height": entry.height,
        "frame_rate": str(track.fps),
        "frames": len(item.stream.frames),
        "video_range": video_range(entry),
        "closed_captions": track.captions,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "score": item.rung.score,
        "segments": len(track.segments),
        "key_frames": len(track.keyframes),
        "duration": float(track.duration),
    }


def default_audio_json(content: Content) -> dict[str, Any] | None:
    """The audio that players begin with, which every one decodes."""
    listed = [audio_json(item) for item in content.audio if item.label.default]
    return listed[0] if listed else next(map(audio_json, content.audio), None)


def audio_json(item: AudioRendition) -> dict[str, Any]:
    """An audio rendition as packaged."""
    track, rates = item.track, track_rates(item.track)
    return {
        "id": track.name,
        **_label_json(item.label),
        "source_track": item.source_track,
        "kinds": list(item.kinds),
        "codecs": track.codecs,
        "channels": item.channels,
        "sample_rate": item.rate,
        "copied": item.copied,
        "gain_db": item.gain_db,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "segments": len(track.segments),
        "duration": float(track.duration),
    }


def text_json(text: TextRendition) -> dict[str, Any]:
    """Subtitles as packaged."""
    rates = text_rates(text)
    return {
        "id": text.name,
        **_label_json(text.label),
        "source_track": text.source_track,
        "cues": text.cues,
        "bandwidth": rates.peak,
        "average_bandwidth": rates.mean,
        "segments": len(text.segments),
    }


def images_json(sheets: Sheets | None, hls: bool) -> dict[str, Any] | None:
    """Preview images as packaged."""
    if sheets is None:
        return None
    return {
        "id": sheets.name,
        "playlist": f"{sheets.name}/{IMAGES}" if hls else None,
        "width": sheets.width,
        "height": sheets.height,
        "layout": [sheets.across, sheets.down],
        "interval": float(sheets.every_s),
        "bandwidth": text_rates(sheets).peak,
        "sheets": len(sheets.segments),
    }


def _label_json(label: Label) -> dict[str, Any]:
    return {
        "name": label.name,
        "language": label.language,
        "default": label.default,
        "roles": list(label.roles),
    }
