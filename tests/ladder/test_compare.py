"""Two ladders compared: what is told, what is refused, and how it is shown."""

import json
import math
import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vqaloop
from tests.ladder.test_store import HOSTILE, MADE_UP, Page, make_ladder
from tests.support.commandline import SMALL, Room
from tests.support.media import REPOSITORY, make_clip
from vqaloop.errors import InputError
from vqaloop.ladder.compare import compare_ladders, curve_of
from vqaloop.ladder.compare_page import _figure, pair_page, pair_png
from vqaloop.ladder.compare_table import rung_rows, side_by_side
from vqaloop.ladder.store import write_reports
from vqaloop.quality.bdrate import bd_rate
from vqaloop.records import Ladder

Change = Callable[[Ladder], Ladder]


def scaled(ladder: Ladder, factor: float) -> Ladder:
    """The ladder with its bitrates times a factor."""
    rungs = (replace(rung, bitrate_kbps=rung.bitrate_kbps * factor) for rung in ladder.rungs)
    return replace(ladder, rungs=tuple(rungs))


def about(ladder: Ladder, **parts: Any) -> Ladder:
    """The ladder with parts of its document replaced: objects are merged."""
    merged = {
        key: {**ladder.about[key], **part} if isinstance(part, dict) else part
        for key, part in parts.items()
    }
    return replace(ladder, about={**ladder.about, **merged})


def two_folders(folder: Path, change: Change, metric: str = "internvqa-mini") -> tuple[str, str]:
    """Folders "a" and "b" with ladders, of which the second is changed; their names."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        ladder = make_ladder(folder / name, metric=metric)
        write_reports(change(ladder) if name == "b" else ladder)
    return "a", "b"


@pytest.fixture
def made(tmp_path: Path) -> Ladder:
    return make_ladder(tmp_path)


@pytest.mark.parametrize(("factor", "more", "words"), [
    (0.8, "a", "A needs 25.0 % more bits than B (B 20.0 % fewer than A)"),
    (1.25, "b", "B needs 25.0 % more bits than A (A 20.0 % fewer than B)"),
    (1.0, None, "A and B need the same bits"),
])  # fmt: skip
def test_a_known_factor_of_bits_is_found_by_every_metric(
    made: Ladder, factor: float, more: str | None, words: str
) -> None:
    compared = compare_ladders(made, scaled(made, factor))
    assert [gap.metric for gap in compared.gaps] == ["internvqa-mini", "vmaf", "psnr_y"]
    for gap in compared.gaps:
        assert gap.bd_rate_percent == pytest.approx(100 * (factor - 1), abs=1e-6)
        assert gap.akima_percent == pytest.approx(100 * (factor - 1), abs=1e-6)
        assert gap.refused is None and gap.bd_score is not None
        assert math.copysign(1, 1 - factor) * gap.bd_score >= 0
    assert compared.more_bits == more and compared.exit_code == 0
    assert compared.summary == f"{words} at equal internvqa-mini, from 41.3 to 92.6"
    assert compared.warnings == () and compared.differences == {}


def test_figures_are_those_of_bd_rate_over_the_rungs(made: Ladder) -> None:
    rungs = tuple(
        replace(rung, bitrate_kbps=rung.bitrate_kbps * (0.7 + 0.1 * number), score=rung.score - 1)
        for number, rung in enumerate(made.rungs)
    )
    compared = compare_ladders(made, replace(made, rungs=rungs))
    gap = compared.gaps[0]
    anchor = [(row[2], row[4]) for row in MADE_UP]
    test = [(row[2] * (0.7 + 0.1 * n), row[4] - 1) for n, row in enumerate(MADE_UP)]
    assert gap.bd_rate_percent == pytest.approx(bd_rate(anchor, test))
    assert gap.akima_percent == pytest.approx(bd_rate(anchor, test, method="akima"))
    assert gap.scores == (41.3, 91.6)


@pytest.mark.parametrize(
    ("metric", "names"), [("vmaf", ["vmaf", "psnr_y"]), ("psnr", ["psnr_y", "vmaf"])]
)
def test_a_metric_of_the_guard_is_told_once(tmp_path: Path, metric: str, names: list[str]) -> None:
    ladder = make_ladder(tmp_path, metric=metric)
    compared = compare_ladders(ladder, ladder)
    assert [gap.metric for gap in compared.gaps] == names
    # the score itself, not the guard's copy of it
    assert curve_of(ladder, names[0]) == [(r.bitrate_kbps, r.score) for r in ladder.rungs]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "vmaf", "mode": "full-reference"}, "metric of A is internvqa-mini, anchored"),
        ({"mode": "no-reference"}, "of B internvqa-mini, no-reference"),
        ({"weights_sha256": "f" * 64}, "weights of A is none and of B ffffffffffff"),
    ],
)
def test_scores_of_other_metrics_are_not_compared(
    made: Ladder, change: dict[str, str], told: str
) -> None:
    compared = compare_ladders(made, scaled(about(made, metric=change), 0.9))
    assert [gap.metric for gap in compared.gaps] == ["vmaf", "psnr_y"]
    assert compared.headline and compared.headline.metric == "vmaf"
    assert len(compared.warnings) == 1 and told in compared.warnings[0]


def test_what_cannot_be_compared_is_refused_with_the_reason(made: Ladder) -> None:
    dip = replace(made.rungs[2], score=made.rungs[1].score - 1)
    fallen = replace(made, rungs=(*made.rungs[:2], dip, made.rungs[3]))
    compared = compare_ladders(made, fallen)
    assert "does not rise" in str(compared.gaps[0].refused)
    # VMAF takes the place of the score that cannot tell
    assert compared.headline == compared.gaps[1] and compared.exit_code == 0
    short = compare_ladders(made, replace(made, rungs=made.rungs[:2]))
    assert all("B has 2 rungs, and at least 3" in str(gap.refused) for gap in short.gaps)
    assert short.headline is None and short.more_bits is None and short.exit_code == 2
    blind = replace(made.rungs[0], guard={"psnr_y": math.nan})
    unseen = compare_ladders(made, replace(made, rungs=(blind, *made.rungs[1:])))
    assert [gap.refused is None for gap in unseen.gaps] == [True, False, False]
    assert "NaN" not in json.dumps(unseen.to_json())


def test_metrics_that_contradict_each_other_are_named(made: Ladder) -> None:
    rungs = tuple(
        replace(r, score=r.score + 3, guard={**r.guard, "vmaf": r.guard["vmaf"] - 3})
        for r in made.rungs
    )
    compared = compare_ladders(made, replace(made, rungs=rungs))
    assert any("VMAF says the opposite of internvqa-mini" in w for w in compared.warnings)


def test_an_untrusted_ladder_makes_an_untrusted_answer(made: Ladder) -> None:
    compared = compare_ladders(made, replace(made, trusted=False))
    assert compared.exit_code == 3 and "B is not to be trusted" in compared.warnings[0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"sha256": "e" * 64, "path": "other.y4m"}, "different titles.*'other.y4m'.*eeeeeeeeeeee"),
        ({"width": 640}, "width is 1280 .* and 640"),
        ({"fps": 25.0}, "fps is 29.97 .* and 25"),
        ({"sha256": None}, "does not say of which content"),
    ],
)
def test_other_sources_are_refused(made: Ladder, source: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_ladders(made, about(made, source=source))


def test_the_same_title_under_another_name_is_taken(made: Ladder) -> None:
    moved = about(made, source={"path": "/elsewhere/same.y4m"})
    assert compare_ladders(made, moved).exit_code == 0


def test_opinions_are_beside_the_scores_they_were_mapped_to(tmp_path: Path, room: Room) -> None:
    scale = {"target": "VMAF", "rmse": 4.2, "to_vmaf": [[0, 0], [100, 100]]}

    def opinions(ladder: Ladder) -> Ladder:
        rungs = (replace(rung, opinion=rung.score - 20.5) for rung in ladder.rungs)
        changed = about(ladder, metric={"label": "MOS of a test", "scale": scale})
        return replace(changed, rungs=tuple(rungs))

    two_folders(room.folder, opinions)
    compared = compare_ladders(room.folder / "a", room.folder / "b")
    assert compared.differences["fitted to"] == ("VMAF v0.6.1", "MOS of a test")
    headings, rows = rung_rows(compared)
    assert headings[3:5] == ["score", "opinion"]
    assert {row[0]: row[4] for row in rows[:2]} == {"A": "-", "B": f"{MADE_UP[0][4] - 20.5:.2f}"}
    said = room.run("report", "a", "b").out
    assert "opinion: MOS of a test, for the score mapped to VMAF" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80
    page = (room.folder / "b" / "report.html").read_text("utf-8")
    assert "<th>opinion</th>" in page and "Opinion: MOS of a test" in page
    assert "<th>opinion</th>" not in (room.folder / "a" / "report.html").read_text("utf-8")


def test_the_mean_is_beside_a_pool(room: Room) -> None:
    def pooled(ladder: Ladder) -> Ladder:
        rungs = (replace(rung, score_mean=rung.score + 3.25) for rung in ladder.rungs)
        return replace(about(ladder, metric={"pool": "p5"}), rungs=tuple(rungs))

    two_folders(room.folder, pooled)
    b = room.folder / "b"
    compared = compare_ladders(b, b)
    headings, rows = rung_rows(compared)
    assert headings[2:5] == ["size", "p5", "mean"]
    assert all(float(row[4]) == pytest.approx(float(row[3]) + 3.25) for row in rows)
    said = room.run("report", "b", "b").out
    assert re.search(r"p5 +mean +VMAF.* p5 +mean +VMAF", said)
    assert max(map(len, said.splitlines())) <= 80


def test_rungs_stand_beside_each_other_by_bitrate(made: Ladder) -> None:
    low, *rest = made.rungs
    near = replace(low, bitrate_kbps=low.bitrate_kbps * 1.15)
    far = replace(low, bitrate_kbps=low.bitrate_kbps * 1.5)
    rows = side_by_side(made.rungs, [near, far])
    assert rows == [(low, near), (None, far), *((rung, None) for rung in rest)]
    assert side_by_side([], [near]) == [(None, near)]


def test_folders_and_ladders_are_taken_alike(tmp_path: Path) -> None:
    two_folders(tmp_path, lambda ladder: scaled(ladder, 0.8))
    a, b = (vqaloop.read_ladder(tmp_path / name) for name in ("a", "b"))
    assert vqaloop.compare_ladders(a, b) == vqaloop.compare_ladders(tmp_path / "a", b)
    assert isinstance(vqaloop.compare_ladders(a, b), vqaloop.LadderComparison)


def test_the_command_tells_the_answer_within_80_columns(room: Room) -> None:
    def wide(ladder: Ladder) -> Ladder:
        rungs = tuple(
            replace(r, width=r.width * 9, height=r.height * 9, bitrate_kbps=r.bitrate_kbps * 40)
            for r in ladder.rungs
        )
        other = {"name": "libsvtav1", "preset": "8", "library_version": "a-version-" * 12}
        return about(replace(ladder, rungs=rungs), codec="av1", encoder=other)

    said = room.run("report", *two_folders(room.folder, wide))
    assert said.status == 0, said.err
    lines = said.out.splitlines()
    tables = [line for line in lines if re.match(r"[ ─-]|VMAF|A kb|B against", line)]
    assert len(tables) > 8 and max(map(len, lines)) <= 80
    assert said.out.startswith("B needs 3900.0 % more bits than A")
    assert (
        "differ in codec (h264; av1), encoder (libx264; libsvtav1), library (libx264 core"
        in said.out
    )
    assert "A  320x180 at 148, 640x360 at 411" in said.out
    assert "11520x6480" in said.out and "116196" in said.out


@pytest.mark.drawn
def test_the_command_writes_page_picture_and_document(room: Room) -> None:
    a, b = two_folders(room.folder, lambda ladder: scaled(ladder, 0.8))
    before = room.tree()
    text = (REPOSITORY / "docs" / "ladder.md").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("vqaloop report avc av1"))
    assert room.run("report", a, b, *shlex.split(line)[4:]).status == 0
    new = {Path(path).name for path in set(room.tree()) - set(before)}
    assert new == {"pair.html", "pair.png", "pair.json"}
    document = json.loads((room.folder / "pair.json").read_text())
    assert document["schema"] == "vqaloop.ladder-comparison/1"
    assert (document["more_bits"], document["metric"]) == ("a", "internvqa-mini")
    assert document["bd_rate_percent"] == pytest.approx(-20)
    assert list(document["metrics"]) == ["internvqa-mini", "vmaf", "psnr_y"]
    assert [size["rungs"] for size in document["b"]["sizes"]] == [1, 1, 1, 1]
    assert (room.folder / "pair.png").read_bytes().startswith(b"\x89PNG")
    alone = room.run("report", a, b, "--json", "-")
    assert json.loads(alone.out) == document


@pytest.mark.parametrize(("argv", "message"), [
    (["a", "none"], "ladder.json"),
    (["a", "c"], "different titles"),
    (["a", "--html", "x.html"], "give two ladders"),
    (["a", "a", "--html", "b"], "is a folder"),
    (["a", "a", "--png", "none/x.png"], "cannot write in"),
    (["a", "a", "a"], "unrecognized arguments"),
])  # fmt: skip
def test_the_command_refuses_with_one_message(room: Room, argv: list[str], message: str) -> None:
    two_folders(room.folder, lambda ladder: ladder)
    (room.folder / "c").mkdir()
    other = about(make_ladder(room.folder / "c"), source={"sha256": "1" * 64})
    write_reports(other)
    before = room.tree()
    said = room.run("report", *argv)
    assert said.status == 2 and message in said.err and said.err.count("\n") == 1
    assert not said.out and room.tree() == before


@pytest.mark.drawn
def test_what_no_metric_can_tell_is_shown_all_the_same(room: Room) -> None:
    a, b = two_folders(room.folder, lambda ladder: replace(ladder, rungs=ladder.rungs[:2]))
    said = room.run("report", a, b, "--html", "pair.html")
    assert said.status == 2 and "A kb/s" in said.out
    assert said.out.startswith("no metric can tell") and said.out.count("no BD-rate by") == 1
    assert (
        "No BD-rate by internvqa-mini, VMAF, PSNR-Y: B has 2 rungs, and at least 3"
        in (room.folder / "pair.html").read_text()
    )
    document = json.loads(room.run("report", a, b, "--json", "-").out)
    assert "make such a ladder again" in document["metrics"]["vmaf"]["refused"]


def shifted(ladder: Ladder, points: float, factor: float) -> Ladder:
    """The ladder with its scores more by so many points, and its bitrates times a factor."""
    rungs = (
        replace(
            rung,
            score=rung.score + points,
            guard={key: value + points for key, value in rung.guard.items()},
        )
        for rung in scaled(ladder, factor).rungs
    )
    return replace(ladder, rungs=tuple(rungs))


@pytest.mark.parametrize(("factor", "gained"), [(1.0, True), (4.0, False)])
def test_ladders_whose_scores_do_not_meet_are_told_what_to_do_once(
    room: Room, factor: float, gained: bool
) -> None:
    a, b = two_folders(room.folder, lambda ladder: shifted(ladder, 40, factor))
    said = room.run("report", a, b, "--html", "pair.html")
    told = " ".join(said.out.split())
    assert said.status == 2 and "from 41.3 to 92.6 and B from 81.3 to 132.6" in told
    assert told.count("make one of them again with --min-score, --max-score or --rungs") == 1
    assert not re.search("the anchor|the test|add points", told)
    assert (room.folder / "pair.html").read_text().count("Make one of them again") == 1
    # over bitrates that both have, and not over the few that one has of the other's
    assert ("+40.00" in told) == gained


def test_a_gain_over_a_small_part_of_a_ladder_is_none(made: Ladder) -> None:
    top = made.rungs[-1]
    wide = replace(made, rungs=(*made.rungs, replace(
        top, bitrate_kbps=top.bitrate_kbps * 40, score=top.score + 1
    )))  # fmt: skip
    for compared in (compare_ladders(made, wide), compare_ladders(wide, made)):
        assert compared.gaps[0].bd_score is None and compared.gaps[0].bd_rate_percent is not None


@pytest.mark.drawn
def test_a_phone_has_the_rungs_below_each_other(made: Ladder) -> None:
    compared = compare_ladders(made, scaled(about(made, metric={"name": "vmaf"}), 0.5))
    headings, rows = rung_rows(compared)
    assert headings == ["", "kb/s", "size", "score", "VMAF", "PSNR-Y"]
    assert len(rows) == 8 and {row[0] for row in rows} == {"A", "B"}
    rates = [float(row[1]) for row in rows]
    assert rates == sorted(rates)
    # of B the score is its VMAF
    assert all(row[3] == row[4] for row in rows if row[0] == "B")
    text = pair_page(compared)
    assert '<div class="narrow"><div class="scroll"><table class="dense numbers">' in text


@pytest.mark.drawn
def test_the_page_stands_alone_and_the_picture_is_drawn_on(made: Ladder) -> None:
    import av
    import numpy as np

    compared = compare_ladders(made, scaled(made, 0.8))
    text = pair_page(compared)
    page = Page(text)
    # for a desk and for a phone
    assert page.tags.count("svg") == 2 and "@import" not in text and "url(http" not in text
    assert "A needs 25.0 % more bits than B" in text and "A: hull" in text and "B: hull" in text
    Path(made.folder / "x.png").write_bytes(pair_png(compared))
    with av.open(str(made.folder / "x.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    for wanted in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):
        assert np.sum(np.all(np.abs(picture - wanted) < 8, axis=2)) > 100


@pytest.mark.drawn
@pytest.mark.parametrize("narrow", [False, True])
def test_sizes_are_written_right_of_the_axis(made: Ladder, narrow: bool) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation

    for factor in (0.8, 1.25):
        figure = _figure(
            compare_ladders(made, scaled(made, factor)),
            (4.2, 5.4) if narrow else (7.6, 5.4),
            narrow=narrow,
        )
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
        (axes,) = figure.axes
        texts = [each for each in axes.get_children() if isinstance(each, Annotation)]
        assert len(texts) >= 2
        assert min(text.get_window_extent().x0 for text in texts) > axes.bbox.x0


@pytest.mark.drawn
def test_words_of_others_are_data(tmp_path: Path, room: Room) -> None:
    plain = Page(pair_page(compare_ladders(*[make_ladder(tmp_path)] * 2))).tags
    hostile = " ".join(HOSTILE)

    def change(ladder: Ladder) -> Ladder:
        words = {"name": hostile, "library_version": hostile, "preset": hostile}
        return about(ladder, codec=hostile, encoder=words)

    compared = compare_ladders(
        made := make_ladder(tmp_path, path=hostile, metric=hostile), change(made)
    )
    text = pair_page(compared)
    page = Page(text)
    assert page.tags == plain and not {"script", "img"} & set(page.tags)
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert all(c.isprintable() for c in text.replace("\n", ""))
    pair_png(compared)
    said = room.run("report", *two_folders(room.folder, change, metric=hostile))
    assert said.status == 0, said.err
    assert all(c.isprintable() for c in said.out.replace("\n", ""))


def test_two_real_ladders(room: Room) -> None:
    make_clip(room.folder / "a.y4m", size="160x96")
    sizes = ("--resolutions", "160x96", "--rungs", "3")
    fast = room.ladder("a.y4m", *SMALL, *sizes, out="fast")
    better = ("--preset", "slow")
    slow = room.ladder("a.y4m", *SMALL, *sizes, *better, out="slow")
    said = room.run("report", "fast", "slow", "--json", "-")
    assert said.status == 0, said.err
    document = json.loads(said.out)
    curves = [
        [(rung["bitrate_kbps"], rung["score"]) for rung in ladder["rungs"]]
        for ladder in (fast, slow)
    ]
    assert document["metric"] == "psnr_y"
    assert document["bd_rate_percent"] == pytest.approx(bd_rate(*curves), abs=0.01)
    assert document["differences"]["preset"] == ["ultrafast", "slow"]
