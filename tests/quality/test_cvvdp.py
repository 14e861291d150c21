"""ColorVideoVDP: what its program is given, what is read of it, and how it fails.

A stand-in reads the pictures as the program does; $VQALOOP_CVVDP names the real one.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.hdr import make_kind
from vqaloop.bitstream.colour_tags import bits_of
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError, ToolError
from vqaloop.media.hdr import HdrUse
from vqaloop.media.planes import Frames, limited
from vqaloop.media.probe import probe_source
from vqaloop.quality import cvvdp
from vqaloop.quality.cvvdp import DISPLAYS, Look, measure
from vqaloop.quality.cvvdp_metric import Cvvdp, CvvdpUse
from vqaloop.quality.registry import open_metric
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Rendition

FFMPEG = ffmpeg_path()

STAND_IN = f"""#!{sys.executable}
import argparse, itertools, json, os, re
import numpy as np
from PIL import Image

parser = argparse.ArgumentParser()
parser.add_argument("--quiet", action="store_true")
for name in ("--display", "--result", "--output-dir", "--device", "--config-paths"):
    parser.add_argument(name)
parser.add_argument("--fps", type=float)
parser.add_argument("--test", nargs="+")
parser.add_argument("--ref", nargs="+")
a = parser.parse_args()
assert os.environ["TMPDIR"] == a.output_dir, "it would leave files elsewhere"
model = json.load(open(a.config_paths))[a.display] if a.config_paths else None
with open(LOG, "a") as log:
    log.write(json.dumps([len(a.test), a.display, a.fps, a.device, model]) + "\\n")


def frames(name):
    if name.endswith(".yuv"):
        width, height = map(int, re.search(r"_(\\d+)x(\\d+)_10b_420_2020_", name).groups())
        yield from np.fromfile(name, "<u2").reshape(-1, height * 3 // 2, width)
        return
    for n in itertools.count():
        if not os.path.exists(name % n):
            return
        yield np.asarray(Image.open(name % n), float)


with open(a.result, "w") as table:
    print("test, reference, cvvdp", file=table)
    for test, ref in zip(a.test, a.ref, strict=True):
        pairs = zip(frames(test), frames(ref), strict=True)
        gaps = [abs(one.astype(float) - other).mean() for one, other in pairs]
        lost = np.mean(gaps) / (4 if test.endswith(".yuv") else 1) + len(gaps) / 1000
        print(f"{{test}}, {{ref}}, {{10 - lost}}", file=table)
"""


def stand_in(folder: Path) -> Path:
    """A program in the place of cvvdp; it logs its calls to `calls` beside it."""
    return program(folder, STAND_IN.replace("LOG", repr(str(folder / "calls"))))


def calls(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


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
    given = stand_in(tmp_path)
    monkeypatch.setattr(cvvdp, "CALL_PIXELS", 5 * 256)
    reference = [run_of(126, n) for n in (2, 3, 1)]
    # 219 steps of luma are 255 of R'G'B': 126 is 128, and 128 is 130
    distorted = [run_of(y, n) for y, n in ((126, 2), (128, 3), (235, 1))]
    jod = measure(reference, distorted, 23.976, given)
    assert jod.tolist() == pytest.approx([10 - 0.002, 10 - 2 - 0.003, 10 - 127 - 0.001])
    how = ["standard_fhd", 23.976, None, None]
    assert calls(tmp_path) == [[2, *how], [1, *how]]


def test_hdr_is_given_raw_and_for_a_display(tmp_path: Path) -> None:
    given = stand_in(tmp_path)
    run: Any = (run_of(126, 3) * np.uint16(4)).astype(np.uint16)
    model = DISPLAYS["tv"].model((16, 16), "HLG")
    look = Look("HLG", "tv", {"tv": model}, "cpu")
    found = measure([run, run], [run, run + np.uint16(4)], 50, given, look)
    assert found.tolist() == pytest.approx([9.997, 8.997])
    ((_, display, fps, device, asked),) = calls(tmp_path)
    assert (display, fps, device, asked) == ("tv", 50, "cpu", model)
    assert asked["colorspace"] == "BT.2020-HLG" and asked["max_luminance"] == 1000
    with pytest.raises(InputError, match="frames must be uint16"):
        measure([run_of(1, 3)], [run_of(1, 3)], 50, given, look)


def test_pictures_fill_a_display() -> None:
    resolutions = {
        size: DISPLAYS["phone"].model(size, "SDR")["resolution"]
        for size in ((1920, 1080), (1920, 804), (720, 1280))
    }
    assert list(resolutions.values()) == [[1920, 1080], [1920, 1080], [2276, 1280]]
    assert "colorspace" not in DISPLAYS["phone"].model((64, 64), "SDR")


@pytest.mark.parametrize("kind", ["SDR, BT.709, full range", "HLG"])
def test_the_metric_looks_at_runs_of_source_and_encode(kind: str, tmp_path: Path) -> None:
    path, given = make_kind(tmp_path, kind, frames=24), stand_in(tmp_path)
    metric = open_metric("cvvdp", ffmpeg=FFMPEG, cvvdp=CvvdpUse("tv", given))
    assert isinstance(metric, Cvvdp)
    source = probe_source(path, hdr=HdrUse(judged=True))
    spec = get_encoder("libx265")
    scores = []
    for crf in (4, 24):
        out = tmp_path / f"{crf}.mp4"
        small = Rendition(96, 64, spec.name, crf, "ultrafast", bits_of(source))
        encode(source, small, out, ffmpeg=FFMPEG)
        scores.append(metric.measure(source, out, "pyav"))
    assert 10 > scores[0].value > scores[1].value > 0
    assert len(scores[0].moments) == len(scores[0].shares) >= 6
    assert sum(scores[0].shares) == pytest.approx(1)
    own = metric.compare(source, metric._source_frames(source))
    assert own.value == pytest.approx(9.997)
    other = open_metric("cvvdp", ffmpeg=FFMPEG, cvvdp=CvvdpUse("phone", given))
    assert other.identity()["preprocessing"] != metric.identity()["preprocessing"]
    scorer = Scorer("cvvdp", cvvdp=given, display="tv", ffmpeg=FFMPEG)
    assert scorer.score(tmp_path / "24.mp4", path).value == pytest.approx(scores[1].value)


def test_frames_of_full_range_are_brought_to_limited(tmp_path: Path) -> None:
    for bits, sample in ((8, np.uint8), (10, np.uint16)):
        top = 2**bits - 1
        frame = np.full((1, 6, 4), 1 << (bits - 1), sample)
        frame[0, 0], frame[0, 1], frame[0, 4], frame[0, 5] = 0, top, 0, top
        found = limited(frame)[0, :, 0].tolist()
        unit = 1 << (bits - 8)
        assert found[:2] == [16 * unit, 235 * unit]
        assert found[4:] == pytest.approx([16 * unit, 240 * unit], abs=unit)


def test_without_the_program_the_metric_says_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQALOOP_CVVDP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="needs ColorVideoVDP.*pip install cvvdp`"):
        open_metric("cvvdp", ffmpeg=FFMPEG)
    stand_in(tmp_path)
    assert open_metric("cvvdp", ffmpeg=FFMPEG).name == "cvvdp"
    monkeypatch.setenv("VQALOOP_CVVDP", str(tmp_path / "none"))
    with pytest.raises(InputError, match="none' is no program; run `python -m venv"):
        open_metric("cvvdp", ffmpeg=FFMPEG)
    with pytest.raises(InputError, match="unknown display 'wall'; choose one of monitor, phone"):
        open_metric("cvvdp", ffmpeg=FFMPEG, cvvdp=CvvdpUse("wall"))
    with pytest.raises(InputError, match="vmaf is of no display; leave out --display"):
        open_metric("vmaf", ffmpeg=FFMPEG, cvvdp=CvvdpUse("tv"))
    with pytest.raises(InputError, match="leave out --score-precision"):
        open_metric("cvvdp", ffmpeg=FFMPEG, precision=1.0)


def test_a_video_of_another_range_is_refused(tmp_path: Path) -> None:
    given = stand_in(tmp_path)
    for name, kind in (("a", "PQ without metadata"), ("b", "SDR, BT.2020")):
        (tmp_path / name).mkdir()
        make_kind(tmp_path / name, kind)
    with pytest.raises(InputError, match="is SDR and its reference PQ.*--tonemap"):
        Scorer("cvvdp", cvvdp=given).score(tmp_path / "b" / "in.mp4", tmp_path / "a" / "in.mp4")


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


@pytest.mark.skipif("VQALOOP_CVVDP" not in os.environ, reason="VQALOOP_CVVDP names no program")
@pytest.mark.parametrize("kind", ["PQ", "HLG"])
def test_the_program_itself_on_hdr(kind: str) -> None:
    y, x = np.mgrid[0:160, 0:160]
    run: Any = np.full((3, 240, 160), 512, np.uint16)
    run[:, :160] = 440 + 160 * np.sin(x / 3) * np.cos(y / 5)
    slight, strong = run.copy(), run.copy()
    slight[:, :160] += (8 * ((x // 8 + y // 8) % 2)).astype(np.uint16)
    strong[:, :160] += (80 * ((x // 8 + y // 8) % 2)).astype(np.uint16)
    look = Look(kind, "tv", {"tv": DISPLAYS["tv"].model((160, 160), kind)}, "cpu")
    found = measure([run] * 3, [run, slight, strong], 25, os.environ["VQALOOP_CVVDP"], look)
    assert found[0] == 10 and 10 > found[1] > found[2] > 0
