"""Programs that leave others behind, and what their output is read by."""

import errno
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vqaloop.core import process

BUSY = [sys.executable, "-c", "import time\nwhile time.process_time() < 9: pass"]


@pytest.mark.parametrize(
    ("script", "limit_s", "status"),
    [("setsid sleep 30 & exec sleep 60", 2, -9), ("setsid sleep 30 & echo out; exit 3", 20, 3)],
)
def test_what_a_program_left_behind_is_not_waited_for(
    script: str, limit_s: float, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It holds the pipes open, and is in no process group that could be killed."""
    begun = time.monotonic()
    done = process.run(["sh", "-c", script], timeout_s=limit_s, again=False)
    assert time.monotonic() - begun < 10
    assert (done.returncode, done.timed_out) == (status, status == -9)
    assert done.stdout == (b"" if done.timed_out else b"out\n")
    assert "sh left a program running that holds its output open" in caplog.text


def test_what_a_program_left_behind_may_write_without_end() -> None:
    begun = time.monotonic()
    flood = "setsid timeout 30 yes >&2 & echo out"
    done = process.run(["sh", "-c", flood], timeout_s=20)
    assert time.monotonic() - begun < 10
    assert (done.returncode, done.stdout) == (0, b"out\n")


def test_output_is_whole_however_late_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "HELD_S", 0)
    pieces: list[bytes] = []

    def slowly(piece: bytes) -> bytes:
        time.sleep(0.3)
        pieces.append(piece)
        return piece

    script = "yes 0123456789abcde | head -c 50000000; yes abc | head -c 200000 >&2"
    done = process.run(["sh", "-c", script], timeout_s=60, stderr_reader=lambda: slowly)
    assert done.stdout == b"0123456789abcde\n" * 3_125_000
    assert b"".join(pieces) == b"abc\n" * 50_000
    assert done.stderr.encode() == (b"abc\n" * 50_000)[-process.STDERR_KEPT :]


def test_what_a_parser_of_stderr_raises_is_raised_and_the_program_ends(tmp_path: Path) -> None:
    def parse(piece: bytes) -> bytes:
        raise ValueError(f"could not convert {piece[:3]!r}")

    end = tmp_path / "end"
    script = f"yes abc | head -c 1000000 >&2; touch '{end}'"
    with pytest.raises(ValueError, match="could not convert b'abc'"):
        process.run(["sh", "-c", script], timeout_s=5, again=False, stderr_reader=lambda: parse)
    assert end.exists()


@pytest.mark.parametrize("function", ["listdir", "open"])
def test_without_a_file_to_spare_the_time_limit_holds(
    monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    if function == "listdir":
        monkeypatch.setattr(os, function, full)
    else:
        monkeypatch.setattr(process, function, full, raising=False)
    done = process.run(BUSY, timeout_s=3, idle_s=1, again=False)
    # it cannot be seen whether it works, so it is not taken to hang
    assert done.timed_out and not done.stalled and not done.idle
