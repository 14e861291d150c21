"""ColorVideoVDP: what its program is given, what is read of it, and how it fails.

A stand-in reads the pictures as the program does; $VQALOOP_CVVDP names the real one.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from vqaloop.core import process
from vqaloop.errors import InputError, ToolError
from vqaloop.media.planes import Frames
from vqaloop.quality import cvvdp
from vqaloop.quality.cvvdp import measure

STAND_IN = f"""#!{sys.executable}
import argparse, itertools, os
import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--quiet", action="store_true")
for name in ("--display", "--result", "--output-dir"):
    parser.add_argument(name)
parser.add_argument("--fps", type=float)
parser.add_argument("--test", nargs="+")
parser.add_argument("--ref", nargs="+")
a = parser.parse_args()
assert a.display == "standard_fhd" and a.fps == 23.976, a
with open(LOG, "a") as log:
    log.write(f"{{len(a.test)}}\\n")
with open(a.result, "w") as table:
    print("test, reference, cvvdp", file=table)
    for test, ref in zip(a.test, a.ref, strict=True):
        gaps = []
        for n in itertools.count():
            if not os.path.exists(test % n):
                break
            one, other = (np.asarray(Image.open(f % n), float) for f in (test, ref))
            gaps.append(abs(one - other).mean())
        print(f"{{test}}, {{ref}}, {{10 - np.mean(gaps) - len(gaps) / 1000}}", file=table)
"""


def program(folder: Path, text: str) -> Path:
    path = folder / "cvvdp"
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_of(luma: int, frames: int, size: int = 16) -> Frames:
    run = np.full((frames, size * 3 // 2, size), 128, np.uint8)
    run[:, :size] = luma
    return run


def test_runs_are_given_as_pictures_and_come_back_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "calls"
    stand_in = program(tmp_path, STAND_IN.replace("LOG", repr(str(log))))
    monkeypatch.setattr(cvvdp, "CALL_PIXELS", 5 * 256)
    reference = [run_of(126, n) for n in (2, 3, 1)]
    # 219 steps of luma are 255 of R'G'B': 126 is 128, and 128 is 130
    distorted = [run_of(y, n) for y, n in ((126, 2), (128, 3), (235, 1))]
    jod = measure(reference, distorted, 23.976, stand_in)
    assert jod.tolist() == pytest.approx([10 - 0.002, 10 - 2 - 0.003, 10 - 127 - 0.001])
    assert log.read_text().split() == ["2", "1"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("#!/bin/sh\necho '[ERROR] no such display' >&2\n", "measured 0 of 1 runs.*no such disp"),
        ("#!/bin/sh\nexit 3\n", "exit status 3"),
        (
            "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ $1 = --result ] && o=$2; shift; done\n"
            "printf 'test, reference, cvvdp\\na, b, nan\\n' > $o\n",
            "measured 0 of 1",
        ),
        (
            "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ $1 = --result ] && o=$2; shift; done\n"
            "printf 'test, reference, cvvdp\\na, b, 9\\na, b, 9\\n' > $o\n",
            "measured 2 of 1",
        ),
    ],
)
def test_a_program_that_fails_is_reported(tmp_path: Path, text: str, said: str) -> None:
    run = run_of(99, 2)
    with pytest.raises(ToolError, match=f"{said}.*pip install cvvdp"):
        measure([run], [run], 25, program(tmp_path, text))


def test_a_program_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "STALL_S", 0.5)
    run = run_of(99, 2)
    with pytest.raises(ToolError, match="it did nothing any more"):
        measure([run], [run], 25, program(tmp_path, "#!/bin/sh\nsleep 100\n"))


def test_absent_programs_and_other_arrays_are_refused(tmp_path: Path) -> None:
    run = run_of(99, 2)
    with pytest.raises(InputError, match="is no program; run `python -m venv"):
        measure([run], [run], 25, tmp_path / "cvvdp")
    with pytest.raises(InputError, match="two equal"):
        measure([run], [run[:1]], 25, tmp_path / "cvvdp")


@pytest.mark.skipif("VQALOOP_CVVDP" not in os.environ, reason="VQALOOP_CVVDP names no program")
def test_the_program_itself() -> None:
    y, x = np.mgrid[0:160, 0:160]
    run = run_of(0, 6, 160)
    run[:, :160] = 110 + 40 * np.sin(x / 3) * np.cos(y / 5)
    slight, strong, flicker = run.copy(), run.copy(), run.copy()
    slight[:, :160] += (2 * ((x // 8 + y // 8) % 2)).astype(np.uint8)
    strong[:, :160] += (20 * ((x // 8 + y // 8) % 2)).astype(np.uint8)
    flicker[1::2, :160] += 20
    found = measure([run] * 4, [run, slight, strong, flicker], 25, os.environ["VQALOOP_CVVDP"])
    assert found[0] == 10 and 10 > found[1] > found[2] > 0 and found[3] < found[1]
