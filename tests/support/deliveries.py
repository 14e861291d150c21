"""Small real ladders for `deliver` with made-up scores, and reading back what it wrote."""

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import run_ffmpeg
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.delivery.package import Delivery, package_ladder
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import default_encoder
from vqaloop.ladder.store import SCHEMA, read_ladder
from vqaloop.media.probe import probe_source
from vqaloop.records import Ladder, Rendition, Rung, Source

FRAMES = 425
"""14.18 s at 29.97 frames a second: two segments, and a short one that holds a short GOP."""
BEEP_S = 3.0
"""When the sound of a title begins to be heard."""
FRAME = Fraction(1001, 30000)
TITLE_S = FRAMES * FRAME
"""Seconds of a title."""
HLS = ("h264", "hevc", "av1")
DASH = (*HLS, "vp9")
PRESETS = {"h264": "ultrafast", "hevc": "ultrafast", "vp9": "5", "av1": "12", "avs2": "3"}
RUNGS = {
    "h264": ((128, 72, 40), (160, 90, 34), (320, 180, 30)),
    "hevc": ((128, 72, 40), (160, 90, 34)),
    "vp9": ((128, 72, 55), (160, 90, 45), (320, 180, 45)),
    "av1": ((128, 72, 50), (160, 90, 40)),
    "avs2": ((128, 72, 45), (160, 90, 40)),
}
"""Width, height and knob of the rungs of each codec."""


def make_title(path: Path, *video: str, frames: int = FRAMES) -> Source:
    """A moving picture with a sound that is silent until BEEP_S; `video` are output options."""
    run_ffmpeg(
        *("-f", "lavfi", "-i", "testsrc2=s=320x180:r=30000/1001"),
        *("-f", "lavfi", "-i", f"aevalsrc='0.5*sin(880*PI*t)*gte(t,{BEEP_S})':s=44100"),
        *(
            "-frames:v",
            str(frames),
            "-t",
            f"{frames / 29.97:.2f}",
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
        ),
        *("-qp", "12", "-pix_fmt", "yuv420p", "-c:a", "flac", "-metadata:s:a:0", "language=deu"),
        *video,
        file_url(path),
    )
    return probe_source(path, allow_hdr=True)


def make_ladder(
    folder: Path,
    source: Source,
    codec: str,
    rungs: Sequence[tuple[int, int, float]] | None = None,
    bit_depth: int = 8,
) -> Ladder:
    """Encode a few rungs of a title and write their ladder.json; the scores are made up."""
    spec, made = default_encoder(codec), []
    folder.mkdir(parents=True, exist_ok=True)
    for place, (width, height, knob) in enumerate(rungs or RUNGS[codec]):
        preset = PRESETS[codec] if PRESETS[codec] in spec.presets else spec.presets[-1]
        rendition = Rendition(width, height, spec.name, knob, preset, bit_depth)
        file = f"{width}x{height}_{knob:g}{spec.suffix}"
        done = encode(source, rendition, folder / file, ffmpeg=ffmpeg_path())
        made.append(
            Rung(
                width,
                height,
                bitrate_kbps=done.bitrate_kbps,
                peak_kbps=done.peak_kbps,
                score=40.0 + 20 * place,
                score_predicted=40.0 + 20 * place,
                guard={"vmaf": 40.0 + 20 * place, "psnr_y": 30.0 + place},
                knob=(spec.knob.name, knob),
                params={},
                ffmpeg_args=done.ffmpeg_args,
                file=file,
            )
        )
    ladder = Ladder(folder, tuple(made), _about(source, codec, spec.name))
    write(ladder)
    return ladder


def write(ladder: Ladder) -> None:
    """ladder.json alone."""
    (ladder.folder / "ladder.json").write_text(json.dumps(ladder.to_json()))


def _about(source: Source, codec: str, encoder: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "vqaloop": "0.1.0",
        "source": {
            "path": str(source.path),
            "sha256": source.sha256,
            "width": source.width,
            "height": source.height,
            "fps": float(source.fps),
            "fps_exact": f"{source.fps.numerator}/{source.fps.denominator}",
            "frames": source.frames,
            "duration": source.duration_s,
            "input_options": dict(source.input_options),
        },
        "codec": codec,
        "encoder": {"name": encoder, "library_version": "?", "ffmpeg": "?", "preset": "?"},
        "metric": {"name": "vmaf", "mode": "full-reference", "label": None},
        "hull": [],
        "trials": [],
        "cost": dict.fromkeys(
            ("encodes", "encoded_frames", "encoded_pixels", "encode_cpu_s", "score_s", "wall_s"), 0
        ),
        "warnings": [],
    }


@pytest.fixture(scope="session")
def short_title(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return make_title(tmp_path_factory.mktemp("title") / "title.mkv")


@pytest.fixture(scope="session")
def h264_ladder(short_title: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The H.264 ladder alone, which is much the cheapest."""
    folder = tmp_path_factory.mktemp("ladders")
    return make_ladder(folder / "h264", short_title, "h264").folder


@pytest.fixture(scope="session")
def codec_ladders(h264_ladder: Path, short_title: Source) -> Path:
    """A folder as `vqaloop ladder --codec h264,hevc,vp9,av1` leaves it."""
    for codec in DASH[1:]:
        make_ladder(h264_ladder.parent / codec, short_title, codec)
    return h264_ladder.parent


@pytest.fixture(scope="session")
def delivered(codec_ladders: Path, tmp_path_factory: pytest.TempPathFactory) -> Delivery:
    """All of it, as HLS and DASH. Nobody may change it."""
    return package_ladder(codec_ladders, out=tmp_path_factory.mktemp("made") / "out")


@pytest.fixture
def own_ladder(h264_ladder: Path, tmp_path: Path) -> Ladder:
    """A copy of the H.264 ladder that a test may spoil."""
    return read_ladder(shutil.copytree(h264_ladder, tmp_path / "own"))


@dataclass(frozen=True)
class Part:
    """One entry of a playlist."""

    seconds: float
    file: str
    size: int
    offset: int


def attributes(line: str) -> dict[str, str]:
    found = re.findall(r'([A-Z0-9-]+)=("[^"]*"|[^,]*)', line.split(":", 1)[1])
    return {name: value.strip('"') for name, value in found}


def variants(folder: Path) -> dict[str, dict[str, str]]:
    """Attributes of EXT-X-STREAM-INF by the name of the rung, in the order of the playlist."""
    lines = (folder / "master.m3u8").read_text().splitlines()
    return {
        after.split("/")[0]: attributes(line)
        for line, after in zip(lines, lines[1:], strict=False)
        if line.startswith("#EXT-X-STREAM-INF")
    }


def parts(playlist: Path) -> list[Part]:
    """What a media or I-frame playlist lists."""
    found, seconds, span = [], 0.0, (-1, 0)
    for line in playlist.read_text().splitlines():
        if line.startswith("#EXTINF:"):
            seconds = float(line[8:].rstrip(","))
        elif line.startswith("#EXT-X-BYTERANGE:"):
            size, offset = line.split(":")[1].split("@")
            span = int(size), int(offset)
        elif line and not line.startswith("#"):
            path = playlist.parent / line
            whole = path.stat().st_size
            found.append(Part(seconds, line, *(span if span[0] >= 0 else (whole, 0))))
    return found


def tag(playlist: Path, name: str) -> str:
    found: str = re.findall(rf"^#{name}:(.*)$", playlist.read_text(), re.MULTILINE)[0]
    return found


def rungs(made: Delivery, codecs: tuple[str, ...]) -> list[Path]:
    return [made.folder / r["id"] for r in made.about["renditions"] if r["codec"] in codecs]


def decoded(*arguments: str) -> list[str]:
    """MD5 of each frame; fails if ffmpeg has anything to say."""
    argv = [ffmpeg_path(), "-nostdin", "-v", "warning", *arguments]
    done = process.run([*argv, "-f", "framemd5", "pipe:1"], timeout_s=60)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.decode().splitlines()
    return [line.split(",")[-1].strip() for line in lines if line and line[0] != "#"]
