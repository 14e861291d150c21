"""Students on HDR: through PU21 and on PQ's and HLG's codes, each against ColorVideoVDP.

    python -m bench.pu21 CLIP... --out DIR [--height 180] [--frames 25] [--metric internvqa]
                         [--display monitor] [--cvvdp PROGRAM] [--sdr]

Clips of HDR are taken as they are. Of SDR ones the linear light is scaled to 1000 cd/m² and goes
to PQ (inverse tone mapping by a factor, as Akyüz et al. 2007 found that viewers like it). Each
title, scaled to the height, is encoded by x265 and SVT-AV1 in 10 bits: three knobs at its size and
two at half of it. The table has Spearman's correlation of the rungs of a title with their scores
by ColorVideoVDP. `--sdr` leaves clips of SDR as they are: how far both agree there. Rows are kept
in DIR/pu21.csv as they come; the same command goes on.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.media.probe import probe_source
from vqaloop.quality.cvvdp_metric import DEFAULT_DISPLAY, CvvdpUse
from vqaloop.quality.registry import DEFAULT_METRIC, open_metric
from vqaloop.records import Rendition, Source

ENCODERS = {
    "libx265": ("superfast", (20, 29, 38), (22, 32)),
    "libsvtav1": ("10", (25, 42, 58), (28, 46)),
}
"""Preset, and knobs at the title's size and at half of it."""
TO_PQ = "zscale=tin=bt709:pin=bt709:min=bt709:rin=tv:t=smpte2084:p=bt2020:m=bt2020nc:r=tv:npl=1000"


def prepared(clip: Path, height: int, frames: int, folder: Path, sdr: bool) -> Source:
    """A clip as a title with 10 bits a sample, of HDR unless it is to stay `sdr`, without loss."""
    given, path = probe_source(clip, allow_hdr=True), folder / f"{clip.stem}.mkv"
    transfer = dict(given.colour).get("color_trc") if given.hdr else "smpte2084"
    convert, tags = ([] if given.hdr else [TO_PQ]), ("bt2020", transfer, "bt2020nc")
    if sdr and not given.hdr:
        convert, tags = [], ("bt709", "bt709", "bt709")
    tag = "setparams=color_primaries={}:color_trc={}:colorspace={}:range=tv".format(*tags)
    filters = [f"scale=-2:{height}:flags=lanczos", *convert, "format=yuv420p10le", tag]
    argv = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", "-i", file_url(clip), "-map", "0:V:0"]
    argv += ["-vf", ",".join(filters), "-frames:v", str(frames), "-c:v", "ffv1", file_url(path)]
    done = process.run(argv, timeout_s=300)
    if done.returncode:
        raise SystemExit(f"{clip} could not be prepared: {done.reason()}")
    return probe_source(path, allow_hdr=True)


def renditions(size: tuple[int, int]) -> list[Rendition]:
    """The rungs of a title of that size."""
    half = size[0] // 4 * 2, size[1] // 4 * 2
    return [
        Rendition(*of, name, float(knob), preset, 10)
        for name, (preset, *knobs) in ENCODERS.items()
        for of, some in zip((size, half), knobs, strict=True)
        for knob in some
    ]


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """By title: kind, range of JOD, and the correlations with it, of all rungs and of a codec."""
    found = []
    for title, part in rows.groupby("title", sort=False):
        row = {"title": title, "hdr": part.kind.iloc[0], "rungs": len(part)}
        row |= {"JOD": f"{part.cvvdp.min():.1f} to {part.cvvdp.max():.1f}"}
        for name in ("pu21", "codes"):
            each = [of[name].corr(of.cvvdp, "spearman") for _, of in part.groupby("encoder")]
            row |= {name: part[name].corr(part.cvvdp, "spearman"), f"{name}, a codec": min(each)}
        found.append(row)
    return pd.DataFrame(found).round(3)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.pu21", description=__doc__)
    parser.add_argument("clips", metavar="CLIP", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--metric", default=DEFAULT_METRIC)
    parser.add_argument("--display", default=DEFAULT_DISPLAY)
    parser.add_argument("--cvvdp")
    parser.add_argument("--sdr", action="store_true")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    ffmpeg = ffmpeg_path()
    judge = open_metric("cvvdp", ffmpeg=ffmpeg, cvvdp=CvvdpUse(options.display, options.cvvdp))
    student = open_metric(options.metric, ffmpeg=ffmpeg)
    kept = options.out / "pu21.csv"
    rows: list[dict[Any, Any]] = pd.read_csv(kept).to_dict("records") if kept.exists() else []
    for clip in options.clips:
        source = prepared(clip, options.height, options.frames, options.out, options.sdr)
        # without their tags samples are taken for SDR's
        bare = replace(source, colour=())
        for rendition in renditions(source.canvas):
            if any((row["title"], row["rung"]) == (clip.stem, str(rendition)) for row in rows):
                continue
            spec = get_encoder(rendition.encoder)
            out = options.out / f"encode{spec.suffix}"
            made = encode(source, rendition, out, ffmpeg=ffmpeg)
            row = {"title": clip.stem, "kind": dict(source.colour)["color_trc"]}
            row |= {"rung": str(rendition), "encoder": spec.name, "kbps": made.bitrate_kbps}
            for name, metric, given in (
                ("pu21", student, source),
                ("codes", student, bare),
                ("cvvdp", judge, source),
            ):
                score = metric.measure(given, out, spec.decoder)
                row |= {name: score.value, f"{name}_cpu_s": score.cpu_s}
            rows.append(row)
            pd.DataFrame(rows).to_csv(kept, index=False, float_format="%.4f")
            print(row, file=sys.stderr, flush=True)
    print(table(pd.DataFrame(rows)).to_string(index=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
