"""What film-grain synthesis saves: clips with noise at some strengths, plain and with a table.

    python -m bench.grain CLIP... --out DIR [--strengths 6,12] [--frames 24] [--height 270]
                          [--encoder libsvtav1] [--preset P] [--metric vmaf]

Each clip is scaled to the height, and noise of each strength (of ffmpeg's filter, anew in each
frame, on luma) is laid over it; 0 stands for the clip as it is. Each of these sources is looked at
as `vqaloop ladder --film-grain auto` does, and encoded as its trial does it: three knobs plain,
three with a table of the strength that follows. Scores are without synthesis, against the source
with its noise, by which the ladder decides, and against the clip without. A figure above 0 is
bitrate saved by the table at equal score.
"""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.core.files import scratch
from vqaloop.encoding.encode import encode
from vqaloop.encoding.options import GRAIN
from vqaloop.encoding.registry import get_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.ladder.film_grain import GRAIN_AT, LEAST_OVERLAP, PLAIN_AT, table_strength
from vqaloop.media.grain_estimate import grain_of
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.bdrate import Curve, NotComparable, bd_rate
from vqaloop.records import Rendition, Source
from vqaloop.report.markdown import pipes
from vqaloop.search.space import Space


@dataclass(frozen=True)
class Setting:
    """How encodes are made and scored."""

    spec: EncoderSpec
    preset: str
    metric: str
    folder: Path

    def curves(
        self, source: Source, clean: Source, strength: int, parts: Sequence[float]
    ) -> tuple[Curve, Curve]:
        """(kb/s, score) against both references; `strength` 0 for no table."""
        size = source.canvas
        space = Space((size,), self.spec.knob, size, float(source.fps))
        params = ((GRAIN, str(strength)),) if strength else ()
        found: tuple[list[tuple[float, float]], ...] = ([], [])
        for part in parts:
            knob = space.knob_at(1 - part)
            rendition = Rendition(*size, self.spec.name, knob, self.preset, params=params)
            out = self.folder / f"encode{self.spec.suffix}"
            made = encode(source, rendition, out, ffmpeg=ffmpeg_path())
            for reference, curve in zip((source, clean), found, strict=True):
                score = full_reference.measure(
                    reference, out, [self.metric], ffmpeg=ffmpeg_path(), threads=1
                )[self.metric]
                curve.append((made.bitrate_kbps, score.value))
        return found[0], found[1]


def prepared(clip: Path, strength: int, frames: int, height: int, folder: Path) -> Source:
    """A clip, scaled and with noise, stored without loss."""
    noise = f",noise=c0s={strength}:c0f=t:all_seed=1" if strength else ""
    path = folder / f"{clip.stem} {strength}.mkv"
    argv = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-i", file_url(clip), "-map", "0:V:0"]
    argv += ["-vf", f"scale=-2:{height}{noise},format=yuv420p", "-frames:v", str(frames)]
    done = process.run([*argv, "-c:v", "ffv1", file_url(path)], timeout_s=300)
    if done.returncode:
        raise SystemExit(f"{clip} could not be prepared: {done.reason()}")
    return probe_source(path)


def saving(plain: Curve, denoised: Curve) -> str:
    """Bitrate saved at equal score, in percent."""
    try:
        return f"{-bd_rate(plain, denoised, least_overlap=LEAST_OVERLAP):.1f}"
    except NotComparable:
        return "-"


def row(setting: Setting, source: Source, clean: Source, name: str, noise: int) -> list[str]:
    """One source's figures."""
    deviation = grain_of(source, ffmpeg=ffmpeg_path())
    if deviation is None:
        return [name, str(noise), "none", "-", "-", "-"]
    strength = table_strength(setting.spec, deviation)
    plain = setting.curves(source, clean, 0, PLAIN_AT)
    denoised = setting.curves(source, clean, strength, GRAIN_AT)
    savings = [saving(*pair) for pair in zip(plain, denoised, strict=True)]
    return [name, str(noise), f"{deviation:.1f}", str(strength), *savings]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--strengths", default="0,6,12")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--height", type=int, default=270)
    parser.add_argument("--encoder", default="libsvtav1")
    parser.add_argument("--preset")
    parser.add_argument("--metric", default="vmaf")
    options = parser.parse_args()
    spec = get_encoder(options.encoder)
    rows = []
    with scratch() as folder:
        setting = Setting(
            spec, options.preset or spec.default_preset, options.metric, Path(folder)
        )
        for clip, text in itertools.product(options.clips, options.strengths.split(",")):
            clean = prepared(clip, 0, options.frames, options.height, Path(folder))
            source = prepared(clip, int(text), options.frames, options.height, Path(folder))
            rows.append(row(setting, source, clean, clip.stem, int(text)))
            print(" ".join(rows[-1]), flush=True)
    head = ["clip", "noise", "found", "table", "saved, %", "saved against the clean clip, %"]
    options.out.mkdir(parents=True, exist_ok=True)
    table = pipes(head, rows) + "\n"
    (options.out / "grain.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
