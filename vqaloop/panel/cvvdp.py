"""ColorVideoVDP (Mantiuk et al., SIGGRAPH 2024) of runs of frames, by its own program.

PyPI's `cvvdp` (MIT) needs packages that do not agree with this one's: its `ffmpeg` takes the place
of ffmpeg-python. So it lives in an environment of its own and is never imported. It is given
BMP pictures: for video files it needs ffprobe, and raw ones it reads as BT.601.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqaloop.core import process
from vqaloop.core.files import scratch
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.pictures import bitmap
from vqaloop.media.planes import Frames, require_pair

BEST = 10.0
"""JOD of equal runs."""
CALL_PIXELS = 1 << 25
"""Luma pixels of the runs of a call: starting the program costs 7 CPU seconds, as much as 6
million of them, and their pictures take six bytes a pixel of disk."""
INSTALL = "run `python -m venv CVVDP && CVVDP/bin/pip install cvvdp`, then --cvvdp CVVDP/bin/cvvdp"
PATTERN = re.compile(r"[*%{}]")
"""What has a meaning in the program's names of pictures."""


def measure(
    reference: Sequence[Frames],
    distorted: Sequence[Frames],
    fps: float,
    program: str | os.PathLike[str],
    *,
    uhd: bool = False,
    threads: int = 1,
) -> npt.NDArray[np.float32]:
    """ColorVideoVDP of runs of frames.

    Args:
        reference: Each (L, H * 3/2, W) planar 4:2:0, 8 bit, BT.709, limited range: consecutive
            frames. L may differ from run to run.
        distorted: As `reference`.
        fps: Frames a second.
        program: Path of the `cvvdp` program.
        uhd: Seen on a 4K display rather than on one of 1920x1080, both from two heights.
        threads: Of the program. On small runs more are hardly faster, and on a busy machine far
            slower.

    Returns:
        (N,) quality in JOD, 10 at best.

    Raises:
        InputError: The arrays are of another form, or there is no such program.
        ToolError: The program fails.
    """
    pairs = list(zip(reference, distorted, strict=True))
    for pair in pairs:
        require_pair(*pair)
    path = require_program(program)
    # `env` becomes the program, under the same process id
    argv = ["env", f"OMP_NUM_THREADS={threads}", path, "--quiet", "--fps", f"{fps:g}"]
    argv += ["--display", "standard_4k" if uhd else "standard_fhd"]
    return np.asarray([jod for part in _calls(pairs) for jod in _call(part, argv)], np.float32)


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


def _call(pairs: Sequence[tuple[Frames, Frames]], argv: Sequence[str]) -> list[float]:
    """JOD of each pair, by one run of the program that `argv` begins with."""
    with scratch() as name:
        if PATTERN.search(name):
            raise InputError(
                f"ColorVideoVDP takes no pictures in {quoted(name)}; set TMPDIR to a folder "
                "without *, %, { and } in its name"
            )
        folder = Path(name)
        for number, pair in enumerate(pairs):
            for side, run in zip("rt", pair, strict=True):
                for index, frame in enumerate(run):
                    (folder / f"{side}{number}_{index:05d}.bmp").write_bytes(bitmap(frame))
        tests, references = (
            [f"{name}/{side}{number}_%05d.bmp" for number in range(len(pairs))] for side in "tr"
        )
        result = folder / "result.csv"
        files = ["--result", str(result), "--output-dir", name]
        files += ["--test", *tests, "--ref", *references]
        # a CPU second a megapixel; it may have to wait for others
        limit_s = 600 + 60 * _pixels(pairs) / 1e6
        done = process.run([*argv, *files], timeout_s=limit_s, max_stdout=1 << 24)
        # it exits with 0 on errors of its own too: what counts is the table
        jod = _read(result) if done.returncode == 0 and not done.timed_out else []
    if len(jod) != len(pairs):
        raise ToolError(
            f"ColorVideoVDP ({quoted(argv[2])}) measured {len(jod)} of {len(pairs)} runs: "
            f"{done.reason()}; if it does not run at all: {INSTALL}"
        )
    return jod


def _read(result: Path) -> list[float]:
    """The last column of the program's table, as far as it holds numbers."""
    try:
        rows = result.read_text("utf-8", "replace").splitlines()[1:]
        found = [float(row.rpartition(",")[2]) for row in rows]
    except (OSError, ValueError):
        return []
    return found if all(math.isfinite(jod) and jod <= BEST + 1e-3 for jod in found) else []
