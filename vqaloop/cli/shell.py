"""`vqaloop completion` and `vqaloop man`: what shells and man read, made from the parser."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from vqaloop.cli.arguments import Command
from vqaloop.cli.output import emit
from vqaloop.core.text import quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError

SHELLS = ("bash", "zsh", "fish")


def run_completion(options: argparse.Namespace) -> int:
    """Print the script by which a shell completes commands, options and their values."""
    import shtab

    from vqaloop.encoding.registry import load_encoders
    from vqaloop.quality.registry import metric_names

    parser = options.parser
    named = {"--encoder": list(load_encoders()), "--metric": list(metric_names())}
    for action in _actions(parser):
        alternatives = str(action.metavar or "")
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif values := next((named[o] for o in action.option_strings if o in named), None):
            action.choices = values
        elif action.nargs != 0 and re.fullmatch(r"[a-z0-9-]+(\|[a-z0-9-]+)+", alternatives):
            action.choices = alternatives.split("|")
    return _print(options, shtab.complete(parser, shell=options.shell))


def run_man(options: argparse.Namespace) -> int:
    """Print the manual page, in the language of man(7)."""
    from argparse_manpage.manpage import Manpage

    parser = options.parser
    for one in (parser, *_subparsers(parser)):
        # their usage is wrapped at the width of this terminal else, with blanks that man keeps
        one.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=10_000)
    page = Manpage(parser, format="single-commands-section")
    page.source, page.manual = f"vqaloop {__version__}", "User commands"
    page.description = "per-title bitrate ladders"
    return _print(options, f"{page}\n")


def add_shell(command: Command) -> None:
    """The two commands."""
    completion = command("completion", run_completion, "print the completion script of a shell")
    completion.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS))
    _to_file(completion)
    _to_file(command("man", run_man, "print the manual page, as man reads it"))


def _to_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write it there (default: stdout)"
    )


def _print(options: argparse.Namespace, text: str) -> int:
    from vqaloop.core.files import write_whole

    if options.output is None:
        if options.json != "-":
            sys.stdout.write(text)
    elif not options.output.absolute().parent.is_dir():
        raise InputError(f"{quoted(options.output)}: there is no such folder; make it first")
    else:
        write_whole(options.output, text)
    emit(options, {"text": text})
    return 0


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for one in (parser, *_subparsers(parser)):
        yield from one._actions
