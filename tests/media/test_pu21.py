"""PQ and HLG as light of a display, and that in the units of PU21."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.hdr import PQ as TAGGED_PQ
from tests.support.media import run_ffmpeg
from vqaloop.media.pu21 import as_sdr, hlg_nits, pq_nits, pu21

TAGS = {"color_primaries": "bt2020", "colorspace": "bt2020nc", "color_range": "tv"}
PQ = tuple({**TAGS, "color_trc": "smpte2084"}.items())
HLG = tuple({**TAGS, "color_trc": "arib-std-b67"}.items())


def fp32(*values: float) -> Any:
    return np.array(values, np.float32)


def grey(code: int, size: tuple[int, int] = (8, 6)) -> Any:
    """A frame of 10 bits without colour."""
    width, height = size
    frame = np.full((1, height * 3 // 2, width), 512, np.uint16)
    frame[:, :height] = code
    return frame


def test_units_are_those_of_the_paper() -> None:
    """Of no light 0, of SDR's white 256, of the most that it is defined for 595."""
    nits = fp32(0, 0.005, 100, 10_000)
    assert pu21(nits) == pytest.approx([0, 0, 256.38, 595.39], abs=0.01)
    rising = pu21(np.geomspace(0.005, 10_000, 200, dtype=np.float32))
    assert (np.diff(rising) > 0).all()


def test_light_is_that_of_the_standards() -> None:
    """BT.2408: 203 cd/m² are 58 % of PQ and 75 % of HLG; white of HLG's display is 1000."""
    assert pq_nits(fp32(0, 0.5807, 1)) == pytest.approx([0, 203, 10_000], rel=1e-3)
    levels = fp32(0, 0.75, 1).repeat(3).reshape(3, 3, 1, 1)
    assert hlg_nits(levels)[:, 0, 0, 0] == pytest.approx([0, 203.15, 1000], abs=0.1)


def test_pq_is_as_ffmpeg_reads_it(tmp_path: Path) -> None:
    codes = np.repeat(np.linspace(64, 940, 64).round().astype("<u2"), 64).reshape(1, 64, 64)
    frame = np.concatenate([codes, np.full((1, 32, 64), 512, "<u2")], 1)
    (tmp_path / "in.yuv").write_bytes(frame.tobytes())
    raw = run_ffmpeg(
        *("-f", "rawvideo", "-pix_fmt", "yuv420p10le", "-s", "64x64"),
        *("-i", str(tmp_path / "in.yuv")),
        *("-vf", f"{TAGGED_PQ},zscale=t=linear:npl=100,format=gbrpf32le"),
        *("-f", "rawvideo", "-"),
    )
    theirs = 100 * np.frombuffer(raw, "<f4").reshape(3, 64, 64)[0]
    ours = pq_nits((codes[0].astype(np.float32) - 64) / 876)
    assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-3)


@pytest.mark.parametrize("colour", [PQ, HLG])
def test_grey_stays_grey_between_black_and_white(colour: Any) -> None:
    white = 723 if colour is PQ else 940
    seen = np.stack([as_sdr(grey(code), colour)[0] for code in (64, 400, white, 1023)])
    assert seen.dtype == np.float32 and seen.shape == (4, 9, 8)
    luma = seen[:, 0, 0]
    assert luma[0] == pytest.approx(16, abs=0.01) and 16 < luma[1] < luma[2]
    assert luma[2] == pytest.approx(235, abs=0.3) and luma[3] == pytest.approx(235, abs=0.01)
    assert seen[:, 6:] == pytest.approx(128, abs=0.05)


def test_full_range_is_read_as_such() -> None:
    full = tuple({**dict(PQ), "color_range": "pc"}.items())
    limited, whole = as_sdr(grey(502), PQ), as_sdr(grey(512), full)
    assert (502 - 64) / 876 == 0.5 and whole == pytest.approx(limited, abs=0.3)


def test_colours_come_in_the_primaries_of_sdr() -> None:
    """A red within BT.709 has more saturation in its own primaries than in BT.2020's."""
    red = grey(400)
    red[:, 6:7], red[:, 7:] = 480, 560
    as_2020 = as_sdr(red, PQ)
    own = as_sdr(red, tuple({**dict(PQ), "color_primaries": "bt709"}.items()))
    assert as_2020[0, -1, 0] > own[0, -1, 0] + 2 > 130


def test_planes_of_odd_halves_stay_in_place() -> None:
    """Of six lines chroma has three, which lie in rows of two."""
    frame = grey(400, (8, 6))
    chroma = frame[:, 6:].reshape(2, 3, 4)
    chroma[1, 2, 3] = 600
    seen = as_sdr(np.concatenate([frame] * 20), PQ)
    assert seen.shape == (20, 9, 8) and (seen == seen[0]).all()
    planes = seen[0, 6:].reshape(2, 3, 4)
    changed = np.abs(planes - 128) > 1
    assert changed[:, 2, 3].all() and changed.sum() == 2


def test_sdr_is_left_as_it_is() -> None:
    frame: Any = np.full((1, 9, 8), 99, np.uint8)
    for colour in ((), (("color_trc", "bt709"),), (("color_trc", "bt2020-10"),)):
        assert as_sdr(frame, colour) is frame
