"""The commands that make a ladder, its rungs or its report again, from its ladder.json."""

import os
from pathlib import Path

from vqaloop.core.option_fields import to_argv
from vqaloop.ladder.options import LadderOptions
from vqaloop.records import Ladder


def ladder_command(ladder: Ladder) -> list[str]:
    """The command that makes the ladder again, as far as ladder.json records what was asked."""
    about = ladder.about
    asked = about.get("asked")
    if asked is None:
        encoder, metric = about["encoder"], about["metric"]
        asked = {"encoder": encoder["name"], "preset": encoder["preset"], "metric": metric["name"]}
    # as `prior_use` takes them
    if isinstance(prior := asked.get("prior"), bool):
        asked = {**asked, "prior": "own" if prior else "none"}
    words = ["vqaloop", "ladder", _as_path(about["source"]["path"]), "--codec", about["codec"]]
    return [*words, *to_argv(LadderOptions, asked), "-o", _as_path(folder_name(ladder))]


def report_command(ladder: Ladder) -> list[str]:
    """The command that makes the page and the plot again."""
    return ["vqaloop", "report", _as_path(folder_name(ladder))]


def folder_name(ladder: Ladder) -> str:
    """The last part of the folder's path: pages may go where its other parts are nobody's."""
    return Path(os.path.abspath(ladder.folder)).name or "."


def _as_path(name: str) -> str:
    return f"./{name}" if name.startswith("-") else name
