"""Readers of published video quality data sets: MOS and DMOS tables with their videos.

A reader reads the table and the names of files only; `training/prepare.py` decodes. Whatever the
published scale, `Video.score` is 0..100 with higher better, by a linear map wherever possible, so
that correlations are those of the published values.
"""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from vqaloop.core.csv_tables import Files, inside, is_number, number, records, rows, whole, word
from vqaloop.core.text import quoted
from vqaloop.errors import InputError

_HEIGHTS = {"540p": (960, 540), "1080p": (1920, 1080), "2160p": (3840, 2160)}
_CODECS = {"avc": "h264", "x264": "h264", "h265": "hevc", "x265": "hevc", "libvpx-vp9": "vp9"}
_KNOWN = {"h264", "hevc", "vp9", "av1", "avs2"}


@dataclass(frozen=True)
class Video:
    """One video that people scored."""

    path: Path
    """Where it is, or should be."""
    content: str
    """What it shows; all encodes of one content become one shard."""
    encoder: str | None
    """Codec or encoder in lower case."""
    width: int | None
    height: int | None
    level: int | None
    """Distortion level as the set counts it, or the QP where it names one."""
    raw: float
    """As published."""
    score: float
    """0..100, higher is better."""


@dataclass(frozen=True)
class Dataset:
    """A set of videos with opinion scores."""

    name: str
    label: str
    """What the scores are, such as "MOS of Waterloo IVC 4K"."""
    root: Path
    videos: tuple[Video, ...]
    expected: int
    """Videos of the complete set; where that is not published, those in the table."""
    sources: Mapping[str, Path] = field(default_factory=dict)
    """Pristine file of each content, where found."""
    titles: Mapping[str, str] = field(default_factory=dict)
    """Title of each content that shares it with another; a title stays on one side of a split."""

    def title(self, content: str) -> str:
        return self.titles.get(content, content)


@dataclass(frozen=True)
class Available:
    """Which files of a data set exist."""

    expected: int
    listed: int
    """Videos in the table."""
    videos: tuple[Video, ...]
    """Those that exist."""
    encoders: Mapping[str, tuple[int, int]]
    """{encoder: (found, listed)}."""
    missing: tuple[Path, ...]

    def __str__(self) -> str:
        each = ", ".join(f"{name} {n}/{of}" for name, (n, of) in self.encoders.items())
        text = f"{len(self.videos)} of {self.expected} videos found ({each})"
        return text if self.listed == self.expected else f"{text}; the table lists {self.listed}"


class Titled(Protocol):
    """Anything with a title and a label, which a split needs; `shards.Shard` is one."""

    @property
    def content(self) -> str: ...
    @property
    def label(self) -> str: ...


WATERLOO = "MOS of Waterloo IVC 4K"
BVI_HD = "DMOS of BVI-HD, turned round"
AVT = "MOS of AVT-VQDB-UHD-1"
KINDS = ("waterloo", "bvi-hd", "avt-vqdb", "csv")
"""What `read_dataset` reads."""
AUTHORS = {
    WATERLOO: frozenset(f"waterloo-{number:02}" for number in range(1, 5)),
    BVI_HD: frozenset(
        ("BallUnderWater", "Bookcase", "BricksLeaves", "Music", "PlasmaSlowRandom")
        + ("TreeGrassFamily",)
    ),
    AVT: frozenset(("water_netflix",)),
}
"""Titles that the authors of InternVQA (arXiv 2502.19026) hold out, by label."""


def read_dataset(kind: str, source: Path, scale: str | None = None) -> Dataset:
    """Read the table of a data set.

    Args:
        kind: One of KINDS.
        source: The data set's folder, or for "csv" its table.
        scale: For csv alone: "WORST:BEST", as "1:5" or, for DMOS, "100:0"; None: 0:100.

    Raises:
        InputError: Kind or scale are unknown, or the table is missing or has a wrong field.
    """
    readers = {"waterloo": read_waterloo, "bvi-hd": read_bvi_hd, "avt-vqdb": read_avt}
    if kind == "csv":
        ends = (scale or "0:100").split(":")
        if len(ends) != 2 or not all(map(is_number, ends)):
            raise InputError(f"--scale {scale!r} is not WORST:BEST; write 1:5, or 100:0 for DMOS")
        return read_csv(source, (float(ends[0]), float(ends[1])))
    if kind not in readers:
        raise InputError(f"data set {kind!r} is not known; choose one of {', '.join(KINDS)}")
    if scale is not None:
        raise InputError(f"--scale is for csv; the scale of {kind} is known")
    return readers[kind](source)


def find(dataset: Dataset) -> Available:
    """Which of the listed files exist; nothing is decoded."""
    # unlike Path.is_file, false rather than an error for a name that is too long
    present = tuple(video for video in dataset.videos if os.path.isfile(video.path))
    listed = Counter(video.encoder or "unknown" for video in dataset.videos)
    counts = Counter(video.encoder or "unknown" for video in present)
    have = {video.path for video in present}
    return Available(
        dataset.expected,
        len(dataset.videos),
        present,
        {name: (counts[name], count) for name, count in sorted(listed.items())},
        tuple(video.path for video in dataset.videos if video.path not in have),
    )


def held_out(shards: Sequence[Titled], kind: str, seed: int = 0) -> frozenset[str]:
    """Titles held out of training.

    Args:
        shards: All that are split.
        kind: "authors", the fixed split of the InternVQA paper, known by the shards' label, or
            "fold 2/5", the second of five disjoint parts of all titles (cross-validation).
        seed: Of the order in which titles are dealt to folds.

    Raises:
        InputError: Any other kind, or a side of the split is empty.
    """
    titles = sorted({shard.content for shard in shards})
    fold = re.fullmatch(r"fold ([0-9]{1,4})/([0-9]{1,4})", kind)
    if fold:
        part, parts = int(fold[1]), int(fold[2])
        if not (2 <= parts <= len(titles) and 1 <= part <= parts):
            raise InputError(
                f"split {kind!r}: with {len(titles)} titles, write fold K/N with N from 2 to "
                f"{len(titles)} and K from 1 to N"
            )
        order = np.random.default_rng(seed).permutation(len(titles))
        return frozenset(titles[i] for i in order[part - 1 :: parts])
    if kind != "authors":
        raise InputError(f"split {kind!r} is not known; write authors or fold K/N, as fold 1/5")
    labels = {shard.label for shard in shards}
    theirs = frozenset[str]().union(*(AUTHORS.get(label, frozenset()) for label in labels))
    names = theirs.intersection(titles)
    if not names or len(names) == len(titles):
        raise InputError(
            f"the authors' split of {', '.join(sorted(labels)) or 'nothing'} leaves one side "
            f"empty: {len(names)} of {len(titles)} titles here are held out; prepare more "
            "contents, or use fold K/N"
        )
    return names


def read_waterloo(root: Path) -> Dataset:
    """Waterloo IVC 4K: `scores.txt` beside `<ENCODER>/<NN>/<W>x<H>_<level>.mp4`.

    Rows are encoder, content, resolution, level (1 is worst), MOS in 0..100. Raises InputError.
    """
    files = Files(root)
    table = files.table("scores.txt")
    lines = list(rows(table))
    if lines and not is_number(lines[0][1][-1]):
        del lines[0]  # a header
    videos: list[Video] = []
    for at, row in lines:
        if len(row) != 5:
            raise InputError(
                f"{at} has {len(row)} fields; write encoder, content, resolution, level, MOS"
            )
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,32}", row[0]):
            raise InputError(f"{at}: {quoted(row[0])} is no encoder; write the folder's name")
        which, level = whole(row[1], at, "content"), whole(row[3], at, "level")
        width, height = _resolution(row[2], at)
        encoder = _codec(row[0])
        mos = number(row[4], at, "MOS", (0, 100))
        place = f"{which:02}/{width}x{height}_{level}"
        folders = [row[0], *(n for n, codec in _CODECS.items() if codec == encoder), encoder]
        path = next((p for f in folders if (p := files.get(f"{f}/{place}"))), None)
        path = path or root / row[0] / f"{place}.mp4"
        content = f"waterloo-{which:02}"
        videos.append(Video(path, content, encoder, width, height, level, mos, mos))
    sources: dict[str, Path] = {}
    for path in files.sources():
        digits = re.match(r"[0-9]{1,6}", path.stem)
        if digits:
            sources.setdefault(f"waterloo-{int(digits[0]):02}", path)
    return _checked(Dataset("waterloo", WATERLOO, root, tuple(videos), 1200, sources), table)


def read_bvi_hd(root: Path) -> Dataset:
    """BVI-HD: a table of DMOS beside the videos, as `BVIHD.txt` or any one CSV.

    Columns: `Name` (or file, path), `dmos`, and optionally `Original_Name` (or content), `encoder`
    and `distortion_level` (or level). Names without a column for it begin with the content:
    `Bookcase_1920x1080_60fps_HEVC_QP22.yuv`. Raises InputError.
    """
    files = Files(root)
    table = files.table("bvihd.txt")
    videos: list[Video] = []
    sources: dict[str, Path] = {}
    for at, row in records(table, {"name": ("file", "path"), "dmos": ("score",)}):
        name = inside(row["name"], at)
        content = re.split(r"_[0-9]+x[0-9]+", _first(row, "original_name", "content") or name)[0]
        content = word(Path(content).stem, at, "content")
        coded = re.search(r"_(HEVC[A-Za-z_-]*?)_?QP([0-9]{1,2})", name)
        encoder = row.get("encoder") or (coded[1] if coded else "HEVC")
        level = _first(row, "distortion_level", "level") or (coded[2] if coded else "")
        dmos = number(row["dmos"], at, "DMOS", (-100, 100))
        folder = inside(encoder, at)
        path = files.get(f"{folder}/{name}") or files.get(name) or root / folder / name
        width, height = _size_in(name) or (None, None)
        qp, score = whole(level, at, "level") if level else None, score_of_dmos(dmos)
        videos.append(Video(path, content, _codec(encoder), width, height, qp, dmos, score))
    contents = {video.content for video in videos}
    for path in files.sources():
        content = re.split(r"_[0-9]+x[0-9]+", path.stem)[0]
        if content in contents:
            sources.setdefault(content, path)
    return _checked(Dataset("bvi-hd", BVI_HD, root, tuple(videos), 384, sources), table)


def score_of_dmos(dmos: float) -> float:
    """0..100, higher is better, of a DMOS where 0 is no visible difference and 100 the largest.

    The line that takes 100 to 0 and -10 to 100. DMOS is negative where viewers preferred the
    encode; 100 - DMOS cut off at 100 would tie all those, and so change every rank correlation.
    Published values go down to -5.5; below -10 they are cut off.
    """
    return min(100.0, (100 - dmos) / 1.1)


def read_avt(root: Path) -> Dataset:
    """AVT-VQDB-UHD-1: a table of MOS in 1..5 beside the videos, `AVT_clean.txt` or any one CSV.

    With a header: columns `video` (or name, file, path), `mos`, and optionally `content` and
    `encoder`; without one: the name first, the MOS last. Names begin with the content, as in
    `water_netflix_200kbps_360p_60fps_h264.mp4`. Raises InputError.
    """
    files = Files(root)
    table = files.table("avt_clean.txt")
    videos: list[Video] = []
    header = {"name": ("video", "video_name", "file", "path"), "mos": ("score",)}
    for at, row in records(table, header, bare=("name", "mos")):
        name = inside(row["name"], at)
        stem = Path(name).stem
        content = row.get("content") or re.split(r"_[0-9.]+(?:kbps|mbps|p|x[0-9]+|fps)", stem)[0]
        encoder = row.get("encoder") or next(
            (t for t in re.split(r"[_.]", stem.lower())[::-1] if _codec(t) in _KNOWN), None
        )
        mos = number(row["mos"], at, "MOS", (1, 5))
        path = files.get(name) or files.get(Path(name).name) or root / name
        width, height = _size_in(name) or (None, None)
        codec = _codec(encoder) if encoder else None
        score = (mos - 1) * 25
        content = word(content, at, "content")
        videos.append(Video(path, content, codec, width, height, None, mos, score))
    contents = sorted({video.content for video in videos})
    # of the same scene there is an excerpt of 8 s besides
    titles = {content: re.sub(r"_[0-9]+s$", "", content) for content in contents}
    sources: dict[str, Path] = {}
    for path in files.sources():
        for content in contents:
            if path.stem == content or path.stem.startswith(f"{content}_"):
                sources.setdefault(content, path)
    return _checked(
        Dataset("avt-vqdb", AVT, root, tuple(videos), len(videos), sources, titles), table
    )


def read_csv(table: Path, scale: tuple[float, float] = (0.0, 100.0)) -> Dataset:
    """Any table with a header and columns `path`, `score` and `content`.

    Optional columns: encoder, width, height, level, and `reference`, the pristine file. Paths are
    relative to the table's folder. `scale` is the worst and the best score there can be: (1, 5)
    for MOS of five grades, (100, 0) for DMOS. Raises InputError.
    """
    worst, best = scale
    if not (math.isfinite(worst) and math.isfinite(best) and worst != best):
        raise InputError(f"a scale goes from its worst to its best score, not {worst:g}:{best:g}")
    needed: dict[str, tuple[str, ...]] = {"path": (), "score": (), "content": ()}
    videos: list[Video] = []
    sources: dict[str, Path] = {}
    for at, row in records(table, needed):
        raw = number(row["score"], at, "score", (min(scale), max(scale)))
        content = word(row["content"], at, "content")
        width, height, level = (
            whole(row[key], at, key) if row.get(key) else None
            for key in ("width", "height", "level")
        )
        path = table.parent / word(row["path"], at, "path")
        encoder = _codec(row["encoder"]) if row.get("encoder") else None
        score = 100 * (raw - worst) / (best - worst)
        videos.append(Video(path, content, encoder, width, height, level, raw, score))
        if row.get("reference"):
            path = table.parent / word(row["reference"], at, "reference")
            if sources.setdefault(content, path) != path:
                raise InputError(f"{at}: content {content!r} has another reference above")
    files = {content: path for content, path in sources.items() if os.path.isfile(path)}
    label = f"opinion scores of {table.stem}"
    return _checked(Dataset("csv", label, table.parent, tuple(videos), len(videos), files), table)


def _checked(dataset: Dataset, table: Path) -> Dataset:
    """The same, with at least one video and none of them twice."""
    if not dataset.videos:
        raise InputError(f"table {quoted(table)} has no row with a score; put the rows in")
    twice = [path for path, count in Counter(v.path for v in dataset.videos).items() if count > 1]
    if twice:
        raise InputError(
            f"table {quoted(table)} has {len(twice)} videos twice, such as {quoted(twice[0])}; "
            "keep one row of each"
        )
    return dataset


def _codec(name: str) -> str:
    return _CODECS.get(name.lower(), name.lower())


def _resolution(text: str, at: str) -> tuple[int, int]:
    size = _HEIGHTS.get(text.lower()) or _size_in(text)
    if not size:
        raise InputError(
            f"{at}: {quoted(text)} is no resolution; write 540p, 1080p, 2160p or 1920x1080"
        )
    return size


def _size_in(name: str) -> tuple[int, int] | None:
    """The first 1920x1080 in a name."""
    match = re.search(r"(?<![0-9])([0-9]{2,5})x([0-9]{2,5})(?![0-9])", name)
    return (int(match[1]), int(match[2])) if match else None


def _first(row: Mapping[str, str], *columns: str) -> str:
    return next((row[column] for column in columns if row.get(column)), "")
