"""`vqaloop ladder`."""

import argparse
from pathlib import Path
from typing import Any

from vqaloop.cli.arguments import Command
from vqaloop.cli.options import executor_options, opened_executor, part_of, part_options
from vqaloop.cli.output import UNTRUSTED, emit, loading, progress_of, say
from vqaloop.core.option_fields import add_options, given_options
from vqaloop.errors import InputError
from vqaloop.execution.options import Running
from vqaloop.ladder.options import LadderOptions


def run_ladder(options: argparse.Namespace) -> int:
    """One ladder, one a codec, or a catalogue of many titles; or what that would be."""
    with part_of(options, options.input) as options.input:
        return _plan(options) if options.predict else _make(options)


def _make(options: argparse.Namespace) -> int:
    with loading(options):
        from vqaloop.cli.catalogue import are_many, build_from, show
        from vqaloop.ladder.build import build_ladder, build_ladders
        from vqaloop.ladder.summary import print_ladder
        from vqaloop.records import Ladder

    asked: dict[str, Any] = given_options(LadderOptions, options)
    codecs = asked.pop("codec").split(",")
    with opened_executor(options, fills=True) as workers, progress_of(options) as progress:
        asked |= {"workers": workers, "progress": progress}
        made: dict[str, Ladder] = {}
        if many := are_many(options.input):
            catalogue = build_from(options.input, codecs, asked)
        elif len(codecs) == 1:
            made[codecs[0]] = build_ladder(options.input[0], codec=codecs[0], **asked)
        else:
            made = build_ladders(options.input[0], codecs=codecs, **asked)
    if many:
        return show(options, catalogue)
    for codec, ladder in made.items() if options.json != "-" else ():
        if len(made) > 1:
            say(options, "")
            say(options, codec)
        print_ladder(ladder)
    documents = {codec: ladder.to_json() for codec, ladder in made.items()}
    several = {"schema": "vqaloop.ladders/1", "ladders": documents}
    emit(options, several if len(codecs) > 1 else documents[codecs[0]])
    return 0 if all(ladder.trusted for ladder in made.values()) else UNTRUSTED


def _plan(options: argparse.Namespace) -> int:
    """What the ladders would be and cost."""
    with loading(options):
        from vqaloop.catalogue.titles import is_table
        from vqaloop.ladder.predict import plan_ladder, plan_lines
        from vqaloop.ladder.store import PLANS_SCHEMA

    if len(options.input) > 1 or is_table(options.input[0]):
        raise InputError("--predict is of one title; name one video")
    asked: dict[str, Any] = given_options(LadderOptions, options)
    codecs = asked.pop("codec").split(",")
    with progress_of(options) as progress:
        asked["progress"] = progress
        made = {codec: plan_ladder(options.input[0], codec=codec, **asked) for codec in codecs}
    for codec, one in made.items():
        for line in [codec] * (len(made) > 1) + plan_lines(one):
            say(options, line)
    documents = {codec: one.to_json() for codec, one in made.items()}
    several = {"schema": PLANS_SCHEMA, "plans": documents}
    emit(options, several if len(made) > 1 else documents[next(iter(made))])
    return 0


def add_ladder(command: Command) -> None:
    """The command with its options."""
    ladder = command("ladder", run_ladder, "find and make the best bitrate ladder for a title")
    ladder.add_argument(
        "input",
        metavar="INPUT",
        type=Path,
        nargs="+",
        help="a video; several, or a .csv that lists them, make a catalogue",
    )
    ladder.add_argument(
        "--predict",
        "--dry-run",
        action="store_true",
        help="predict rungs, with intervals of 90 %%, and cost; encode and write nothing",
    )
    part_options(ladder)
    add_options(ladder, LadderOptions, but=Running)
    executor_options(ladder)
