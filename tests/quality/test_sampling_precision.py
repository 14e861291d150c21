"""`--score-precision`: looking at no more places than a score needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.commandline import SMALL, Room
from tests.support.media import make_clip
from tests.support.nets import random_student, student_metric
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.errors import InputError
from vqaloop.media import frames
from vqaloop.media.activity import activity_of
from vqaloop.media.probe import probe_source
from vqaloop.quality.crop_sampling import CropSampling
from vqaloop.quality.registry import open_metric
from vqaloop.quality.sampling_precision import FIRST, around, is_enough, reach, rounds, unreached
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Score, Source

FFMPEG = ffmpeg_path()


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("title") / "title.mkv"
    clip = make_clip(path, size="160x96", frames=75, codec="ffv1")
    return probe_source(clip, ffmpeg=FFMPEG)


@pytest.fixture(scope="module")
def rung(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rung") / "rung.mp4"
    return make_clip(path, size="160x96", frames=75, crf="38")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_student(tmp_path_factory.mktemp("weights"))


@given(st.integers(1, 40))
def test_rounds_look_at_every_place_once(count: int) -> None:
    places = [10 * i for i in range(count)]
    found = list(rounds(places, 1.0))
    assert sorted(sum(found, [])) == places and all(part == sorted(part) for part in found)
    assert len(found[0]) == min(FIRST, count)
    assert list(rounds(places, None)) == [places]


def test_rounds_spread() -> None:
    assert list(rounds(range(10), 1.0)) == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert [len(part) for part in rounds(range(40), 1.0)] == [5, 5, 10, 20]


def test_the_interval_over_places_by_hand() -> None:
    # two of eight places, 70 and 74: t = 12.706, s = 2.828, and 6 of 8 are still unknown
    low, high = reach((1.0, 0.5), [70.0, 74.0], [1 / 8] * 2)
    between = 12.7062 * 2.8284 / 2**0.5 * (6 / 8) ** 0.5
    assert low == pytest.approx((between**2 + 1) ** 0.5, rel=1e-3)
    assert high == pytest.approx((between**2 + 0.25) ** 0.5, rel=1e-3)
    assert reach((1.0, 1.0), [70.0, 74.0], [0.5, 0.5]) == (1.0, 1.0)
    assert around(72.0, reach((1.0, 1.0), [72.0], [0.5])) == (0.0, 100.0)
    assert around(99.0, (3.0, 3.0)) == (96.0, 100.0)
    assert is_enough((1.0, 0.2), 1.0) and not is_enough((0.2, 1.1), 1.0)
    assert not is_enough((0.0, 0.0), None)


@given(
    st.lists(st.floats(0, 100), min_size=FIRST, max_size=7),
    st.floats(0, 5),
    st.floats(0.1, 10),
)
def test_an_end_that_is_clipped_is_not_taken_for_a_near_one(
    times: list[float], crops: float, precision: float
) -> None:
    """The same distances are enough or not wherever on the scale they are."""
    mean = sum(times) / len(times)
    shares = [1 / 8] * len(times)
    apart = reach((crops, crops), times, shares)
    moved = reach((crops, crops), [time - mean + 99.9 for time in times], shares)
    assert moved == pytest.approx(apart, abs=1e-6)
    low, high = around(99.9, moved)
    assert 0 <= low <= 99.9 <= high <= 100
    if is_enough(moved, precision):
        assert 99.9 - low <= precision


def test_scenes_of_unequal_length_are_all_looked_at(
    weights: Path, title: Source, rung: Path
) -> None:
    scenes = [(0, 15), (15, 60)]
    whole, coarse = (
        student_metric(weights, precision=precision).scene_by_scene(scenes)
        for precision in (None, 90.0)
    )
    found, expected = (m.measure(title, rung, "pyav") for m in (coarse, whole))
    assert (found.value, found.interval) == (expected.value, expected.interval)
    assert found.clips == expected.clips


@pytest.mark.parametrize("plain", [True, False])
def test_what_is_decoded_from_its_beginning_is_read_once(
    weights: Path, tmp_path: Path, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with a gap is not plain: with a precision, its rounds would each decode all of it."""
    gap = {} if plain else {"vf": "select='not(eq(n,9))'"}
    made = make_clip(tmp_path / "made.mkv", size="160x96", frames=60, **gap)
    assert frames.picks_from(probe_source(made, ffmpeg=FFMPEG)) == plain
    asked: list[int] = []

    def noted(source: Source, indices: list[int], **options: Any) -> Any:
        asked.append(len(indices))
        return frames.each_of_source(source, indices, **options)

    monkeypatch.setattr("vqaloop.quality.scorer.each_of_source", noted)
    scorer = Scorer("internvqa-mine", weights=weights, device="cpu", score_precision=1e-6)
    scorer.score(made, reference=made)
    assert len(asked) == (2 if plain else 1)
    asked.clear()
    monkeypatch.setattr("vqaloop.quality.student_metric.each_of_source", noted)
    scorer.score(made)
    assert len(asked) == (2 if plain else 1)


@pytest.mark.slow
def test_a_coarse_precision_looks_at_less_and_a_fine_one_at_all(
    weights: Path, title: Source, rung: Path
) -> None:
    def score(precision: float | None, decoder: str = "pyav") -> Any:
        return student_metric(weights, precision=precision).measure(title, rung, decoder)

    whole, coarse, fine = score(None), score(90.0), score(1e-6)
    all_of = CropSampling().crops(activity_of(title), title.canvas)
    count = sum(map(len, all_of.values()))
    assert len(whole.clips) == len(fine.clips) == count
    assert fine.value == pytest.approx(whole.value)
    assert fine.interval == pytest.approx(whole.interval)
    assert fine.clips == pytest.approx(whole.clips, abs=1e-3)
    assert len(coarse.clips) == count * FIRST // len(all_of) and len(coarse.moments) == FIRST
    low, high = coarse.interval
    assert low <= coarse.value <= high and high - low <= 180
    assert {start for start, _ in coarse.moments} < set(all_of)
    assert set(coarse.places) < set(whole.places)
    # a decoder that begins anew each time is asked once, for all
    assert len(score(90.0, "ffmpeg").clips) == count


def test_precision_is_part_of_what_a_score_is(weights: Path) -> None:
    plain, precise = student_metric(weights), student_metric(weights, precision=1.0)
    assert plain.identity() != precise.identity()
    assert "precision" not in plain.identity()["sampling"]
    assert precise.finer().precision == 1.0


def test_precisions_that_make_no_sense_are_refused() -> None:
    for precision in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--score-precision must be above 0"):
            open_metric("internvqa", ffmpeg=FFMPEG, precision=precision)
    with pytest.raises(InputError, match="vmaf looks at all frames; leave out --score-precision"):
        open_metric("vmaf", ffmpeg=FFMPEG, precision=1.0)


def test_a_precision_that_was_not_reached_is_told_in_a_line() -> None:
    class Asked:
        precision = 1.0

    def of(low: float, high: float) -> Score:
        return Score(50.0, "internvqa-mini", "anchored", interval=(low, high))

    scores = [of(49.2, 50.9), of(47.0, 50.9), of(49.2, 52.5)]
    (line,) = unreached(scores, Asked())
    assert "±1 was asked and not reached for 2 of 3 scores" in line and "widest is ±3.00" in line
    assert unreached(scores[:1], Asked()) == [] == unreached(scores, object())
    (line,) = unreached([replace(scores[0], interval=None)], Asked())
    assert "1 of 1 score," in line and "no interval" in line


def test_an_absurd_precision_is_answered_by_a_warning(room: Room) -> None:
    clip = make_clip(room.folder / "a.y4m", size="160x96")
    words = [*SMALL, "--metric", "internvqa-mini", "--resolutions", "160x96", "--guard", "off"]
    document = room.ladder(clip, *words, "--score-precision", "0.0001")
    count = len(document["rungs"])
    (line,) = [line for line in document["warnings"] if "score precision" in line]
    assert f"±0.0001 was asked and not reached for {count} of {count} scores" in line
    rung = room.folder / "out" / document["rungs"][0]["file"]
    said = room.run("score", rung, "--reference", clip, "--score-precision", "0.0001")
    assert "warning: a score precision of ±0.0001 was asked" in said.out


@pytest.mark.parametrize("command", ["score", "ladder", "encode", "tune", "regress"])
def test_every_command_with_a_student_takes_a_precision(command: str, room: Room) -> None:
    made = make_clip(room.folder / "a.mp4", size="160x96")
    words: dict[str, list[str | Path]] = {
        "score": [made, "--reference", made],
        "ladder": [made, "--codec", "h264"],
        "encode": [made, "b.mp4", "--codec", "h264", "--target-score", "80"],
        "tune": [made, "--codec", "h264", "--target-score", "80"],
        "regress": ["--baseline", FFMPEG, "--candidate", FFMPEG, "--codec", "h264", made],
    }
    said = room.run(command, *words[command], "--score-precision", "0")
    assert said.status == 2 and "--score-precision must be above 0" in said.err
    said = room.run(command, *words[command], "--metric", "vmaf", "--score-precision", "1")
    assert said.status == 2 and "leave out --score-precision" in said.err
