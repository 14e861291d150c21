"""What the command line takes: every command with its options."""

import argparse
from collections.abc import Callable, Sequence

from vqaloop.cli.arguments import Parser
from vqaloop.cli.audit import add_audit
from vqaloop.cli.deliver import add_deliver
from vqaloop.cli.doctor import add_doctor
from vqaloop.cli.encode import add_encode
from vqaloop.cli.encoders import add_encoders
from vqaloop.cli.ladder import add_ladder
from vqaloop.cli.regress import add_regress
from vqaloop.cli.report import add_report
from vqaloop.cli.run_events import add_run_events
from vqaloop.cli.sample import add_sample
from vqaloop.cli.score import add_score
from vqaloop.cli.serve import add_serve
from vqaloop.cli.settings import add_settings, parse_with_settings
from vqaloop.cli.shell import add_shell
from vqaloop.cli.training import add_corpus, add_distill, add_evaluate
from vqaloop.cli.tune import add_tune
from vqaloop.cli.watch import add_watch
from vqaloop.core.option_fields import add_options
from vqaloop.core.version import __version__
from vqaloop.execution.options import Running


def parse_words(argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line: none, or `help`, ask for help. Raises InputError."""
    words = [*argv[1:], "--help"] if argv[:1] == ["help"] else argv or ["--help"]
    parser = make_parser()
    commands = next(
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    words, build = _without_build(list(words))
    options = parse_with_settings(parser, commands, words)
    if build is not None:
        options.build_command = build
    return options


def _without_build(words: list[str]) -> tuple[list[str], list[str] | None]:
    """The words of a bisection, and behind its `--` those of the build command."""
    if words[:1] != ["regress"] or "--bisect" not in words or "--" not in words:
        return words, None
    place = words.index("--")
    return words[:place], words[place + 1 :]


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = Parser(
        prog="vqaloop",
        description="Per-title bitrate ladders with a learned quality model in the encoding loop.",
        epilog="Exit status: 0 done, 1 the answer is no, 2 refused, 3 not to be trusted, "
        "130 interrupted (run it again to go on). `vqaloop help COMMAND` has a command's options.",
    )
    parser.add_argument("-V", "--version", action="version", version=f"vqaloop {__version__}")
    choices = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = Parser(add_help=False)
    group = common.add_argument_group("common options")
    group.add_argument("--json", metavar="FILE", help="write one JSON document; - for stdout")
    add_options(group, Running)
    group.add_argument("--quiet", action="store_true", help="no progress")
    add_run_events(group)
    add_settings(common.add_argument_group("settings"))

    def command(name: str, run: Callable[..., int], summary: str) -> Parser:
        made = choices.add_parser(
            name, help=summary, description=summary, parents=[common], allow_abbrev=False
        )
        made.set_defaults(run=run)
        return made

    added = (
        add_sample,
        add_ladder,
        add_score,
        add_tune,
        add_encode,
        add_deliver,
        add_audit,
        add_regress,
        add_report,
        add_watch,
        add_serve,
    )
    rest = (add_corpus, add_distill, add_evaluate, add_encoders, add_doctor, add_shell)
    for add in (*added, *rest):
        add(command)
    # for the commands that are made of it
    parser.set_defaults(parser=parser)
    return parser
