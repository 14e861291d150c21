"""A comparison as a page and as a comment: what the headings of clips and reasons say."""

import pytest

from tests.regress.test_summary import Words, as_page, drawn_once, make_clip, make_document
from tests.regress.test_summary import rendered as table_of
from vqaloop.regress.page import regress_page
from vqaloop.regress.summary import headline, markdown

pytestmark = pytest.mark.drawn


def test_a_heading_names_every_check_that_failed() -> None:
    document = make_document()
    told = {clip["clip"]: headline(document, clip) for clip in document["clips"]}
    assert told == {
        # by the metric that leads it passed
        "crowd.y4m": "BD-rate +6.25 %; failed: VMAF",
        "park.y4m": "BD-rate +0.12 %",
        "title.y4m": "BD-rate +0.40 %",
        "dark.y4m": "BD-rate refused; failed: encode",
    }
    for text in (Words(regress_page(drawn_once(document))).text, markdown(document)):
        assert "BD-rate +6.25 %; failed: VMAF" in text and "! %" not in text


def test_marks_stand_behind_units() -> None:
    document = make_document()
    rate = {"clip": "park.y4m", "check": "rate", "status": "failed", "message": "", "kind": ""}
    document["checks"].append(rate)
    for text in (regress_page(drawn_once(document)), markdown(document)):
        assert "bits +0.12 %!" in text.replace("&#33;", "!") and "! %" not in text


def test_the_first_reason_is_told_once() -> None:
    document = make_document()
    first, *others = document["reasons"]
    document["summary"] = f"Worse: {first} (and {len(others)} more)."
    for page in (Words(regress_page(drawn_once(document))), as_page(document)):
        assert page.tags.count("li") >= len(others) > 0
    text = Words(regress_page(drawn_once(document))).text
    assert text.count(first) == 1 and all(reason in text for reason in others)
    # only the summary of a regression holds it
    document.update(verdict="saved", summary="Kept.")
    assert Words(regress_page(drawn_once(document))).text.count(first) == 1


@pytest.mark.parametrize(("name", "whole"), [("a.y4m", True), ("a" * 40 + ".y4m", False)])
def test_a_heading_is_broken_where_there_is_no_room(name: str, whole: bool) -> None:
    document = make_document()
    document["clips"] = [make_clip(name, 0.5)]
    lines = table_of(document)
    heading = next(line for line in lines if line.lstrip().startswith("clip "))
    assert ("internvqa-mini" in heading.split()) == whole
    assert max(map(len, lines)) <= 80
