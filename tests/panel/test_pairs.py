"""Labels of pairs of frames by ffmpeg's judges."""

import numpy as np
import pytest

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.media.planes import Frames
from vqaloop.panel.pairs import NAMES, measure_runs


@pytest.fixture(scope="module")
def frames() -> Frames:
    """(12, 336, 224): a texture that moves."""
    rng = np.random.default_rng(0)
    wide = rng.integers(40, 200, (336, 240), np.uint8)
    return np.stack([wide[:, i : i + 224] for i in range(12)])


def damaged(frames: Frames, rows: slice, change: int) -> Frames:
    copy = frames.copy()
    copy[:, rows] += np.uint8(change)
    return copy


def test_runs_are_measured_apart(frames: Frames) -> None:
    runs = [frames[:4], frames[4:]]
    hurt = [frames[:4], damaged(frames[4:], slice(0, 112), 20)]
    labels = measure_runs(runs, hurt, ffmpeg=ffmpeg_path(), uhd=False)
    assert labels.shape == (2, len(NAMES)) and labels.dtype == np.float32
    intact, hit = (dict(zip(NAMES, row.tolist(), strict=True)) for row in labels)
    assert min(intact[name] for name in ("v1", "neg", "v0.6.1")) > 95
    # libvmaf's CAMBI of equal pictures is almost nothing
    assert intact["xpsnr"] == 60 and abs(intact["cambi"]) < 0.1
    assert hit["xpsnr"] < 40
    # the same run measured alone: what is beside it does not matter
    (alone,) = measure_runs(runs[1:], hurt[1:], ffmpeg=ffmpeg_path(), uhd=False)
    assert alone == pytest.approx(labels[1], abs=0.05)


def test_margins_are_left_out(frames: Frames) -> None:
    hurt = frames[:4].copy()
    hurt[[0, -1]] = 128
    ((xpsnr,),) = measure_runs([frames[:4]], [hurt], ffmpeg=ffmpeg_path(), uhd=False)[:, 4:]
    assert xpsnr == 60


def test_chroma_is_measured(frames: Frames) -> None:
    hurt = [damaged(frames, slice(224, None), 30)]
    (labels,) = measure_runs([frames], hurt, ffmpeg=ffmpeg_path(), uhd=False)
    found = dict(zip(NAMES, labels.tolist(), strict=True))
    assert found["v0.6.1"] > 95 and found["xpsnr"] < 40


def test_models_of_4k_are_others(frames: Frames) -> None:
    hurt = [(frames // 24 * 24).astype(np.uint8)]
    of_hd, of_uhd = (
        measure_runs([frames], hurt, ffmpeg=ffmpeg_path(), uhd=uhd)[0] for uhd in (False, True)
    )
    assert np.abs(of_hd[:3] - of_uhd[:3]).max() > 0.5


def test_runs_that_do_not_fit_are_refused(frames: Frames) -> None:
    for ours, theirs in (([frames], [frames[:6]]), ([frames[:2]], [frames[:2]]), ([], [])):
        with pytest.raises(InputError, match="do not fit each other or are too short"):
            measure_runs(ours, theirs, ffmpeg=ffmpeg_path(), uhd=False)
    with pytest.raises(InputError, match="frames do not fit"):
        measure_runs([frames], [frames[..., :222]], ffmpeg=ffmpeg_path(), uhd=False)
    small = frames[:, :150, :100]
    with pytest.raises(InputError, match="too small for VMAF v1"):
        measure_runs([small], [small], ffmpeg=ffmpeg_path(), uhd=False)
