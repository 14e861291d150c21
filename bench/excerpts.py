"""How far the bitrate of an excerpt is from its title's, before and after the source's own bytes.

    python -m bench.excerpts --out DIR [--clips FOLDER] [--titles 6] [--joined 20] [--seeds 2]
                             [--codec h264] [--height 180]

A title is so many clips of FOLDER ($VQALOOP_CLIPS), drawn with a fixed seed and joined whole, by
x264 at 25 fps. It and its excerpts, one a seed, are encoded at the encoder's fastest preset, two
sizes and three knobs. Errors are 100 times the natural logarithm of the excerpt's bitrate over the
title's: `raw` as it is, `corrected` as `media/excerpt_rate.py` has it. `join` is what the joins
alone do: the excerpt's frames, key frames apart, against the same frames in the title's encode.
`keys` is how often the excerpt has key frames, over how often the title has.

DIR/excerpts.csv gets its rows title by title; the same command goes on.
"""

import argparse
import csv
import math
import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.long import clips_of, joined
from vqaloop.bitstream.packets import packet_sizes
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import default_encoder
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.media.excerpt import excerpt
from vqaloop.media.excerpt_rate import excerpt_rate
from vqaloop.media.excerpt_windows import choose_windows
from vqaloop.media.probe import probe_source
from vqaloop.records import Rendition, Source
from vqaloop.search.space import Space

PARTS = (0.25, 0.5, 0.75)
"""Knobs, as parts of the search range from worst to best quality."""


def coded(
    source: Source, spec: EncoderSpec, size: tuple[int, int], knob: float, out: Path
) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Bitrate of an encode, bytes of its frames, and which are key frames."""
    rendition = Rendition(*size, spec.name, knob, spec.presets[-1])
    made = encode(source, rendition, out, ffmpeg=ffmpeg_path())
    packets = packet_sizes(out)
    return made.bitrate_kbps, packets.sizes, packets.keys


def rows_of(number: int, title: Path, spec: EncoderSpec, seeds: int) -> list[dict[str, Any]]:
    """All errors of a title."""
    source = probe_source(title, ffmpeg=ffmpeg_path())
    width, height = source.canvas
    sizes = [(width, height), (width // 4 * 2, height // 4 * 2)]
    space = Space(tuple(sizes), spec.knob)
    knobs = [space.knob_at(part) for part in PARTS]
    temporary = title.with_suffix(f".encode{spec.suffix}")
    points = [(size, knob) for size in sizes for knob in knobs]
    whole = {point: coded(source, spec, *point, temporary) for point in points}
    rows = []
    for seed in range(seeds):
        windows = choose_windows(source, ffmpeg=ffmpeg_path(), seed=seed)
        rate = excerpt_rate(source, windows)
        part = excerpt(source, windows, title.with_suffix(".excerpt.mkv"), ffmpeg=ffmpeg_path())
        for (size, knob), (kbps, frames, keys) in whole.items():
            own, its_frames, its_keys = coded(part, spec, size, knob, temporary)
            same = np.concatenate([frames[s : s + n][~keys[s : s + n]] for s, n in windows])
            rows.append(
                {
                    "title": number,
                    "seed": seed,
                    "width": size[0],
                    "knob": knob,
                    "kbps": kbps,
                    "join": 100 * math.log(its_frames[~its_keys].mean() / same.mean()),
                    "keys": its_keys.mean() / keys.mean(),
                    "raw": 100 * math.log(own / kbps),
                    "corrected": 100 * math.log(rate.of_title(own) / kbps),
                }
            )
    temporary.unlink()
    part.path.unlink()
    return rows


def table(found: pd.DataFrame) -> str:
    """Mean and root mean square of the errors, in Markdown."""
    lines = ["| knob | keys | join | raw | corrected |", "| --- | --- | --- | --- | --- |"]
    for knob, group in [("all", found), *found.groupby("knob")]:
        cells = [
            f"{group[column].mean():+.1f} ({np.sqrt((group[column] ** 2).mean()):.1f})"
            for column in ("join", "raw", "corrected")
        ]
        lines.append(f"| {knob} | {group['keys'].mean():.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.excerpts")
    parser.add_argument("--clips", type=Path, default=os.environ.get("VQALOOP_CLIPS"))
    parser.add_argument("--titles", type=int, default=6)
    parser.add_argument("--joined", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--codec", default="h264")
    parser.add_argument("--height", type=int, default=180)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    if options.clips is None:
        parser.error("--clips FOLDER, or $VQALOOP_CLIPS, is needed")
    options.out.mkdir(parents=True, exist_ok=True)
    kept, clips = options.out / "excerpts.csv", clips_of(options.clips)
    size = f"{options.height * 16 // 9 // 2 * 2}x{options.height}"
    for number in range(options.titles):
        if kept.exists() and (pd.read_csv(kept).title == number).any():
            continue
        drawn = random.Random(number).sample(clips, min(options.joined, len(clips)))
        title = joined(drawn, size, options.out / f"title{number}.mkv", crf=14)
        rows = rows_of(number, title, default_encoder(options.codec), options.seeds)
        new = not kept.exists()
        with kept.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            if new:
                writer.writeheader()
            writer.writerows(rows)
        print(f"title {number}: {len(rows)} encodes of excerpts", file=sys.stderr, flush=True)
    print(table(pd.read_csv(kept)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
