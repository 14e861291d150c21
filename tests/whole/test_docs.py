"""The documentation holds: what it tells people to type is run, its options are the parser's.

Every command and every Python program of the pages is run on tiny video, page by page and from the
top, in a folder that holds what the pages speak of. By default with QUICK options; with `-m slow`
as printed. What cannot be run is listed in NOT_RUN with the reason; what is neither fails here.
`VQALOOP_WRITE_DOCS=1 pytest tests/whole/test_docs.py` writes docs/commands.md's options again.
"""

import argparse
import functools
import glob
import importlib.util
import itertools
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vqaloop
from tests.support import docpages
from tests.support.commandline import Room
from tests.support.docmaterial import furnish
from tests.support.docoptions import option_lists, subcommands
from tests.support.docpages import PAGES, Block
from tests.support.media import REPOSITORY
from vqaloop.cli.parser import parse_words
from vqaloop.pytest_plugin import OPTIONS

COMMANDS = REPOSITORY / "docs" / "commands.md"

NOT_RUN = {
    "python3 -m venv": "makes an environment: CI makes one, and installs and tests in it",
    ". .venv/bin/activate": "as above",
    "pip install": "as above; it needs a package index",
    "CVVDP/bin/pip install": "as above",
    "pip wheel": "as above",
    "pipx ": "as above; with an environment of its own",
    "uv ": "as above",
    "docker ": "needs a container engine",
    "python3 -m http.server": "serves until it is stopped; tests/delivery/test_page.py has one",
    "pytest -n auto": "these are the tests",
    "pytest -m slow": "these are the tests",
    "ruff ": "CI runs it",
    "mypy": "CI runs it",
    "lint-imports": "CI runs it",
    "#!/bin/sh": "judge.sh, which tests/whole/test_ci.py bisects with",
    "vqaloop regress --bisect": "takes a repository of an encoder; tests/regress/test_bisect.py "
    "has some",
    "git ": "in a tree of x264's; tests/whole/test_ci.py bisects a tree of its own",
    "make x264": "as above",
    "cp x264": "as above",
    "python -m bench.panel": "an hour, of clips and stills; tests/bench/test_panel.py runs both",
    "bash recipes/internvqa-mini/make.sh": "hours; each of its steps is a command run here",
    "bash recipes/ablations/make.sh": "as above",
    "bash recipes/waterloo-small/make.sh": "as above; tests/whole/test_waterloo.py runs it",
    "GPUS=2 bash recipes/waterloo-small/make.sh": "as above",
    "vqaloop ladder title.mp4 --codec hevc -o OUT --weights": "the weights come from a data set; "
    "tests/whole/test_waterloo.py has them",
    "vqaloop deliver OUT -o OUT-delivered": "as above",
    "vqaloop serve": "goes on until it is stopped; tests/service/test_serve.py runs one",
    "vqaloop watch": "goes on until it is stopped; tests/service/test_watch.py runs one",
    "optuna-dashboard": "another program, which serves until it is stopped",
    "ray ": "starts and stops a Ray cluster; tests/whole/test_ray.py has one",
    "vqaloop ladder TITLE...": "as above",
    "vqaloop ladder sky.mp4": "takes pictures of 216x160; tests/ladder/test_guarded_ladder.py has "
    "them",
    "python -m bench.regress": "hundreds of encodes are scored, and no option makes them few",
    "python -m bench.cheaper": "as above",
    "python -m bench.content": "takes the grids' own clips; tests/bench/test_predict.py runs it",
    "python -m bench.gpu": "takes a GPU; tests/bench/test_gpu.py runs its miniature",
    "vqaloop ladder hdr10.mp4": "needs the program cvvdp; tests/whole/test_hdr.py runs it",
    "vqaloop encode hdr10.mp4": "as above",
    "vqaloop score rung.mp4 --reference hdr10.mp4": "as above",
    "python -m bench.cvvdp": "as above; tests/bench/test_cvvdp.py runs its smallest",
    "python -m bench.scoring --judges": "as above; test_the_benches_run has the other judges",
    "python -m bench.pu21": "as above; tests/bench/test_pu21.py runs it",
    "python -m bench.fuzz": "needs Atheris; tests/whole/test_hostile.py runs what it found",
}
"""Beginnings of commands, and why nobody runs them here."""

ELSEWHERE = {
    "docs/pipeline.md": "tests/whole/test_pipeline.py",
    "docs/cluster.md": "tests/whole/test_ray.py",
}
"""Pages whose programs another test runs, by the comment above each, or call by call."""


SAMPLE = ("--seconds", "1", "--size", "160x90")
QUICK = {
    "ladder": (
        *("--metric", "vmaf", "--rungs", "3", "--min-step", "1"),
        *("--resolutions", "160x90", "--no-prior"),
    ),
    "tune": ("--metric", "vmaf", "--trials", "2"),
    "encode": ("--metric", "vmaf"),
    "regress": ("--metric", "vmaf", "--frames", "12"),
    "audit": ("--metric", "vmaf"),
}
"""What is put behind a command for it to be quick."""
_LADDER = dict(metric="vmaf", rungs=3, min_step=1, resolutions=[(160, 90)], prior=False)
QUICK_CALLS: dict[str, dict[str, Any]] = {
    "build_ladder": _LADDER,
    "build_ladders": _LADDER,
    "tune_encoder": {"metric": "vmaf", "trials": 2},
    "encode_to_target": {"metric": "vmaf"},
    "compare_builds": {"metric": "vmaf", "frames": 12},
    "audit_ladder": {"metric": "vmaf"},
}
HEAVY = {"corpus", "distill", "evaluate"}
"""Commands that are not quick by any option."""
HEAVY_PAGES = {
    *("docs/audience.md", "docs/ci.md", "docs/commands.md", "docs/ladder.md", "docs/models.md"),
    *("docs/audit.md", "docs/grain.md", "docs/peaks.md", "docs/per-shot.md", "docs/scoring.md"),
}
"""Pages that take long even so."""
BENCHES = {
    "ladders": "--codecs h264 --metric vmaf",
    "grid": "--codecs h264 --knobs 4 --frames 12",
    "search": "--clips coffee --codecs h264",
    "encoded": "--codecs h264",
    "prior": "-o prior.json --codecs h264",
    "predict": "--clips coffee --codecs h264",
    "tune": "--codecs h264 --frames 12 --trials 2",
    "params": "--frames 12 --metric vmaf",
    "cuts": "--titles 2",
    "attacks": "--frames 8 --attacks grey --judges vmaf,psnr",
    "gaming": "--frames 8 --judges vmaf,psnr",
    "scenes": "--titles 2",
    "capped": "--encoders libx264 --height 90 --knobs 3 --ratios 2 --preset fastest",
    "overhead": "--codecs h264 --height 90 --frames 12 --options '--metric psnr --preset "
    "ultrafast --rungs 2 --min-step 0.2 --no-prior'",
    "grain": "--height 90 --frames 8 --strengths 12 --preset 13",
    "guard": "--height 90 --knobs 33 --preset ultrafast --positions 4",
    "excerpts": "--clips . --titles 1 --joined 3 --seeds 1 --height 72",
    "long": "--clips . --minutes 0.5 --size 128x72 --options '--metric psnr --no-cap --guard off "
    "--resolutions 128x72,64x36'",
    "shots": "--titles 1 --codecs h264",
    "pershot": "--titles 1 --codecs h264 --rungs 3 --seconds 1.2 --height 90 --preset fastest",
    "targets": "--titles 1 --codecs h264",
    "sampled": "--height 144 --frames 20 --seeds 1",
    "places": "--height 144 --frames 20 --seeds 2",
    "students": "--clips",
    "audience": "--clips coffee --codecs h264",
    "scoring": "--heights 144 --repeats 1 --ladders",
}
"""Benches, and what makes them small."""

STANDS_FOR = {
    "INPUT": "input.y4m",
    "CLIP...": "A.mp4 B.mp4 C.mp4 coffee.mp4",
    "DIR": "runs/bench",
    # sizes that the tiny titles have
    "1280x720": "160x90",
    "640x360": "80x46",
}
"""Words of the pages that the reader replaces."""
FOREIGN = (
    *("--end-usage", "--cq-level", "--target-bitrate", "--threads", "--quantizer", "--bitrate"),
    *(
        "--object-store-memory",
        "--num-cpus",
        "--crf",
        "--rc",
        "--tbr",
        "--lp",
        "--pools",
        "--nproc_per_node",
        "--strict",
        "--version",
        "--extra-index-url",
        "--gpus",
        "--target",
        "--force-reinstall",
        "--no-deps",
    ),
)
"""Options of other programs, and of vqaloop itself."""


def listed(command: str) -> bool:
    return command.startswith(tuple(NOT_RUN))


def all_commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for command in docpages.commands(page):
            yield page, command


def saved_as(block: Block) -> str | None:
    """The file that a block is to commands, under the name they give it."""
    kinds = {
        "def test_": "test_build.py",
        "[pytest]": "pytest.ini",
        "# mine.toml": "mine.toml",
        "# team.toml": "team.toml",
        "# keys.toml": "keys.toml",
        "input,name": "titles.csv",
        "bandwidth_kbps,share": "audience.csv",
    }
    return next((name for sign, name in kinds.items() if sign in block.text), None)


def small(text: str) -> str:
    """A recipe that ends soon, a table of small titles."""
    for key, value in {"steps": 2, "warm_up": 1, "scenes": 1}.items():
        text = re.sub(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
    return text.replace("1920x1080 1280x720", "160x90 120x68")


def runnable(page: str) -> list[str | Block]:
    """What is run of a page, in its order: commands and programs."""
    found: list[str | Block] = []
    for block in docpages.blocks(page):
        if block.language in ("sh", "console"):
            found += [c for c in block.commands() if not listed(c) and " -m bench." not in c]
        elif block.language == "python" and page not in ELSEWHERE and not saved_as(block):
            found.append(block)
    return found


def benches() -> list[str]:
    """The commands of the benches, each once, as the pages have them in their order."""
    found = [c for _, c in all_commands() if c.startswith("python -m bench.") and not listed(c)]
    return list(dict.fromkeys(found))


# ---- what is said


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_listed(page: str) -> None:
    for block in docpages.blocks(page):
        place = f"{page}:{block.line}"
        assert block.language in docpages.LANGUAGES, f"{place}: which language is this?"
        if block.language in ("", "text"):
            assert not re.match(r"\$|vqaloop |python ", block.text), f"{place}: a command in no sh"
        if block.language == "python" and page in ELSEWHERE:
            marker = docpages.read(page).splitlines()[block.line - 2].strip("<!-> ")
            calls, test = re.findall(r"(\w+)\(", block.text), docpages.read(ELSEWHERE[page])
            by_call = not marker and all(f"{call}(" in test for call in calls)
            assert f'run("{marker}"' in test or by_call, f"{place}: nobody runs it"
    for command in docpages.commands(page):
        program, _, bench = command.partition(" -m bench.")
        known = program == "python" and bench.split(" ")[0] in BENCHES
        ours = command.split()[0] == "vqaloop" or command.startswith("pytest --vqaloop")
        assert ours or known or listed(command), (
            f"{page}: add {command!r} to NOT_RUN, with a reason"
        )


def test_what_is_listed_is_there() -> None:
    there = [command for _, command in all_commands()]
    assert not [start for start in NOT_RUN if not any(c.startswith(start) for c in there)]
    assert set(BENCHES) == {bench.split("bench.")[1].split()[0] for bench in benches()}


def parsed(words: list[str], page: str) -> argparse.Namespace:
    """A command's options; settings come from a file of the page, if it has one."""
    files = {name: block.text for block in docpages.blocks(page) if (name := saved_as(block))}
    if "--preset-file" not in words:
        return parse_words(words)
    place = words.index("--preset-file") + 1
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(files[words[place]])
        file.flush()
        return parse_words([*words[:place], file.name, *words[place + 1 :]])


def test_every_command_is_understood() -> None:
    for page, command in all_commands():
        words = [STANDS_FOR.get(word, word) for word in shlex.split(command)]
        if words[0] == "vqaloop" and words[1] != "--version":
            assert callable(parsed(words[1:], page).run), f"{page}: {command}"
        elif command.startswith("python -m bench."):
            source = (REPOSITORY / f"{words[2].replace('.', '/')}.py").read_text()
            for module in re.findall(r"^from bench\.(\w+)", source, re.MULTILINE):
                source += (REPOSITORY / "bench" / f"{module}.py").read_text()
            for option in re.findall(r"(?<!\S)--[\w-]+", command):
                assert f'"{option}"' in source, f"{page}: {command}"


def test_every_option_in_a_sentence_is_there() -> None:
    commands = subcommands()
    ours = {option for parser in commands.values() for option in parser._option_string_actions}
    others = {f"--vqaloop-{name.replace('_', '-')}" for name in (*OPTIONS, "clip")} | {
        option
        for path in (REPOSITORY / "bench").glob("*.py")
        for option in re.findall(r'"(--[\w-]+)"', path.read_text())
    }
    for page in PAGES:
        for code in docpages.inline(page):
            named = re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
            command = re.match(r"vqaloop ([a-z]+)", code)
            if command:
                assert command[1] in commands, f"{page}: {code}"
                known = set(commands[command[1]]._option_string_actions)
            else:
                known = {*ours, *others, *FOREIGN}
            assert set(named) <= known, f"{page}: {code}"
            for bench in re.findall(r"-m bench\.(\w+)", code):
                assert (REPOSITORY / "bench" / f"{bench}.py").is_file(), f"{page}: {code}"


def test_every_module_that_is_named_is_there() -> None:
    files = {path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.rglob("*.py")}
    for page in [*PAGES, "CHANGELOG.md"]:
        for code in docpages.inline(page):
            if re.fullmatch(r"[\w/]+/\w+\.py", code):
                assert any(f"/{file}".endswith(f"/{code}") for file in files), f"{page}: {code}"
            elif re.fullmatch(r"vqaloop\.(toml|bash|fish|1)", code):
                continue
            elif name := re.fullmatch(r"(vqaloop(?:\.\w+)+)(?:\(.*)?", code):
                pkgutil.resolve_name(name[1])
    # the map of CONTRIBUTING.md: "`module.py`, `function` and `function`"
    beside = r"`([\w/]+)\.py`, (`\w+`(?: and `\w+`)*)"
    for module, names in re.findall(beside, docpages.read("CONTRIBUTING.md")):
        text = (REPOSITORY / "vqaloop" / f"{module}.py").read_text("utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b(def|class) {name}\b", text), f"{module}.py has no {name}"


# ---- the options of docs/commands.md


def test_the_options_of_every_command_are_the_parser_s() -> None:
    text = COMMANDS.read_text("utf-8")
    lists = option_lists()
    marked = re.compile(r"(<!-- options: (\w+) -->\n)(.*?)(<!-- end of options -->)", re.DOTALL)
    assert [match[2] for match in marked.finditer(text)] == list(lists)
    written = marked.sub(lambda match: f"{match[1]}\n{lists[match[2]]}\n\n{match[4]}", text)
    if os.environ.get("VQALOOP_WRITE_DOCS"):
        COMMANDS.write_text(written, "utf-8")
    elif text != written:
        pytest.fail("stale: run VQALOOP_WRITE_DOCS=1 pytest tests/whole/test_docs.py")
    headings = re.findall(r"^## (\w+)$", text, re.MULTILINE)
    assert headings == [name for name in lists if name != "common"]


# ---- what is done


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "material"
    folder.mkdir()
    for block in itertools.chain.from_iterable(map(docpages.blocks, PAGES)):
        if file := saved_as(block):
            (folder / file).write_text(small(block.text))
    return furnish(folder)


@pytest.fixture
def place(room: Room, material: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """A room that holds what the pages speak of; what one page encoded, the next need not."""
    monkeypatch.setenv("VQALOOP_CACHE", str(material.parent / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(material.parent / "torch"))
    shutil.copytree(material, room.folder, symlinks=True, dirs_exist_ok=True)
    (room.folder / "../other").mkdir()
    (room.folder / "../other/x264").symlink_to(room.folder / "x264")
    return room


def words_of(command: str, folder: Path, quick: bool) -> list[str]:
    """A command as a shell would give it, with places of the reader's brought into `folder`.

    Of the files that a * stands for, one is enough where it has to be quick.
    """
    # the root's own folders are not ours to write to
    moved = re.sub(r"/(tmp|data|shared)/", rf"{folder}/\1/", command)
    found = []
    for word in shlex.split(moved):
        if "*" in word and "=" not in word:
            files = sorted(glob.glob(word))
            found += files[:1] if quick else files
        else:
            found += STANDS_FOR[word].split() if word in STANDS_FOR else [word]
    return found


def type_in(place: Room, command: str, quick: bool) -> None:
    """Run a command as printed or with what makes it quick; it must be done."""
    words = words_of(command, place.folder, quick)
    if words[0] == "pytest":
        plugin = ["-p", "vqaloop.pytest_plugin", "-p", "no:cacheprovider"]
        more = ["--vqaloop-metric", "vmaf"] if quick else []
        run_python(["-m", "pytest", *plugin, *words[1:], *more], place.folder)
        return
    if words[1] == "sample":
        Path(words[2]).unlink(missing_ok=True)
        words += SAMPLE
    words += QUICK.get(words[1], ()) if quick else ()
    said = place.run(*words[1:])
    # a student may say of patterns that it does not know them; other arguments may be worse ones
    allowed = {0, 3} if words[1] in ("ladder", "tune", "report") and not quick else {0}
    # a finding is no failure
    allowed |= {1} if "--candidate-args" in command or words[1] == "audit" else set()
    assert said.status in allowed, f"{command}: {said.status}\n{said.out}\n{said.err}"


def run_python(words: list[str], folder: Path) -> None:
    """A program of its own, in a Python that finds the checkout first and no plugin but ours."""
    known = {"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, **known},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


# DeepSpeed and what it imports are of many versions
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("page", "quick"),
    [(page, True) for page in PAGES if runnable(page) and page not in HEAVY_PAGES]
    + [pytest.param(page, False, marks=pytest.mark.slow) for page in PAGES if runnable(page)],
)
def test_what_a_page_tells_to_type_works(
    place: Room, page: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, options in QUICK_CALLS.items() if quick else ():
        call = functools.partial(getattr(vqaloop, name), **options)
        monkeypatch.setattr(vqaloop, name, call)
    space: dict[str, Any] = {"__name__": "docs", "vqaloop": vqaloop}
    if "pytorch_model.bin" in docpages.read(page):
        torch.save(vqaloop.create_model("internvqa-small").state_dict(), "pytorch_model.bin")
    if not quick and "runs/corpus/held-out" in docpages.read(page):
        make_corpus(place)
    # twice, as by somebody who tries it again and finds there what the first time left
    for step in runnable(page) * (2 if quick else 1):
        if isinstance(step, str):
            heavy = quick and step.split()[1] in HEAVY
            # the one command that gives arguments to x264 itself
            if not heavy and ("--aq-mode" not in step or shutil.which("x264")):
                type_in(place, step, quick)
        else:
            exec(compile(step.text, f"{page}:{step.line}", "exec"), space)


def make_corpus(place: Room) -> None:
    """A set held out, as recipes/internvqa-mini/make.sh would leave one."""
    words = ["A.mp4", "B.mp4", "C.mp4", "runs/corpus/held-out", "--encodes", "5", "--crops", "4"]
    said = place.run("corpus", *words, "--quiet")
    assert said.status == 0, said.err


@pytest.mark.slow
def test_the_benches_run(place: Room) -> None:
    make_corpus(place)
    for command in benches():
        name = command.split("bench.")[1].split()[0]
        words = [*words_of(command, place.folder, False)[1:], *shlex.split(BENCHES[name])]
        run_python(words, place.folder)


@pytest.mark.slow
def test_the_site_builds_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    if not all(importlib.util.find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")):
        pytest.skip("mkdocs is not installed (vqaloop[docs])")
    site = tmp_path / "site"
    run_python(["-m", "mkdocs", "build", "--strict", "--site-dir", str(site)], REPOSITORY)
    pages = {path.name: path.read_text("utf-8") for path in site.glob("*.html")}
    assert len(pages) > 20
    for name, page in pages.items():
        assert not re.search(r"<(script|img|iframe)[^>]*src=\"?(https?:)?//", page), name
        assert not re.search(r"<link[^>]*href=\"?(https?:)?//", page), name
    for name in vqaloop.__all__:
        assert f"vqaloop.{name}" in pages["api.html"], name


def test_the_reference_names_all_that_vqaloop_offers() -> None:
    named = re.findall(r"^::: vqaloop\.(\w+)$", docpages.read("docs/api.md"), re.MULTILINE)
    assert sorted(named) == sorted(vqaloop.__all__)


def test_links_lead_to_files() -> None:
    for page in [*PAGES, "CHANGELOG.md"]:
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(#[^)]*)?\)", docpages.read(page)):
            path = (REPOSITORY / page).parent / target if target else REPOSITORY / page
            assert path.exists(), f"{page}: {target}"
            if anchor and path.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
                assert anchor[1:] in map(slug, titles), f"{page}: {target}{anchor}"


def slug(title: str) -> str:
    """The anchor of a heading, as GitHub and mkdocs make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
