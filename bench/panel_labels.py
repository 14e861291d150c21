"""Labels of whole encodes by the judges of the panel, frame by frame, in one CSV an encode.

What ffmpeg measures (VMAFs, CAMBI, XPSNR) has a value of every frame. The dear judges (SSIMULACRA
2, FDIM, ColorVideoVDP) take a few runs of frames, evenly over time, and of large pictures a part
at another place of each run; their values stand for the frames around.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors import safe_open

from vqaloop.core import files
from vqaloop.errors import InputError
from vqaloop.media.planes import Frames, cut
from vqaloop.models.head_config import HeadConfig
from vqaloop.panel import pairs
from vqaloop.panel.labels import LABELS
from vqaloop.panel.measure import PanelTools
from vqaloop.panel.soft_minimum import Panel
from vqaloop.quality.pooling import mean_over_time
from vqaloop.training.targets import label_of_weights

Values = npt.NDArray[np.float64]

PANEL = "panel"
"""Column of the fused label."""
PSNR = "psnr"
CHEAP = (*pairs.NAMES, PSNR)
"""Columns that every frame has."""
PICTURES = ("ssimulacra2", "fdim")
"""Dear judges of single frames; ColorVideoVDP takes runs."""
PLACES, RUN = 2, 5
"""Runs of a title that dear judges see, and the frames of one."""
MOST_PIXELS = 1 << 18
"""Of a picture that dear judges see; of a larger one they see a part."""
MOST_DB = 60.0


@dataclass(frozen=True)
class Fusion:
    """How values of judges become the panel's label of an encode."""

    panel: Panel
    time_power: float
    """Of the mean over time of what frames lack to 100."""

    def label(self, table: pd.DataFrame, names: Collection[Hashable]) -> float:
        """The label of an encode, of these judges alone, from its table of frames."""
        own = [name for name in LABELS if name in names and name in table]
        frames = np.stack([nearest(table[name].to_numpy(float)) for name in own], -1)
        fused = torch.from_numpy(self.panel.fuse(frames, own))
        return float(mean_over_time(fused, torch.ones_like(fused), self.time_power))


def read_fusion(weights: Path) -> Fusion:
    """The panel and the power of time in the header of a student's weights.

    Raises InputError where it has no panel.
    """
    with safe_open(weights, "np") as file:
        header = dict(file.metadata() or {})
    label = label_of_weights(header, weights.name)
    if label is None or label.panel is None:
        raise InputError(
            f"{weights.name} was not trained on a panel's label, so its header has no panel; name "
            "weights that were with --panel FILE"
        )
    return Fusion(label.panel, HeadConfig.from_header(header, weights.name).time_power)


def nearest(values: Values) -> Values:
    """Values of frames, where missing those of the nearest frame that has one."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return values
    at = np.arange(len(values))
    middles = (known[1:] + known[:-1]) / 2
    return np.asarray(values[known[np.searchsorted(middles, at)]])


def measure_frames(
    reference: Frames, distorted: Frames, *, ffmpeg: str, uhd: bool
) -> pd.DataFrame:
    """The columns CHEAP of every frame."""
    limit_s = 120 + 5 * reference.size / 1e6
    found = pairs.labels_of_frames(reference, distorted, ffmpeg, uhd, limit_s)
    table = pd.DataFrame(found, columns=list(pairs.NAMES))
    return table.assign(**{PSNR: psnr_of_luma(reference, distorted)})


def psnr_of_luma(reference: Frames, distorted: Frames) -> Values:
    """PSNR of each frame's luma in dB, at most MOST_DB."""
    rows = reference.shape[1] * 2 // 3
    errors = [
        np.square(one[:rows].astype(np.int32) - other[:rows]).mean()
        for one, other in zip(reference, distorted, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(10 * np.log10(255**2 / np.array(errors)), MOST_DB))


@dataclass(frozen=True)
class Runs:
    """The runs of an encode that dear judges see, kept until all of a title can be measured."""

    starts: list[int]
    """First frame of each."""
    reference: list[Frames]
    distorted: list[Frames]


def runs_of(reference: Frames, distorted: Frames) -> Runs:
    """PLACES runs, evenly over time; of large pictures a part, at another place each time."""
    count, rows, width = reference.shape
    height, length = rows * 2 // 3, min(RUN, len(reference))
    scale = min(1.0, (MOST_PIXELS / (width * height)) ** 0.5)
    tall, wide = (round(side * scale / 2) * 2 for side in (height, width))
    starts, parts = [], []
    for place in range(PLACES):
        start = round((count - length) * (place + 0.5) / PLACES)
        # down one diagonal of the picture
        top, left = (
            round((side - size) * (place + 0.5) / PLACES / 2) * 2
            for side, size in ((height, tall), (width, wide))
        )
        starts.append(start)
        parts.append(
            [cut(v[start : start + length], top, left, tall, wide) for v in (reference, distorted)]
        )
    return Runs(starts, [one for one, _ in parts], [other for _, other in parts])


def measure_pictures(table: pd.DataFrame, runs: Runs, tools: PanelTools) -> pd.DataFrame:
    """The table with the columns of PICTURES that the tools have, at the middle of each run."""
    middle = [len(run) // 2 for run in runs.reference]
    first, second = (
        np.stack([run[at] for run, at in zip(side, middle, strict=True)])
        for side in (runs.reference, runs.distorted)
    )
    found: dict[str, npt.NDArray[np.float32]] = {}
    if tools.ssimulacra2:
        from vqaloop.quality import ssimulacra2

        found["ssimulacra2"] = ssimulacra2.measure(first, second)
    if tools.fdim is not None:
        from vqaloop.panel import fdim

        found["fdim"] = fdim.measure(first, second, tools.fdim)[0]
    for name, values in found.items():
        column = np.full(len(table), np.nan)
        column[[a + b for a, b in zip(runs.starts, middle, strict=True)]] = values
        table = table.assign(**{name: column})
    return table


def measure_cvvdp(
    tables: Sequence[pd.DataFrame],
    runs: Sequence[Runs],
    tools: PanelTools,
    *,
    fps: float,
    uhd: bool,
) -> list[pd.DataFrame]:
    """The tables of a title's encodes with ColorVideoVDP, whose program is started once."""
    from vqaloop.quality import cvvdp

    assert tools.cvvdp is not None
    jod = cvvdp.measure(
        [run for own in runs for run in own.reference],
        [run for own in runs for run in own.distorted],
        fps,
        tools.cvvdp,
        cvvdp.Look(display="standard_4k") if uhd else cvvdp.DEFAULT_LOOK,
    )
    found = []
    for number, (table, own) in enumerate(zip(tables, runs, strict=True)):
        column = np.full(len(table), np.nan)
        for place, start in enumerate(own.starts):
            column[start : start + len(own.reference[place])] = jod[number * PLACES + place]
        found.append(table.assign(cvvdp=column))
    return found


def means(table: pd.DataFrame) -> dict[str, float]:
    """The mean over time of each column; dear judges' places stand for equal parts."""
    return {str(name): float(values.mean()) for name, values in table.items()}


def write(path: Path, table: pd.DataFrame) -> None:
    """One row a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_whole(path, table.to_csv(index=False, float_format="%.4f"))
