"""Judges of damaged or encoded frames: the students as `vqaloop score` runs them, and metrics."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from vqaloop.core import files
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import VqaloopError
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.registry import DEFAULT_METRIC, STUDENT_PREFIX, metric_names
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Source

Row = tuple[str | float, ...]
"""What a row is of: the values of its key's columns."""
ALONE = "no reference"
"""The default student without the original."""
WANTED = (
    *("internvqa", ALONE, "vmaf-sampled", "vmaf-v1-sampled"),
    *("vmaf", "vmaf-v1", "vmaf-neg", "xpsnr", "psnr"),
)
"""All judges, in the order of the tables."""


def known_judges() -> list[str]:
    """Names of the judges of this version, those of WANTED."""
    return [name for name in WANTED if name in (ALONE, *metric_names())]


def split_judge(text: str) -> tuple[str, Path | None]:
    """Name and weights of a judge that may be given as NAME=FILE: a student not yet shipped."""
    name, found, file = text.partition("=")
    return name, Path(file) if found else None


def in_order(names: Iterable[str]) -> list[str]:
    """Judges in their usual order: students of files first, then those of WANTED."""
    return sorted(names, key=lambda name: WANTED.index(name) if name in WANTED else -1)


def write_y4m(path: Path, frames: Iterable[Frames], source: Source) -> None:
    """Frames as an uncompressed file, which loses nothing and has the source's range and rate."""
    width, height = source.canvas
    rate = f"{source.fps.numerator}:{source.fps.denominator}"
    full = " XCOLORRANGE=FULL" if dict(source.colour).get("color_range") == "pc" else ""
    header = f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 C420jpeg{full}\n"
    with files.renamed_to(path) as part, part.open("wb") as file:
        file.write(header.encode())
        for frame in frames:
            file.write(b"FRAME\n")
            file.write(frame.tobytes())


class Judges:
    """Judges by name, or a student by NAME=FILE, each opened once."""

    def __init__(self, names: Sequence[str], ffmpeg: str) -> None:
        files = dict(split_judge(name) for name in names)
        self.names, self.ffmpeg = list(files), ffmpeg
        self.full = [n for n in files if n in full_reference.METRICS]
        """Those that ffmpeg measures in one run."""
        others = {n: file for n, file in files.items() if n not in self.full}
        metrics = {n: _metric(n, file) for n, file in others.items()}
        opened = {
            key: Scorer(key[0], weights=key[1], ffmpeg=ffmpeg) for key in set(metrics.values())
        }
        self.scorers = {name: opened[key] for name, key in metrics.items()}

    def scores(self, original: Path, video: Path, names: Sequence[str]) -> dict[str, float]:
        """The scores of a video against its original by some of the judges."""
        source = probe_source(original, ffmpeg=self.ffmpeg)
        found = {}
        full = [name for name in self.full if name in names]
        if full:
            other = probe_source(video, ffmpeg=self.ffmpeg)
            measured = full_reference.measure(
                source, video, full, ffmpeg=self.ffmpeg, probed=other
            )
            found = {name: score.value for name, score in measured.items()}
        for name, scorer in self.scorers.items():
            if name in names:
                reference = None if name == ALONE else original
                found[name] = scorer.score(video, reference).value
        return found


def _metric(name: str, weights: Path | None) -> tuple[str, Path | None]:
    """The metric behind a judge, and its weights."""
    if weights is not None:
        return f"{STUDENT_PREFIX}{name.removeprefix(STUDENT_PREFIX)}", weights
    return DEFAULT_METRIC if name == ALONE else name, None


class Results:
    """A CSV of scores, of which rows and columns that are there are not measured again."""

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        """Reads the file where there is one; `key` are the columns that say what a row is of."""
        self.path, self.key = path, list(key)
        self.rows: dict[Row, dict[str, float]] = {}
        if path.exists():
            for row in pd.read_csv(path).to_dict("records"):
                at = tuple(row.pop(column) for column in self.key)
                self.rows[at] = {str(k): v for k, v in row.items() if not math.isnan(v)}

    def missing(self, at: Row, names: Sequence[str]) -> list[str]:
        """Columns of a row that are still to be measured."""
        return [name for name in names if name not in self.rows.get(at, {})]

    def add(self, at: Row, found: dict[str, float]) -> None:
        """Put numbers into a row, and the file in order."""
        self.rows[at] = self.rows.get(at, {}) | found
        files.write_whole(self.path, self.table().to_csv(index=False, float_format="%.3f"))

    def table(self) -> pd.DataFrame:
        """All rows."""
        columns = [dict(zip(self.key, at, strict=True)) for at in self.rows]
        rows = [{**at, **found} for at, found in zip(columns, self.rows.values(), strict=True)]
        return pd.DataFrame(rows)


Measure = Callable[[Path, Results, Judges, Path, int], None]
"""Adds to the results what they lack of a clip: with the folder for scratch, and most frames."""


def make_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that benches of judges share."""
    parser = argparse.ArgumentParser(f"bench.{name}", description=(doc or "").split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="scratch, and the CSV by default")
    parser.add_argument("--frames", type=int, default=40, help="of each clip, the first")
    parser.add_argument("--judges", default=",".join(known_judges()))
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--table", type=Path, help="Markdown")
    return parser


def check_names(
    parser: argparse.ArgumentParser, names: Sequence[str], known: Sequence[str]
) -> None:
    """Exit with status 2 where a name is unknown, or a judge's file is not there."""
    files = dict(map(split_judge, names))
    if missing := [str(file) for file in files.values() if file and not file.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}; give weights as NAME=FILE")
    names = [name for name, file in files.items() if file is None]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")


def run(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    key: Sequence[str],
    measure: Measure,
    markdown: Callable[[pd.DataFrame], str],
) -> int:
    """Measure every clip, and print the table."""
    names = options.judges.split(",")
    check_names(parser, names, known_judges())
    options.out.mkdir(parents=True, exist_ok=True)
    results = Results(
        options.csv or options.out / f"{parser.prog.removeprefix('bench.')}.csv", key
    )
    judges = Judges(names, ffmpeg_path())
    try:
        for clip in options.clips:
            measure(clip, results, judges, options.out, options.frames)
    except VqaloopError as error:
        parser.exit(1, f"{error}\n")
    text = markdown(results.table())
    if options.table:
        files.write_whole(options.table, text)
    print(text)
    return 0


def pipes(lines: Sequence[Sequence[str]]) -> str:
    """A table of Markdown: its headings, then its rows, of which all but the first are numbers."""
    ruled = [lines[0], ["---", *["---:"] * (len(lines[0]) - 1)], *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled) + "\n"
