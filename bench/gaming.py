"""What each metric can be tricked into: BD-rates of x264 with a trick against x264 without.

    python -m bench.gaming CLIP... --out DIR [--frames N] [--judges NAME,...] [--csv FILE]
        [--table FILE.md]

The first frames of each clip are encoded at several CRFs, plain and with each trick: the picture
processed before, chroma starved, psychovisual tuning and adaptive quantisation off. By each judge
BD-rate is the bitrate that the trick needs more (+) or less (-) at an equal score. A trick that
saves much by one judge and costs by another deceives one of them. The CSV has a row an encode and
a column a judge; what is there is kept, so that the bench resumes.
"""

import sys
from pathlib import Path

import pandas as pd

from bench.judges import (
    ALONE,
    Judges,
    Results,
    in_order,
    known_judges,
    make_parser,
    pipes,
    run,
    write_y4m,
)
from vqaloop.bitstream.packets import stream_packets
from vqaloop.core import process
from vqaloop.core.ffmpeg import file_url
from vqaloop.media.frames import read_source
from vqaloop.media.probe import probe_source
from vqaloop.quality.bdrate import NotComparable, bd_rate
from vqaloop.records import Source

PLAIN = "plain"
TRICKS = {
    PLAIN: ("null", ""),
    "unsharp 0.6 before": ("unsharp=5:5:0.6", ""),
    "contrast 1.1 before": ("eq=contrast=1.1", ""),
    "chroma-qp-offset +6": ("null", ":chroma-qp-offset=6"),
    "chroma-qp-offset +12": ("null", ":chroma-qp-offset=12"),
    "no psy, no aq": ("null", ":psy=0:aq-mode=0"),
}
"""Filter before the encoder, and parameters of x264."""
CRFS = (24, 29, 34, 39)
KEY = ("clip", "trick", "crf")
RATE = "kbps"


def encode(source: Source, trick: str, crf: int, out: Path, ffmpeg: str) -> float:
    """Write one encode; its bitrate in kb/s."""
    before, params = TRICKS[trick]
    argv = [ffmpeg, "-nostdin", "-v", "error", "-y", "-i", file_url(source.path), "-vf", before]
    argv += ["-c:v", "libx264", "-preset", "fast", "-crf", str(crf), "-pix_fmt", "yuv420p"]
    done = process.run([*argv, "-x264-params", f"threads=1{params}", file_url(out)], timeout_s=600)
    if done.returncode:
        raise SystemExit(f"{source.path.name}, {trick}: x264 failed: {done.reason()}")
    packets = stream_packets(out, "h264", source.fps)
    return sum(packet.size_bytes for packet in packets) * 8 / 1000 / source.duration_s


def measure(clip: Path, results: Results, judges: Judges, out: Path, frames: int) -> None:
    """Add to the results what they lack of a clip."""
    whole = probe_source(clip, allow_hdr=True, ffmpeg=judges.ffmpeg)
    original, encoded = out / f"{clip.stem}.y4m", out / f"{clip.stem}.mp4"
    count = min(frames, whole.frames)
    write_y4m(original, read_source(whole, range(count), ffmpeg=judges.ffmpeg), whole)
    source = probe_source(original, ffmpeg=judges.ffmpeg)
    for trick in TRICKS:
        for crf in CRFS:
            at = clip.stem, trick, crf
            if names := results.missing(at, judges.names):
                kbps = encode(source, trick, crf, encoded, judges.ffmpeg)
                results.add(at, {RATE: kbps, **judges.scores(original, encoded, names)})
                print(*at, results.rows[at], file=sys.stderr, flush=True)
    for path in (original, encoded):
        path.unlink(missing_ok=True)


def bd_rates(table: pd.DataFrame) -> pd.DataFrame:
    """BD-rate in percent by clip and trick, a column a judge; NaN where it is not defined."""
    rows = []
    for (clip, trick), curve in table.groupby(["clip", "trick"], sort=False):
        if trick == PLAIN:
            continue
        plain = table[(table["clip"] == clip) & (table["trick"] == PLAIN)]
        row: dict[str, object] = {"clip": clip, "trick": trick}
        for judge in in_order(str(name) for name in table if name not in (*KEY, RATE)):
            one, other = (list(zip(c[RATE], c[judge], strict=True)) for c in (plain, curve))
            try:
                row[judge] = bd_rate(one, other)
            except NotComparable:
                row[judge] = float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Trick by judge: the BD-rate on each clip."""
    found = bd_rates(table)
    judges = [str(name) for name in found if name not in KEY]
    lines = [["trick", *judges]]
    for trick, rows in found.groupby("trick", sort=False):
        cells = [
            " / ".join("n/a" if value != value else f"{round(value):+d}" for value in rows[judge])
            for judge in judges
        ]
        lines.append([str(trick), *cells])
    return pipes(lines)


def main() -> int:
    parser = make_parser("gaming", __doc__)
    # encodes are compared with their original
    parser.set_defaults(judges=",".join(name for name in known_judges() if name != ALONE))
    return run(parser, parser.parse_args(), KEY, measure, markdown)


if __name__ == "__main__":
    sys.exit(main())
