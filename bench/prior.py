"""Learns the shipped prior of every encoder and metric from the titles of a grid.

    python -m bench.prior [GRID...] [--others GRID] [--content bench/content.csv]
                          [--probes GRID] [--codecs NAME,...] [-o vqaloop/search/priors.json]

The grid (bench/grid-prior.csv, by `python -m bench.grid ... --knobs 4`) should hold none of the
titles that the search is evaluated on; what its clips' pictures hold is in the table of
`python -m bench.content`. How far intervals are stretched is found on titles that were left out:
those of the grid one title at a time, and those of --others, from which nothing else is learnt.
How probes differ is learnt from the same encodes at their preset (--probes, by
`python -m bench.grid ... --knobs 4 --probes`), where the encoder has one.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.content import TABLE, Clip, read_content
from bench.grid import read_grid
from vqaloop.core.files import write_whole
from vqaloop.encoding.registry import default_encoder
from vqaloop.quality.registry import DEFAULT_STUDENT
from vqaloop.records import RDPoint
from vqaloop.search.forecast import COVERED, NORMAL
from vqaloop.search.prior import (
    ContentPrior,
    Prior,
    TitlePoints,
    Values,
    learn,
    learn_content,
    learn_link,
    logit,
)
from vqaloop.search.prior_store import SHIPPED, content_prior_json, link_json, prior_json
from vqaloop.search.space import Space
from vqaloop.search.surrogates import as_title

METRICS = {"vmaf": "vmaf", "psnr_y": "psnr", "student": DEFAULT_STUDENT}
"""Columns of a grid, and the metrics whose scores they hold."""
JUDGED = (0.25, 0.97)
"""Shares of the top between which rungs lie, and intervals are judged."""
GRID, OTHERS, RESCORED, PROBES = (
    Path(__file__).with_name(name)
    for name in ("grid-prior.csv", "grid.csv", "grid-sampled.csv", "grid-probes.csv")
)
"""The student's scores in OTHERS are of its first generation, those in RESCORED of today's."""
NOTHING = TitlePoints(*(np.zeros(0) for _ in range(4)))


@dataclass(frozen=True)
class Title:
    """A clip of a grid, as the prior has it."""

    name: str
    about: Clip
    points: TitlePoints


def titles_of(table: pd.DataFrame, codec: str, column: str, clips: dict[str, Clip]) -> list[Title]:
    """Every clip of a grid."""
    spec = default_encoder(codec)
    found = []
    for clip, rows in table[table.codec == codec].groupby("clip"):
        if str(clip) not in clips:
            raise SystemExit(f"the content of {clip} is not known; run `python -m bench.content`")
        sizes = sorted(set(zip(rows.width, rows.height, strict=True)), reverse=True)
        space = Space(tuple(sizes), spec.knob, sizes[0], float(rows.fps.iloc[0]))
        points = [
            RDPoint(w, h, knob, kbps, score)
            for w, h, knob, kbps, score in zip(
                rows.width, rows.height, rows.knob, rows.kbps, rows[column], strict=True
            )
        ]
        found.append(Title(str(clip), clips[str(clip)], as_title(space, points, 100.0)))
    return found


def probed(
    table: pd.DataFrame, probes: pd.DataFrame, codec: str, column: str, clips: dict[str, Clip]
) -> list[tuple[TitlePoints, TitlePoints]]:
    """Of every clip the points of its probes, and of the same encodes at the default preset."""
    key = ["clip", "codec", "width", "height", "knob"]
    both = table.merge(probes[probes.codec == codec], on=key, suffixes=("", "_probe"))
    both = both.drop_duplicates(key, keep="last")
    if both.empty:
        return []
    probe = both.assign(**{name: both[f"{name}_probe"] for name in ("kbps", column)})
    pairs = zip(
        titles_of(probe, codec, column, clips), titles_of(both, codec, column, clips), strict=True
    )
    return [(one.points, other.points) for one, other in pairs]


Fit = Callable[[Sequence[Title]], Callable[[Title], Prior]]
"""Learns from titles what gives the prior of another."""


def learnt(titles: Sequence[Title]) -> ContentPrior:
    """The prior of these titles, on their content."""
    return learn_content([t.points for t in titles], [t.about.content.values() for t in titles])


def on_content(titles: Sequence[Title]) -> Callable[[Title], Prior]:
    """The prior by a title's content."""
    known = learnt(titles)
    return lambda title: known.at(title.about.content.values())


def of_all(titles: Sequence[Title]) -> Callable[[Title], Prior]:
    """The prior that is the same of all titles."""
    known = learn([title.points for title in titles])
    return lambda title: known


FITS: dict[str, Fit] = {"content": on_content, "all": of_all}
"""Priors by name, as `stretch` of the document has them."""


def held_out(
    titles: Sequence[Title], others: Sequence[Title], fit: Fit
) -> Iterator[tuple[Title, Prior]]:
    """Each title with a prior of `titles` without those of its group."""
    for group in sorted({title.about.group for title in titles}):
        prior_of = fit([title for title in titles if title.about.group != group])
        for title in titles:
            if title.about.group == group:
                yield title, prior_of(title)
    known = {title.about.group for title in titles}
    prior_of = fit(titles)
    for title in others:
        if title.about.group not in known:
            yield title, prior_of(title)


def misses(title: Title, prior: Prior) -> Values:
    """(N, 2): errors of log2 rate and of the logit of the score, in predicted deviations."""
    points = title.points
    rate, score, rate_sd, score_sd = prior.given(NOTHING).at(points.u, points.q)
    off = (rate - points.rate) / rate_sd, (logit(score) - logit(points.score)) / score_sd
    low, high = JUDGED
    return np.stack(off, axis=1)[(points.score >= low) & (points.score <= high)]


def all_misses(
    tables: tuple[pd.DataFrame, pd.DataFrame], column: str, clips: dict[str, Clip], fit: Fit
) -> list[tuple[str, Values]]:
    """The errors of every title that was left out, by its group, of all codecs."""
    found = []
    for codec in sorted(set(tables[0].codec)):
        titles, others = (titles_of(table, codec, column, clips) for table in tables)
        for title, prior in held_out(titles, others, fit):
            found.append((title.about.group, misses(title, prior)))
    return found


def stretch_of(found: Sequence[tuple[str, Values]]) -> tuple[float, float]:
    """How far intervals of rate and score are stretched to hold COVERED of such errors.

    Every title weighs the same, and all encoders count together: the titles of one are too few.
    """
    off = np.abs(np.concatenate([errors for _, errors in found]))
    weights = np.concatenate([np.full(len(errors), 1 / len(errors)) for _, errors in found])
    ends = []
    for column in off.T:
        order = np.argsort(column)
        share = np.cumsum(weights[order]) / weights.sum()
        ends.append(float(column[order][np.searchsorted(share, COVERED)]) / NORMAL)
    rate, score = ends
    return rate, score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("grids", nargs="*", type=Path, default=[GRID])
    parser.add_argument("--others", type=Path, help="default: grid.csv, grid-sampled.csv")
    parser.add_argument("--content", type=Path, default=TABLE)
    parser.add_argument("--probes", type=Path, default=PROBES)
    parser.add_argument("--codecs", help="names, with commas between")
    parser.add_argument("-o", "--output", type=Path, default=SHIPPED)
    options = parser.parse_args()
    table = pd.concat(map(read_grid, options.grids), ignore_index=True).astype({"clip": str})
    if options.codecs:
        table = table[table.codec.isin(options.codecs.split(","))]
    probes = read_grid(options.probes).astype({"clip": str})
    clips = read_content(options.content)
    encoders: dict[str, dict[str, object]] = {}
    stretch = {}
    for column, metric in METRICS.items():
        others = options.others or (RESCORED if column == "student" else OTHERS)
        tables = table, read_grid(others).astype({"clip": str})
        for codec in sorted(set(table.codec)):
            titles = titles_of(table, codec, column, clips)
            learned = prior_json(learn([title.points for title in titles]))
            if pairs := probed(table, probes, codec, column, clips):
                learned["link"] = link_json(learn_link(pairs))
            learned["content"] = content_prior_json(learnt(titles))
            encoders.setdefault(default_encoder(codec).name, {})[metric] = learned
        stretch[metric] = {
            name: [round(v, 4) for v in stretch_of(all_misses(tables, column, clips, fit))]
            for name, fit in FITS.items()
        }
    names = sorted(set(table["clip"]))
    about = f"{len(names)} clips: {', '.join(names)}"
    document = {
        "learnt_from": about,
        "learnt_on": learnt_on(table, clips),
        "stretch": stretch,
        "encoders": encoders,
    }
    write_whole(options.output, json.dumps(document) + "\n")
    print(f"{options.output}: {about}", file=sys.stderr)
    return 0


def learnt_on(table: pd.DataFrame, clips: dict[str, Clip]) -> dict[str, Any]:
    """The ranges of what was learnt from."""
    pixels = (table.width * table.height).groupby(table["clip"]).max()
    contents = pd.DataFrame([vars(clips[name].content) for name in set(table["clip"])])
    return {
        "pixels": [int(pixels.min()), int(pixels.max())],
        "fps": [float(table.fps.min()), float(table.fps.max())],
        "frames": int(table.frames.min()),
        "content": {name: [float(v.min()), float(v.max())] for name, v in contents.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
