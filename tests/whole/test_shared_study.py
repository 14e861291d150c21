"""Ladders of a study that is kept: taken up after a kill, shared by processes, cut off by time."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.support.commandline import BLANK, FAILURES, Room, fake_ffmpeg, running
from tests.support.media import REPOSITORY, make_clip
from vqaloop.core.folders import STUDY_FILE, is_study_file
from vqaloop.search.shared_study import default_storage, open_storage

WORDS = (
    *("--codec", "h264", "--metric", "psnr", "--preset", "ultrafast", "--min-step", "0.5"),
    *("--min-ratio", "1.25", "--resolutions", "160x96,112x64", "--guard", "off"),
)
MAIN = f"{BLANK}import sys; from vqaloop.cli.main import main; sys.exit(main())"


@pytest.fixture
def clip(room: Room) -> str:
    make_clip(room.folder / "a.y4m", size="160x96")
    return "a.y4m"


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The ladder of that clip when nothing comes in between."""
    folder = tmp_path_factory.mktemp("calm")
    make_clip(folder / "a.y4m", size="160x96")
    cache = {"VQALOOP_CACHE": str(folder / "cache"), "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "ladder", "a.y4m", *WORDS, "-o", "out", "--quiet"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(REPOSITORY), **cache}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0
    found: dict[str, Any] = json.loads((folder / "out" / "ladder.json").read_text())
    return found


def begun(room: Room, *words: str) -> "subprocess.Popen[str]":
    """`vqaloop WORDS` as a program of its own, in the room."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "TMPDIR": str(room.temp),
        "VQALOOP_CACHE": str(room.cache),
    }
    return subprocess.Popen(
        [sys.executable, "-c", MAIN, *words],
        cwd=room.folder, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def answer(document: dict[str, Any]) -> tuple[Any, ...]:
    """What a ladder is, without what it took to find it."""
    trials = [(t["width"], t["knob"], t["bitrate_kbps"], t["score"]) for t in document["trials"]]
    return document["rungs"], document["hull"], sorted(trials)


def stored(folder: Path) -> list[optuna.trial.FrozenTrial]:
    """The trials of the one study in a folder, as Optuna's users would read them."""
    storage = open_storage(default_storage(folder))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage).trials


def states(trials: Sequence[optuna.trial.FrozenTrial]) -> set[TrialState]:
    return {trial.state for trial in trials}


# --- the study of one ladder --------------------------------------------------------------------


def test_the_study_shows_the_trials(room: Room, clip: str, calm: dict[str, Any]) -> None:
    document = room.ladder(clip, *WORDS)
    assert answer(document) == answer(calm)
    trials = stored(room.folder / "out")
    assert states(trials) == {TrialState.COMPLETE}
    shown = [(t.params["size"], t.params["knob"], *t.values) for t in trials]
    made = [
        (f"{t['width']}x{t['height']}", t["knob"], t["bitrate_kbps"], t["score"])
        for t in document["trials"]
    ]
    assert [row[:2] for row in shown] == [row[:2] for row in made]
    for one, other in zip(shown, made, strict=True):
        assert one[2:] == pytest.approx(other[2:], abs=0.001)


def test_a_finished_ladder_runs_no_encoder_again(room: Room, clip: str) -> None:
    first = room.ladder(clip, *WORDS)
    again = room.ladder(clip, *WORDS)
    assert first["cost"]["encodes"] == len(first["trials"])
    assert again["cost"]["encodes"] == 0
    assert answer(again) == answer(first)
    # the cache apart, the study alone knows what came of the trials
    for entry in [*room.cache.glob("v1/**/*.json")]:
        entry.unlink()
    third = room.ladder(clip, *WORDS)
    assert third["cost"]["encodes"] == len(third["rungs"]) < len(first["trials"])
    assert answer(third) == answer(first)


@pytest.mark.slow
def test_other_questions_are_other_studies(room: Room, clip: str) -> None:
    room.ladder(clip, *WORDS)
    room.ladder(clip, *WORDS, "--preset", "superfast")
    room.ladder(clip, *WORDS, "--rungs", "2")
    storage = open_storage(default_storage(room.folder / "out"))
    names = [each.study_name for each in optuna.get_all_study_summaries(storage)]
    # which rungs are chosen of the trials is no question of what a trial is
    assert len(names) == 2 and all(name.startswith("a libx264 psnr ") for name in names)


def test_without_a_cache_nothing_is_kept(room: Room, clip: str, calm: dict[str, Any]) -> None:
    document = room.ladder(clip, *WORDS, "--no-cache")
    assert answer(document) == answer(calm)
    assert not any(is_study_file(path) for path in (room.folder / "out").iterdir())
    assert not list(room.cache.iterdir())


def test_a_study_of_a_refused_ladder_goes(room: Room, clip: str) -> None:
    said = room.run("ladder", clip, *WORDS, "--max-bitrate", "1", "-o", "out", "--quiet")
    assert said.status == 1 and "the rules leave 0 rung(s)" in said.err
    assert [path.name for path in room.folder.iterdir()] == ["a.y4m"]
    # but one that was there before stays
    document = room.ladder(clip, *WORDS)
    said = room.run("ladder", clip, *WORDS, "--max-bitrate", "1", "-o", "out", "--quiet")
    assert said.status == 1
    assert (room.folder / "out" / STUDY_FILE).is_file() and room.document() == document


def test_a_name_with_the_letters_of_a_url(room: Room, clip: str) -> None:
    (room.folder / clip).rename(room.folder / "what? {50%41}#1.y4m")
    said = room.run("ladder", "what? {50%41}#1.y4m", *WORDS, "--quiet")
    assert said.status == 0, said.err
    out = room.folder / "what? {50%41}#1.h264.ladder"
    assert (out / STUDY_FILE).is_file() and len(list(room.folder.iterdir())) == 2


@pytest.mark.slow
def test_what_failed_is_tried_again_by_the_next_run(room: Room, clip: str) -> None:
    """A disk that was full, memory that ran out: no failures of the title."""
    trouble = room.folder / "trouble"
    trouble.touch()
    crashes = f"[ -e {trouble} ] && {FAILURES['crash']}"
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*scale=112:64:*": crashes})
    first = room.ladder(clip, *WORDS, "--ffmpeg", fake)
    assert any(trial["state"] == "failed" for trial in first["trials"])
    assert {rung["width"] for rung in first["rungs"]} == {160}
    trouble.unlink()
    again = room.ladder(clip, *WORDS, "--ffmpeg", fake)
    assert all(trial["state"] == "complete" for trial in again["trials"])
    assert {rung["width"] for rung in again["rungs"]} == {112, 160}
    assert 0 < again["cost"]["encodes"] < len(again["trials"])


# --- killed and shared --------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_outright_and_taken_up_again(room: Room, clip: str, calm: dict[str, Any]) -> None:
    """SIGKILL in the middle of a trial: the same ladder in the end."""
    log, hang = room.folder / "encodes", room.folder / "hang"
    hang.touch()
    # the fourth encode hangs
    counted = f"echo $$ >> {log}; [ -e {hang} ] && [ $(wc -l < {log}) -ge 4 ] && exec sleep 600"
    fake = fake_ffmpeg(room.folder / "ffmpeg", {"*' -crf '*": counted})
    words = ("ladder", clip, *WORDS, "-o", "out", "--ffmpeg", str(fake), "--quiet")
    child = begun(room, *words)
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().split()) >= 4):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    _, said = child.communicate()
    hang.unlink()
    # the guardian stops the encode and takes the temporary files away
    while running(int(log.read_text().split()[3])) or list(room.temp.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not (room.folder / "out" / "ladder.json").exists(), said
    before = [t for t in stored(room.folder / "out") if t.state == TrialState.COMPLETE]
    assert len(before) == 3
    document = room.ladder(clip, *WORDS, "--ffmpeg", fake, "--quiet")
    assert answer(document) == answer(calm)
    assert document["cost"]["encodes"] == len(calm["trials"]) - 3


def test_two_processes_make_one_ladder_between_them(
    room: Room, clip: str, calm: dict[str, Any]
) -> None:
    where = ("--storage", f"sqlite:///{room.folder}/shared.db", "--quiet")
    pair = [begun(room, "ladder", clip, *WORDS, *where, "-o", out) for out in ("one", "two")]
    said = [child.communicate(timeout=180)[1] for child in pair]
    assert [child.returncode for child in pair] == [0, 0], said
    one, two = room.document("one"), room.document("two")
    assert answer(one) == answer(two) == answer(calm)
    assert one["cost"]["encodes"] + two["cost"]["encodes"] == len(one["trials"])
    assert not (room.folder / "one" / STUDY_FILE).exists()


# --- time, codecs, rules ------------------------------------------------------------------------


def test_a_budget_that_is_no_time_still_makes_a_ladder(room: Room, clip: str) -> None:
    said = room.run("ladder", clip, *WORDS, "--budget", "0.001s", "-o", "out", "--quiet")
    if said.status == 1:
        assert "the time budget ended the search early" in said.err
        assert not (room.folder / "out").exists()
        return
    document = room.document()
    assert len(document["rungs"]) == 2 == len(document["trials"])
    assert any("the time budget of 0.001 s ended the search" in w for w in document["warnings"])
    # with time, the same study goes on
    more = room.ladder(clip, *WORDS, "--budget", "10min")
    assert len(more["trials"]) > 2
    assert not any("budget" in note for note in more["warnings"])


def test_a_ladder_for_each_codec(room: Room, clip: str) -> None:
    words = [*WORDS[2:6], "--rungs", "2", "--min-step", "0.2", "--min-ratio", "1.2"]
    sizes = ("--resolutions", "160x96,112x64", "--preset", "ultrafast")
    said = room.run("ladder", clip, "--codec", "h264,hevc", *words[:2], *words[4:], *sizes,
                    "--json", "-")  # fmt: skip
    assert said.status in (0, 3), said.err
    document = json.loads(said.out)
    assert document["schema"] == "vqaloop.ladders/1"
    assert list(document["ladders"]) == ["h264", "hevc"]
    for codec, ladder in document["ladders"].items():
        assert ladder["schema"] == "vqaloop.ladder/1" and ladder["codec"] == codec
        assert ladder == room.document(f"a.ladders/{codec}")
        for rung in ladder["rungs"]:
            assert (room.folder / "a.ladders" / codec / rung["file"]).stat().st_size > 0
    assert {path.name for path in (room.folder / "a.ladders").iterdir()} == {"h264", "hevc"}


def test_a_required_size_has_a_rung(room: Room, clip: str, calm: dict[str, Any]) -> None:
    sizes = ("--resolutions", "160x96,128x76,112x64")
    document = room.ladder(clip, *WORDS, *sizes, "--require", "128x76")
    notes = [note for note in document["warnings"] if "128x76 was required" in note]
    assert (128 in {rung["width"] for rung in document["rungs"]}) != bool(notes)
    assert document["rules"]["required"] == [[128, 76]]


def test_scores_between_bounds(room: Room, clip: str) -> None:
    document = room.ladder(clip, *WORDS, "--min-score", "30", "--max-score", "42")
    scores = [rung["score"] for rung in document["rungs"]]
    # the lowest may be of a smaller size, down to two thirds of the floor; the top is the first
    # to reach the ceiling
    assert min(scores[1:]) >= 30 and scores[0] >= 20 and max(scores[:-1]) < 42
    assert (document["rules"]["floor"], document["rules"]["ceiling"]) == (30, 42)


def test_titles_teach_unless_they_are_told_not_to(room: Room, clip: str) -> None:
    room.ladder(clip, *WORDS, "--no-prior", out="one")
    assert not list(room.cache.glob("titles/**/*.json"))
    told = room.ladder(clip, *WORDS, out="two")
    (kept,) = room.cache.glob("titles/libx264/ultrafast/psnr/*.json")
    table = json.loads(kept.read_text())
    assert {len(column) for column in table.values()} == {len(told["trials"])}
    # a title does not teach itself
    assert answer(room.ladder(clip, *WORDS, out="three")) == answer(told)
