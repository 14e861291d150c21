"""What a source's own bytes say of its excerpt's bitrates."""

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.support.media import run_ffmpeg
from vqaloop.core.ffmpeg import file_url
from vqaloop.media.excerpt_rate import MOST, ExcerptRate, excerpt_rate
from vqaloop.records import Source

CALM, BUSY = ((0, 20),), ((40, 20),)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """40 calm frames, then 40 with more in them."""
    path = tmp_path_factory.mktemp("halves") / "h.mkv"
    form = "s=64x64:r=10,trim=end_frame=40"
    graph = (
        f"testsrc2={form}[a];testsrc2={form},noise=alls=8:allf=t[b];[a][b]concat,format=yuv420p"
    )
    encoder = ["-c:v", "libx264", "-preset", "ultrafast", "-g", "20"]
    run_ffmpeg("-filter_complex", graph, *encoder, file_url(path))
    return Source(path, "0" * 64, 64, 64, Fraction(10), 80, "yuv420p")


def test_windows_that_hold_less_than_the_title_promise_more(halves: Source) -> None:
    less, more = excerpt_rate(halves, CALM), excerpt_rate(halves, BUSY)
    assert less.missing > 0.1 > -0.1 > more.missing
    # an encode near the source shows the whole difference, a far smaller one nothing of it
    near = less.source_kbps
    assert less.of_title(near) == pytest.approx(near * math.exp(less.missing))
    assert less.of_title(near / 200) == pytest.approx(near / 200)
    both = excerpt_rate(halves, CALM + BUSY)
    assert abs(both.missing) < 0.2 * less.missing
    # filters of prep that double the frame rate move windows with their frames
    doubled = replace(halves, frames=160, fps=Fraction(20))
    assert excerpt_rate(doubled, ((80, 40),)).missing == more.missing


@pytest.mark.parametrize("missing", [-MOST, 0.3, MOST])
def test_higher_bitrates_stay_higher(missing: float) -> None:
    rate = ExcerptRate(missing, 3000.0)
    found = [rate.of_title(float(kbps)) for kbps in np.geomspace(1, 1e5, 200)]
    assert (np.diff(found) > 0).all() and max(found) <= 1e5 * math.exp(MOST) + 1


def test_where_nothing_is_known_nothing_changes(halves: Source, tmp_path: Path) -> None:
    gone = replace(halves, path=tmp_path / "gone.mkv")
    (tmp_path / "junk.mkv").write_bytes(b"no video" * 99)
    junk = replace(halves, path=tmp_path / "junk.mkv")
    raw = tmp_path / "raw.y4m"
    run_ffmpeg("-i", file_url(halves.path), file_url(raw))
    for source in (gone, junk, replace(halves, path=raw)):
        rate = excerpt_rate(source, CALM)
        assert rate == ExcerptRate() and rate.of_title(123.4) == 123.4
