"""Places of a title by `CropSampling` and eight even ones: their mean VMAF against all frames'.

    python -m bench.places CLIP... [--join 7] [--frames 40] [--seeds 200] [--csv FILE]

Titles and encodes are those of bench.sampled, VMAF is of every frame. Places are chosen from the
raw title, and from x264 files of it with scene cuts and with a fixed GOP, as sources may be.
"inside" is the standard deviation of the error within a title; "late" is of encodes whose last
tenth is starved, and "unseen" the share of seeds with no place there.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.sampled import GOP, KINDS, encodes, judge, run
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.activity import SourceActivity, activity_of
from vqaloop.media.planes import CLIP_FRAMES
from vqaloop.media.probe import probe_source
from vqaloop.quality import full_reference
from vqaloop.quality.crop_sampling import CropSampling, Places
from vqaloop.records import Source

EVEN = 8
SOURCES = {"x264": (), "x264, fixed GOP": (*GOP, "-sc_threshold", "0")}
"""Files that places are chosen from besides the raw title, and their options."""


def even_places(frames: int, seed: int) -> Places:
    """A place drawn in each of EVEN equal parts of a title."""
    rng = np.random.default_rng([seed, frames])
    edges = np.linspace(0, frames, EVEN + 1).astype(int)
    room = np.maximum(1, np.diff(edges) - CLIP_FRAMES + 1)
    starts = edges[:-1] + (rng.random(EVEN) * room).astype(int)
    return dict.fromkeys(map(int, starts), 1 / EVEN)


def choices(source: Source, folder: Path) -> dict[str, Callable[[int], Places]]:
    """By name, the places of a seed."""
    activities = {"raw": activity_of(source)}
    for name, options in SOURCES.items():
        path = folder / "source.mp4"
        run("-i", file_url(source.path), "-c:v", "libx264", "-crf", "18", *options, file_url(path))
        activities[name] = activity_of(probe_source(path, ffmpeg=ffmpeg_path()))

    def chosen(activity: SourceActivity) -> Callable[[int], Places]:
        return lambda seed: CropSampling(seed=seed).places(activity)

    found = {name: chosen(activity) for name, activity in activities.items()}
    return {"eight even": lambda seed: even_places(source.frames, seed), **found}


def study(source: Source, title: str, seeds: int) -> Iterator[dict[str, Any]]:
    """A row for each encode, choice and seed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = choices(source, folder)
        for encode, path in encodes(source, folder):
            judged = full_reference.measure(source, path, ["vmaf"], ffmpeg=ffmpeg_path())
            values = np.array(judged["vmaf"].clips)
            for way, places_of in ways.items():
                for seed in range(seeds):
                    places = places_of(seed)
                    at = np.add.outer(list(places), range(CLIP_FRAMES))
                    mean = float(values[at].mean(1) @ list(places.values()))
                    yield {
                        **{"title": title, "encode": encode, "choice": way, "seed": seed},
                        **{"error": mean - values.mean(), "unseen": at.max() < len(values) * 0.9},
                    }


def figures(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each choice."""
    rows = []
    for choice, own in table.groupby("choice", sort=False):
        usual, late = own[own.encode != KINDS[-1]], own[own.encode == KINDS[-1]]
        rows.append(
            {
                "choice": choice,
                "rmse": (usual.error**2).mean() ** 0.5,
                "worst": usual.error.abs().groupby(usual.title).max().mean(),
                "inside": usual.groupby(["title", "seed"]).error.var(ddof=0).mean() ** 0.5,
                "late rmse": (late.error**2).mean() ** 0.5,
                "late worst": late.error.abs().max(),
                "unseen %": 100 * late.unseen.mean(),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    judge(__doc__, 200, study, figures)


if __name__ == "__main__":
    main()
