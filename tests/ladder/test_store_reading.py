"""Ladders that are read back or written over, whoever wrote what lies there."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.ladder.test_store import make_ladder
from vqaloop.errors import InputError
from vqaloop.ladder import store
from vqaloop.ladder.store import read_ladder, write_reports


def test_rung_files_of_an_older_ladder_go(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    write_reports(ladder)
    (tmp_path / "notes.txt").write_text("mine")
    write_reports(replace(ladder, rungs=ladder.rungs[1:]))
    assert not (tmp_path / ladder.rungs[0].file).exists()
    assert all((tmp_path / rung.file).exists() for rung in ladder.rungs[1:])
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../victim", "sub/victim", "{outside}", "..", "sub", "rd.png"])
def test_an_older_ladder_cannot_name_other_files_for_removal(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "ladder"
    (folder / "sub").mkdir(parents=True)
    victims = [tmp_path / "victim", folder / "sub" / "victim"]
    for victim in victims:
        victim.write_text("keep")
    ladder = make_ladder(folder)
    document = ladder.to_json()
    document["rungs"][0]["file"] = name.format(outside=tmp_path / "victim")
    (folder / "ladder.json").write_text(json.dumps(document))
    write_reports(ladder)
    assert all(victim.read_text() == "keep" for victim in victims)
    assert all((folder / name).is_file() for name in store.REPORTS)


def test_a_link_to_a_file_outside_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "ladder"
    folder.mkdir()
    (tmp_path / "outside").write_text("keep")
    ladder = make_ladder(folder)
    write_reports(ladder)
    (folder / ladder.rungs[0].file).unlink()
    (folder / ladder.rungs[0].file).symlink_to(tmp_path / "outside")
    write_reports(replace(ladder, rungs=ladder.rungs[1:]))
    assert (tmp_path / "outside").read_text() == "keep"


@pytest.mark.parametrize("broken", [b"", b"\xff\xfe{", b"[1]", b"{}", b"[" * 100_000])
def test_a_damaged_older_ladder_is_replaced(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "ladder.json").write_bytes(broken)
    with pytest.raises(InputError):
        read_ladder(tmp_path)
    write_reports(make_ladder(tmp_path))
    assert read_ladder(tmp_path).rungs


def put(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


REFUSED = {
    "schema 'vqaloop.ladder/2'": put("schema", value="vqaloop.ladder/2"),
    "of schema 'None'": put("schema", value=None),
    "rungs[1].score should be a number and is '63'": put("rungs", 1, "score", value="63"),
    "rungs[1].peak_kbps should be a number": put("rungs", 1, "peak_kbps", value=math.nan),
    "rungs[1].width should be a whole number": put("rungs", 1, "width", value=True),
    "rungs[0].height should be a whole number": put("rungs", 0, "height", value=10**400),
    "rungs[0].bitrate_kbps should be a number > 0": put("rungs", 0, "bitrate_kbps", value=0.0),
    "rungs[0].guard.vmaf should be a number": put("rungs", 0, "guard", "vmaf", value=[]),
    "rungs[0].ffmpeg_args[0] should be text": put("rungs", 0, "ffmpeg_args", 0, value=3),
    "rungs should be a list and is missing": put("rungs", value=None),
    "rungs should be a list of length >= 1 and is []": put("rungs", value=[]),
    "source.width is missing": put("source", value={}),
    "cost should be an object and is 3": put("cost", value=3),
    "trials[0].error should be text": put("trials", 0, "error", value=1),
    "rungs[2].file is '../x.mp4'": put("rungs", 2, "file", value="../x.mp4"),
    "rungs[2].file is '/etc/passwd'": put("rungs", 2, "file", value="/etc/passwd"),
    r"rungs[2].file is 'a\\b'": put("rungs", 2, "file", value="a\\b"),
    "rungs[2].file is ''": put("rungs", 2, "file", value=""),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refuses_what_is_no_ladder(tmp_path: Path, message: str) -> None:
    document = make_ladder(tmp_path).to_json()
    REFUSED[message](document)
    (tmp_path / "ladder.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        read_ladder(tmp_path)
    assert message in str(caught.value)
    assert "ladder.json" in str(caught.value)


def test_refuses_a_folder_without_a_ladder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_ladder(tmp_path)
    (tmp_path / "ladder.json").mkdir()
    with pytest.raises(InputError, match="directory"):
        read_ladder(tmp_path)
