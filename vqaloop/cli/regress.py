"""`vqaloop regress`: its options, and what it does with them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.cli.options import check_outputs
from vqaloop.cli.output import emit, loading, progress_of, say
from vqaloop.core.files import write_whole
from vqaloop.core.option_fields import add_options, given_options
from vqaloop.errors import InputError
from vqaloop.execution.options import Running
from vqaloop.regress.options import BisectOptions, RegressOptions

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_regress(command: "Command") -> None:
    """The command with its options."""
    parser = command("regress", run_regress, "tell whether a build of an encoder got worse")
    parser.add_argument("clips", metavar="CLIP", type=Path, nargs="*", help="what is encoded")
    add_options(parser, RegressOptions, but=Running)
    parser.add_argument("--args", default="", metavar="TEXT", help="more arguments of both builds")
    add_options(parser, BisectOptions)
    outputs = parser.add_argument_group("outputs, besides the table and --json")
    outputs.add_argument("--junit", type=Path, metavar="FILE", help="a test case a clip and check")
    outputs.add_argument("--markdown", type=Path, metavar="FILE", help="for a pull request")
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page with the curves")
    outputs.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="add the result to this store; alone: show its trend and where it changed",
    )


def run_regress(options: argparse.Namespace) -> int:
    with loading(options):
        from vqaloop.regress.compare import compare_builds, split_args
        from vqaloop.regress.summary import print_verdict

    if options.bisect:
        return _bisect(options)
    if options.history and not options.baseline:
        return _trend(options)
    if not options.baseline or not options.codec:
        raise InputError("--baseline and --codec are needed; see `vqaloop regress --help`")
    outputs = {name: getattr(options, name) for name in ("junit", "markdown", "html")}
    check_outputs({**outputs, "history": options.history})
    if options.history:
        from vqaloop.trend.store import check_store

        check_store(options.history)
    both = split_args(options.args, "--args")
    asked = given_options(RegressOptions, options)
    for name in ("baseline_args", "candidate_args"):
        flag = f"--{name.replace('_', '-')}"
        asked[name] = [*both, *split_args(asked.get(name, ""), flag)]
    with progress_of(options) as progress:
        compared = compare_builds(clips=options.clips, progress=progress, **asked)
    document = compared.document
    if compared.verdict == "saved":
        say(options, compared.summary)
    elif options.json != "-":
        print_verdict(document)
    _write_outputs(document, outputs)
    if options.history and document["candidate"]:
        from vqaloop.trend.store import append

        append(document, options.history)
    emit(options, document)
    return compared.exit_code


def _bisect(options: argparse.Namespace) -> int:
    """Exit status 1 where commits that could not be tested leave several suspects."""
    from vqaloop.regress.bisect import Plan, bisect, describe
    from vqaloop.regress.compare import split_args
    from vqaloop.report.progress import Progress

    for name in ("baseline", "candidate", "save", "history", "junit", "markdown", "html"):
        if getattr(options, name, None):
            raise InputError(f"--{name} is of one comparison; leave it out with --bisect")
    build = getattr(options, "build_command", None)
    if not build or not options.program or not options.codec or not options.clips:
        raise InputError(
            "--bisect takes --codec, --program, clips, and behind -- the command that builds, "
            "such as: --bisect r3000 r3100 --codec h264 --program x264 clips/*.y4m -- make x264"
        )
    asked = given_options(RegressOptions, options)
    both = split_args(options.args, "--args")
    for name in ("baseline_args", "candidate_args"):
        flag = f"--{name.replace('_', '-')}"
        asked[name] = [*both, *split_args(asked.get(name, ""), flag)]
    given = given_options(BisectOptions, options)
    repository = Path(given.get("repository", "."))
    good, bad = given["bisect"]
    state = given.get("state") or Path(f"{repository.resolve().name}.bisect")
    limit = {"build_limit_s": given["build_limit_s"]} if "build_limit_s" in given else {}
    program = str(options.program)
    if Path(program).is_absolute() or ".." in Path(program).parts:
        raise InputError("--program is a path from the top of the tree, such as x264")
    plan = Plan(repository, good, bad, tuple(build), program, Path(state), **limit)
    with Progress(quiet=options.quiet) as progress:
        found = bisect(plan, {**asked, "clips": options.clips}, progress)
    if options.json != "-":
        describe(found, lambda line: say(options, line))
    emit(options, found.to_json())
    return 0 if found.first_bad else 1


def _write_outputs(document: dict[str, Any], paths: dict[str, Path | None]) -> None:
    """The comparison in every form asked for, each file whole or not at all."""
    from vqaloop.regress.junit import junit_xml
    from vqaloop.regress.page import regress_page
    from vqaloop.regress.summary import markdown

    forms: dict[str, Callable[[dict[str, Any]], str | bytes]]
    forms = {"junit": junit_xml, "markdown": markdown, "html": regress_page}
    for name, path in paths.items():
        if path is not None:
            write_whole(path, forms[name](document))


def _trend(options: argparse.Namespace) -> int:
    from vqaloop.trend.plot import show_trend

    if options.clips or options.candidate:
        raise InputError(
            "to compare, give a --baseline too; for the trend of a history give --history alone"
        )
    trends = show_trend(
        options.history, options.html, codec=options.codec, say=lambda line: say(options, line)
    )
    emit(options, {"schema": "vqaloop.trend/1", "trends": [trend.to_json() for trend in trends]})
    return 0
