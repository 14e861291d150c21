"""A file joined of scenes' encodes, as one encode of the title."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from vqaloop.bitstream.packets import Packet, peak_kbps
from vqaloop.media.scene_cuts import Scene
from vqaloop.records import Encode, Rendition, Source


def joined_encode(
    source: Source,
    rendition: Rendition,
    parts: Mapping[Scene, Encode],
    path: Path,
    packets: Sequence[Packet],
) -> tuple[Encode, list[tuple[str, ...]]]:
    """The encode that a joined file is.

    Args:
        source: The title.
        rendition: What it is called after.
        parts: The encodes of its scenes, in order.
        path: The joined file.
        packets: Its coded frames.

    Returns:
        The encode, whose arguments are those that all scenes have in common; and of each scene
        the others, for the title as the input.
    """
    size_bytes, duration_s = path.stat().st_size, source.duration_s
    common, own = split_args([_title_args(source, s, made) for s, made in parts.items()])
    mean_kbps = size_bytes * 8 / 1000 / duration_s
    whole = Encode(
        rendition=rendition,
        path=path,
        size_bytes=size_bytes,
        frames=source.frames,
        duration_s=duration_s,
        peak_kbps=max(mean_kbps, peak_kbps(packets, duration_s)),
        cpu_s=sum(part.cpu_s for part in parts.values()),
        wall_s=sum(part.wall_s for part in parts.values()),
        ffmpeg_args=common,
        encoder_version=next(iter(parts.values())).encoder_version,
    )
    return whole, own


def _title_args(source: Source, scene: Scene, made: Encode) -> dict[str, str]:
    """A scene's output options for the title itself as the input."""
    words = made.ffmpeg_args
    found = dict(zip(words[::2], words[1::2], strict=True))
    trim = f"trim=start_frame={scene.start_frame}:end_frame={scene.end_frame}"
    return {**found, "-vf": ",".join([*source.prep, trim, found["-vf"]])}


def split_args(
    scenes: Sequence[Mapping[str, str]],
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Options that all scenes have in common, and those of each beside them."""
    first = scenes[0]
    common = {k: v for k, v in first.items() if all(s.get(k) == v for s in scenes)}
    own = [{k: v for k, v in s.items() if k not in common} for s in scenes]
    return _words(common), [_words(each) for each in own]


def _words(options: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(word for pair in options.items() for word in pair)
