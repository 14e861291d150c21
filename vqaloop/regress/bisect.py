"""Finds the first commit of an encoder whose build is worse: bisection over a checkout.

Commits are built in a worktree of their own and compared with the runs of the good one. Every
verdict is kept as it comes, so that the same call goes on where an earlier one was interrupted.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
from msgspec import Struct

from vqaloop.core import process
from vqaloop.core.documents import document_text, read_document
from vqaloop.core.files import write_whole
from vqaloop.core.text import counted, quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError, ToolError
from vqaloop.records import Event, Watcher
from vqaloop.regress.compare import Comparison, compare_builds
from vqaloop.regress.options import BUILD_LIMIT_S

SCHEMA = "vqaloop.bisect/1"
GOOD, BAD, SKIPPED = "good", "bad", "skipped"
_STATE, _BASE, _TREE, _LOCK = "bisect.json", "base.json", "tree", "lock"
_GIT_LIMIT_S = 600.0
_REASON = 300
"""Letters of why a commit was skipped."""


@dataclass(frozen=True)
class Step:
    """One commit and what its build is."""

    commit: str
    verdict: str
    """good, bad or skipped."""
    reason: str
    """The comparison in a sentence, or why there was none."""


@dataclass(frozen=True)
class Plan:
    """What is bisected, and how a commit becomes an encoder."""

    repository: Path
    good: str
    bad: str
    build: tuple[str, ...]
    """The program and its arguments, run at the top of a worktree, without a shell."""
    program: str
    """The encoder that it makes, from there."""
    state: Path
    build_limit_s: float = BUILD_LIMIT_S


@dataclass(frozen=True)
class Bisection:
    """What a bisection found."""

    plan: Plan
    steps: tuple[Step, ...]
    suspects: tuple[str, ...]
    """The first bad commit; several where those between could not be tested."""
    titles: dict[str, str] = field(default_factory=dict)
    """First lines of the suspects' messages."""

    @property
    def first_bad(self) -> str | None:
        """The first bad commit, None where skipped ones leave several."""
        return self.suspects[0] if len(self.suspects) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """The document `vqaloop.bisect/1`."""
        return {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "repository": os.fspath(self.plan.repository),
            "good": self.plan.good,
            "bad": self.plan.bad,
            "build": list(self.plan.build),
            "program": self.plan.program,
            "first_bad": self.first_bad,
            "suspects": [{"commit": c, "title": self.titles.get(c, "")} for c in self.suspects],
            "steps": [asdict(step) for step in self.steps],
        }


class _Kept(Struct):
    asked: str
    steps: list[Step]


def bisect(
    plan: Plan, options: dict[str, Any], progress: Watcher = lambda event: None
) -> Bisection:
    """The first commit after `plan.good`, up to `plan.bad`, whose build is a regression.

    `options` are those of `compare_builds` but the builds. Raises InputError where the good commit
    cannot be built, the bad one is not worse, or the state is of another bisection.
    """
    git = _Git(plan.repository)
    good, bad = git.commit(plan.good), git.commit(plan.bad)
    if not git.is_ancestor(good, bad) or good == bad:
        raise InputError(
            f"{plan.good!r} is no ancestor of {plan.bad!r} in {quoted(plan.repository)}; give the "
            "good commit first"
        )
    plan.state.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(plan.state / _LOCK, blocking=False):
            return _Run(plan, options, git, progress).to_end(good, bad)
    except filelock.Timeout as error:
        raise InputError(
            f"another bisection is at work in {quoted(plan.state)}; wait for it, or give another "
            "--state"
        ) from error


@dataclass
class _Run:
    """One call, up to its end or an interruption."""

    plan: Plan
    options: dict[str, Any]
    git: "_Git"
    progress: Watcher
    steps: list[Step] = field(default_factory=list)

    def to_end(self, good: str, bad: str) -> Bisection:
        self._read()
        tree = self.plan.state / _TREE
        self.git.remove_tree(tree)
        try:
            self.git.add_tree(tree, good)
            self._baseline(tree, good)
            self._confirm(tree, bad)
            while (commit := self._next(good, bad)) is not None:
                self._test(tree, commit)
            suspects = self._suspects(good, bad)
            titles = {commit: self.git.title(commit) for commit in suspects}
            return Bisection(self.plan, tuple(self.steps), tuple(suspects), titles)
        finally:
            self.git.remove_tree(tree)

    def _asked(self) -> str:
        """What decides the verdicts: another request does not go on with these."""
        plan = self.plan
        commits = [self.git.commit(plan.good), self.git.commit(plan.bad)]
        said = {
            k: str(v) for k, v in sorted(self.options.items()) if k not in ("cache", "workers")
        }
        return json.dumps([*commits, plan.build, plan.program, said], ensure_ascii=True)

    def _read(self) -> None:
        path = self.plan.state / _STATE
        if not path.exists():
            return
        kept = read_document(
            path, _Kept, schema=SCHEMA, give="", remedy=f"delete {quoted(self.plan.state)}"
        )
        if kept.asked != self._asked():
            raise InputError(
                f"{quoted(self.plan.state)} is of another bisection; give another --state, or "
                "delete it"
            )
        self.steps = list(kept.steps)

    def _keep(self, step: Step) -> None:
        self.steps.append(step)
        document = {
            "schema": SCHEMA,
            "asked": self._asked(),
            "steps": [asdict(each) for each in self.steps],
        }
        write_whole(self.plan.state / _STATE, document_text(document))

    def _baseline(self, tree: Path, good: str) -> None:
        base = self.plan.state / _BASE
        if base.exists() and self.steps:
            return
        self._say(f"building {good[:12]}, the good one")
        fault = self._build(tree, good)
        if fault:
            raise InputError(f"the good commit {good[:12]} cannot be built: {fault}")
        self._compare(baseline=tree / self.plan.program, save=base)

    def _confirm(self, tree: Path, bad: str) -> None:
        step = self._verdict(bad) or self._test(tree, bad)
        if step.verdict != BAD:
            raise InputError(
                f"the bad commit {bad[:12]} is {step.verdict}, so there is nothing to look for: "
                f"{step.reason}"
            )

    def _verdict(self, commit: str) -> Step | None:
        return next((step for step in self.steps if step.commit == commit), None)

    def _of(self, verdict: str) -> list[str]:
        return [step.commit for step in self.steps if step.verdict == verdict]

    def _next(self, good: str, bad: str) -> str | None:
        """The commit that halves what is left best, None where none is left to test."""
        tested = {step.commit for step in self.steps}
        listed = self.git.halving(self._earliest(bad), [good, *self._of(GOOD)])
        left = [commit for commit in listed if commit not in tested]
        if left:
            rounds = counted(max(1, math.ceil(math.log2(len(left) + 1))), "round")
            self._say(f"{counted(len(left), 'commit')} left, about {rounds}")
        return left[0] if left else None

    def _earliest(self, bad: str) -> str:
        """The bad commit that all other bad ones descend from."""
        earliest = bad
        for commit in self._of(BAD):
            if self.git.is_ancestor(commit, earliest):
                earliest = commit
        return earliest

    def _suspects(self, good: str, bad: str) -> list[str]:
        """The first bad commit, and those before it that could not be tested."""
        earliest, skipped = self._earliest(bad), set(self._of(SKIPPED))
        listed = self.git.halving(earliest, [good, *self._of(GOOD)])
        return [earliest, *(commit for commit in listed if commit in skipped)]

    def _test(self, tree: Path, commit: str) -> Step:
        self._say(f"building {commit[:12]}")
        fault = self._build(tree, commit)
        if fault:
            step = Step(commit, SKIPPED, f"it cannot be built: {fault}"[:_REASON])
        else:
            try:
                found = self._compare(
                    baseline=self.plan.state / _BASE, candidate=tree / self.plan.program
                )
                verdict = {0: GOOD, 1: BAD}.get(found.exit_code, SKIPPED)
                step = Step(commit, verdict, found.summary[:_REASON])
            except InputError as error:
                step = Step(commit, SKIPPED, str(error)[:_REASON])
        self._keep(step)
        self._say(f"{commit[:12]} is {step.verdict}: {step.reason}")
        return step

    def _compare(self, **builds: Path) -> Comparison:
        return compare_builds(**{**self.options, **builds}, progress=self.progress)

    def _build(self, tree: Path, commit: str) -> str:
        """Build a commit in the worktree; why it could not be done, or nothing."""
        self.git.check_out(tree, commit)
        try:
            with process.working_in(tree):
                done = process.run(self.plan.build, timeout_s=self.plan.build_limit_s, again=False)
        except ToolError as error:
            return str(error)
        if done.returncode or done.timed_out:
            return done.reason()
        if not (tree / self.plan.program).is_file():
            return f"the command makes no {self.plan.program}"
        return ""

    def _say(self, text: str) -> None:
        self.progress(Event("bisect", text))


@dataclass(frozen=True)
class _Git:
    """A repository; nothing of its own checkout is changed."""

    repository: Path

    def _run(self, *words: str, tree: Path | None = None) -> process.Finished:
        git = shutil.which("git")
        if git is None:
            raise InputError("git is not installed; bisecting takes it")
        place = os.fspath(tree or self.repository)
        # no program of the repository's runs but the build command
        head = [git, "-C", place, "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"]
        return process.run([*head, *words], timeout_s=_GIT_LIMIT_S)

    def _done(self, *words: str, tree: Path | None = None) -> str:
        done = self._run(*words, tree=tree)
        if done.returncode or done.timed_out:
            raise InputError(
                f"git {words[0]} failed in {quoted(self.repository)}: {done.reason()}"
            )
        return done.stdout.decode("utf-8", "replace")

    def commit(self, name: str) -> str:
        """The full name of a commit."""
        done = self._run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", name + "^{commit}"
        )
        if done.returncode:
            raise InputError(f"{name[:80]!r} is no commit of {quoted(self.repository)}")
        return done.stdout.decode().strip().splitlines()[-1]

    def is_ancestor(self, one: str, other: str) -> bool:
        """Whether a commit is the other one or before it."""
        return self._run("merge-base", "--is-ancestor", one, other).returncode == 0

    def halving(self, bad: str, goods: Sequence[str]) -> list[str]:
        """Commits up to `bad`, which is left out, that no good one has: what halves them first."""
        lines = self._done("rev-list", "--bisect-all", bad, *(f"^{good}" for good in goods))
        return [line.split()[0] for line in lines.splitlines() if line.split()[0] != bad]

    def title(self, commit: str) -> str:
        """The first line of its message."""
        return self._done("show", "--no-patch", "--format=%s", commit).strip()

    def add_tree(self, tree: Path, commit: str) -> None:
        """A worktree at a commit."""
        self._done("worktree", "add", "--detach", "--force", os.fspath(tree.absolute()), commit)

    def check_out(self, tree: Path, commit: str) -> None:
        """Bring a worktree to a commit, without anything that builds have left."""
        self._done("checkout", "--detach", "--force", "--quiet", commit, tree=tree)
        self._done("clean", "-ffdxq", tree=tree)

    def remove_tree(self, tree: Path) -> None:
        """Remove a worktree, whatever state it is in."""
        if tree.exists():
            self._run("worktree", "remove", "--force", "--force", os.fspath(tree.absolute()))
            shutil.rmtree(tree, ignore_errors=True)
        self._run("worktree", "prune")


def describe(found: Bisection, say: Callable[[str], None]) -> None:
    """The steps and what they come to, line by line."""
    for step in found.steps:
        say(f"{step.commit[:12]}  {step.verdict:8}  {step.reason}")
    if found.first_bad:
        say(f"{found.first_bad} is the first bad commit: {found.titles[found.first_bad]}")
    else:
        say("one of these is the first bad commit; the others could not be tested:")
        for commit in found.suspects:
            say(f"{commit}  {found.titles[commit]}")
