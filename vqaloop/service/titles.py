"""What is made of a title: its ladders and their delivery, each by a command of its own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqaloop.core import scopes
from vqaloop.core.option_fields import changed, to_argv
from vqaloop.core.text import quoted
from vqaloop.encoding.registry import codec_names
from vqaloop.errors import InputError
from vqaloop.ladder.build import checked_request
from vqaloop.ladder.options import LadderOptions
from vqaloop.search.audience import DEFAULT
from vqaloop.service.child import Watcher, run_command

LADDER, DELIVERY = "ladder", "delivery"
"""Folders in that of a title."""


@dataclass(frozen=True)
class TitleWork:
    """What is asked for of each title."""

    codecs: tuple[str, ...]
    ladder: tuple[str, ...]
    """Options of `vqaloop ladder`, but for the output."""
    deliver: tuple[str, ...] | None
    """Options of `vqaloop deliver`; None: no delivery."""

    def ladder_folders(self, folder: Path) -> dict[str, Path]:
        """Where the ladders lie in the folder of a title, by codec."""
        place = folder / LADDER
        several = len(self.codecs) > 1
        return {codec: place / codec if several else place for codec in self.codecs}


@dataclass(frozen=True)
class Made:
    """What became of a title."""

    outcome: str
    """done, untrusted, failed, or killed: by a signal that was not ours."""
    error: str | None = None


def title_work(given: Mapping[str, Any], place: Path, deliver: Sequence[str] | None) -> TitleWork:
    """The work that options of `build_ladder` ask for, checked as far as that goes.

    Args:
        given: Arguments of `LadderOptions`; `codec` may be several with commas between.
        place: A folder in which the titles' folders will lie.
        deliver: Options of `vqaloop deliver`; None: no delivery.

    Raises:
        InputError: Something is refused that would be refused of every title.
    """
    codecs = tuple(codec_names(given["codec"]).split(","))
    if len(set(codecs)) < len(codecs):
        raise InputError(f"--codec {given['codec']} names one twice")
    options = [LadderOptions(**{**given, "codec": codec}) for codec in codecs]
    if len(codecs) > 1 and options[0].encoder:
        raise InputError("--encoder goes with one codec; leave it out, or name one codec")
    for one in options:
        checked_request(place / "title", replace(one, out=place / "title" / LADDER))
    first = options[0]
    asked = changed(first)
    for name in asked:
        # the command runs elsewhere; `default` is the audience that comes along
        if isinstance(value := getattr(first, name), os.PathLike) and str(value) != DEFAULT:
            asked[name] = os.path.abspath(value)
    words = ["--codec", ",".join(codecs), *to_argv(LadderOptions, asked)]
    for flag, program in (("--ffmpeg", first.ffmpeg), ("--cvvdp", first.cvvdp)):
        if program is not None:
            words += [flag, os.path.abspath(program)]
    if not first.cache:
        words.append("--no-cache")
    if isinstance(first.workers, int):
        words += ["--workers", str(first.workers)]
    return TitleWork(codecs, tuple(words), None if deliver is None else tuple(deliver))


def make_title(
    source: Path,
    folder: Path,
    work: TitleWork,
    watcher: Watcher,
    scope: scopes.Scope | None = None,
) -> Made:
    """Ladders and delivery of one video in a folder of its own, gone on with where they are begun.

    Args:
        source: The video, an absolute path.
        folder: The title's folder, which is there.
        work: What is asked for.
        watcher: Called with the events of both commands.
        scope: As of `run_command`.

    Returns:
        What became of it; failures are not raised.

    Raises:
        CalledOff: The scope, or this thread's work, was cancelled.
    """
    log = ("--log", os.fspath(folder / "run.log"))
    words = ["ladder", os.fspath(source), "-o", os.fspath(folder / LADDER), *work.ladder, *log]
    ladder = run_command(words, folder, watcher, scope)
    if ladder.status not in (0, 3):
        return _failed(ladder.status, ladder.error, "ladder")
    if work.deliver is not None:
        places = map(os.fspath, work.ladder_folders(folder).values())
        out = os.fspath(folder / DELIVERY)
        words = ["deliver", *places, "-o", out, *work.deliver, *log]
        ended = run_command(words, folder, watcher, scope)
        if ended.status:
            return _failed(ended.status, ended.error, "delivery")
    return Made("untrusted" if ladder.status == 3 else "done")


def _failed(status: int, error: str | None, what: str) -> Made:
    # of one that was interrupted by somebody else the same command goes on
    outcome = "killed" if status < 0 or status == 130 else "failed"
    return Made(outcome, f"{what}: {error or 'not all that was asked for could be made'}")


def check_apart(read: Path, written: Path) -> None:
    """Raises InputError where the folder that is written to lies in the one that is read: what is
    made of a title must not be taken for one."""
    one, other = read.resolve(), written.resolve()
    if one == other or one in other.parents:
        raise InputError(
            f"{quoted(written)} lies in {quoted(read)}, where what is made would be taken for new "
            "titles; name a folder elsewhere with -o"
        )
