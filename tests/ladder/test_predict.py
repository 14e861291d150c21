"""What a ladder will probably be and cost, before anything is encoded."""

import json
from typing import Any

import pytest

import vqaloop
from tests.support.commandline import Room
from tests.support.media import make_clip
from vqaloop.errors import InputError


def test_a_plan_is_predicted_without_an_encode_or_a_file(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(room.folder / "a.y4m", size="320x180", frames=12)
    monkeypatch.setattr("vqaloop.encoding.encode.encode", lambda *args, **more: 1 / 0)
    before = sorted(room.folder.iterdir())
    words = ("ladder", "a.y4m", "--codec", "h264", "--metric", "vmaf", "--predict")
    said = room.run(*words, "--json", "-", "--resolutions", "180p,160x90")
    assert said.status == 0, said.err
    document = json.loads(said.out)
    assert document["schema"] == "vqaloop.plan/1"
    assert document["sizes"] == [[320, 180], [160, 90]]
    assert document["predicted"] is True and document["interval"] == 0.9
    for rung in document["rungs"]:
        for name in ("bitrate_kbps", "score"):
            low, high = rung[f"{name}_interval"]
            assert low < rung[name] < high
    assert any("only 12 frames" in reason for reason in document["unlike"])
    rates = [rung["bitrate_kbps"] for rung in document["rungs"]]
    assert len(rates) >= 2 and rates == sorted(rates)
    assert document["first"] and {tuple(p[:2]) for p in document["first"]} <= {
        tuple(size) for size in document["sizes"]
    }
    assert document["encodes"][1] == 0 and min(document["cpu_s"].values()) > 0
    # by its other name it is the same
    other = room.run(*words[:-1], "--dry-run", "--json", "-", "--resolutions", "180p,160x90")
    assert json.loads(other.out) == document
    # what no prior is known for is not predicted, and limits are kept
    text = room.run(*words).out
    assert "90% within" in text and "only 12 frames; it was learnt from 32 and more" in text
    text = room.run(*words, "--no-prior").out
    assert "rungs are not predicted" in text and "nothing was encoded" in text
    bounded = vqaloop.plan_ladder("a.y4m", codec="H.264", metric="vmaf", max_bitrate="0.1M")
    assert bounded.rungs and all(rung.bitrate_kbps <= 100 for rung in bounded.rungs)
    assert sorted(room.folder.iterdir()) == before


def test_a_prediction_is_no_ladder(room: Room) -> None:
    make_clip(room.folder / "a.y4m", size="64x64", frames=5)
    words = ("ladder", "a.y4m", "--metric", "vmaf", "--predict", "--quiet")
    (room.folder / "one").mkdir()
    made = room.run(*words, "--codec", "h264", "--json", "one/ladder.json")
    several = room.run(*words, "--codec", "h264,hevc", "--json", "two.json")
    assert made.status == several.status == 0, made.err + several.err
    commands = [["deliver", "one"], ["deliver", "one/ladder.json"], ["report", "one"]]
    commands += [["report", "two.json"], ["report", "one", "two.json"]]
    for command in commands:
        said = room.run(*command)
        assert said.status == 2, command
        assert "is a prediction, of which nothing was encoded" in said.err
        assert "without --predict" in said.err


def test_a_search_begins_with_the_encodes_that_were_named(room: Room) -> None:
    make_clip(room.folder / "a.y4m", size="128x96", frames=10, vf="noise=alls=10:allf=t")
    asked: dict[str, Any] = {"codec": "h264", "metric": "psnr", "preset": "ultrafast"}
    named = vqaloop.plan_ladder("a.y4m", **asked).first
    begun: list[tuple[int, int, float]] = []

    class EnoughError(Exception):
        pass

    def watch(event: vqaloop.Event) -> None:
        if event.trial:
            tried = event.trial.rendition
            begun.append((tried.width, tried.height, tried.knob))
            if len(begun) == len(named):
                raise EnoughError

    with pytest.raises(EnoughError):
        vqaloop.build_ladder("a.y4m", **asked, progress=watch)
    assert set(begun) == set(named)


def test_a_long_title_is_neither_cut_nor_looked_through(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_clip(room.folder / "long.mp4", size="64x64", frames=400, rate="10")
    monkeypatch.setattr("vqaloop.media.excerpt_windows.sample_pairs", lambda *a, **k: 1 / 0)
    made = vqaloop.plan_ladder("long.mp4", codec="h264", metric="vmaf")
    assert made.seconds == 40 and made.searched_s == 20
    # a few more than the rungs, since probes are a little off
    assert len(made.rungs) < made.encodes[1] < 2 * len(made.rungs)


def test_a_plan_is_of_one_title(room: Room) -> None:
    said = room.run("ladder", "a.mp4", "b.mp4", "--codec", "h264", "--dry-run")
    assert said.status == 2 and "name one video" in said.err
    with pytest.raises(InputError, match="unknown codec"):
        vqaloop.plan_ladder("a.mp4", codec="vc1")
