"""All labels of the panel of one video: of whole frames, and of regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqaloop.media.planes import Frames
from vqaloop.panel import pairs
from vqaloop.panel.labels import LABELS

COLUMNS = {name: i for i, name in enumerate(LABELS)}
"""Columns of labels in the arrays of this module."""
FDIM_EVERY = 2
"""Of so many regions FDIM judges one: it costs more CPU time than all others together."""


@dataclass(frozen=True)
class PanelTools:
    """What measures the labels; judges without their tool are left out."""

    ffmpeg: str
    """Path of the ffmpeg binary."""
    fdim: Path | None = None
    """FDIM's wheel or checkpoint."""
    cvvdp: str | None = None
    """ColorVideoVDP's program, in an environment of its own."""
    ssimulacra2: bool = False

    @property
    def names(self) -> list[str]:
        """The labels that are measured, in the order of LABELS."""
        optional = {"fdim": self.fdim, "cvvdp": self.cvvdp, "ssimulacra2": self.ssimulacra2}
        return [name for name in LABELS if name in pairs.NAMES or optional.get(name)]

    def check(self) -> None:
        """Raises InputError where a tool cannot be used."""
        if self.fdim is not None:
            from vqaloop.models.fdim import load_fdim

            load_fdim(self.fdim)
        if self.ssimulacra2:
            from vqaloop.quality.ssimulacra2 import require_package

            require_package()
        if self.cvvdp is not None:
            from vqaloop.quality.cvvdp import require_program

            require_program(self.cvvdp)


def frame_labels(
    reference: Sequence[Frames], distorted: Sequence[Frames], tools: PanelTools, *, uhd: bool
) -> npt.NDArray[np.float32]:
    """(len(reference), len(LABELS)) of runs of whole frames, see `pairs.measure_runs`.

    nan for judges of regions alone, whose cost grows with the picture.
    """
    found = np.full((len(reference), len(LABELS)), np.nan, np.float32)
    columns = [COLUMNS[name] for name in pairs.NAMES]
    found[:, columns] = pairs.measure_runs(reference, distorted, ffmpeg=tools.ffmpeg, uhd=uhd)
    return found


def region_labels(
    reference: Sequence[Frames],
    distorted: Sequence[Frames],
    tools: PanelTools,
    *,
    uhd: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16] | None]:
    """Labels of runs of regions, all of one size, and FDIM's features.

    Judges of pictures take the first frame of a run behind its margin, FDIM of every FDIM_EVERY-th
    run alone. ColorVideoVDP is not among these: starting it takes longer than measuring with it,
    so that it judges the runs of many videos together (`cvvdp_labels`).

    Returns:
        (len(reference), len(LABELS)), nan where not measured, and (len(reference), 960) features,
        nan where not measured; None without FDIM.
    """
    found = frame_labels(reference, distorted, tools, uhd=uhd)
    pictures = [np.stack([run[pairs.MARGIN] for run in runs]) for runs in (reference, distorted)]
    features = None
    if tools.ssimulacra2:
        from vqaloop.quality import ssimulacra2

        found[:, COLUMNS["ssimulacra2"]] = ssimulacra2.measure(*pictures)
    if tools.fdim is not None:
        from vqaloop.panel import fdim

        some = slice(None, None, FDIM_EVERY)
        scores, seen = fdim.measure(pictures[0][some], pictures[1][some], tools.fdim)
        found[some, COLUMNS["fdim"]] = scores
        features = np.full((len(found), seen.shape[1]), np.nan, np.float16)
        features[some] = seen
    return found, features


def cvvdp_labels(
    reference: Sequence[Frames],
    distorted: Sequence[Frames],
    tools: PanelTools,
    *,
    fps: Fraction,
    uhd: bool,
) -> npt.NDArray[np.float32]:
    """(len(reference),) JOD of runs with margins, nan for those too short to show motion."""
    from vqaloop.quality import cvvdp

    found = np.full(len(reference), np.nan, np.float32)
    inner = slice(pairs.MARGIN, -pairs.MARGIN)
    rows = [i for i, run in enumerate(reference) if len(run[inner]) > 2]
    if rows and tools.cvvdp is not None:
        ours, theirs = ([runs[i][inner] for i in rows] for runs in (reference, distorted))
        look = cvvdp.Look(display="standard_4k") if uhd else cvvdp.DEFAULT_LOOK
        found[rows] = cvvdp.measure(ours, theirs, float(fps), tools.cvvdp, look)
    return found
