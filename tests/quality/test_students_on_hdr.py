"""Students on PQ and HLG: they look at light through PU21, and that has keys of its own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.quality.test_cvvdp import stand_in
from tests.quality.test_opinion_students import FRAGMENTS, SQUEEZED, scale, weights_of
from tests.support.hdr import make_kind
from tests.support.nets import random_student, student_metric
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError
from vqaloop.execution.cache import Cache
from vqaloop.execution.workshop import Workshop
from vqaloop.media.frames import each_of_source
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source
from vqaloop.media.pu21 import as_sdr
from vqaloop.quality.cvvdp_metric import CvvdpUse
from vqaloop.quality.metric import identity_on
from vqaloop.quality.registry import open_metric
from vqaloop.quality.scorer import Scorer
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
SIZE = "240x226"


def bare(source: Source) -> Source:
    """The same samples taken for SDR's."""
    return replace(source, colour=())


@pytest.fixture(scope="module")
def hlg(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = make_kind(tmp_path_factory.mktemp("hlg"), "HLG", frames=6, size=SIZE)
    return probe_source(path, allow_hdr=True)


@pytest.fixture(scope="module")
def rung(hlg: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rung") / "a.mp4"
    small = Rendition(120, 112, "libx265", 30, "ultrafast", 10)
    return encode(hlg, small, out, ffmpeg=FFMPEG).path


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> StudentMetric:
    return student_metric(random_student(tmp_path_factory.mktemp("weights")))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Frames]:
    """What is given to PU21."""
    given: list[Frames] = []

    def noted(clips: Frames, colour: Any) -> Frames:
        given.append(clips)
        return as_sdr(clips, colour)

    monkeypatch.setattr("vqaloop.quality.student_metric.as_sdr", noted)
    return given


def test_source_and_encode_are_seen_in_ten_bits_through_pu21(
    metric: StudentMetric, hlg: Source, rung: Path, seen: list[Frames]
) -> None:
    found = student_metric(metric.weights).measure(hlg, rung, "pyav")
    assert [clips.dtype for clips in seen] == [np.uint16] * 2
    assert all(clips.max() > 255 for clips in seen)
    codes = metric.measure(bare(hlg), rung, "pyav")
    assert seen[-1].dtype == np.uint8 and found.value != codes.value
    assert found.label == f"{codes.label}; HLG through PU21"
    # what it has kept of the one is not taken for the other
    assert metric.measure(hlg, rung, "pyav").value == found.value
    # as by the ffmpeg program, which reads streams that PyAV cannot
    other = student_metric(metric.weights).measure(hlg, rung, "ffmpeg")
    assert other.value == pytest.approx(found.value, abs=0.01)
    scorer = Scorer("internvqa-mine", weights=metric.weights, allow_hdr=True, device="cpu")
    assert scorer.score(rung, hlg.path).value == pytest.approx(found.value, abs=1e-4)


@pytest.mark.parametrize("view", [SQUEEZED, FRAGMENTS, None])
def test_other_weights_see_it_so_too(
    view: dict[str, Any] | None, hlg: Source, rung: Path, seen: list[Frames], tmp_path: Path
) -> None:
    metric = student_metric(weights_of(tmp_path, view, scale()))
    assert metric.mode == "difference"
    found, codes = (metric.measure(source, rung, "pyav") for source in (hlg, bare(hlg)))
    alone, other = (metric.alone(source) for source in (hlg, bare(hlg)))
    assert {clips.dtype for clips in seen} == {np.dtype(np.uint16), np.dtype(np.uint8)}
    assert 0 <= found.value <= 100 and alone.value != other.value
    own = metric.compare(hlg, lambda i: each_of_source(hlg, i, ffmpeg=FFMPEG, bits=10), None)
    assert own.opinion is not None and found.opinion is not None
    assert own.opinion != found.opinion != codes.opinion


def test_scores_of_hdr_have_their_own_keys(
    metric: StudentMetric, hlg: Source, rung: Path, tmp_path: Path
) -> None:
    sdr = bare(hlg)
    assert identity_on(metric, sdr) == metric.identity()
    own = identity_on(metric, hlg)
    assert own["preprocessing"] == f"{metric.identity()['preprocessing']} pu21 1"
    assert own | {"preprocessing": ""} == metric.identity() | {"preprocessing": ""}
    for other in (
        open_metric("cvvdp", ffmpeg=FFMPEG, cvvdp=CvvdpUse(program=stand_in(tmp_path))),
        open_metric("vmaf", ffmpeg=FFMPEG),
        open_metric("vmaf-sampled", ffmpeg=FFMPEG),
    ):
        assert identity_on(other, hlg) == other.identity()
    with Workshop(get_encoder("libx265"), metric, Cache(tmp_path), ffmpeg=FFMPEG) as shop:
        # what an earlier version has kept of the same files is of their codes
        codes = shop.score(sdr, rung).value
        found = shop.score(hlg, rung).value
        assert (
            codes
            != found
            == shop.score(hlg, rung).value
            == metric.measure(hlg, rung, "pyav").value
        )
        assert shop.score(sdr, rung).value == codes
        assert json.dumps(shop.scoring(hlg)) != json.dumps(shop.scoring(sdr))


def test_a_video_of_another_range_is_refused(
    metric: StudentMetric, hlg: Source, tmp_path: Path
) -> None:
    path = make_kind(tmp_path, "SDR, BT.709, 10 bit", frames=6, size=SIZE)
    scorer = Scorer("internvqa-mine", weights=metric.weights, allow_hdr=True, device="cpu")
    with pytest.raises(InputError, match="is SDR and its reference HLG.*--tonemap"):
        scorer.score(path, hlg.path)
    with pytest.raises(InputError, match="is HLG and its reference SDR.*--tonemap"):
        scorer.score(hlg.path, path)
    with pytest.raises(InputError, match="give --metric cvvdp"):
        Scorer("internvqa-mine", weights=metric.weights, device="cpu").score(hlg.path, path)
