"""Labels of pairs of frames in memory by the judges that ffmpeg has: VMAFs, CAMBI and XPSNR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled
from vqaloop.core.files import scratch
from vqaloop.errors import InputError, ToolError
from vqaloop.media.planes import Frames
from vqaloop.quality.full_reference import frame_values, read_frames
from vqaloop.quality.libvmaf import (
    raw_pair,
    read_vmaf,
    require_filter,
    require_model,
    vmaf_options,
)

MODELS = {"v1": ("v1", "v1-4k"), "neg": ("neg", "neg-4k"), "v0.6.1": ("v0.6.1", "4k")}
"""libvmaf's models of the labels: up to 2560x1440, and above."""
NAMES = (*MODELS, "cambi", "xpsnr")
"""Labels that `measure_runs` gives, in the order of its columns."""
MARGIN = 1
"""Frames on either side of a run that are measured for the sake of motion, and left out."""
_CEILING_DB = 60.0


def measure_runs(
    reference: Sequence[Frames],
    distorted: Sequence[Frames],
    *,
    ffmpeg: str,
    uhd: bool,
    timeout_s: float = 600,
) -> npt.NDArray[np.float32]:
    """Labels of runs of frames, each the mean over the run but for its MARGIN at either end.

    Args:
        reference: Runs of successive frames, each (L, H·3/2, W) 8-bit 4:2:0, all of one H and W.
        distorted: The same frames of an encode.
        ffmpeg: Path of the ffmpeg binary.
        uhd: With the VMAF models for a canvas above 2560x1440.
        timeout_s: Limit of the run.

    Returns:
        (len(reference), len(NAMES)).

    Raises:
        InputError: Runs do not fit each other, frames are too small for VMAF v1, or ffmpeg lacks
            a filter or model.
        ToolError: ffmpeg fails.
    """
    lengths = [len(run) for run in reference]
    if lengths != [len(run) for run in distorted] or min(lengths, default=0) <= 2 * MARGIN:
        raise InputError(f"runs of frames do not fit each other or are too short: {lengths}")
    values = labels_of_frames(np.concatenate(reference), np.concatenate(distorted), ffmpeg, uhd,
                           timeout_s)  # fmt: skip
    ends = np.cumsum(lengths)
    parts = [
        values[end - length + MARGIN : end - MARGIN].mean(0)
        for end, length in zip(ends, lengths, strict=True)
    ]
    return np.stack(parts).astype(np.float32)


def labels_of_frames(
    reference: Frames, distorted: Frames, ffmpeg: str, uhd: bool, timeout_s: float
) -> npt.NDArray[np.float64]:
    """(N, len(NAMES)) labels of each of N successive frames, see `measure_runs`."""
    count, rows, width = reference.shape
    if distorted.shape != reference.shape:
        raise InputError(f"frames do not fit: {reference.shape}, {distorted.shape}")
    height = rows // 3 * 2
    models = [of_size[uhd] for of_size in MODELS.values()]
    for model in models:
        require_model(ffmpeg, model, width, height)
    require_filter(ffmpeg, "xpsnr")
    with scratch() as name:
        (node, other), files = raw_pair(reference, distorted, (width, height), Path(name))
        references = other.filter_multi_output("split", 2)
        options = vmaf_options(Path(name), 1, models)
        node = ffmpeg_graph.filter([node, references[0]], "libvmaf", **options)
        node = ffmpeg_graph.filter([node, references[1]], "xpsnr")
        node = node.filter("metadata", mode="print", file="pipe:1").output("-", format="null")
        done = process.run(compiled(node, ffmpeg, files), timeout_s=timeout_s)
        if done.returncode != 0:
            raise ToolError(f"libvmaf failed on {count} frames in memory: {done.reason()}")
        logged = read_vmaf(Path(name))
    text = done.stdout.decode("utf-8", "replace")
    xpsnr = frame_values("xpsnr", read_frames(text), _CEILING_DB)
    if len(logged) != count or len(xpsnr) != count:
        raise ToolError(f"ffmpeg measured {len(logged)} and {len(xpsnr)} of {count} frames")
    columns = [[row[model] for row in logged] for model in models]
    columns.append([next(v for k, v in row.items() if k.startswith("cambi")) for row in logged])
    return np.array([*columns, xpsnr], np.float64).T
