"""What a ladder will be and cost, before anything is encoded."""

import json

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
    words = ("ladder", "a.y4m", "--codec", "h264", "--metric", "vmaf", "--dry-run")
    said = room.run(*words, "--json", "-", "--resolutions", "180p,160x90")
    assert said.status == 0, said.err
    document = json.loads(said.out)
    assert document["schema"] == "vqaloop.plan/1"
    assert document["sizes"] == [[320, 180], [160, 90]]
    rates = [rung["bitrate_kbps"] for rung in document["rungs"]]
    assert len(rates) >= 2 and rates == sorted(rates)
    assert {tuple(p) for p in document["first"]} <= {
        (rung["width"], rung["height"], rung["knob"]) for rung in document["rungs"]
    }
    assert document["encodes"][1] == 0 and min(document["cpu_s"].values()) > 0
    # what no prior is known for is not predicted, and limits are kept
    text = room.run(*words, "--no-prior").out
    assert "rungs are not predicted" in text and "nothing was encoded" in text
    bounded = vqaloop.plan_ladder("a.y4m", codec="H.264", metric="vmaf", max_bitrate="0.1M")
    assert bounded.rungs and all(rung.bitrate_kbps <= 100 for rung in bounded.rungs)
    assert sorted(room.folder.iterdir()) == before


def test_a_plan_is_of_one_title(room: Room) -> None:
    said = room.run("ladder", "a.mp4", "b.mp4", "--codec", "h264", "--dry-run")
    assert said.status == 2 and "name one video" in said.err
    with pytest.raises(InputError, match="unknown codec"):
        vqaloop.plan_ladder("a.mp4", codec="vc1")
