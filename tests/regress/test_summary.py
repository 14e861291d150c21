"""What `vqaloop regress` says: at a terminal, in a pull request, to a CI server, as a page."""

import copy
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.ladder.test_store import HOSTILE, Page
from tests.report.test_console import COLOUR, on_terminal
from vqaloop.regress.junit import junit_xml
from vqaloop.regress.page import curves_figure, difference_figure, regress_page
from vqaloop.regress.summary import builds_line, markdown, print_verdict, regress_table
from vqaloop.report.plotting import INK, style

pytestmark = pytest.mark.drawn

# all figures here are made up; they are only of a believable size
METRICS = ("internvqa-mini", "vmaf", "psnr_y")
REFUSED = "the curves share 40 % of the shorter one's score span, and 75 % are needed"
CRASH = "killed by SIGSEGV: x264 [error]: malloc of size 1048576 failed"


def make_runs(more: float, builds: tuple[str, ...]) -> list[dict[str, Any]]:
    """Four points a build; the candidate takes `more` times the bits."""
    return [
        {
            "build": build, "width": 640, "height": 360, "point": f"crf {crf}", "knob": crf,
            "value": crf,
            "bitrate_kbps": rate * {"baseline": 1.0, "repeat": 1.001, "candidate": more}[build],
            "scores": {"internvqa-mini": score, "vmaf": score + 1, "psnr_y": 28 + score / 8},
            "cpu_s": 2.0, "wall_s": 1.25, "peak_bytes": 90 << 20,
            "stream_sha256": "2" * 64, "decoded_md5": "3" * 32,
        }
        for build in builds
        for crf, rate, score in ((22, 2400.0, 93.0), (27, 1210.0, 84.0), (32, 610.0, 69.0),
                                 (37, 300.0, 50.0))
    ]  # fmt: skip


def make_clip(name: str, percent: float | None = None, refused: str | None = None) -> Any:
    """A clip of which the candidate needs `percent` more; without that it has no runs."""
    measured = percent is not None
    builds = ("baseline", "repeat", "candidate") if measured else ("baseline", "repeat")
    gap = {"pchip": percent, "akima": percent, "noise": 0.1 if measured else None, "refused": None}
    none = {"pchip": None, "akima": None, "noise": None, "refused": refused}
    return {
        "clip": name, "sha256": "4" * 64, "width": 640, "height": 360, "frames": 120,
        "fps": "30000/1001", "bit_exact": False if measured else None,
        "decoded_equal": False if measured else None,
        "bd_rate": {**dict.fromkeys(METRICS, gap), **({"vmaf": none} if refused else {})},
        "cpu_ratio": 1.031 if measured else None, "wall_ratio": 1.02 if measured else None,
        "peak_ratio": 1.0 if measured else None, "rate_percent": percent,
        "failures": [], "runs": make_runs(1 + (percent or 0) / 100, builds),
    }  # fmt: skip


def make_document() -> dict[str, Any]:
    """Four clips: one worse, one alike, one refused by VMAF, one with a crash."""
    clips = [
        make_clip("crowd.y4m", 6.25),
        make_clip("park.y4m", 0.12),
        make_clip("title.y4m", 0.4, REFUSED),
        make_clip("dark.y4m"),
    ]
    nothing = {**dict.fromkeys(("pchip", "akima", "noise")), "refused": "the curve has 0 points"}
    clips[3]["bd_rate"] = dict.fromkeys(METRICS, nothing)
    clips[3]["failures"] = [
        {"build": "candidate", "width": 640, "height": 360, "point": f"crf {crf}",
         "kind": "crash", "message": CRASH}
        for crf in (22, 27)
    ]  # fmt: skip
    clips[1]["failures"] = [
        {"build": "baseline", "width": 640, "height": 360, "point": "crf 22",
         "kind": "truncated", "message": "ends after 118 of 120 frames"}
    ]  # fmt: skip
    checks = [
        {"clip": clip["clip"], "check": check, "status": "passed", "message": "", "kind": ""}
        for clip in clips
        for check in (
            "encode",
            "decode",
            "frames",
            *(f"bd-rate {name}" for name in METRICS),
            "time",
        )
    ]
    marked = {(check["clip"], check["check"]): check for check in checks}
    for key, status, message in (
        (("crowd.y4m", "bd-rate vmaf"), "failed", "vmaf needs +6.25 % of bits; the limit is 5 %"),
        (("title.y4m", "bd-rate vmaf"), "skipped", REFUSED),
        (("dark.y4m", "encode"), "failed", f"crash at 640x360 crf 22 (and at 1 more): {CRASH}"),
        (("dark.y4m", "decode"), "skipped", "no run came so far"),
    ):
        kind = "" if status == "skipped" else "bd-rate" if "bd-rate" in key[1] else "crash"
        marked[key].update(status=status, message=message, kind=kind)
    mean = {"clip": "all clips", "check": "bd-rate vmaf", "status": "failed", "kind": "bd-rate"}
    checks.append({**mean, "message": "vmaf needs +3.19 %; the limit is 0.5 %"})
    found = {
        "bd_rate_percent": 2.26, "akima_percent": 2.3, "interval_percent": [0.12, 6.25],
        "noise_floor_percent": 0.21, "clips": 3, "refused": 1, "verdict": "regression",
    }  # fmt: skip
    build = {"name": "x264", "kind": "standalone", "sha256": "5" * 64, "saved": False}
    return {
        "schema": "vqaloop.regress/1", "vqaloop": "0.1.0", "when": "2025-03-01T10:11:12+00:00",
        "machine": "Some CPU, 2 cores", "codec": "h264", "encoder": "libx264", "preset": "medium",
        "points": ["crf 22", "crf 27", "crf 32", "crf 37"], "sizes": ["source"],
        "threshold_percent": 0.5, "gate": list(METRICS),
        "metric": {"name": "internvqa-mini", "weights_sha256": "6" * 64},
        "baseline": {**build, "version": "x264 core 164", "args": []},
        "candidate": {**build, "version": "x264 core 165", "args": ["--aq-mode", "a b"]},
        "bd_rate_percent": 2.26, "interval_percent": [0.12, 6.25], "noise_floor_percent": 0.21,
        "verdict": "regression",
        "summary": "Worse: the candidate crashes on dark.y4m. It needs +2.26 % of bits.",
        "reasons": [f"{check['clip']}: {check['message']}" for check in checks
                    if check["status"] == "failed"],
        "metrics": {name: dict(found) for name in METRICS},
        "time": {"cpu_ratio": 1.031, "wall_ratio": 1.02, "noise_percent": 1.4,
                 "verdict": "no change"},
        "memory": {"peak_ratio": None, "verdict": "cannot tell"},
        "rate": {"mean_percent": 2.2, "verdict": "not judged", "what": "bitrate at equal crf"},
        "bit_exact": False, "decoded_equal": None, "checks": checks, "clips": clips,
        "cost": {"encodes": 44, "encode_cpu_s": 88.0, "score_s": 30.5, "wall_s": 99.25},
    }  # fmt: skip


def renamed(document: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """The document with other words of others in it: names, messages, versions."""

    def change(value: Any) -> Any:
        if isinstance(value, dict):
            return {change(key): change(item) for key, item in value.items()}
        if isinstance(value, list):
            return [change(item) for item in value]
        return value.replace(old, new) if isinstance(value, str) else value

    made: dict[str, Any] = change(document)
    return made


def emptied(document: dict[str, Any]) -> dict[str, Any]:
    """Nothing could be measured, and nothing was compared."""
    document = copy.deepcopy(document)
    document.update(verdict="cannot tell", reasons=[], clips=[], checks=[], candidate=None)
    for found in document["metrics"].values():
        found.update(dict.fromkeys(("bd_rate_percent", "akima_percent", "interval_percent",
                                    "noise_floor_percent")), clips=0)  # fmt: skip
    for key in ("bd_rate_percent", "interval_percent", "noise_floor_percent", "time", "memory"):
        document[key] = None
    return document


def rendered(document: dict[str, Any], width: int = 80) -> list[str]:
    from rich.console import Console

    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=False).print(regress_table(document))
    return stream.getvalue().splitlines()


def row(lines: list[str], start: str) -> str:
    return " ".join(next(line for line in lines if line.startswith(start)).split())


def test_the_table_says_the_verdict_first_and_every_clip_after() -> None:
    lines = rendered(make_document())
    assert lines[0] == "regression"
    assert lines[1].startswith("Worse: the candidate crashes on dark.y4m.")
    assert builds_line(make_document()) in " ".join(" ".join(lines[:6]).split())
    assert row(lines, "clip ") == "clip internvqa-mini VMAF PSNR-Y time memory bits %"
    assert row(lines, "crowd") == "crowd.y4m +6.25 +6.25! +6.25 1.03x 1.00x +6.25"
    assert row(lines, "title") == "title.y4m +0.40 refused +0.40 1.03x 1.00x +0.40"
    assert row(lines, "dark") == "dark.y4m refused refused refused - - - failed"
    told = "+2.26 +2.30 +0.12 to +6.25 0.21 3 of 4 regression"
    assert row(lines, "internvqa-mini") == f"internvqa-mini {told}"
    assert row(lines, "encode time, CPU") == "encode time, CPU 1.03x 1.40 % no change"
    assert row(lines, "peak memory") == "peak memory - - cannot tell"
    text = " ".join(" ".join(lines).split())
    for words in (CRASH, "also failed: park.y4m: baseline: truncated", f"VMAF: {REFUSED}"):
        assert words in text
    assert lines[-1] == "44 encodes, encoding 88.0 s CPU, scoring 30.5 s CPU, 99.2 s in all"


@pytest.mark.parametrize("extra", [0, 4])
def test_the_table_fits_80_columns(extra: int) -> None:
    document = renamed(make_document(), "crowd.y4m", "crowd" * 30 + ".y4m")
    for number in range(extra):
        name = f"another-metric-{number}"
        document["metrics"][name] = {**document["metrics"]["vmaf"], "akima_percent": -98765.4321}
        document["metrics"][name]["interval_percent"] = [-12345.678, 123456.789]
        for clip in document["clips"]:
            clip["bd_rate"][name] = {"pchip": 12345.678, "akima": None, "refused": None}
    lines = rendered(document)
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("park.y4m ") for line in lines) == 1 + (extra > 0) + (extra > 2)
    assert (sum("+12346" in line for line in lines) > 0) == (extra > 0)


def test_the_table_keeps_names_from_the_terminal() -> None:
    nasty = "a\x1b[31mred\x07\r\nb\u202e[bold]x[/bold]"
    document = renamed(make_document(), "crowd.y4m", nasty)
    lines = rendered(renamed(document, CRASH, nasty))
    assert all(line.isprintable() for line in lines)
    assert "[bold]x[/bold]" in "".join(lines)


def test_colour_is_for_terminals_and_never_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = make_document()
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = on_terminal(monkeypatch, "stdout", lambda: print_verdict(document))
    assert COLOUR.search(coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = on_terminal(monkeypatch, "stdout", lambda: print_verdict(document))
    assert not COLOUR.search(plain)
    words = [re.sub(r"\x1b\[[0-9;]*m", "", text).split() for text in (coloured, plain)]
    print_verdict(document)
    assert words[0] == words[1] == capsys.readouterr().out.split()


def test_an_output_of_few_letters_takes_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    print_verdict(renamed(make_document(), "park.y4m", "日本\udcff.y4m"))
    stream.flush()
    assert b"\\u65e5\\u672c" in buffer.getvalue()


def as_page(document: dict[str, Any]) -> Page:
    """The comment as a site renders it."""
    return Page(MarkdownIt("commonmark").enable("table").render(markdown(document)))


class Words(Page):
    """The text of a page, too."""

    def __init__(self, text: str) -> None:
        self.text = ""
        super().__init__(text)

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        self.text += data


def test_the_comment_has_the_verdict_the_means_and_each_clip() -> None:
    text = markdown(make_document())
    assert text.startswith("### vqaloop regress: regression\n\nWorse: ")
    assert (
        "| internvqa-mini | +2.26 | +2.30 | +0.12 to +6.25 | 0.21 | 3 of 4 | regression |" in text
    )
    assert "| peak memory | - | - | cannot tell |" in text
    page = Words(MarkdownIt("commonmark").enable("table").render(text))
    assert page.tags.count("table") == 2 + 4 and page.tags.count("details") == 4
    assert "crowd.y4m: BD-rate +6.25 %; failed: VMAF" in page.text and CRASH in page.text.replace(
        "\u200b", ""
    )
    assert f"title.y4m, VMAF: {REFUSED}" in page.text
    assert "Other crashes and broken output" in page.text and "Failures" not in page.text
    assert "park.y4m: baseline: truncated, 640x360 at crf 22" in page.text
    assert len(text) < 4000


NASTY = [
    *HOSTILE,
    "a|b\\|c.y4m",
    "`` `code` ``",
    "* x\n# y",
    "</code></summary></details><b>",
    "[x](http://e.org)![y](z)",
    "@everyone #1 http://e.org www.e.org a@b.org",
    "&lt;&#124;|",
    "1. x",
    "- - -",
    "    x",
    "$x$ ~~y~~ **z** _w_",
    "<!-- x",
]


@pytest.mark.parametrize("name", NASTY)
def test_names_bring_no_markup_into_a_comment(name: str) -> None:
    plain = as_page(make_document())
    for old in ("crowd.y4m", CRASH, REFUSED, "x264 core 165", "Worse: "):
        document = renamed(make_document(), old, name)
        page = as_page(document)
        assert page.tags == plain.tags, old
        assert page.attributes == plain.attributes


@settings(max_examples=40)
@given(
    st.text(
        alphabet=st.sampled_from("ab1 |`*_[]()<>#!&;:/\\\"'~-+=.@$\n\t{}^%\udcff"), max_size=30
    )
)
def test_no_words_bring_markup_into_a_comment(words: str) -> None:
    plain = as_page(make_document()).tags
    for old in ("crowd.y4m", REFUSED):
        # a letter, so that no name is empty
        assert as_page(renamed(make_document(), old, words + "z")).tags == plain


def test_words_of_others_reach_nobody() -> None:
    words = "@everyone see #12 !3 http://e.org www.e.org a@b.org"
    document = renamed(make_document(), "Worse: ", words)
    shown = Words(MarkdownIt("commonmark").enable("table").render(markdown(document))).text
    assert not re.search(r"@\w|#\d|!\d|://|www\.", shown)
    assert words in shown.replace("\u200b", "")


def test_a_comment_keeps_within_what_sites_take() -> None:
    document = make_document()
    document["clips"] *= 60
    document["reasons"] = ["@" * 1000] * 50
    text = markdown(document)
    assert len(text) < 65_536
    assert "The rest is left out" in text and text.rstrip().endswith("its check.")
    assert text.count("<details>") == text.count("</details>")
    document["reasons"] = ["short"] * 51
    assert "- 30 more\n" in markdown(document)


def parsed(document: dict[str, Any]) -> ET.Element:
    root = ET.fromstring(junit_xml(document))
    assert root.tag == "testsuites" and [suite.tag for suite in root] == ["testsuite"]
    return root[0]


def test_junit_has_a_case_for_each_clip_and_check() -> None:
    document = make_document()
    suite = parsed(document)
    cases = {(case.get("classname"), case.get("name")): case for case in suite.iter("testcase")}
    assert set(cases) == {(check["clip"], check["check"]) for check in document["checks"]}
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": len(cases), "failures": 3, "errors": 0, "skipped": 2}
    crash = cases["dark.y4m", "encode"].find("failure")
    assert crash is not None and crash.get("type") == "crash"
    assert CRASH in crash.attrib["message"]
    assert (crash.text or "").splitlines() == [
        f"candidate, 640x360 at crf {crf}: crash: {CRASH}" for crf in (22, 27)
    ]
    worse = cases["crowd.y4m", "bd-rate vmaf"].find("failure")
    assert worse is not None and worse.get("type") == "bd-rate"
    skipped = cases["title.y4m", "bd-rate vmaf"].find("skipped")
    assert skipped is not None and skipped.get("message") == REFUSED
    assert len(cases["park.y4m", "encode"]) == 0
    assert cases["park.y4m", "encode"].get("time") == "15.000"
    values = {item.get("name"): item.get("value") for item in suite.iter("property")}
    assert values["baseline.version"] == "x264 core 164"
    assert values["candidate.args"] == "--aq-mode a b" and values["vqaloop"] == "0.1.0"


KINDS = {
    "hang": "encode",
    "no-output": "encode",
    "undecodable": "decode",
    "truncated": "decode",
    "frame-count": "frames",
}


@pytest.mark.parametrize("kind", KINDS)
def test_junit_names_the_kind_of_each_failure(kind: str) -> None:
    document = make_document()
    clip = document["clips"][3]
    for failure in clip["failures"]:
        failure["kind"] = kind
    # an older failure of the baseline, of another kind, is not what the candidate is blamed for
    clip["failures"].insert(0, {**clip["failures"][0], "build": "baseline", "kind": "crash"})
    for check in document["checks"]:
        if check["clip"] == "dark.y4m" and check["check"] == KINDS[kind]:
            check.update(status="failed", message=kind)
    found = [
        failure.get("type")
        for case in parsed(document).iter("testcase")
        if (case.get("classname"), case.get("name")) == ("dark.y4m", KINDS[kind])
        for failure in case.iter("failure")
    ]
    assert found == [kind]


def test_junit_has_the_form_that_servers_read() -> None:
    suite = parsed(make_document())
    allowed = {
        "testsuite": {"name", "package", "id", "tests", "failures", "errors", "skipped", "time",
                      "timestamp", "hostname"},
        "properties": set(), "property": {"name", "value"},
        "testcase": {"classname", "name", "time"}, "failure": {"type", "message"},
        "skipped": {"message"}, "system-out": set(), "system-err": set(),
    }  # fmt: skip
    for element in suite.iter():
        assert set(element.attrib) == allowed[element.tag]
    order = [element.tag for element in suite]
    cases = order.count("testcase")
    assert order == ["properties", *["testcase"] * cases, "system-out", "system-err"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", suite.attrib["timestamp"])
    assert re.fullmatch(r"\d+\.\d{3}", suite.attrib["time"])


@settings(max_examples=40)
@given(st.text(alphabet=st.characters(codec=None), max_size=20))
def test_junit_can_be_parsed_whatever_the_names(name: str) -> None:
    document = renamed(make_document(), "crowd.y4m", name)
    suite = parsed(renamed(document, CRASH, name))
    assert len(suite.findall("testcase")) == len(document["checks"])


def test_characters_that_xml_cannot_hold_are_removed() -> None:
    suite = parsed(renamed(make_document(), "crowd.y4m", 'a\x00\x1b[31m\ufffe\udcff<&"b'))
    assert 'a[31m<&"b' in {case.get("classname") for case in suite.iter("testcase")}


@pytest.fixture(scope="module")
def plain_page() -> str:
    return regress_page(make_document())


def test_the_page_stands_alone(plain_page: str) -> None:
    page = Words(plain_page)
    assert not {"script", "iframe", "img", "object", "link"} & set(page.tags)
    links = [value for key, value in page.attributes if key in ("src", "href", "xlink:href")]
    assert links and all(value and value.startswith("#") for value in links)
    assert "@import" not in plain_page and "url(http" not in plain_page
    assert "prefers-color-scheme: dark" in plain_page and 'name="viewport"' in plain_page
    assert INK not in plain_page
    # rate and score of 4 clips by 3 metrics; no difference on the clip that has no candidate
    assert page.tags.count("svg") == 4 * 3 + 3 * 3
    for words in ("Regression", CRASH, REFUSED, "+0.12 to +6.25", "crf 37", "Some CPU, 2 cores",
                  "--aq-mode 'a b'", "44 encodes", "+6.25!", "5" * 64):  # fmt: skip
        assert words in page.text


def drawn_once(document: dict[str, Any]) -> dict[str, Any]:
    """Drawing takes time; one clip's curves are enough."""
    for clip in document["clips"][1:]:
        clip["runs"] = []
    return document


@pytest.fixture(scope="module")
def plain_tags() -> list[str]:
    return Page(regress_page(drawn_once(make_document()))).tags


@pytest.mark.parametrize("name", [HOSTILE[0], HOSTILE[2], HOSTILE[4], HOSTILE[7]])
def test_names_are_data_in_the_page(plain_tags: list[str], name: str) -> None:
    document = drawn_once(make_document())
    for old in ("crowd.y4m", CRASH, "x264 core 165", "internvqa-mini", "--aq-mode"):
        document = renamed(document, old, name + old[0])
    text = regress_page(document)
    page = Page(text)
    assert page.tags == plain_tags
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_identifiers_are_told_once(plain_page: str) -> None:
    page = Page(plain_page)
    names = [value for key, value in page.attributes if key == "id"]
    assert len(names) == len(set(names))
    links = [value for key, value in page.attributes if key in ("href", "xlink:href")]
    assert {(value or "")[1:] for value in links} <= set(names)


def test_the_difference_is_drawn_as_large_as_it_is() -> None:
    clip = make_clip("crowd.y4m", 6.25)
    with style(10, "black"):
        figure = difference_figure(clip, "vmaf")
        assert figure is not None
        lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
        drawn = {label: list(map(float, lines[label].get_ydata())) for label in  # type: ignore[arg-type]
                 ("candidate", "baseline again")}  # fmt: skip
    assert drawn["candidate"] == pytest.approx([6.25] * 100)
    assert drawn["baseline again"] == pytest.approx([0.1] * 100)


def test_several_sizes_are_compared_by_their_hulls() -> None:
    clip = make_clip("crowd.y4m", 6.25)
    dominated = [
        {**run, "width": 320, "height": 180, "bitrate_kbps": run["bitrate_kbps"] * 3}
        for run in clip["runs"]
    ]
    clip["runs"] += dominated
    with style(10, "black"):
        figure = difference_figure(clip, "vmaf")
        assert figure is not None
        lines = {str(line.get_label()): line for line in figure.axes[0].get_lines()}
        drawn = list(map(float, lines["candidate"].get_ydata()))  # type: ignore[arg-type]
        shown = curves_figure(clip, "vmaf")
    assert drawn == pytest.approx([6.25] * 100)
    assert shown is not None
    dots = [line for line in shown.axes[0].get_lines() if line.get_linestyle() == "None"]
    assert [len(line.get_xdata()) for line in dots] == [8, 8, 8]  # type: ignore[arg-type]


def worsened(*scores: float) -> Callable[[dict[str, Any]], None]:
    def change(clip: dict[str, Any]) -> None:
        candidate = [run for run in clip["runs"] if run["build"] == "candidate"]
        for run, score in zip(candidate, scores, strict=True):
            run["scores"] = {"vmaf": score}

    return change


@pytest.mark.parametrize("scores", [(60, 70, 50, 40), (9, 8, 7, 6), (float("nan"),) * 4])
def test_curves_without_a_difference_are_drawn_alone(scores: tuple[float, ...]) -> None:
    clip = make_clip("crowd.y4m", 6.25)
    worsened(*scores)(clip)
    with style(10, "black"):
        assert difference_figure(clip, "vmaf") is None
        assert curves_figure(clip, "vmaf") is not None


def test_nothing_measured_is_said_and_not_drawn() -> None:
    document = emptied(make_document())
    assert rendered(document)[0] == "cannot tell"
    assert markdown(document).startswith("### vqaloop regress: cannot tell\n")
    suite = parsed(document)
    assert (suite.get("tests"), suite.get("errors")) == ("1", "1")
    assert "<svg" not in regress_page(document)
    clip = make_clip("dark.y4m")
    clip["runs"] = []
    document["clips"] = [clip]
    text = regress_page(document)
    assert "<svg" not in text and "Nothing was measured by VMAF" in text
    # what failed a check is no crash
    assert "<h2>Crashes and broken output</h2>\n<p>None.</p>" in text
    assert "Failures" not in text


@pytest.mark.parametrize("count", [3, 9])
def test_clips_that_passed_are_folded_where_there_are_many(count: int) -> None:
    document = make_document()
    document["clips"] = [make_clip(f"clip{n}.y4m", 0.1) for n in range(count)]
    for clip in document["clips"]:
        clip["runs"] = []
    text = regress_page(document)
    assert text.count('<details class="clip" open>') == (count if count < 7 else 0)
    assert text.count('<details class="clip"') == count
