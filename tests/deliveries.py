"""Small real ladders for `deliver`: the product's own encoder settings, made-up scores."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.media import run_ffmpeg
from vqaloop import process
from vqaloop.encode import encode
from vqaloop.encoder import default_encoder
from vqaloop.records import Ladder, Rendition, Rung, Source
from vqaloop.report import SCHEMA
from vqaloop.source import probe_source

FRAMES = 425
"""14.18 s at 29.97 frames a second: two segments, and a short one that holds a short GOP."""
BEEP_S = 3.0
"""When the sound of a title begins to be heard."""
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
        process.file_url(path),
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
        done = encode(source, rendition, folder / file, ffmpeg=process.ffmpeg_path())
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
