"""What reaches a terminal, and what reaches a file or a pipe instead of one."""

import io
import os
import pty
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import pytest

from tests.ladder.test_store import make_ladder
from vqaloop.cli.encoders import print_encoders
from vqaloop.core.text import printable
from vqaloop.encoding.survey import survey_encoders
from vqaloop.ladder.summary import cost_line, ladder_table, print_ladder
from vqaloop.records import Event, Rendition, Trial
from vqaloop.report.progress import Progress

COLOUR = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")
NASTY = "a\x1b[31mred\x07\r\nb\u202e\udcff[bold]x[/bold] :smile: {0}"


def on_terminal(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], None]) -> str:
    """What a terminal 80 columns wide is sent while it stands for sys.stdout or sys.stderr."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    master, slave = pty.openpty()
    seen = bytearray()

    def drain() -> None:
        # Linux answers EIO once the other end is closed
        try:
            while chunk := os.read(master, 65536):
                seen.extend(chunk)
        except OSError:
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        with open(slave, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
            patch.setattr(f"sys.{name}", stream)
            work()
    finally:
        reader.join(timeout=10)
        os.close(master)
    return seen.decode()


def rendered(ladder: object, width: int = 80) -> list[str]:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(ladder)
    return stream.getvalue().splitlines()


def some_events() -> list[Event]:
    failed = Trial(Rendition(320, 180, "libx264", 63, "medium"), error=f"crashed: {NASTY}")
    return [
        Event("probe", f"looking at {NASTY}"),
        Event("search", "320x180 at 41: 148 kb/s, score 41.3", 1, 0),
        Event("search", "320x180 at 63: failed (crashed)", 2, 3, failed),
        Event("write", "writing"),
    ]


def show_events(quiet: bool = False) -> None:
    with Progress(quiet=quiet) as progress:
        for event in some_events():
            progress(event)
        progress.log(f"epoch 1 {NASTY}")


def test_table_shows_every_rung(tmp_path: Path) -> None:
    lines = rendered(ladder_table(make_ladder(tmp_path)))
    assert " ".join(lines[0].split()) == "# size kb/s peak crf score predicted VMAF worst s"
    assert " ".join(lines[3].split()) == "2 640x360 411 702 35 63.8 62.1 64.4 60.0"
    assert len(lines) == 6


def test_table_fits_80_columns_with_nothing_cut(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    extreme = replace(
        ladder.rungs[0], width=16384, height=16384, bitrate_kbps=12_345_678.9,
        peak_kbps=98_765_432.1, score=100.0, score_predicted=-100.0, knob=("quantizer", 254.75),
        guard={"vmaf": 100.0, "vmaf_worst_s": 100.0},
    )  # fmt: skip
    none = replace(extreme, guard={"vmaf": float("nan")})
    lines = rendered(ladder_table(replace(ladder, rungs=(extreme,) * 12 + (none,))), width=200)
    assert max(map(len, lines)) <= 80
    words = "12 16384x16384 12345679 98765432 254.75 100.0 -100.0 100.0 100.0"
    assert " ".join(lines[13].split()) == words
    assert lines[14].split()[-2:] == ["-", "-"]


def test_cost_line(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    assert cost_line(ladder) == (
        "9 encodes (4 more from the cache): 2700 frames, 1.24 Gpixel, encoding 41.2 s CPU, "
        "scoring 6.1 s CPU, guard 5.0 s CPU, 32.1 s in all"
    )
    ladder.about["trials"] = []
    ladder.about["cost"].update(encodes=1, encoded_frames=5, encoded_pixels=999_600)
    assert cost_line(ladder).startswith("1 encode: 5 frames, 1 Mpixel, ")
    ladder.about["cost"].update(encodes=0, encoded_frames=0, encoded_pixels=0, guard_s=None)
    assert cost_line(ladder).startswith("0 encodes: 0 frames, 0 pixel, ")
    assert "guard" not in cost_line(ladder)


def test_printable_keeps_letters_and_escapes_the_rest() -> None:
    assert printable("Füße 日本 😀 [x]") == "Füße 日本 😀 [x]"
    assert printable("a\x1b[31m\n\u202e\udcff") == r"a\x1b[31m\n\u202e\udcff"


def test_plain_progress_is_a_line_an_event(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show_events()
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[1] == "search: 320x180 at 41: 148 kb/s, score 41.3"
    assert lines[2].startswith("search 2/3: 320x180 at 63: failed")
    assert lines[4].startswith("epoch 1 a\\x1b[31mred") and "[bold]x[/bold] :smile:" in lines[4]
    assert len(lines) == 6 and lines[5] == ""


def test_a_count_is_said_when_it_changes(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        for done, total in ((0, 2), (0, 2), (1, 2), (1, 2), (2, 2)):
            progress(Event("encode", "x264", done, total))
        progress(Event("search", "320x180", 5, 40, at_most=True))
        progress(Event("encode", "again", 2, 2))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        *("encode 0/2: x264", "encode: x264", "encode 1/2: x264", "encode: x264"),
        *("encode 2/2: x264", "search 5/40 at most: 320x180", "encode 2/2: again"),
    ]


def test_quiet_says_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show_events(quiet=True)
    assert capsys.readouterr() == ("", "")
    assert on_terminal(monkeypatch, "stderr", lambda: show_events(quiet=True)) == ""


def test_live_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    seen = on_terminal(monkeypatch, "stderr", show_events)
    assert COLOUR.search(seen)
    assert seen.rindex("\x1b[?25h") > seen.rindex("\x1b[?25l")
    assert "\x1b[31mred" not in seen and "\x07" not in seen and "\u202e" not in seen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert "failed (crashed)" in text and "[bold]x[/bold] :smile: {0}" in text
    assert capsys.readouterr().out == ""


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ladder = replace(make_ladder(tmp_path), trusted=False)
    assert COLOUR.search(on_terminal(monkeypatch, "stdout", lambda: print_ladder(ladder)))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not COLOUR.search(on_terminal(monkeypatch, "stderr", show_events))
    assert not COLOUR.search(on_terminal(monkeypatch, "stdout", lambda: print_ladder(ladder)))


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> None:
        monkeypatch.setenv("TERM", "dumb")
        show_events()

    assert "\x1b" not in on_terminal(monkeypatch, "stderr", work)


@pytest.mark.parametrize("state", ["closed", "full", "ascii"])
def test_trouble_with_stderr_does_not_stop_the_work(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    buffer = io.BytesIO()
    stream: TextIO = io.TextIOWrapper(buffer, encoding="ascii")
    if state == "closed":
        stream.close()
    if state == "full":
        stream = open("/dev/full", "w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr("sys.stderr", stream)
    with Progress() as progress:
        progress.log("日本語")
    if state == "ascii":
        assert buffer.getvalue() == b"\\u65e5\\u672c\\u8a9e\n"
    if state == "full":
        with pytest.raises(OSError):
            stream.close()


def test_many_threads_write_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        jobs = [threading.Thread(target=progress.log, args=("x" * 500,)) for _ in range(40)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    assert set(capsys.readouterr().err.splitlines()) == {"x" * 500}


def test_print_ladder_to_a_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ladder = replace(make_ladder(tmp_path), trusted=False)
    ladder.about["warnings"] = [NASTY]
    print_ladder(ladder)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and all(line.isprintable() for line in lines)
    assert "warning: a\\x1b[31mred" in out and "[bold]x[/bold]" in out
    assert "not to be trusted" in out and cost_line(ladder) in lines
    assert lines[-1] == f"in {tmp_path}"


def test_encoders_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    found = survey_encoders()
    assert {item["codec"] for item in found if item["default"]} >= {"h264", "hevc", "av1"}
    assert all(
        bool(item["version"]) == item["available"] != bool(item["why_not"]) for item in found
    )
    print_encoders(found)
    brief = capsys.readouterr().out
    assert len(brief.splitlines()) == len(found) and "libx264*" in brief
    print_encoders(found, verbose=True)
    assert "presets, slow to fast: " in capsys.readouterr().out
