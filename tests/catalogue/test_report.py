"""What a catalogue writes of itself, and reads back, whatever its titles are called."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.ladder.test_store import Page, make_ladder
from tests.support.commandline import Room
from vqaloop import Catalogue, Entry
from vqaloop.catalogue.report import catalogue_csv, catalogue_page, write_catalogue
from vqaloop.catalogue.state import LARGEST_NOTE, MADE, made_before, note_made
from vqaloop.cli.catalogue import catalogue_table
from vqaloop.ladder.store import write_reports

ABOUT: dict[str, Any] = {
    "source": {"width": 160, "height": 96, "fps": 25.0, "duration": 1.0},
    "encoder": "libx264",
    "preset": "ultrafast",
    "metric": "psnr",
    "rungs": [{"width": 160, "height": 96, "bitrate_kbps": 9.5, "score": 30.0, "vmaf": None}],
    "warnings": [],
    "cost": {"encodes": 2, "encode_cpu_s": 1.0, "wall_s": 2.0},
}


def entry(status: str, name: str = "x", reason: str | None = None) -> Entry:
    about = {} if status == "failed" else ABOUT
    return Entry(name, name, "h264", Path(f"all/{name}.h264.ladder"), status, reason, about=about)


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["done", "done"], 0),
        (["done", "untrusted"], 3),
        (["untrusted", "failed", "done"], 1),
        (["failed"], 1),
    ],
)
def test_exit_status(statuses: list[str], status: int) -> None:
    assert Catalogue(Path("all"), tuple(map(entry, statuses)), 1.0).exit_code == status


def test_hostile_words_stay_words(tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>" onload="x\n\x1b[31m\u202e'
    entries = tuple(entry(status, evil, evil) for status in ("done", "failed", "untrusted"))
    catalogue = Catalogue(tmp_path / evil.replace("/", ""), entries, 1.0)
    text = catalogue_page(catalogue)
    page = Page(text)
    assert "script" not in page.tags and "\x1b" not in text and "\u202e" not in text
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    links = [value or "" for key, value in page.attributes if key == "href"]
    assert links and not [link for link in links if set(link) & set('<>:"')]
    assert catalogue_csv(catalogue).count("h264") == 6


def test_a_metric_of_all_titles_is_told_once() -> None:
    def page(*metrics: str) -> str:
        entries = [Entry("x", "x", "h264", Path("all/x"), "done", None,
                         about={**ABOUT, "metric": metric}) for metric in metrics]  # fmt: skip
        return catalogue_page(Catalogue(Path("all"), tuple(entries), 1.0))

    assert page("a<b", "a<b").count("a&lt;b") == 1
    mixed = page("psnr", "vmaf", "vmaf")
    assert [mixed.count(f"({name})") for name in ("psnr", "vmaf")] == [1, 2]


def test_the_mean_is_beside_a_pool() -> None:
    rungs = [{**ABOUT["rungs"][0], "score_mean": 41.5}]
    pooled = Entry("x", "x", "h264", Path("all/x"), "done", None, about={**ABOUT, "rungs": rungs})
    both = Catalogue(Path("all"), (pooled, entry("done"), entry("failed")), 1.0)
    plain = Catalogue(Path("all"), (entry("done"),), 1.0)
    assert "(mean 41.5 to 41.5)" in catalogue_page(both)
    assert "(mean" not in catalogue_page(plain)
    table = list(csv.DictReader(io.StringIO(catalogue_csv(both))))
    assert [row["top_score_mean"] for row in table] == ["41.5", "", ""]
    assert "mean" not in catalogue_csv(plain)
    headings = [str(column.header) for column in catalogue_table(both).columns]
    assert headings[5:7] == ["score", "mean"]
    cells = [str(cell) for cell in catalogue_table(both).columns[6].cells]
    assert cells == ["41.5", "-", "-"]
    assert len(catalogue_table(plain).columns) == 8


def test_report_makes_table_and_page_again(room: Room) -> None:
    folder = room.folder / "all"
    folder.mkdir()
    names = [("done", "one"), ("failed", "two"), ("untrusted", "three & more")]
    entries = tuple(entry(status, name, "because") for status, name in names)
    write_catalogue(Catalogue(folder, entries, 1.5))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in ("catalogue.csv", "catalogue.html"):
        (folder / name).unlink()
    said = room.run("report", "all")
    assert said.status == 0 and "three & more h264 not to be trusted: because" in said.out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    document = json.loads(room.run("report", "all", "--json", "-").out)
    assert document == json.loads(before["catalogue.json"])
    refused = room.run("report", "all", "x")
    assert refused.status == 2 and "'all' is a catalogue of ladders; name one" in refused.err


@pytest.mark.parametrize(
    "change",
    [
        {"status": "fine"},
        {"folder": "../x"},
        {"folder": "x\ud800"},
        {"folder": "a\nb"},
        {"status": "failed"},
        {"status": "untrusted", "reason": ""},
        {"cost": {"encodes": None}},
        {"rungs": []},
        {"source": None},
        {"cost": {"wall_s": 1.0}},
        {"cost": {"encodes": "many"}},
        {"name": 7},
    ],
)
def test_a_damaged_catalogue_is_refused(room: Room, change: dict[str, Any]) -> None:
    write_catalogue(Catalogue(room.folder, (entry("done"), entry("done", "y")), 1.0))
    path = room.folder / "catalogue.json"
    document = json.loads(path.read_text())
    document["titles"][1].update(change)
    path.write_text(json.dumps(document))
    before = room.tree()
    said = room.run("report", ".")
    assert said.status == 2 and "titles[1]" in said.err and said.err.count("\n") == 1
    assert "make the catalogue again" in said.err and room.tree() == before


@pytest.mark.parametrize("sign", "=+-@\t")
def test_no_field_of_the_table_is_a_formula(sign: str) -> None:
    evil = sign + "HYPERLINK(A1)"
    entries = (entry("done", evil, evil), entry("failed", "=", "+1"), entry("done", "a=b", "-3"))
    rows = list(csv.DictReader(io.StringIO(catalogue_csv(Catalogue(Path("all"), entries, 1.0)))))
    assert [rows[0][key] for key in ("name", "input", "reason")] == [f"'{evil}"] * 3
    assert (rows[1]["name"], rows[1]["reason"], rows[2]["reason"]) == ("'=", "'+1", "'-3")
    # what is none is left as it is, and so are numbers
    assert (rows[2]["name"], rows[0]["top_kbps"]) == ("a=b", "9.5")


def test_a_ladder_made_before_is_found_whatever_lies_beside_it(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    # one that failed might not fail again
    ladder.about["trials"].pop()
    write_reports(ladder)
    note_made(ladder, "request")
    assert made_before(tmp_path, "request") is not None
    assert made_before(tmp_path, "other") is None
    note = (tmp_path / MADE).read_text()
    # as large as no note is: no more of it is read, which then is no JSON
    with open(tmp_path / MADE, "w") as file:
        file.write(json.dumps({"a": "b" * LARGEST_NOTE, **json.loads(note)}))
        file.truncate(1 << 40)
    assert made_before(tmp_path, "request") is None
    # pipes nobody writes to are not waited for
    for name, back in ((MADE, note.encode()), (ladder.rungs[0].file, b"rung" * 300)):
        (tmp_path / MADE).write_text(note)
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        assert made_before(tmp_path, "request") is None
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(back)
        assert made_before(tmp_path, "request") is not None
