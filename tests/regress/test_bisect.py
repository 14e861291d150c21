"""Bisection over a repository of an encoder: scripts around x264, or stand-ins that only build."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.commandline import Room
from tests.support.media import make_clip
from vqaloop.errors import InputError
from vqaloop.regress import bisect as bisection
from vqaloop.regress.bisect import Plan, bisect
from vqaloop.regress.compare import Comparison

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")
BUILD = ("sh", "make.sh")


def git(tree: Path, *words: str) -> str:
    env = {
        **os.environ,
        **{f"GIT_{w}_{k}": "a@b" for w in ("AUTHOR", "COMMITTER") for k in ("NAME", "EMAIL")},
    }
    done = subprocess.run(
        ["git", *words], cwd=tree, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(tree: Path, content: str, build: str = "cp source x264") -> str:
    (tree / "source").write_text(content)
    (tree / "source").chmod(0o755)
    (tree / "make.sh").write_text(f"{build}\n")
    git(tree, "add", "source", "make.sh")
    git(tree, "commit", "--quiet", "--allow-empty", "-m", f"make it {content.split()[-1]}")
    return git(tree, "rev-parse", "HEAD")


def new_tree(folder: Path) -> Path:
    folder.mkdir()
    git(folder, "init", "--quiet", "-b", "main")
    return folder


def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Comparisons by what the program says: `worse` is a regression; the programs compared."""
    seen: list[str] = []

    def compare(
        *, baseline: Path, candidate: Path | None = None, save: Path | None = None, **_: Any
    ) -> Comparison:
        if save is not None:
            save.write_text(baseline.read_text())
            return Comparison({"verdict": "saved", "summary": "saved"})
        assert candidate is not None
        text = candidate.read_text().split()[-1]
        seen.append(text)
        if text == "broken":
            raise InputError("the build does not start")
        verdict = {"worse": "regression", "unclear": "cannot tell"}.get(text, "no change")
        return Comparison({"verdict": verdict, "summary": f"it is {text}"})

    monkeypatch.setattr(bisection, "compare_builds", compare)
    return seen


def plan(tree: Path, good: str, bad: str, **more: Any) -> Plan:
    return Plan(tree, good, bad, BUILD, "x264", tree.parent / "state", **more)


@pytest.mark.parametrize(
    "first", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 5, 8))]
)
def test_the_first_bad_commit_is_found_wherever_it_is(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, seen = new_tree(tmp_path / "tree"), judged(monkeypatch)
    commits = [commit(tree, f"{n} " + ("worse" if n >= first else "fine")) for n in range(9)]
    (tree / "mine.txt").write_text("not to be touched")
    found = bisect(plan(tree, commits[0], "main"), {})
    assert found.first_bad == commits[first]
    # the bad one, and at most three halvings of eight
    assert len(seen) <= 4
    assert git(tree, "rev-parse", "--abbrev-ref", "HEAD") == "main"
    assert (tree / "mine.txt").read_text() == "not to be touched"
    assert len(git(tree, "worktree", "list").splitlines()) == 1


def test_commits_that_cannot_be_built_or_compared_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = new_tree(tmp_path / "tree")
    judged(monkeypatch)
    kinds = ["fine", "fine", "broken", "fine", "unclear", "fine", "worse", "worse", "worse"]
    commits = [
        commit(tree, f"{n} {kind}", "exit 3" if n == 3 else "cp source x264")
        for n, kind in enumerate(kinds)
    ]
    found = bisect(plan(tree, commits[0], commits[-1]), {})
    assert found.first_bad == commits[6]
    for step in found.steps:
        assert step.verdict != "skipped" or step.commit in (commits[2], commits[3], commits[4])


def test_where_only_skipped_commits_are_left_all_suspects_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = new_tree(tmp_path / "tree")
    judged(monkeypatch)
    kinds = ["fine", "fine", "broken", "broken", "worse"]
    commits = [commit(tree, f"{n} {kind}") for n, kind in enumerate(kinds)]
    found = bisect(plan(tree, commits[0], commits[-1]), {})
    assert found.first_bad is None and set(found.suspects) == set(commits[2:])
    assert found.titles[commits[4]] == "make it worse"


def test_a_bad_commit_on_a_merged_branch_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = new_tree(tmp_path / "tree")
    judged(monkeypatch)
    good = commit(tree, "0 fine")
    git(tree, "checkout", "--quiet", "-b", "side")
    worse = commit(tree, "1 worse")
    git(tree, "checkout", "--quiet", "main")
    git(tree, "commit", "--quiet", "--allow-empty", "-m", "beside")
    git(tree, "merge", "--quiet", "--no-edit", "side")
    assert bisect(plan(tree, good, "main"), {}).first_bad == worse


def test_an_interrupted_bisection_goes_on_and_builds_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, seen = new_tree(tmp_path / "tree"), judged(monkeypatch)
    commits = [commit(tree, f"{n} " + ("worse" if n >= 5 else "fine")) for n in range(9)]
    compare, calls = vars(bisection)["compare_builds"], 0

    def stop(**builds: Any) -> Comparison:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        found: Comparison = compare(**builds)
        return found

    monkeypatch.setattr(bisection, "compare_builds", stop)
    with pytest.raises(KeyboardInterrupt):
        bisect(plan(tree, commits[0], commits[-1]), {})
    before = len(seen)
    # as after kill -9: a worktree in the middle of something
    git(tree, "worktree", "add", "--detach", str(tmp_path / "state" / "tree"), commits[3])
    (tmp_path / "state" / "tree" / "half").write_text("x")
    monkeypatch.setattr(bisection, "compare_builds", compare)
    found = bisect(plan(tree, commits[0], commits[-1]), {})
    assert found.first_bad == commits[5]
    tested = [step.commit for step in found.steps]
    assert len(tested) == len(set(tested)) == len(seen) and before == 2
    # done: the same call says it again without a build
    assert bisect(plan(tree, commits[0], commits[-1]), {}).first_bad == commits[5]
    assert len(seen) == len(tested)
    with pytest.raises(InputError, match="of another bisection"):
        bisect(plan(tree, commits[1], commits[-1]), {})


def test_what_cannot_be_bisected_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = new_tree(tmp_path / "tree")
    judged(monkeypatch)
    bad_build = commit(tree, "0 fine", "exit 4")
    fine, other = commit(tree, "1 fine"), commit(tree, "2 fine")
    for good, bad, said in (
        ("nothing", other, "'nothing' is no commit"),
        ("--all", other, "'--all' is no commit"),
        (other, fine, "is no ancestor"),
        (fine, fine, "is no ancestor"),
        (bad_build, other, "cannot be built: exit status 4"),
        (fine, other, "is good, so there is nothing to look for"),
    ):
        shutil.rmtree(tmp_path / "state", ignore_errors=True)
        with pytest.raises(InputError, match=said):
            bisect(plan(tree, good, bad), {})
    with pytest.raises(InputError, match="no commit of"):
        bisect(plan(tmp_path, fine, other), {})


def test_a_build_that_hangs_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = new_tree(tmp_path / "tree")
    judged(monkeypatch)
    good = commit(tree, "0 fine")
    slow = commit(tree, "1 fine", "sleep 30")
    bad = commit(tree, "2 worse")
    found = bisect(plan(tree, good, bad, build_limit_s=1.0), {})
    assert set(found.suspects) == {slow, bad}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--codec", "h264", "--program", "x264", "a.y4m"), "behind --"),
        (("--codec", "h264", "a.y4m", "--", "make"), "--program"),
        (("--codec", "h264", "--program", "/x264", "a.y4m", "--", "make"), "from the top"),
        (("--codec", "h264", "--program", "x", "--save", "b", "a.y4m", "--", "make"), "--save"),
    ],
)
def test_an_incomplete_command_is_refused(words: tuple[str, ...], said: str, room: Room) -> None:
    told = room.run("regress", "--bisect", "a", "b", *words)
    assert told.status == 2 and said in told.err


@pytest.mark.slow
def test_the_command_bisects_builds_of_x264(room: Room, tmp_path: Path) -> None:
    x264 = shutil.which("x264")
    if not x264:
        pytest.skip("x264 is not installed")
    tree = new_tree(tmp_path / "x 264")
    presets = ["medium"] * 3 + ["ultrafast"] * 3
    commits = [
        commit(tree, f'#!/bin/sh\n# {n}\nexec {x264} "$@" --preset {preset}')
        for n, preset in enumerate(presets)
    ]
    clip = make_clip(tmp_path / "clip.mp4", frames=10)
    said = room.run(
        *("regress", "--bisect", commits[0], commits[-1], "--repository", tree, "--codec"),
        *("h264", "--program", "x264", "--metric", "psnr", "--gate", "psnr_y", "--knobs"),
        *("22,27,32,37", "--json", "found.json", clip, "--", *BUILD),
    )
    assert said.status == 0, said.err
    assert f"{commits[3]} is the first bad commit" in said.out
    assert json.loads((room.folder / "found.json").read_text())["first_bad"] == commits[3]
