"""`vqaloop watch`: its options, and what it does with them."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.cli.deliver import delivery_options, delivery_words
from vqaloop.cli.output import emit, loading, progress_of, say
from vqaloop.cli.run_events import notify, notify_words
from vqaloop.core.option_fields import add_options, given_options, option
from vqaloop.core.text import counted, parse_duration
from vqaloop.errors import InputError
from vqaloop.execution.options import Running, StorageOptions
from vqaloop.ladder.options import LadderOptions

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


@dataclass(frozen=True, kw_only=True)
class NotOfTitles(Running, StorageOptions):
    """Options of a ladder that are not those of each title of many."""

    out: Path | None = option(None)


def add_watch(command: "Command") -> None:
    """The command with its options."""
    parser = command(
        "watch", run_watch, "make a ladder and a delivery of every video that lands in a folder"
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="where videos arrive")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="default: NAME.watched of the folder NAME"
    )
    parser.add_argument(
        "--once", action="store_true", help="make what is there, and end: for cron"
    )
    parser.add_argument(
        "--recursive", action="store_true", help="look into the folders of the folder too"
    )
    parser.add_argument(
        "--settle",
        type=parse_duration,
        default=10.0,
        metavar="TIME",
        help="take a file once it has not changed for so long (default: 10s)",
    )
    parser.add_argument(
        "--interval",
        type=parse_duration,
        default=5.0,
        metavar="TIME",
        help="between two looks at the folder (default: 5s)",
    )
    parser.add_argument(
        "--notify-each",
        metavar="COMMAND",
        type=notify_words,
        help="as --notify, at the end of every title, with its record",
    )
    delivery = parser.add_argument_group("delivery")
    delivery.add_argument("--no-deliver", action="store_true", help="make ladders alone")
    delivery_options(delivery)
    add_options(parser, LadderOptions, but=NotOfTitles)


def run_watch(options: argparse.Namespace) -> int:
    """Exit status of --once: 1 where a title failed, 3 where one is not to be trusted."""
    with loading(options):
        from vqaloop.service.titles import check_apart, title_work
        from vqaloop.service.watch import FolderWatch, WatchOptions

    if not 0 <= options.settle <= 86400 or not 0.1 <= options.interval <= 86400:
        raise InputError("--settle takes 0s to 24h, --interval 0.1s to 24h")
    out = options.output or Path(f"{options.folder.absolute().name or 'folder'}.watched")
    check_apart(options.folder, out)
    deliver = None if options.no_deliver else delivery_words(options)
    work = title_work(given_options(LadderOptions, options), out, deliver)
    with progress_of(options) as progress:
        watch = FolderWatch(
            WatchOptions(
                options.folder,
                out,
                work,
                options.settle,
                options.interval,
                options.recursive,
                _notified(options.notify_each, progress.log),
            ),
            progress,
        )
        (watch.once if options.once else watch.forever)()
    for record in watch.records:
        why = f": {record['error']}" if record["error"] else ""
        say(options, f"{record['title']}: {record['outcome']}{why}")
    say(options, f"{counted(len(watch.records), 'title')} in {out}")
    emit(options, {"schema": "vqaloop.watch/1", "folder": str(out), "titles": watch.records})
    return watch.exit_code


def _notified(
    words: list[str] | None, report: Callable[[str], None]
) -> Callable[[dict[str, Any]], None]:
    """Runs the program of --notify-each for the record of a title."""

    def ended(record: dict[str, Any]) -> None:
        if not words:
            return
        status = {"done": 0, "untrusted": 3}.get(record["outcome"], 1)
        about = {"command": "watch", "status": status, **record}
        if why := notify(words, about):
            report(f"warning: --notify-each {words[0]}: {why}")

    return ended
