"""libvmaf through ffmpeg: its models, options and log, and VMAF of pairs of frames in memory."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.core import ffmpeg as ffmpeg_graph
from vqaloop.core import process
from vqaloop.core.ffmpeg import Node, compiled, input_arguments
from vqaloop.core.files import scratch
from vqaloop.errors import InputError, ToolError
from vqaloop.media.planes import require_pair

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd


FEATURES = ("vmaf", "adm2", "motion2", "vif_scale0", "vif_scale1", "vif_scale2", "vif_scale3")
"""Columns of `vmaf_of_pairs`: VMAF and the six features that v0.6.1 is made of."""


@dataclass(frozen=True)
class VmafModel:
    """A model of libvmaf, and the frames that it takes."""

    version: str
    """As libvmaf's option has it."""
    label: str
    short_side: int = 18
    """Least width and height in pixels. On smaller frames libvmaf crashes: VIF has no pixel left
    at its last scale, and v1's SpEED no block of chroma."""
    long_side: int = 18
    """Least of the larger of the two. Below 216 libvmaf computes no CAMBI, and so no VMAF v1."""
    proportion: float = math.inf
    """Most of long side to short side. CAMBI's window grows with their sum; from 10.5 on it is
    taller than the picture at CAMBI's last scale, and libvmaf writes beyond its memory."""

    def fits(self, width: int, height: int) -> bool:
        """Whether it can measure frames of this size."""
        return self._large_enough(width, height) and self._compact(width, height)

    def refusal(self, width: int, height: int) -> str:
        """Why it cannot measure frames of this size."""
        if not self._compact(width, height):
            return (
                f"{width}x{height} is too long and narrow for {self.label}, whose frames may be "
                f"{self.proportion:g} times as long as wide"
            )
        sides = f"{self.short_side} pixels each way"
        if self.long_side > self.short_side:
            sides += f" and {self.long_side} one way"
        return f"{width}x{height} is too small for {self.label}, which needs {sides}"

    def _large_enough(self, width: int, height: int) -> bool:
        return min(width, height) >= self.short_side and max(width, height) >= self.long_side

    def _compact(self, width: int, height: int) -> bool:
        return max(width, height) <= self.proportion * min(width, height)


VMAF_MODELS = {
    "v0.6.1": VmafModel("vmaf_v0.6.1", "VMAF v0.6.1"),
    "4k": VmafModel("vmaf_4k_v0.6.1", "VMAF 4K v0.6.1"),
    "neg": VmafModel("vmaf_v0.6.1neg", "VMAF NEG v0.6.1"),
    "v1": VmafModel("vmaf_v1.0.16_3d0h", "VMAF v1", 160, 216, 10),
    "neg-4k": VmafModel("vmaf_4k_v0.6.1neg", "VMAF NEG 4K v0.6.1"),
    "v1-4k": VmafModel("vmaf_v1.0.16_1d5h_2160", "VMAF 4K v1", 160, 216, 10),
    "v1-phone": VmafModel("vmaf_v1.0.16_5d0h", "VMAF v1 for phones", 266, 266, 10),
    "v1-hfr": VmafModel("vmaf_v1.0.16_hfr_3d0h", "VMAF v1 HFR", 160, 216, 10),
    "v1-hfr-4k": VmafModel("vmaf_v1.0.16_hfr_1d5h_2160", "VMAF 4K v1 HFR", 160, 216, 10),
}
"""By the names that `vmaf_options` takes. Those of 4K are for a canvas larger than 2560x1440, seen
from 1.5 picture heights; that of phones for five, the others for three, as on a television set."""


def vmaf_of_pairs(
    reference: npt.NDArray[np.uint8],
    distorted: npt.NDArray[np.uint8],
    *,
    ffmpeg: str,
    threads: int = 1,
    timeout_s: float = 120,
    model: str = "v0.6.1",
) -> pd.DataFrame:
    """VMAF and its features, one row a frame, of 8-bit planar 4:2:0 frames in memory.

    Args:
        reference: (N, H * 3/2, W): the rows of Y, then U and V as in a raw file; H and W are
            even. Successive frames of one clip, since motion2 depends on a frame's neighbours.
        distorted: As `reference`.
        ffmpeg: Path of the ffmpeg binary.
        threads: Of libvmaf.
        timeout_s: Limit of the run.
        model: A name of VMAF_MODELS.

    Returns:
        Columns FEATURES: VMAF in 0..100, motion2 in grey levels (0 on the first frame), the
        others about 0..1. Models that are not made of these features have the column vmaf alone.

    Raises:
        InputError: The arrays are of another shape or type, too small for the model, or ffmpeg
            lacks libvmaf or the model.
        ToolError: libvmaf fails.
    """
    import pandas as pd

    height, width = require_pair(reference, distorted)
    count = len(reference)
    require_model(ffmpeg, model, width, height)
    with scratch() as name:
        legs, files = raw_pair(reference, distorted, (width, height), Path(name))
        options = vmaf_options(Path(name), threads, [model])
        node = ffmpeg_graph.filter(legs, "libvmaf", **options)
        done = process.run(
            compiled(node.output("-", format="null"), ffmpeg, files), timeout_s=timeout_s
        )
        if done.returncode != 0:
            raise ToolError(f"libvmaf failed on {count} frames in memory: {done.reason()}")
        rows = read_vmaf(Path(name))
    # libvmaf names its fixed-point features integer_*, older ones and its float models do not
    table = pd.DataFrame([{key.removeprefix("integer_"): row[key] for key in row} for row in rows])
    table = table.rename(columns={model: "vmaf"})
    wanted = list(FEATURES if model in ("v0.6.1", "4k") else FEATURES[:1])
    missing = [name for name in wanted if name not in table]
    if missing or len(table) != count:
        raise ToolError(f"libvmaf gave {len(table)} of {count} frames, without {missing}")
    return table[wanted]


def raw_pair(
    reference: npt.NDArray[np.uint8],
    distorted: npt.NDArray[np.uint8],
    size: tuple[int, int],
    folder: Path,
) -> tuple[list[Node], dict[str, Path]]:
    """Frames of (width, height) in memory as inputs of a graph: the distorted ones, the reference.

    The second value is the files that they are written to in `folder`, for `compiled`.
    """
    shape = ("video_size", f"{size[0]}x{size[1]}")
    raw = input_arguments([("f", "rawvideo"), ("pix_fmt", "yuv420p"), shape])
    files = {"DISTORTED": folder / "distorted", "REFERENCE": folder / "reference"}
    distorted.tofile(files["DISTORTED"])
    reference.tofile(files["REFERENCE"])
    return [ffmpeg_graph.input(key, **raw) for key in files], files


def vmaf_options(
    folder: Path, threads: int, models: Sequence[str] = ("v0.6.1",), every: int = 1
) -> dict[str, Any]:
    """Options of the libvmaf filter, which leaves its log in `folder`.

    Several models in one filter share what features they have in common. With `every` k only
    frames 0, k, 2k ... get a value, which is the same as with all frames: libvmaf still follows
    the motion through all of them.
    """
    return {
        "model": "|".join(f"version={VMAF_MODELS[name].version}:name={name}" for name in models),
        "n_threads": threads,
        "log_fmt": "json",
        "log_path": os.fspath(folder / f"vmaf{every}.json"),
        **({"n_subsample": every} if every > 1 else {}),
    }


def read_vmaf(folder: Path, every: int = 1) -> list[dict[str, float]]:
    """libvmaf's log in `folder`, frame by frame: VMAF by the name of each model, and features."""
    log = json.loads((folder / f"vmaf{every}.json").read_text(encoding="utf-8"))
    frames = sorted(log["frames"], key=lambda frame: int(frame["frameNum"]))
    return [frame["metrics"] for frame in frames]


def require_model(ffmpeg: str, name: str, width: int, height: int) -> None:
    """Raise InputError for a model that there is not, or not for frames of this size."""
    if name not in VMAF_MODELS:
        raise InputError(f"{name} is no model of VMAF: choose among {', '.join(VMAF_MODELS)}")
    model = VMAF_MODELS[name]
    if not model.fits(width, height):
        raise InputError(f"{model.refusal(width, height)}; choose another metric")
    require_filter(ffmpeg, "libvmaf")
    if not has_model(ffmpeg, name):
        raise InputError(
            f"the libvmaf of {ffmpeg} lacks {model.label} ({model.version}); choose another "
            "metric, or with --ffmpeg an ffmpeg that has it"
        )


def require_filter(ffmpeg: str, name: str) -> None:
    """Raise InputError when this ffmpeg lacks a filter."""
    if not has_filter(ffmpeg, name):
        raise InputError(
            f"{ffmpeg} was built without the {name} filter; choose another metric, or with "
            "--ffmpeg an ffmpeg that has it"
        )


def has_filter(ffmpeg: str, name: str) -> bool:
    """Whether this ffmpeg has a filter."""
    return name in _filters(ffmpeg)


@functools.lru_cache(maxsize=64)
def has_model(ffmpeg: str, name: str) -> bool:
    """Whether this ffmpeg's libvmaf has a model, which no option of ffmpeg lists."""
    if name in ("v0.6.1", "4k"):
        return True  # built into any libvmaf that ffmpeg's filter takes a version of
    model = VMAF_MODELS[name]
    size = f"{max(model.long_side, 216)}x{max(model.short_side, 160)}"
    raw = input_arguments([("f", "rawvideo"), ("pix_fmt", "yuv420p"), ("video_size", size)])
    legs = [ffmpeg_graph.input(key, **raw) for key in ("ONE", "OTHER")]
    node = ffmpeg_graph.filter(legs, "libvmaf", model=f"version={model.version}")
    node = node.output("-", format="null", vframes=1)
    argv = compiled(node, ffmpeg, dict.fromkeys(("ONE", "OTHER"), "/dev/zero"))
    done = process.run(argv, timeout_s=60)
    # an ffmpeg that hangs has not said that it lacks the model
    return done.timed_out or done.returncode == 0


@functools.lru_cache(maxsize=8)
def _filters(ffmpeg: str) -> frozenset[str]:
    done = process.run([ffmpeg, "-hide_banner", "-filters"], timeout_s=60)
    if done.returncode != 0:
        raise InputError(f"{ffmpeg} -filters failed: {done.reason()}; check --ffmpeg")
    rows = [line.split() for line in done.stdout.decode("utf-8", "replace").splitlines()]
    return frozenset(row[1] for row in rows if len(row) > 2 and "->" in row[2])
