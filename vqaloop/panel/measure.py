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
            from vqaloop.panel import ssimulacra2

            ssimulacra2.check_installed()
        if self.cvvdp is not None:
            from vqaloop.panel import cvvdp

            cvvdp.check_program(self.cvvdp)


def frame_labels(
    reference: Sequence[Frames], distorted: Sequence[Frames], tools: PanelTools, *, uhd: bool
) -> npt.NDArray[np.float32]:
    """(len(reference), len(LABELS)) of runs of whole frames, see `pairs.measure_runs`.

    nan for judges of regions alone, whose cost grows with the picture.
    """
    found = np.full((len(reference), len(LABELS)), np.nan, np.float32)
    columns = [list(LABELS).index(name) for name in pairs.NAMES]
    found[:, columns] = pairs.measure_runs(reference, distorted, ffmpeg=tools.ffmpeg, uhd=uhd)
    return found


def region_labels(
    reference: Sequence[Frames],
    distorted: Sequence[Frames],
    tools: PanelTools,
    *,
    fps: Fraction,
    uhd: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16] | None]:
    """Labels of runs of regions, all of one size, and FDIM's features.

    Judges of pictures take the first frame of a run, behind its margin; ColorVideoVDP the runs of
    more than two frames.

    Returns:
        (len(reference), len(LABELS)), nan where not measured, and (len(reference), 960) features,
        None without FDIM.
    """
    found = frame_labels(reference, distorted, tools, uhd=uhd)
    column = {name: i for i, name in enumerate(LABELS)}
    pictures = [np.stack([run[pairs.MARGIN] for run in runs]) for runs in (reference, distorted)]
    features = None
    if tools.ssimulacra2:
        from vqaloop.panel import ssimulacra2

        found[:, column["ssimulacra2"]] = ssimulacra2.measure(*pictures)
    if tools.fdim is not None:
        from vqaloop.panel import fdim

        found[:, column["fdim"]], features = fdim.measure(*pictures, tools.fdim)
    if tools.cvvdp is not None:
        from vqaloop.panel import cvvdp

        inner = slice(pairs.MARGIN, -pairs.MARGIN)
        rows = [i for i, run in enumerate(reference) if len(run[inner]) > 2]
        ours, theirs = ([runs[i][inner] for i in rows] for runs in (reference, distorted))
        found[rows, column["cvvdp"]] = cvvdp.measure(
            ours, theirs, fps, tools.cvvdp, ffmpeg=tools.ffmpeg, uhd=uhd
        )
    return found, features
