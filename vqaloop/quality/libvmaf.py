"""libvmaf through ffmpeg: its options, its log, and VMAF of pairs of frames in memory."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import compiled, input_arguments
from vqaloop.core.files import scratch
from vqaloop.errors import InputError, ToolError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


FEATURES = ("vmaf", "adm2", "motion2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3")
"""Columns of `vmaf_of_pairs`: VMAF and the six features it is made of."""

VMAF_MIN_SIDE = 18
"""Smallest width and height for VMAF, in pixels; on smaller frames libvmaf crashes."""


def vmaf_of_pairs(
    reference: npt.NDArray[np.uint8],
    distorted: npt.NDArray[np.uint8],
    *,
    ffmpeg: str,
    threads: int = 1,
    timeout_s: float = 120,
) -> pd.DataFrame:
    """VMAF v0.6.1 and its features, one row a frame, of 8-bit planar 4:2:0 frames in memory.

    Args:
        reference: (N, H * 3/2, W): the rows of Y, then U and V as in a raw file; H and W are
            even. Successive frames of one clip, since motion2 depends on a frame's neighbours.
        distorted: As `reference`.
        ffmpeg: Path of the ffmpeg binary.
        threads: Of libvmaf.
        timeout_s: Limit of the run.

    Returns:
        Columns FEATURES: VMAF in 0..100, motion2 in grey levels (0 on the first frame), the
        others about 0..1.

    Raises:
        InputError: The arrays are of another shape or type, or ffmpeg lacks libvmaf.
        ToolError: libvmaf fails.
    """
    import pandas as pd

    shape = reference.shape
    if distorted.shape != shape or len(shape) != 3 or 0 in shape or shape[1] % 3 or shape[2] % 2:
        raise InputError(f"frames must be two equal (N, H * 3/2, W): {shape}, {distorted.shape}")
    if reference.dtype != "uint8" or distorted.dtype != "uint8":
        raise InputError(f"frames must be uint8: {reference.dtype}, {distorted.dtype}")
    count, width, height = shape[0], shape[2], shape[1] // 3 * 2
    require_size(width, height)
    require_filter(ffmpeg, "libvmaf")
    size = ("video_size", f"{width}x{height}")
    raw = input_arguments([("f", "rawvideo"), ("pix_fmt", "yuv420p"), size])
    with scratch() as name:
        files = {"DISTORTED": Path(name, "distorted"), "REFERENCE": Path(name, "reference")}
        distorted.tofile(files["DISTORTED"])
        reference.tofile(files["REFERENCE"])
        legs = [ffmpeg_graph.input(key, **raw) for key in files]
        node = ffmpeg_graph.filter(legs, "libvmaf", **vmaf_options(Path(name), threads))
        done = process.run(
            compiled(node.output("-", format="null"), ffmpeg, files), timeout_s=timeout_s
        )
        if done.returncode != 0:
            raise ToolError(f"libvmaf failed on {count} frames in memory: {done.reason()}")
        rows = read_vmaf(Path(name))
    # libvmaf names its fixed-point features integer_*, older ones and its float models do not
    table = pd.DataFrame([{key.removeprefix("integer_"): row[key] for key in row} for row in rows])
    missing = [name for name in FEATURES if name not in table]
    if missing or len(table) != count:
        raise ToolError(f"libvmaf gave {len(table)} of {count} frames, without {missing}")
    return table[list(FEATURES)]


def vmaf_options(folder: Path, threads: int, is_4k: bool = False) -> dict[str, Any]:
    """Options of the libvmaf filter, which leaves its log in `folder`."""
    return {
        "model": "version=vmaf_4k_v0.6.1" if is_4k else "version=vmaf_v0.6.1",
        "n_threads": threads,
        "log_fmt": "json",
        "log_path": os.fspath(folder / "vmaf.json"),
    }


def read_vmaf(folder: Path) -> list[dict[str, float]]:
    """libvmaf's log in `folder`: features by name, frame by frame."""
    log = json.loads((folder / "vmaf.json").read_text(encoding="utf-8"))
    frames = sorted(log["frames"], key=lambda frame: int(frame["frameNum"]))
    return [frame["metrics"] for frame in frames]


def require_size(width: int, height: int) -> None:
    """Raise InputError for frames that libvmaf cannot take."""
    if min(width, height) < VMAF_MIN_SIDE:
        raise InputError(
            f"{width}x{height} is too small for VMAF, which needs {VMAF_MIN_SIDE} pixels each "
            "way; choose another metric"
        )


def require_filter(ffmpeg: str, name: str) -> None:
    """Raise InputError when this ffmpeg lacks a filter."""
    if name not in _filters(ffmpeg):
        raise InputError(
            f"{ffmpeg} was built without the {name} filter; choose another metric, or with "
            "--ffmpeg an ffmpeg that has it"
        )


@functools.lru_cache(maxsize=8)
def _filters(ffmpeg: str) -> frozenset[str]:
    done = process.run([ffmpeg, "-hide_banner", "-filters"], timeout_s=60)
    if done.returncode != 0:
        raise InputError(f"{ffmpeg} -filters failed: {done.reason()}; check --ffmpeg")
    rows = [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    return frozenset(row[1] for row in rows if len(row) > 2 and "->" in row[2])
