"""Reports: what is written is read back, is safe to open, and looks as it should."""

import base64
import csv
import io
import json
import math
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vqaloop.core import process
from vqaloop.errors import InputError
from vqaloop.ladder import store
from vqaloop.ladder.pictures import Pictures, Place
from vqaloop.ladder.store import read_ladder, write_reports
from vqaloop.records import Ladder, Rung
from vqaloop.report.plotting import COLOURS, INK

# all figures here are made up; they are only of a believable size
MADE_UP = [
    # width, height, kb/s, peak, score, predicted, VMAF, PSNR-Y, crf
    (320, 180, 148.2, 260.1, 41.3, 41.3, 38.9, 29.4, 41.0),
    (640, 360, 410.7, 701.8, 63.8, 62.1, 64.4, 33.0, 35.0),
    (960, 540, 1120.4, 1904.0, 80.2, 80.9, 82.7, 36.8, 31.0),
    (1280, 720, 2904.9, 4711.3, 92.6, 92.2, 94.0, 40.1, 26.5),
]


def make_ladder(
    folder: Path, path: str = "clips/park.y4m", metric: str = "internvqa-mini"
) -> Ladder:
    """A ladder of made-up numbers; its rung files are a few bytes each."""
    rungs = []
    for width, height, rate, peak, score, predicted, vmaf, psnr, crf in MADE_UP:
        file = f"{width}x{height}_crf{crf:g}.mp4"
        (folder / file).write_bytes(b"rung" * 300)
        options = ("-vf", f"scale={width}:{height}:flags=lanczos", "-c:v", "libx264")
        rungs.append(
            Rung(
                width, height, rate, peak, score, predicted,
                {"vmaf": vmaf, "psnr_y": psnr, "vmaf_worst_s": 60.0},
                ("crf", crf), {"aq-mode": "3"}, (*options, "-crf", f"{crf:g}"), file,
                over_time={
                    "step_s": 1.0, "kbps": [rate * (1 + 0.1 * (n % 3)) for n in range(10)],
                    "span_s": 0.0667, "scores": [[1.2 * n, score + n % 4 - 2] for n in range(9)],
                },
            )
        )  # fmt: skip
    return Ladder(folder, tuple(rungs), make_about(path, metric))


def make_pictures(ladder: Ladder) -> Pictures:
    """As they would be taken, of one grey each."""
    places = [
        Place(
            found["frame"],
            (2 * found["left"], found["top"], 48, 32),
            tuple(found["scores"]),
            {n: grey_webp(40 * n) for n in range(len(ladder.rungs) + 1)},
        )
        for found in ladder.about["worst"]
    ]
    return Pictures(tuple(places))


def grey_webp(level: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (level, level, level)).save(buffer, "WEBP")
    return base64.b64encode(buffer.getvalue()).decode()


def make_about(path: str, metric: str) -> dict[str, Any]:
    points = [(*row[:4], row[4], row[8]) for row in MADE_UP]
    trials: list[dict[str, Any]] = [
        {
            "width": width, "height": height, "knob": crf + step, "preset": "medium",
            "params": {}, "bitrate_kbps": rate * 2 ** (-step / 6), "score": score - 2.1 * step,
            "whole_title": True, "state": "complete", "error": None, "cached": step > 0,
        }
        for width, height, rate, _, score, crf in points
        for step in (-3, 0, 4)
    ]  # fmt: skip
    failed = {"bitrate_kbps": None, "score": None, "state": "failed", "cached": False}
    trials.append({**trials[0], **failed, "knob": 63.0, "error": "killed by SIGSEGV: <b>oops</b>"})
    hull = [
        {"width": w, "height": h, "bitrate_kbps": r, "score": s, "knob": k, "measured": True}
        for w, h, r, _, s, k in points
    ]
    return {
        "schema": store.SCHEMA,
        "vqaloop": "0.1.0",
        "source": {
            "path": path, "sha256": "0" * 64, "width": 1280, "height": 720, "fps": 30000 / 1001,
            "fps_exact": "30000/1001", "frames": 300, "duration": 10.01,
        },
        "codec": "h264",
        "encoder": {
            "name": "libx264", "library_version": "libx264 core 165", "ffmpeg": "1" * 64,
            "preset": "medium",
        },
        "metric": {
            "name": metric, "mode": "anchored", "weights_sha256": None,
            "label": "VMAF v0.6.1" if metric.startswith("internvqa") else None,
        },
        "hull": hull,
        "trials": trials,
        "cost": {
            "encodes": 9, "encoded_frames": 2700, "encoded_pixels": 1_244_160_000,
            "encode_cpu_s": 41.2, "score_s": 6.1, "guard_s": 5.0, "cache_hits": 4, "wall_s": 32.1,
        },
        "windows": [[0, 300]],
        "worst": [
            {"frame": frame, "left": 40 * frame, "top": frame, "size": 112,
             "scores": [row[4] - 9 for row in MADE_UP]}
            for frame in (14, 28)
        ],
        "tuning": {
            "trials": [
                {"number": n, "saving_percent": (n * 7) % 5 - 1.0, "feasible": n % 3 > 0}
                for n in range(9)
            ],
            "importance": {"aq-mode": 0.7, "bframes": 0.299, "rc-lookahead": 0.001},
        },
        "asked": {"preset": "medium", "rungs": 4, "resolutions": [[1280, 720], [320, 180]]},
        "warnings": ["a trial failed and was left out: killed by SIGSEGV"],
    }  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page, as a browser's parser would hand them out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.outer: list[str] = []
        self.in_svg = False
        self.attributes: list[tuple[str, str | None]] = []
        self.pre: list[str] = []
        self.in_pre = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.in_svg = self.in_svg or tag == "svg"
        if not self.in_svg:
            self.outer.append(tag)
        if tag == "pre":
            self.pre.append("")
            self.in_pre = True

    def handle_endtag(self, tag: str) -> None:
        self.in_pre = self.in_pre and tag != "pre"
        self.in_svg = self.in_svg and tag != "svg"

    def handle_data(self, data: str) -> None:
        if self.in_pre:
            self.pre[-1] += data


def page_of(ladder: Ladder) -> tuple[str, Page]:
    write_reports(ladder, make_pictures(ladder) if ladder.about["worst"] else None)
    text = (ladder.folder / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    ladder = replace(make_ladder(tmp_path), trusted=False)
    write_reports(ladder)
    again = read_ladder(tmp_path)
    assert again == ladder
    text = (tmp_path / "ladder.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == ladder.to_json()
    write_reports(again)
    assert (tmp_path / "ladder.json").read_text() == text
    names = {*store.REPORTS, *(rung.file for rung in ladder.rungs)}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_csv_has_a_row_a_rung(tmp_path: Path) -> None:
    write_reports(make_ladder(tmp_path))
    with open(tmp_path / "ladder.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["bitrate_kbps"]) for row in rows] == [row[2] for row in MADE_UP]
    assert rows[0]["file"] == "320x180_crf41.mp4"


def test_json_holds_finite_numbers_only(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    blind = replace(ladder.rungs[0], guard={"vmaf": math.nan, "psnr_y": math.inf})
    about = {
        **ladder.about,
        "rules": {"max_kbps": math.inf},
        "extra": [math.nan, (1.0, -math.inf)],
    }
    write_reports(replace(ladder, rungs=(blind, *ladder.rungs[1:]), about=about))

    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = (tmp_path / "ladder.json").read_text()
    document = json.loads(text, parse_constant=refuse)
    assert document["rules"] == {"max_kbps": None}
    assert document["extra"] == [None, [1.0, None]]
    assert math.isnan(read_ladder(tmp_path).rungs[0].guard["vmaf"])


def test_trouble_with_the_folder_leaves_the_older_reports(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    write_reports(ladder)
    before = (tmp_path / "ladder.json").read_bytes()
    (tmp_path / "rd.png").unlink()
    (tmp_path / "rd.png").mkdir()
    with pytest.raises(InputError, match="could not write"):
        write_reports(replace(ladder, rungs=ladder.rungs[1:]))
    assert (tmp_path / "ladder.json").read_bytes() == before
    assert (tmp_path / ladder.rungs[0].file).exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.drawn
@pytest.mark.parametrize("metric", ["internvqa-mini", "vmaf", "psnr"])
def test_the_picture_decodes_and_is_drawn_on(tmp_path: Path, metric: str) -> None:
    import av
    import numpy as np

    write_reports(make_ladder(tmp_path, metric=metric))
    with av.open(str(tmp_path / "rd.png")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert picture.shape == (800, 1200, 3)
    assert np.all(picture[:3, :3] == 255)
    for colour in COLOURS[:4]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.sum(np.all(np.abs(picture.astype(int) - wanted) < 8, axis=2)) > 100


@pytest.mark.drawn
def test_global_state_of_matplotlib_is_left_alone(tmp_path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    write_reports(make_ladder(tmp_path))
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


HOSTILE = [
    "<script>alert(1)</script>.y4m",
    "a\"b'c onload=x&lt;.mp4",
    "$title ${plot} $$.mp4",
    r"a$\frac{$_^.mp4",
    "new\nline\x1b[31m\u202egpj.mp4",
    "\udcff.mp4",
    "日本語 😀.mp4",
    "--><svg onload=alert(1)>.mp4",
    "-y.mp4",
    "http:x.mp4",
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page_of(make_ladder(tmp_path_factory.mktemp("plain")))[1]


@pytest.mark.drawn
@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_data(tmp_path: Path, plain: Page, name: str) -> None:
    ladder = make_ladder(tmp_path, path=f"a dir/{name}")
    ladder.about["metric"]["label"] = name
    ladder.about["warnings"] = [name]
    ladder.about["trials"][0]["error"] = name
    ladder.about["tuning"]["importance"] = {name: 0.6, f"{name}2": 0.4}
    ladder.about["asked"] = {"encoder": name, "weights": name}
    ladder.rungs[0].params.update({"x": name})
    text, page = page_of(ladder)
    assert page.outer == plain.outer
    # how many ticks an axis has room for depends on the words beside it
    assert set(page.tags) == set(plain.tags)
    assert not {"iframe", "object", "link"} & set(page.tags)
    assert page.tags.count("script") == 1 and page.tags.count("img") == 2 * 5
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert all(c.isprintable() for c in text.replace("\n", ""))
    assert len(page.pre) == 4 + 2 and not [line for line in page.pre if "\n" in line]
    assert read_ladder(tmp_path).about["source"]["path"] == f"a dir/{name}"


@pytest.mark.drawn
def test_the_page_stands_alone(tmp_path: Path) -> None:
    text, page = page_of(make_ladder(tmp_path))
    sources = [value for key, value in page.attributes if key in ("src", "href", "xlink:href")]
    files = {rung.file for rung in make_ladder(tmp_path).rungs}
    known = (*files, "#", "data:image/webp;base64,")
    assert all(value and value.startswith(known) for value in sources)
    assert "@import" not in text and "url(http" not in text
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    # rate and score twice, over time, promise and guard, the search, tuning, cost
    assert page.tags.count("svg") == 2 + 2 + 2 + 2 + 2 + 1 and INK not in text
    for words in ("2905", "4711", "94.00", "41.30", "1,200", "killed by SIGSEGV", "32.1 s in"):
        assert words in text
    assert "Not to be trusted" not in text
    assert "Not to be trusted" in page_of(replace(make_ladder(tmp_path), trusted=False))[0]


def test_commands_name_the_program_that_made_the_rungs(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    program = "/opt/my tools/ffmpeg"
    ladder.about["encoder"] |= {"ffmpeg_path": program, "ffmpeg_version": "ffmpeg 8.0-own"}
    text, page = page_of(ladder)
    commands = [shlex.split(line) for line in page.pre]
    assert [words[0] for words in commands[:-2]] == [program] * len(ladder.rungs)
    assert "by ffmpeg 8.0-own with libx264 core 165" in text and "1" * 64 in text
    write_reports(ladder, make_pictures(ladder))
    with open(tmp_path / "ladder.csv", newline="", encoding="utf-8") as file:
        rows = [(row["ffmpeg"], row["ffmpeg_version"]) for row in csv.DictReader(file)]
    assert rows == [(program, "ffmpeg 8.0-own")] * len(ladder.rungs)
    assert read_ladder(tmp_path).about["encoder"] == ladder.about["encoder"]


@pytest.mark.parametrize(
    ("path", "given"),
    [("it's $HOME.y4m", "it's $HOME.y4m"), ("-y.mp4", "file:-y.mp4"), ("c:1.mp4", "file:c:1.mp4")],
)
def test_commands_can_be_copied(tmp_path: Path, path: str, given: str) -> None:
    ladder = make_ladder(tmp_path, path=path)
    _, page = page_of(ladder)
    commands = [shlex.split(line) for line in page.pre]
    assert commands[:-2] == [
        ["ffmpeg", "-i", given, *rung.ffmpeg_args, rung.file] for rung in ladder.rungs
    ]
    asked = "--preset medium --rungs 4 --resolutions 1280x720,320x180"
    # what would be taken for an option is a file for all that
    own = f"./{path}" if path.startswith("-") else path
    assert commands[-2:] == [
        ["vqaloop", "ladder", own, "--codec", "h264", *asked.split(), "-o", tmp_path.name],
        ["vqaloop", "report", tmp_path.name],
    ]


def test_commands_with_control_characters_are_safe_to_paste(tmp_path: Path) -> None:
    name = "it's\x1b[201~\x03\nrm \\u.mp4"
    _, page = page_of(make_ladder(tmp_path, path=name))
    assert all(line.isprintable() for line in page.pre)
    done = process.run(["bash", "-c", page.pre[0].replace("ffmpeg", "printf %s@", 1)], timeout_s=9)
    assert done.stdout.decode().split("@")[1] == name


@pytest.mark.drawn
def test_the_least_that_can_be_drawn(tmp_path: Path) -> None:
    ladder = make_ladder(tmp_path)
    ladder.about.update(trials=[], hull=[], warnings=[], worst=[], tuning=None)
    ladder.about.pop("asked")
    one = replace(ladder.rungs[0], file="gone.mp4", bitrate_kbps=0.4, guard={}, over_time={})
    text, _ = page_of(replace(ladder, rungs=(one,)))
    assert "missing" in text
    assert read_ladder(tmp_path).rungs == (one,)
