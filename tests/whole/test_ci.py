"""What docs/ci.md tells people to run: its options are there, and the bisection works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.media import REPOSITORY, make_clip
from vqaloop.cli.parser import make_parser
from vqaloop.pytest_plugin import OPTIONS

TEXT = (REPOSITORY / "docs" / "ci.md").read_text("utf-8")


def block(name: str) -> str:
    """The code block below the comment `name`."""
    found = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)^```$", TEXT, re.DOTALL | re.M)
    assert found, name
    return found[1]


def test_the_commands_are_understood() -> None:
    parser, seen = make_parser(), 0
    said = {
        "\\\n": " ",
        "$OPTIONS": "--codec h264 --preset medium --quiet",
        '"$base"': "base.json",
        '"$@"': "",
    }
    joined = TEXT
    for word, meaning in said.items():
        joined = joined.replace(word, meaning)
    for line in re.findall(r"^\s*(?:- )?(vqaloop regress .*)$", joined, re.MULTILINE):
        words = shlex.split(line)[1:]
        options = parser.parse_args([word for word in words if not word.startswith("$")])
        assert options.history or options.codec, line
        seen += 1
    assert seen >= 10


def test_the_options_of_the_jobs_are_there() -> None:
    options = re.findall(r"OPTIONS: (.*)", TEXT)
    assert len(options) == 2
    for line in options:
        parsed = make_parser().parse_args(["regress", *shlex.split(line)])
        assert (parsed.codec, parsed.frames, parsed.knobs) == ("h264", 60, [22, 27, 32, 37])


def test_the_options_of_the_plugin_are_there() -> None:
    named = set(re.findall(r"vqaloop_(\w+) =", TEXT)) | {
        name.replace("-", "_") for name in re.findall(r"--vqaloop-([\w-]+)", TEXT)
    }
    listed = re.search(r"Both also have (.*?) \(", TEXT, re.DOTALL)
    assert listed
    named |= set(re.findall(r"`(\w+)`", listed[1]))
    assert named == {*OPTIONS, "clips", "clip"}


def run(*argv: str | Path, cwd: Path, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_recipe_finds_the_commit_that_made_the_encoder_worse(tmp_path: Path) -> None:
    x264 = shutil.which("x264")
    if not x264 or not shutil.which("git") or not shutil.which("make"):
        pytest.skip("x264, git or make is not installed")
    judge, base = tmp_path / "judge.sh", tmp_path / "base.json"
    judge.write_text(block("judge.sh"))
    judge.chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "vqaloop").write_text(
        f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m vqaloop "$@"\n'
    )
    (tools / "vqaloop").chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "VQALOOP_CACHE": str(tmp_path / "cache"),
        **{
            f"GIT_{who}_{key}": "a@b"
            for who in ("AUTHOR", "COMMITTER")
            for key in ("NAME", "EMAIL")
        },
    }
    tree = tmp_path / "tree"
    tree.mkdir()
    run("git", "init", "--quiet", cwd=tree)
    # the third commit cannot be built, the fourth does not start, the sixth is worse
    presets = ["medium"] * 5 + ["ultrafast"] * 3
    commits = []
    for number, preset in enumerate(presets):
        (tree / "Makefile").write_text(
            "x264: source\n\tcp source x264\n" if number != 2 else "broken\n"
        )
        body = "exit 3" if number == 3 else f'exec {x264} "$@" --preset {preset}'
        (tree / "source").write_text(f"#!/bin/sh\n# {number}\n{body}\n")
        (tree / "source").chmod(0o755)
        run("git", "add", "Makefile", "source", cwd=tree)
        run("git", "commit", "--quiet", "-m", f"commit {number}", cwd=tree, env=env)
        commits.append(run("git", "rev-parse", "HEAD", cwd=tree).strip())
    options: list[str | Path] = [
        "--knobs",
        "22,27,32,37",
        make_clip(tmp_path / "clip.mp4", frames=10),
    ]
    subprocess.run(
        ["vqaloop", "regress", "--baseline", x264, "--codec", "h264", "--save", base, *options],
        cwd=tree,
        env=env,
        capture_output=True,
    )
    run("git", "bisect", "start", commits[-1], commits[0], cwd=tree)
    said = run("git", "bisect", "run", judge, base, *options, cwd=tree, env=env)
    assert f"{commits[5]} is the first bad commit" in said
