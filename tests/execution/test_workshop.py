"""Encoders that crash, hang, or write what they should not: the ladder goes on, and says so."""

import re
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import (
    FAILURES,
    SMALL,
    Room,
    children,
    fake_ffmpeg,
    running,
    slow_but,
)
from tests.support.media import make_clip
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.folders import is_study_file
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import EncodeFailed
from vqaloop.execution.cache import Cache
from vqaloop.execution.cache_keys import ScoreSettings, score_key
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder.build import build_ladder
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import open_metric
from vqaloop.records import Event, Rendition
from vqaloop.search.explore import GIVE_UP

SIZES = ("--resolutions", "160x96,112x64")
SMALLER = "*libx264*scale=112:64:*"
"""Command lines that encode the smaller size."""
ENCODES = "*' -crf '*"
REASONS = {
    "crash": "killed by SIGSEGV",
    "hang": "stopped at its time limit after 2 s",
    "garbage": "cannot be parsed",
    "nothing": "the encoder ended well but wrote nothing",
    "lost frame": "11 frames in the file, 12 expected",
}


@pytest.fixture
def clip(room: Room) -> str:
    make_clip(room.folder / "a.y4m", size="160x96")
    return "a.y4m"


@pytest.mark.parametrize("failure", slow_but(FAILURES, "crash"))
def test_a_failing_size_is_recorded_and_left_out(room: Room, clip: str, failure: str) -> None:
    fake = fake_ffmpeg(room.folder / "ffmpeg", {SMALLER: FAILURES[failure]})
    limit = ("--time-limit", "2")
    document = room.ladder(clip, *SMALL, *SIZES, *limit, "--ffmpeg", fake, "--workers", "4")
    failed = [trial for trial in document["trials"] if trial["state"] == "failed"]
    assert {(trial["width"], trial["height"]) for trial in failed} == {(112, 64)}
    # those that were proposed together fail together
    assert 1 <= len(failed) <= GIVE_UP + 2
    for trial in failed:
        assert REASONS[failure] in trial["error"]
        assert (trial["bitrate_kbps"], trial["score"], trial["cached"]) == (None, None, False)
    told = [note for note in document["warnings"] if "a trial failed and was left out" in note]
    assert len(told) == len({trial["error"] for trial in failed})
    assert all(REASONS[failure] in note for note in told)
    assert {rung["width"] for rung in document["rungs"]} == {160}
    # a run that failed was a run; those of the first trials that failed were made twice
    twice = document["cost"]["encodes"] - len(document["trials"])
    assert 1 <= twice <= 4
    assert not children()
    # the failure is not remembered for the truth: a sound ffmpeg is asked again
    again = room.ladder(clip, *SMALL, *SIZES, "--ffmpeg", ffmpeg_path())
    assert all(trial["state"] == "complete" for trial in again["trials"])


@pytest.mark.parametrize("failure", ["crash", "garbage"])
def test_too_few_left_is_the_answer_no(room: Room, clip: str, failure: str) -> None:
    fake = fake_ffmpeg(room.folder / "ffmpeg", {ENCODES: FAILURES[failure]})
    words = ("ladder", clip, *SMALL, *SIZES, "--ffmpeg", fake, "-o", "out", "--quiet")
    said = room.run(*words)
    assert said.status == 1
    found = re.match(r"vqaloop: only 0 of (\d+) trials succeeded, too few for a lad", said.err)
    assert found and int(found[1]) <= 2 * (GIVE_UP + 2)
    assert REASONS[failure] in said.err and said.err.count("\n") == 1
    assert said.out == "" and not (room.folder / "out").exists()


def test_a_failed_rung_is_replaced(room: Room, clip: str) -> None:
    """One knob that always fails: the plan goes round it."""
    plain = room.ladder(clip, *SMALL, *SIZES)
    knob = plain["rungs"][-1]["knob"]["value"]
    fake = fake_ffmpeg(room.folder / "ffmpeg", {f"*' -crf {knob:g} '*": FAILURES["crash"]})
    document = room.ladder(clip, *SMALL, *SIZES, "--ffmpeg", fake)
    assert knob not in {rung["knob"]["value"] for rung in document["rungs"]}
    assert len(document["rungs"]) == 2


def test_an_encoder_that_dies_of_the_whole_group_leaves_nobody(room: Room, clip: str) -> None:
    """A wrapper whose own child hangs: both go at the time limit."""
    pids = room.folder / "pids"
    action = f"sleep 600 & echo $! >> {pids}; wait"
    fake = fake_ffmpeg(room.folder / "ffmpeg", {SMALLER: action})
    words = ("--time-limit", "1.5", "--ffmpeg", fake, "--workers", "4", "--guard", "off")
    room.ladder(clip, *SMALL, *SIZES, *words)
    started = [int(line) for line in pids.read_text().split()]
    assert 1 <= len(started) <= 2 * (GIVE_UP + 2)
    for pid in started:
        assert not running(pid)


def test_without_a_cache_a_run_still_remembers_itself(room: Room, clip: str) -> None:
    document = room.ladder(clip, *SMALL, *SIZES, "--no-cache")
    assert document["cost"]["encodes"] == len(document["trials"])
    assert not list(room.cache.iterdir())
    again = room.ladder(clip, *SMALL, *SIZES, "--no-cache")
    assert again["cost"]["encodes"] == document["cost"]["encodes"]


def test_a_cache_that_cannot_be_used_is_done_without(
    room: Room, clip: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", f"{room.folder}/a.y4m/cache")
    assert len(room.ladder(clip, *SMALL, *SIZES)["rungs"]) == 2
    (said,) = caplog.messages
    assert said.startswith("going on without the cache in ")


def workshop(room: Room, **more: Any) -> Workshop:
    binary = ffmpeg_path()
    metric = open_metric("psnr", ffmpeg=binary)
    return Workshop(get_encoder("libx264"), metric, Cache(), ffmpeg=binary, **more)


def rendition(crf: float, width: int = 160, height: int = 96) -> Rendition:
    return Rendition(width, height, "libx264", crf, "ultrafast")


def test_the_same_rendition_is_encoded_once(room: Room, clip: str) -> None:
    source = probe_source(clip)
    with workshop(room, workers=4) as shop:
        made = shop.map(lambda r: shop.encode(source, r), [rendition(30)] * 4)
        assert shop.cost.encodes == 1 and shop.cost.cache_hits == 3
        assert sorted(encode.cached for encode in made) == [False, True, True, True]
        assert len({encode.path for encode in made}) == 1
        scratch = shop.scratch
        score = shop.try_one(source, rendition(30)).score
    assert not scratch.exists()
    with workshop(room) as shop:
        trial = shop.try_one(source, rendition(30))
        assert (shop.cost.encodes, shop.cost.score_s, trial.score) == (0, 0, score)
        assert trial.encode and trial.encode.cached


def test_several_workers_keep_the_order(room: Room, clip: str) -> None:
    with workshop(room, workers=3) as shop:
        barrier = threading.Barrier(3, timeout=10)

        def work(item: int) -> int:
            barrier.wait()
            return item * item

        assert shop.map(work, [1, 2, 3, 4, 5, 6]) == [1, 4, 9, 16, 25, 36]


def test_an_error_in_one_worker_stops_the_others(room: Room, clip: str) -> None:
    source = probe_source(clip)
    fake = str(fake_ffmpeg(room.folder / "ffmpeg", {ENCODES: FAILURES["hang"]}))
    metric = open_metric("psnr", ffmpeg=fake)
    shop = Workshop(get_encoder("libx264"), metric, Cache(), ffmpeg=fake, workers=2)

    def work(crf: float) -> None:
        if crf:
            with pytest.raises(EncodeFailed, match="SIGKILL"):
                shop.encode(source, rendition(crf))
            return
        while not any("sleep" in line for line in children().values()):
            time.sleep(0.01)
        raise KeyboardInterrupt

    with shop, pytest.raises(KeyboardInterrupt):
        shop.map(work, [30.0, 0.0, 31.0])
    assert not children()


@pytest.mark.parametrize("workers", slow_but([1, 2], 2))
def test_interrupted_then_taken_up_again(room: Room, clip: str, workers: int) -> None:
    def make(stop_at: int | None = None) -> int:
        seen = 0

        def watch(event: Event) -> None:
            nonlocal seen
            seen += event.stage == "search"
            if stop_at is not None and seen >= stop_at:
                raise KeyboardInterrupt

        ladder = build_ladder(
            clip, codec="h264", metric="psnr", preset="ultrafast", rungs=2, min_step=0.2,
            min_ratio=1.2, resolutions=[(160, 96), (112, 64)], out="out", workers=workers,
            progress=watch,
        )  # fmt: skip
        encodes: int = ladder.about["cost"]["encodes"]
        return encodes

    with pytest.raises(KeyboardInterrupt):
        make(stop_at=2)
    assert not children() and all(is_study_file(path) for path in Path("out").iterdir())
    assert not list(room.temp.iterdir())
    rest = make()
    assert rest >= 1
    assert make() == 0
    shutil.rmtree("out")
    for entry in list(room.cache.rglob("*.json")):
        entry.unlink()
    assert rest < make()


def test_signals_are_as_before(room: Room) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    room.run("encoders")
    assert handlers == [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]


def test_a_pool_takes_the_scores_that_are_cached(room: Room, clip: str) -> None:
    source = probe_source(clip)
    with workshop(room) as shop:
        mean = shop.score(source, shop.encode(source, rendition(40)).path)
    with workshop(room, pool="harmonic") as shop:
        found = shop.score(source, shop.encode(source, rendition(40)).path)
        assert shop.cost.encodes == shop.cost.score_s == 0
    # the clip is shorter than a second: one second, of which every pool is the mean
    assert found.mean == mean.value and found.value == pytest.approx(mean.value)


def test_sampled_scores_of_earlier_versions_are_measured_again_for_a_pool(room: Room) -> None:
    make_clip(room.folder / "b.y4m", size="256x256", frames=30)
    source, binary = probe_source("b.y4m"), ffmpeg_path()
    metric = open_metric("vmaf-sampled", ffmpeg=binary)
    cache, spec = Cache(), get_encoder("libx264")
    with Workshop(spec, metric, cache, ffmpeg=binary, pool="p5") as shop:
        made = shop.encode(source, rendition(40, 256, 256))
        found = shop.score(source, made.path)
        settings = ScoreSettings(**metric.identity())
        key = score_key(source, file_sha256(made.path), settings)
        stored = cache.get_json(key)
        assert stored and stored["value"] == found.mean and found.value < stored["value"]
        del stored["shares"], stored["pool"], stored["mean"]
        cache.put_json(key, stored)
        again = shop.score(source, made.path)
    assert again.value == found.value and again.shares == found.shares
    assert sum(found.shares) == pytest.approx(1) and len(found.shares) == len(found.moments)
