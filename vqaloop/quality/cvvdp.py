"""ColorVideoVDP (Mantiuk et al., SIGGRAPH 2024) of runs of frames, by its own program.

PyPI's `cvvdp` (MIT) needs packages that do not agree with this one's: its `ffmpeg` takes the place
of ffmpeg-python. So it lives in an environment of its own and is never imported. It is given
BMP pictures of SDR: for video files it needs ffprobe, and raw ones of BT.709 it reads as BT.601.
HDR goes as raw video, of which the program reads 10 bits of BT.2020 as they are.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqaloop.core import process
from vqaloop.core.files import scratch
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.planes import Frames, require_pair

BEST = 10.0
"""JOD of equal runs."""
CALL_PIXELS = 1 << 25
"""Luma pixels of the runs of a call: starting the program costs 7 CPU seconds, as much as 6
million of them, and their pictures take six bytes a pixel of disk."""
PROGRAM = "VQALOOP_CVVDP"
"""The environment variable that names the program."""
INSTALL = "run `python -m venv CVVDP && CVVDP/bin/pip install cvvdp`, then --cvvdp CVVDP/bin/cvvdp"
PATTERN = re.compile(r"[*%{}]")
"""What has a meaning in the program's names of pictures."""


@dataclass(frozen=True)
class Display:
    """A screen and how it is seen; pictures fill it, whatever their size."""

    name: str
    """What it is, in words."""
    diagonal_in: float
    """Inches of its diagonal, of 16:9."""
    distance_m: float
    sdr: tuple[float, float, float]
    """Of SDR: peak in cd/m², contrast, and light of the room in lux."""
    hdr: tuple[float, float, float]
    """The same of HDR."""

    def model(self, size: tuple[int, int], kind: str) -> dict[str, Any]:
        """The program's model of it under pictures of `size`; `kind` is SDR, PQ or HLG."""
        width, height = size
        # upright pictures fill its height alone
        width = max(width, round(height * 16 / 9))
        peak, contrast, lux = self.sdr if kind == "SDR" else self.hdr
        colours = {} if kind == "SDR" else {"colorspace": f"BT.2020-{kind}"}
        return {
            "name": self.name,
            **colours,
            "resolution": [width, round(width * 9 / 16)],
            "viewing_distance_meters": self.distance_m,
            "diagonal_size_inches": self.diagonal_in,
            "max_luminance": peak,
            "contrast": contrast,
            "E_ambient": lux,
            "source": "none",
        }


_MONITOR = Display(
    "30-inch monitor from two heights", 30, 0.7472, (200, 1000, 250), (1500, 1e6, 10)
)
DISPLAYS = {
    "monitor": _MONITOR,
    "phone": Display("6-inch phone from 40 cm", 6, 0.4, (500, 10_000, 250), (1000, 1e6, 250)),
    "tablet": Display("13-inch tablet from 50 cm", 12.9, 0.508, (600, 1600, 250), (1000, 1e6, 50)),
    "tv": Display("65-inch TV from 2 m", 65, 1.98, (270, 20_000, 100), (1000, 1e6, 5)),
    "hdr-tv": Display("65-inch bright TV from 2 m", 65, 1.98, (270, 20_000, 100), (4000, 1e6, 5)),
}
"""Displays by name, after the program's standard_4k, standard_hdr_pq, standard_phone,
ipad_pro_12_9, lg_oled_2017_sdr, 65inch_hdr_pq_1Knit and 65inch_hdr_pq_4knit."""


@dataclass(frozen=True)
class Look:
    """How runs are shown to the program."""

    kind: str = "SDR"
    """SDR, or PQ or HLG, of which runs have 10 bits a sample."""
    display: str = "standard_fhd"
    """The program's own model, or the one of `models`."""
    models: Mapping[str, Any] | None = None
    """Models in place of the program's own."""
    device: str | None = None
    """cpu or cuda; None: as the program finds it."""
    threads: int = 1
    """Of the program. On small runs more are hardly faster, and on a busy machine far slower."""


DEFAULT_LOOK = Look()
"""SDR on a monitor of 1920x1080, from two heights."""


def measure(
    reference: Sequence[Frames],
    distorted: Sequence[Frames],
    fps: float,
    program: str | os.PathLike[str],
    look: Look = DEFAULT_LOOK,
) -> npt.NDArray[np.float32]:
    """ColorVideoVDP of runs of frames.

    Args:
        reference: Each (L, H * 3/2, W) planar 4:2:0, limited range, 8 bit and BT.709, or by `look`
            HDR: consecutive frames. L may differ from run to run.
        distorted: As `reference`.
        fps: Frames a second.
        program: Path of the `cvvdp` program.
        look: The display, and what the runs are.

    Returns:
        (N,) quality in JOD, 10 at best.

    Raises:
        InputError: The arrays are of another form, or there is no such program.
        ToolError: The program fails.
    """
    pairs = list(zip(reference, distorted, strict=True))
    for pair in pairs:
        require_pair(*pair, sample="uint8" if look.kind == "SDR" else "uint16")
    path = require_program(program)
    # `env` becomes the program, under the same process id
    argv = ["env", f"OMP_NUM_THREADS={look.threads}", path, "--quiet", "--fps", f"{fps:g}"]
    argv += ["--display", look.display, *(["--device", look.device] if look.device else [])]
    calls = (_call(part, argv, look, fps) for part in _calls(pairs))
    return np.asarray([jod for found in calls for jod in found], np.float32)


def find_program(program: str | os.PathLike[str] | None) -> str:
    """The absolute path of the program named, by the environment, or on the PATH.

    Raises:
        InputError: There is none.
    """
    named = program or os.environ.get(PROGRAM) or shutil.which("cvvdp")
    if not named:
        raise InputError(
            f"--metric cvvdp needs ColorVideoVDP, an extra program, and there is none: {INSTALL}; "
            f"${PROGRAM} or the PATH may name it too"
        )
    return require_program(named)


def require_program(program: str | os.PathLike[str]) -> str:
    """Its absolute path. Raises InputError where there is no such program."""
    path = os.path.abspath(program)
    if not (os.path.isfile(path) and os.access(path, os.X_OK)):
        raise InputError(f"ColorVideoVDP: {quoted(path)} is no program; {INSTALL}")
    return path


def _calls(pairs: Sequence[tuple[Frames, Frames]]) -> Iterator[list[tuple[Frames, Frames]]]:
    """The pairs in shares of about CALL_PIXELS."""
    part: list[tuple[Frames, Frames]] = []
    for pair in pairs:
        if part and _pixels([*part, pair]) > CALL_PIXELS:
            yield part
            part = []
        part.append(pair)
    if part:
        yield part


def _pixels(pairs: Sequence[tuple[Frames, Frames]]) -> int:
    return sum(one.size * 2 // 3 for one, _ in pairs)


def _call(
    pairs: Sequence[tuple[Frames, Frames]], argv: Sequence[str], look: Look, fps: float
) -> list[float]:
    """JOD of each pair, by one run of the program that `argv` begins with."""
    with scratch() as name:
        if PATTERN.search(name):
            raise InputError(
                f"ColorVideoVDP takes no pictures in {quoted(name)}; set TMPDIR to a folder "
                "without *, %, { and } in its name"
            )
        folder = Path(name)
        references, tests = (
            [_write(folder, f"{side}{i}", pair[at], look, fps) for i, pair in enumerate(pairs)]
            for at, side in enumerate("rt")
        )
        result = folder / "result.csv"
        files = ["--result", str(result), "--output-dir", name]
        if look.models:
            models = folder / "display_models.json"
            models.write_text(json.dumps(look.models))
            files += ["--config-paths", str(models)]
        files += ["--test", *tests, "--ref", *references]
        # a CPU second a megapixel; it may have to wait for others
        limit_s = 600 + 60 * _pixels(pairs) / 1e6
        # its PyTorch leaves a folder where temporary files go
        words = [argv[0], f"TMPDIR={name}", *argv[1:], *files]
        done = process.run(words, timeout_s=limit_s, max_stdout=1 << 24)
        # it exits with 0 on errors of its own too: what counts is the table
        jod = _read(result) if done.returncode == 0 and not done.timed_out else []
    if len(jod) != len(pairs):
        raise ToolError(
            f"ColorVideoVDP ({quoted(argv[2])}) measured {len(jod)} of {len(pairs)} runs: "
            f"{done.reason()}; if it does not run at all: {INSTALL}"
        )
    return jod


def _write(folder: Path, name: str, run: Frames, look: Look, fps: float) -> str:
    """Write a run for the program; what it is to be given of it."""
    if look.kind == "SDR":
        # here: it brings PyTorch
        from vqaloop.media.pictures import bitmap

        for index, frame in enumerate(run):
            (folder / f"{name}_{index:05d}.bmp").write_bytes(bitmap(frame))
        return f"{folder}/{name}_%05d.bmp"
    _, rows, width = run.shape
    # the program knows the form of raw video by its name
    path = folder / f"{name}_{width}x{rows * 2 // 3}_10b_420_2020_{fps:g}fps.yuv"
    run.astype("<u2", copy=False).tofile(path)
    return str(path)


def _read(result: Path) -> list[float]:
    """The last column of the program's table, as far as it holds numbers."""
    try:
        rows = result.read_text("utf-8", "replace").splitlines()[1:]
        found = [float(row.rpartition(",")[2]) for row in rows]
    except (OSError, ValueError):
        return []
    return found if all(math.isfinite(jod) and jod <= BEST + 1e-3 for jod in found) else []
