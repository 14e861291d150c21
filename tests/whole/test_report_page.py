"""Pages in a real browser, headless Chromium, as wide as a desk and as a phone."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ladder.test_store import make_ladder
from tests.regress.test_summary import make_document
from tests.support.browser import Tab, browsing
from tests.support.media import make_clip
from vqaloop import Catalogue, Entry, build_ladder
from vqaloop.catalogue.report import catalogue_page
from vqaloop.ladder.compare import compare_ladders
from vqaloop.ladder.compare_page import pair_page
from vqaloop.ladder.store import read_ladder, write_reports
from vqaloop.regress.page import regress_page

pytestmark = [pytest.mark.slow, pytest.mark.drawn]

PLOTS = 1 + 2 + 2 + 2 + 1
VISIBLE = """[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect())
  .filter(box => box.width > 100 && box.height > 40).length"""
STAGE = """(() => { const box = document.querySelector('.stage').getBoundingClientRect();
  return [box.left + scrollX, box.top + scrollY, box.width, box.height]; })()"""

BEYOND = """[...document.body.querySelectorAll('*')].filter(item => {
  const box = item.getBoundingClientRect(), own = item.closest('.scroll');
  return box.width && box.right > innerWidth + 1 && (!own || own === item || item.closest('svg'));
}).map(item => item.outerHTML.slice(0, 80))"""
BROKEN = """[...document.querySelectorAll('.whole')].filter(
  item => item.getClientRects().length > 1).map(item => item.textContent)"""


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real ladder of a title whose name is a nuisance, and its source gone."""
    place = tmp_path_factory.mktemp("report")
    title = make_clip(
        place / "a <b>&'$title.mp4", size="480x270", frames=50, vf="noise=alls=30:allf=t"
    )
    build_ladder(
        title, codec="h264", preset="ultrafast", resolutions=[(480, 270), (240, 136)],
        rungs=3, min_score=5, out=place / "ladder", cache=False, prior=False,
    )  # fmt: skip
    title.unlink()
    return place / "ladder"


@pytest.fixture
def tab(tmp_path: Path) -> Iterator[Tab]:
    with browsing(tmp_path / "profile") as found:
        yield found


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_all_is_shown_and_nothing_complains(
    width: int, dark: bool, report: Path, tab: Tab, tmp_path: Path
) -> None:
    tab.open(report / "report.html", width, dark=dark)
    picture = tab.picture()
    picture.save(tmp_path / f"report-{width}-{'dark' if dark else 'light'}.png")
    assert tab.complaints == []
    # rate and score, over time, promise and guard, the search, cost
    assert tab.ask(VISIBLE) == PLOTS
    # nothing is wider than the window
    assert tab.ask("document.documentElement.scrollWidth") == width == picture.width
    corner = np.asarray(picture)[2, 2].mean()
    assert corner < 40 if dark else corner > 240
    broken = "[...document.images].filter(img => !img.complete || !img.naturalWidth).length"
    assert tab.ask(broken) == 0
    # the source and three rungs at each place, of which two are seen
    places = tab.ask("document.querySelectorAll('.place').length")
    assert places == len(read_ladder(report).about["worst"]) > 1
    assert tab.ask("document.images.length") == 4 * places
    seen = "[...document.images].filter(img => img.getBoundingClientRect().width > 0).length"
    assert tab.ask(seen) == 2 * places
    small = """[...document.querySelectorAll('input, select, button')].filter(
        item => item.getBoundingClientRect().height < 20 && !item.closest('details')).length"""
    assert tab.ask(small) == 0


def stage(tab: Tab) -> Any:
    return np.asarray(tab.picture(tab.ask(STAGE))).astype(int)


def changed_columns(before: Any, after: Any) -> Any:
    """Parts of the width, 0..1, at which a picture is another."""
    differs = np.abs(before - after).max(axis=(0, 2)) > 8
    return np.flatnonzero(differs) / differs.size


def test_the_slider_is_moved_by_keys_and_uncovers_the_source(report: Path, tab: Tab) -> None:
    tab.open(report / "report.html", 1400)
    # as somebody without a mouse comes to it
    for _ in range(40):
        tab.press("Tab")
        if tab.ask("document.activeElement.type") == "range":
            break
    assert tab.ask("document.activeElement === document.querySelector('.place input')")
    before = stage(tab)
    tab.press("ArrowRight", 20)
    assert tab.ask("document.activeElement.value") == "70"
    after = stage(tab)
    where = changed_columns(before, after)
    # but for the line itself the picture changed from the middle to where the slider is now
    assert where.min() > 0.49 and where.max() < 0.71 and where.size > 0.1 * before.shape[1]
    tab.press("End")
    source = stage(tab)
    assert changed_columns(after, source).min() > 0.69
    assert tab.complaints == []


def test_the_sides_are_chosen_by_keys_and_the_line_dragged(report: Path, tab: Tab) -> None:
    tab.open(report / "report.html", 400)
    tab.ask("document.querySelectorAll('.place select')[1].focus()")
    before = stage(tab)
    tab.press("ArrowDown")
    assert tab.ask("document.activeElement.value") == "3"
    assert tab.ask("document.querySelector('.stage span + span').textContent") == "rung 3"
    after = stage(tab)
    where = changed_columns(before, after)
    assert where.min() > 0.49 and where.max() > 0.8
    tab.ask("document.querySelector('.stage').scrollIntoView({block: 'center'})")
    box = tab.ask("(b => [b.left, b.top, b.width, b.height])(document.querySelector('.stage')"
                  ".getBoundingClientRect())")  # fmt: skip
    level = box[1] + box[3] / 2
    tab.drag((box[0] + box[2] / 2, level), (box[0] + box[2] / 5, level))
    assert tab.ask("document.querySelector('.place input').value") == "20"
    assert changed_columns(after, stage(tab)).min() < 0.22
    # the same on both sides is that picture, whole
    tab.ask("""(() => { const [left, right] = document.querySelectorAll('.place select');
        right.value = left.value; right.dispatchEvent(new Event('change')); })()""")
    assert (
        tab.ask("document.querySelectorAll('.place')[0].querySelectorAll('img.right').length") == 0
    )
    assert tab.complaints == []


def test_commands_have_a_button(report: Path, tab: Tab) -> None:
    tab.open(report / "report.html", 1400)
    tab.ask("document.querySelector('button').click()")
    words = "document.querySelector('button').textContent"
    tab.ask("new Promise(done => setTimeout(done, 500))")
    assert tab.ask(words) in ("Copied", "Selected")
    assert tab.ask("document.querySelectorAll('button').length") == 3 + 2
    assert tab.complaints == []


def test_made_again_without_the_source_it_shows_the_same(
    report: Path, tab: Tab, tmp_path: Path
) -> None:
    before = (report / "report.html").read_text()
    write_reports(read_ladder(report))
    assert (report / "report.html").read_text() == before
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "ladder.json").write_text((report / "ladder.json").read_text())
    write_reports(read_ladder(bare))
    tab.open(bare / "report.html", 1400)
    assert tab.complaints == [] and tab.ask("document.images.length") == 0
    assert "is not there; pictures of it and the rungs need it" in tab.ask(
        "document.body.innerText"
    )
    assert tab.ask(VISIBLE) == PLOTS


def test_it_is_no_larger_than_two_mebibytes(report: Path) -> None:
    assert (report / "report.html").stat().st_size < 2 << 20
    about = json.loads((report / "ladder.json").read_text())
    assert all(
        rung["over_time"]["kbps"] and rung["over_time"]["scores"] for rung in about["rungs"]
    )


def catalogue(folder: Path) -> str:
    """The page of a catalogue of large titles, one with a long name."""
    rung = {"width": 320, "height": 180, "bitrate_kbps": 99.5, "score": 44.4, "vmaf": 41.0}
    about = {
        "source": {"width": 3840, "height": 2160, "fps": 25.0, "duration": 7212.0},
        "encoder": "libx264", "preset": "medium", "metric": "internvqa-mini", "warnings": [],
        "rungs": [rung, {**rung, "width": 3840, "height": 2160, "bitrate_kbps": 34567.0}],
        "cost": {"encodes": 12},
    }  # fmt: skip
    titles = [("episode 1", "done"), ("A Title of Many Words, " * 4, "untrusted")]
    entries = [
        Entry(name, f"{name}.y4m", "h264", folder / "x", status, about=about, kept=True)
        for name, status in titles
    ]
    return catalogue_page(Catalogue(folder, tuple(entries), 1.0))


def pair(folder: Path) -> str:
    ladder = make_ladder(folder)
    return pair_page(compare_ladders(ladder, ladder))


def regress(_: Path) -> str:
    return regress_page(make_document())


PAGES = {"catalogue": catalogue, "pair": pair, "regress": regress}


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_a_desk_and_a_phone(name: str, width: int, tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / f"{name}.html"
    page.write_text(PAGES[name](tmp_path))
    tab.open(page, width)
    tab.picture().save(tmp_path / f"{name}-{width}.png")
    assert tab.complaints == []
    assert tab.ask("document.documentElement.scrollWidth") == width
    # tables may be wider than the window, in boxes of their own, on a phone and not of a pair
    assert tab.ask(BEYOND) == []
    assert tab.ask(BROKEN) == []
    wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    if width == 1400 or name == "pair":
        assert tab.ask(f"{wide}.length") == 0
