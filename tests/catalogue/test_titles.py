"""Tables of titles: what their columns say."""

from pathlib import Path

import pytest

from tests.support.commandline import Room
from tests.support.media import REPOSITORY, make_clip
from vqaloop.catalogue.titles import COLUMNS, read_titles


def test_a_precision_is_read_as_the_option_is(tmp_path: Path) -> None:
    table = tmp_path / "titles.csv"
    table.write_text("input,score_precision\na.mp4,1.5\nb.mp4,\n")
    assert [dict(title.options) for title in read_titles(table)] == [{"score_precision": 1.5}, {}]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("input,score_precision\none.y4m,fine\n", "line 2, column score_precision: value 'fine'"),
        ("input,score_precision\none.y4m,0\n", "column score_precision: --score-precision must"),
        (
            "input,metric,score_precision\none.y4m,psnr,1\n",
            "line 2, columns metric, score_precision: psnr looks at all frames",
        ),
    ],
)
def test_a_precision_that_cannot_be_is_refused_at_its_column(
    room: Room, table: str, words: str
) -> None:
    make_clip(room.folder / "one.y4m", size="160x96")
    (room.folder / "t.csv").write_text(table)
    said = room.run("ladder", "t.csv", "--codec", "h264", "--quiet")
    assert said.status == 2 and words in said.err and said.err.count("\n") == 1, said


def test_all_columns_are_documented() -> None:
    text = (REPOSITORY / "docs" / "ladder.md").read_text(encoding="utf-8")
    told = text[text.index("A table has a header") : text.index("They mean")]
    assert set(told.split("`")[1::2]) == {"input", "name", *COLUMNS}
