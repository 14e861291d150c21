"""Test media: tiny clips made with lavfi, y4m files by hand, and the shared real clips."""

import os
from pathlib import Path
from typing import Any

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.records import Source

REPOSITORY = Path(__file__).resolve().parents[2]


def shared_clip(name: str) -> Path | None:
    """A real clip by its file name, from $VQALOOP_CLIPS or ../shared/clips; None if not there."""
    folder = os.environ.get("VQALOOP_CLIPS") or REPOSITORY.parent / "shared" / "clips"
    clip = Path(folder) / name
    return clip if clip.is_file() else None


def clip_or_synthetic(name: str, folder: Path) -> Path:
    """The shared clip, or where there is none a synthetic one of the same file name."""
    return shared_clip(name) or make_clip(folder / name, size="320x180", frames=30)


def run_ffmpeg(*args: str, cwd: Path | None = None) -> bytes:
    """Run ffmpeg with these arguments; its stdout. Fails the test when ffmpeg fails."""
    argv = [ffmpeg_path(), "-nostdin", "-v", "error", "-y", *args]
    with process.working_in(cwd):
        done = process.run(argv, timeout_s=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_clip(
    path: Path,
    *,
    size: str = "160x90",
    frames: int = 12,
    rate: str = "25",
    vf: str | None = None,
    codec: str | None = None,
    pix_fmt: str | None = "yuv420p",
    **output: Any,
) -> Path:
    """Write a testsrc2 clip; `frames` are counted before `vf`, the suffix chooses the container.

    Without `codec`: x264 at a low quality in mp4, mov and mkv, VP9 in webm.
    """
    codec = codec or {".y4m": "", ".yuv": "", ".webm": "libvpx-vp9"}.get(path.suffix, "libx264")
    options: dict[str, Any] = {"fps_mode": "passthrough"}
    if codec:
        options["c:v"] = codec
    if codec == "libx264":
        options |= {"preset": "veryfast", "crf": 30}
    if codec == "libvpx-vp9":
        options |= {"cpu-used": 8, "deadline": "realtime"}
    if path.suffix == ".yuv":
        options["f"] = "rawvideo"
    if pix_fmt:
        options["pix_fmt"] = pix_fmt
    options["vf"] = f"trim=end_frame={frames}" + (f",{vf}" if vf else "")
    graph = ffmpeg_graph.input(f"testsrc2=s={size}:r={rate}", f="lavfi")
    argv = graph.output(file_url(path), **options | output).compile(cmd=["ffmpeg"])
    run_ffmpeg(*argv[1:])
    return path


def make_bursty(path: Path, size: str, noise: int, after_s: int) -> Path:
    """Two calm seconds, two of noise on a fractal, then calm ones: 25 fps, without loss."""
    form = f"s={size}:r=25"
    graph = (
        f"testsrc2={form}:d=2[a];mandelbrot={form},noise=alls={noise}:allf=t,trim=duration=2[b];"
        f"testsrc2={form}:d={after_s},negate[c];[a][b][c]concat=n=3,format=yuv420p"
    )
    run_ffmpeg("-filter_complex", graph, "-c:v", "ffv1", file_url(path))
    return path


def remux(source: Path, path: Path, *before: str, after: tuple[str, ...] = ()) -> Path:
    """Copy the streams to another file; `before` are input options, `after` output options."""
    run_ffmpeg(*before, "-i", file_url(source), "-c", "copy", *after, file_url(path))
    return path


def write_y4m(
    path: Path,
    *,
    header: bytes = b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg",
    frame_bytes: int = 64 * 64 * 3 // 2,
    frames: int = 3,
    tail: bytes = b"",
) -> Path:
    """Write a y4m file by hand, so that it may lie; frame n is filled with the value n."""
    body = b"".join(b"FRAME\n" + bytes([n]) * frame_bytes for n in range(frames))
    path.write_bytes(header + b"\n" + body + tail)
    return path


def frame_hashes(source: Source) -> list[str]:
    """MD5 of each frame of a source, prep applied."""
    options = [part for key, value in source.input_options for part in (f"-{key}", value)]
    prep = ["-vf", ",".join(source.prep)] if source.prep else []
    url = file_url(source.path)
    said = run_ffmpeg(
        *options, "-i", url, *prep, "-fps_mode", "passthrough", "-f", "framemd5", "pipe:1"
    )
    return [
        line.split(b",")[-1].strip().decode() for line in said.splitlines() if line[:1] == b"0"
    ]


def make_captioned(
    path: Path, *, size: str = "160x90", frames: int = 50, first: int = 0, pair: bytes = b"HI"
) -> Path:
    """An H.264 clip in a container with CEA-608 captions in its pictures from `first` on.

    Each of them shows the two characters of `pair` (A/53, in a SEI message of ITU-T T.35).
    """
    options: dict[str, Any] = {"f": "h264", "bf": 0, "x264-params": "repeat-headers=1:slices=1"}
    raw = make_clip(
        path.with_suffix(".h264"), size=size, frames=frames, codec="libx264", **options
    )
    odd = bytes(c | 0x80 * (c.bit_count() % 2 == 0) for c in pair)
    said = b"\xb5\x00\x31GA94\x03\xc1\xff\xfc" + odd + b"\xff"
    message = b"\0\0\1\x06\x04" + bytes([len(said)]) + said + b"\x80"
    units, picture = b"", 0
    for unit in raw.read_bytes().split(b"\0\0\1")[1:]:
        if unit[0] & 31 in (1, 5):
            units += message if picture >= first else b""
            picture += 1
        units += b"\0\0\1" + unit.rstrip(b"\0")
    assert picture == frames
    raw.write_bytes(units)
    return remux(raw, path, "-framerate", "25")


CHANGES: dict[str, tuple[str, str, str, str]] = {
    # size, filters before the tags, pixel format and tags of the second part
    "colour tags": ("160x96", "null", "yuv420p", "smpte170m"),
    "untagged": ("160x96", "null", "yuv420p", "unknown"),
    "range": ("160x96", "scale=out_range=pc", "yuv420p", "bt709"),
    "pixel format": ("160x96", "null", "yuv444p", "bt709"),
    "depth": ("160x96", "null", "yuv420p10le", "bt709"),
    "size": ("240x144", "null", "yuv420p", "bt709"),
    "shape": ("96x160", "null", "yuv420p", "bt709"),
    "pixel shape": ("160x96", "setsar=4/3", "yuv420p", "bt709"),
}
"""What changes inside a clip of `make_changing`, and how its second part is made."""


def make_changing(path: Path, change: str, frames: tuple[int, ...] = (14, 10, 6)) -> Path:
    """A clip of parts in turn tagged BT.709 at 160x96, and of the other kind, in one H.264 stream.

    Each part is left beside it as `PATH.N.h264`.
    """
    size, vf, pix_fmt, tag = CHANGES[change]
    whole = b""
    for number, count in enumerate(frames):
        # the decoder keeps tags until others come, so untagged pictures are the first ones
        other = number % 2 == (change != "untagged")
        kinds = (size, vf, pix_fmt, tag) if other else ("160x96", "null", "yuv420p", "bt709")
        spoken = "pc" if "pc" in kinds[1] else "unknown" if kinds[3] == "unknown" else "tv"
        tags = f"colorspace={kinds[3]}:color_primaries={kinds[3]}:color_trc={kinds[3]}"
        part = path.with_suffix(f".{number}.h264")
        make_clip(
            part,
            size=kinds[0],
            frames=count,
            vf=f"hue=h={40 * number},{kinds[1]},format={kinds[2]},setparams=range={spoken}:{tags}",
            codec="libx264",
            pix_fmt=None,
            preset="ultrafast",
            crf=12,
            bf=0,
            **{"x264-params": "repeat-headers=1"},
            f="h264",
        )
        whole += part.read_bytes()
    stream = path.with_suffix(".h264")
    stream.write_bytes(whole)
    return remux(stream, path, "-framerate", "25")
