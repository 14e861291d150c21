"""All labels of a video: which judges measure what, and those that are left out."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.media.planes import Frames
from vqaloop.panel import measure
from vqaloop.panel.labels import LABELS
from vqaloop.panel.measure import COLUMNS, PanelTools, cvvdp_labels, frame_labels, region_labels


@pytest.fixture(scope="module")
def runs() -> list[Frames]:
    """Two runs of 224x224 pixels, of one and of four frames apart."""
    rng = np.random.default_rng(0)
    wide = rng.integers(40, 200, (336, 240), np.uint8)
    frames = np.stack([wide[:, i : i + 224] for i in range(12)])
    return [frames[:4], frames[4:12]]


def test_without_tools_ffmpegs_judges_measure(runs: list[Frames]) -> None:
    tools = PanelTools(ffmpeg_path())
    hurt = [run // 8 * 8 for run in runs]
    labels, features = region_labels(runs, hurt, tools, uhd=False)
    assert features is None and labels.shape == (2, len(LABELS))
    there = [name for name in LABELS if np.isfinite(labels[:, COLUMNS[name]]).all()]
    assert there == tools.names == ["v1", "neg", "v0.6.1", "cambi", "xpsnr"]
    assert np.array_equal(labels, frame_labels(runs, hurt, tools, uhd=False), equal_nan=True)
    assert np.isnan(cvvdp_labels(runs, hurt, tools, fps=Fraction(25), uhd=False)).all()


def test_pictures_are_the_first_behind_the_margin(
    runs: list[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ssimulacra2")
    tools = PanelTools(ffmpeg_path(), ssimulacra2=True)
    hurt = [run.copy() for run in runs]
    hurt[1][1] = hurt[1][1] // 32 * 32
    labels, _ = region_labels(runs, hurt, tools, uhd=False)
    equal, worse = labels[:, COLUMNS["ssimulacra2"]]
    assert equal == pytest.approx(100, abs=1e-3) and worse < 80


def test_fdim_takes_every_second_region(
    runs: list[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def judged(reference: Frames, distorted: Frames, weights: Path) -> tuple[object, object]:
        seen.append(len(reference))
        return np.full(len(reference), 3.0), np.ones((len(reference), 960), np.float16)

    monkeypatch.setattr("vqaloop.panel.fdim.measure", judged)
    tools = PanelTools(ffmpeg_path(), fdim=Path("wheel"))
    labels, features = region_labels(runs * 2, runs * 2, tools, uhd=False)
    assert seen == [2] and measure.FDIM_EVERY == 2
    assert np.isfinite(labels[:, COLUMNS["fdim"]]).tolist() == [True, False, True, False]
    assert features is not None and features.dtype == np.float16
    assert np.isfinite(features).all(1).tolist() == [True, False, True, False]


def test_cvvdp_takes_runs_that_show_motion(
    runs: list[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def judged(ours: list[Frames], theirs: list[Frames], fps: float, *_: object, **__: object):  # type: ignore[no-untyped-def]
        seen.append(([len(run) for run in ours], fps))
        return np.full(len(ours), 9.5)

    monkeypatch.setattr("vqaloop.quality.cvvdp.measure", judged)
    tools = PanelTools(ffmpeg_path(), cvvdp="cvvdp")
    found = cvvdp_labels(runs, runs, tools, fps=Fraction(50), uhd=False)
    assert seen == [([6], 50.0)]
    assert np.isnan(found[0]) and found[1] == 9.5


def test_tools_that_are_not_there_are_refused(tmp_path: Path) -> None:
    for tools in (
        PanelTools("ffmpeg", fdim=tmp_path / "no.whl"),
        PanelTools("ffmpeg", cvvdp=str(tmp_path / "cvvdp")),
    ):
        with pytest.raises(InputError):
            tools.check()
