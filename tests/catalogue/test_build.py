"""Ladders of many titles at once: the same as one by one, whatever happens to some of them."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ladder.test_store import Page
from tests.support.commandline import FAILURES, Room, children, fake_ffmpeg
from tests.support.media import make_clip
from vqaloop import Cancelled, InputError, Job, Title, build_catalogue, build_ladder
from vqaloop.catalogue.state import MADE
from vqaloop.catalogue.titles import LONGEST_NAME, folder_names, read_titles
from vqaloop.errors import EncodeFailed
from vqaloop.records import Event

QUICK: dict[str, Any] = {
    "metric": "psnr",
    "preset": "ultrafast",
    "resolutions": [(160, 96), (112, 64)],
    "min_step": 0.5,
    "min_ratio": 1.25,
    "guard": "off",
}
WORDS = (
    *("--codec", "h264", "--metric", "psnr", "--preset", "ultrafast", "--min-step", "0.5"),
    *("--min-ratio", "1.25", "--resolutions", "160x96,112x64"),
)
LOOKS = {"one": None, "two": "hue=s=0.3", "three": "negate"}


def make_titles(folder: Path) -> list[Path]:
    return [make_clip(folder / f"{name}.y4m", size="160x96", vf=vf) for name, vf in LOOKS.items()]


def answer(folder: Path) -> tuple[Any, ...]:
    """What a ladder is, without what it took to find it."""
    document = json.loads((folder / "ladder.json").read_text())
    return document["rungs"], document["hull"], len(document["trials"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Any, ...]]:
    """The answer for each title where there is no other: each with a cache of its own."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for path in make_titles(tmp_path_factory.mktemp("titles")):
            folder = tmp_path_factory.mktemp("alone")
            patch.setenv("VQALOOP_CACHE", str(folder / "cache"))
            build_ladder(path, codec="h264", out=folder / "out", **QUICK)
            found[path.stem] = answer(folder / "out")
    return found


def answers(folder: Path) -> dict[str, tuple[Any, ...]]:
    return {name: answer(folder / f"{name}.h264.ladder") for name in LOOKS}


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_titles_come_out_as_one_by_one(
    room: Room, alone: Mapping[str, tuple[Any, ...]], workers: int
) -> None:
    """In any order, so that none has learnt from another."""
    titles = make_titles(room.folder)[::-1]
    events: list[Event] = []
    made = build_catalogue(
        titles, codec="h264", out="all", workers=workers, progress=events.append, **QUICK
    )
    assert answers(room.folder / "all") == alone
    assert made.exit_code == 0 and [e.name for e in made.entries] == ["three", "two", "one"]
    assert made.cost()["encodes"] == sum(trials for *_, trials in alone.values())
    ended = [event for event in events if event.stage == "catalogue"]
    assert [(event.done, event.total) for event in ended] == [(1, 3), (2, 3), (3, 3)]
    begun = [event.stage.split(":")[0] for event in events if "search" in event.stage]
    turns = sum(one != other for one, other in zip(begun, begun[1:], strict=False))
    assert turns == 2 if workers == 1 else turns > 2


def test_a_bad_title_stops_no_other(room: Room) -> None:
    for path in make_titles(room.folder)[1:]:
        path.unlink()
    (room.folder / "bad.mp4").write_bytes(b"no video" * 100)
    said = room.run("ladder", "bad.mp4", "one.y4m", *WORDS, "--json", "all.json")
    assert said.status == 1
    assert "catalogue 1/2: bad: failed: 'bad.mp4' is not a video" in said.err
    assert "one: search 1/" in said.err and "catalogue 2/2: one: " in said.err
    assert "bad h264 failed: 'bad.mp4' is not a video" in said.out
    assert all(len(line) <= 80 for line in said.out.split("\n\n")[0].splitlines())
    folder = room.folder / "catalogue.ladders"
    document = json.loads((folder / "catalogue.json").read_text())
    assert document == json.loads((room.folder / "all.json").read_text())
    assert document["schema"] == "vqaloop.catalogue/1"
    bad, one = document["titles"]
    assert (bad["status"], bad["input"]) == ("failed", "bad.mp4") and "rungs" not in bad
    assert (one["status"], one["folder"]) == ("done", "one.h264.ladder")
    assert one["rungs"] == [
        {
            **{key: rung[key] for key in ("width", "height", "bitrate_kbps", "score")},
            "vmaf": rung["guard"]["vmaf"],
        }
        for rung in json.loads((folder / one["folder"] / "ladder.json").read_text())["rungs"]
    ]
    assert not (folder / "bad.h264.ladder").exists()
    rows = (folder / "catalogue.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith("bad,bad.mp4,h264,failed,")
    text = (folder / "catalogue.html").read_text()
    assert text.index("No ladder") < text.index("bad.mp4") < text.index("<h2>Ladders")
    assert ("href", "one.h264.ladder/report.html") in Page(text).attributes


def test_a_table_says_what_is_asked_of_each_title(room: Room) -> None:
    place = room.folder / "films"
    place.mkdir()
    make_clip(place / "-a 'b\"\n.y4m", size="160x96")
    (place / "titles.csv").write_text(
        "input,name,codec,rungs,resolutions\n"
        '"-a \'b""\n.y4m",,,2,\n'
        '"-a \'b""\n.y4m",Naïve & <b>,"hevc",2,160x96 128x80\n'
    )
    said = room.run("ladder", "films/titles.csv", *WORDS[:-2], "--resolutions", "160x96,112x64",
                    "-o", "all", "--workers", "2", "--quiet")  # fmt: skip
    assert said.status in (0, 3) and said.err == "", said.err
    found = json.loads((room.folder / "all" / "catalogue.json").read_text())["titles"]
    first, second = found
    assert first["folder"] == "_a 'b\"_.h264.ladder" and second["name"] == "Naïve & <b>"
    assert second["folder"] == "Naïve & <b>.hevc.ladder"
    assert len(first["rungs"]) == len(second["rungs"]) == 2
    assert {rung["width"] for rung in second["rungs"]} <= {160, 128}
    assert "\n" not in said.out.split("all")[-1].strip()
    page = Page((room.folder / "all" / "catalogue.html").read_text())
    assert "b" not in page.tags
    linked = {value for key, value in page.attributes if key == "href"}
    assert "Na%C3%AFve%20%26%20%3Cb%3E.hevc.ladder/report.html" in linked


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("input,colour\none.y4m,red\n", "'t.csv' has a column 'colour' that means nothing"),
        ("name\none\n", "'t.csv' line 1 should be a header with input"),
        ("input\n", "'t.csv' lists no titles"),
        ("input\nnone.y4m\n", "'t.csv' line 2, column input: 'none.y4m' does not exist"),
        ("input,rungs\none.y4m,many\n", "'t.csv' line 2, column rungs: --rungs 'many'"),
        ("input,min_score\none.y4m,1\none.y4m,x\n", "'t.csv' line 3, column min_score: value 'x'"),
        ("input,max_bitrate\none.y4m,nan\n", "'t.csv' line 2, column max_bitrate: value 'nan'"),
        ("input,preset\none.y4m,best\n", "line 2, column preset: libx264 has no preset 'best'"),
        ("input,codec,encoder\none.y4m,av1,libx265\n", "columns codec, encoder: libx265 makes"),
        ("input,codec\none.y4m,av1 av1\n", "column codec: --codec av1,av1 names one"),
        ("input,allow_hdr\none.y4m,1\n", "column allow_hdr: '1' is neither yes nor no"),
        ("input,resolutions\none.y4m,big\n", "column resolutions: 'big' is not a resolution"),
        ("input,name\none.y4m,../x\n", "'t.csv' line 2: the name '../x' cannot be a folder's"),
        ("input,name\none.y4m,-x\n", "the name '-x' cannot be a folder's"),
        ("input,name\none.y4m,a\none.y4m,A\n", "'t.csv' line 3: the name 'A' is taken"),
        ("input,metric,weights\none.y4m,psnr,x\n", "columns metric, weights: psnr takes no"),
        ("input;input\none.y4m;one.y4m\n", "'t.csv' line 1 names a column twice"),
        ("input,name\none.y4m\n", "'t.csv' line 2 has 1 fields and its header 2"),
        ("input\none.y4m\0\n", "'t.csv' line 2 holds a control character"),
    ],
)
def test_tables_that_are_refused_before_any_work(room: Room, table: str, words: str) -> None:
    make_clip(room.folder / "one.y4m", size="160x96")
    (room.folder / "t.csv").write_text(table)
    before = room.tree()
    said = room.run("ladder", "t.csv", *WORDS, "--quiet")
    assert said.status == 2 and said.out == "", said
    assert words in said.err and said.err.count("\n") == 1
    assert room.tree().keys() == before.keys()


def test_command_lines_that_are_refused_before_any_work(room: Room) -> None:
    one = make_clip(room.folder / "one.y4m", size="160x96")
    other = room.folder / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    inside = room.folder / "old"
    inside.mkdir()
    (inside / "catalogue.json").write_text("{}")
    clip = make_clip(inside / "x.y4m", size="160x96")
    for words, why in [
        (("one.y4m", "none.y4m"), "'none.y4m' does not exist"),
        (("one.y4m", "other"), "'other' is a folder"),
        (("one.y4m", one, "-o", "other"), "'other' holds other files and no catalogue"),
        (("one.y4m", one, "-o", "one.y4m"), "'one.y4m' is a file"),
        (("one.y4m", clip, "-o", "old"), "lies in the output folder"),
        (("one.y4m", one, "--preset", "best"), "no preset 'best'"),
        (("one.y4m", one, "--min-score", "99"), "--min-score must lie"),
        (("one.y4m", one, "--encoder", "libx264", "--codec", "h264,hevc"), "with one codec"),
    ]:
        before = room.tree()
        said = room.run("ladder", *WORDS, *words[2:], "--quiet", *words[:2])
        assert said.status == 2 and why in said.err, (words, said)
        assert room.tree().keys() == before.keys()
    with pytest.raises(TypeError, match="no option 'colour'"):
        build_catalogue([one], codec="h264", colour="red")
    with pytest.raises(InputError, match="there are no titles"):
        build_catalogue([], codec="h264")


def test_a_link_out_of_the_folder_is_not_followed(room: Room) -> None:
    one, two, _ = make_titles(room.folder)
    away = room.folder / "away"
    away.mkdir()
    out = room.folder / "all"
    out.mkdir()
    (out / "catalogue.json").write_text("{}")
    (out / "one.h264.ladder").symlink_to(away)
    with pytest.raises(InputError, match="is a link to elsewhere"):
        build_catalogue([one, two], codec="h264", out=out, **QUICK)
    assert not list(away.iterdir())


@given(st.lists(st.text(max_size=120), max_size=12))
def test_names_of_folders_are_plain_and_differ(stems: list[str]) -> None:
    titles = [Title(f"films/{stem}.mp4".replace("\0", "")) for stem in stems]
    names = folder_names(titles)
    assert len({name.casefold() for name in names}) == len(titles)
    for name in names:
        assert name.isprintable() and not set(name) & set("/\\\0")
        assert name[0] not in ".-" and len(name.encode()) <= LONGEST_NAME + 4
    # a name that was made can be given
    short = [name for name in names if len(name.encode()) <= LONGEST_NAME]
    assert folder_names([Title("x", name) for name in short]) == short


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["a/x.mp4", "b/x.mp4", "c/X.mkv", "d/x-2.mp4"], ["x", "x-2", "X-3", "x-2-2"]),
        (["...mp4", "-o.mp4", ".hidden", "a\nb.mp4", "\udcff.mp4"],
         ["_.", "_o", "_hidden", "a_b", "_"]),
    ],
)  # fmt: skip
def test_names_of_folders(inputs: list[str], names: list[str]) -> None:
    assert folder_names([Title(path) for path in inputs]) == names


def test_columns_are_told_apart_by_commas_even_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("input\nmy film.mp4\n\n/abs/a b.mkv\n")
    assert [Path(title.input) for title in read_titles(tmp_path / "t.csv")] == [
        tmp_path / "my film.mp4",
        Path("/abs/a b.mkv"),
    ]


# --- interrupted and taken up again -------------------------------------------------------------


def counting(room: Room, more: str = "") -> tuple[Path, Path]:
    """An ffmpeg that counts its encodes, and the file in which it does."""
    log = room.folder / "encodes"
    log.touch()
    action = f'echo "$*" >> {log}; {more or ":"}'
    return fake_ffmpeg(room.folder / "ffmpeg", {"*' -crf '*": f'{action}; exec {REAL} "$@"'}), log


REAL = '"$VQALOOP_REAL"'


@pytest.fixture(autouse=True)
def real_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqaloop.core.ffmpeg import ffmpeg_path

    monkeypatch.setenv("VQALOOP_REAL", ffmpeg_path())


def test_interrupted_and_taken_up_again(room: Room, alone: Mapping[str, tuple[Any, ...]]) -> None:
    """Also while an encoder hangs: what runs is stopped at once, what was encoded is kept."""
    titles, hang = make_titles(room.folder), room.folder / "hang"
    hang.touch()
    fake, log = counting(
        room, f"""case "$*" in *three*" -crf 16 "*) [ -e {hang} ] && {FAILURES["hang"]} ;; esac"""
    )
    asked: dict[str, Any] = {**QUICK, "codec": "h264", "out": "all", "ffmpeg": fake, "workers": 2}
    searched: list[str] = []

    def interrupt(event: Event) -> None:
        searched.append(event.stage)
        if searched.count("two: search") == 4:
            at.append(time.monotonic())
            raise KeyboardInterrupt

    before, at = set(children()), list[float]()
    with pytest.raises(KeyboardInterrupt):
        build_catalogue(titles, progress=interrupt, **asked)
    assert time.monotonic() - at[0] < 20 and set(children()) == before
    assert not (room.folder / "all" / "catalogue.json").exists()
    assert not list(room.temp.iterdir())
    first = log.read_text().splitlines()
    hang.unlink()
    made = build_catalogue(titles, **asked)
    assert answers(room.folder / "all") == alone
    again = log.read_text().splitlines()[len(first) :]
    # only what was being encoded when it was interrupted is encoded twice
    total = sum(trials for *_, trials in alone.values())
    assert made.cost()["encodes"] == len(again) and 0 <= len(first) + len(again) - total <= 2
    assert len(again) < total


def test_called_off_by_the_program_that_asked(room: Room) -> None:
    titles = make_titles(room.folder)
    fake, _ = counting(room, FAILURES["hang"])
    before = set(children())
    job = Job(build_catalogue, titles, codec="h264", out="all", ffmpeg=fake, workers=2, **QUICK)
    while len(set(children()) - before) < 2:
        assert job.running
        time.sleep(0.02)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(30)
    assert set(children()) <= before
    # none of its titles failed
    assert not [event for event in job if "failed" in event.message]


def test_what_was_made_by_the_same_request_is_taken_as_it_is(room: Room) -> None:
    one, two, _ = make_titles(room.folder)
    fake, log = counting(room)
    asked: dict[str, Any] = {**QUICK, "codec": "h264", "out": "all", "ffmpeg": fake}
    build_catalogue([one, two], **asked)
    count = len(log.read_text().splitlines())
    tree = room.tree()
    events: list[Event] = []
    again = build_catalogue([one, two], progress=events.append, **asked)
    assert all(entry.kept for entry in again.entries) and again.cost()["encodes"] == 0
    assert {event.stage for event in events} == {"catalogue"}
    ladder = again.entries[0].folder
    changed = {name for name, what in room.tree().items() if tree.get(name) != what}
    assert not [name for name in changed if "ladder/" in name]
    # a rung that was damaged, another title of that name, other rules: all made again
    rung = next(ladder.glob("*.mp4"))
    rung.write_bytes(b"damaged")
    (room.folder / "two.y4m").unlink()
    make_clip(room.folder / "two.y4m", size="160x96", vf="hflip")
    third = build_catalogue([one, two], **asked)
    assert [entry.kept for entry in third.entries] == [False, False]
    assert third.entries[0].about["cost"]["encodes"] == 0
    assert third.entries[1].about["cost"]["encodes"] > 0 and rung.read_bytes() != b"damaged"
    fourth = build_catalogue([one], **{**asked, "rungs": 2})
    assert not fourth.entries[0].kept and len(fourth.entries[0].about["rungs"]) == 2
    # a note that is no note of ours is no trouble
    (ladder / MADE).write_text('{"request": [')
    assert not build_catalogue([one], **{**asked, "rungs": 2}).entries[0].kept
    assert count < len(log.read_text().splitlines())


def test_an_error_nobody_thought_of_is_the_titles_own(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles = make_titles(room.folder)

    def fails(input: Path, **_: object) -> None:
        raise EncodeFailed("no") if Path(input).stem == "one" else ZeroDivisionError("oh")

    monkeypatch.setattr("vqaloop.catalogue.title.build_ladder", fails)
    made = build_catalogue(titles[:2], codec="h264", out="all", **QUICK)
    assert [e.reason for e in made.entries] == [
        "no", "unexpected ZeroDivisionError: oh; try this title alone",
    ]  # fmt: skip
