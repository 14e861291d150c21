"""`vqaloop report`: reports of a ladder or a catalogue again, or two ladders compared."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.cli.options import check_outputs
from vqaloop.cli.output import emit, say
from vqaloop.core.files import write_whole
from vqaloop.core.option_fields import number
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.ladder.options import SHARE_HELP

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_report(command: "Command") -> None:
    """The command with its options."""
    parser = command(
        "report", run_report, "make a ladder's reports again from its ladder.json, or compare two"
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a ladder, or a catalogue")
    parser.add_argument(
        "other",
        metavar="OTHER",
        type=Path,
        nargs="?",
        help="another ladder of the same title, to compare with the first by BD-rate",
    )
    parser.add_argument(
        "--against",
        metavar="NAME|LADDER",
        help="mean score, egress and storage for an audience, against the fixed ladder apple or "
        "netflix2015, or another ladder of the title (its folder or ladder.json)",
    )
    parser.add_argument(
        "--audience",
        metavar="FILE|default",
        type=Path,
        help="of --against: a CSV with bandwidth_kbps, share and, if known, height of the screen "
        "(default: the ladder's own, else the one that comes along)",
    )
    parser.add_argument("--bandwidth-share", metavar="S", type=number, help=SHARE_HELP)
    outputs = parser.add_argument_group("outputs of a comparison, besides the tables and --json")
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page with plot and tables")
    outputs.add_argument("--png", type=Path, metavar="FILE", help="the plot alone")


def run_report(options: argparse.Namespace) -> int:
    """Exit status 2 where the ladders cannot be compared, 3 where one is not to be trusted."""
    from vqaloop.catalogue.report import is_catalogue, remake_catalogue
    from vqaloop.cli.catalogue import print_catalogue
    from vqaloop.ladder.pictures import find_pictures
    from vqaloop.ladder.store import read_ladder, write_reports
    from vqaloop.ladder.summary import print_ladder

    if options.against is not None:
        return _against(options)
    if options.audience is not None or options.bandwidth_share is not None:
        raise InputError("--audience and --bandwidth-share are of --against; give it too")
    if options.other is not None:
        return _compare(options)
    for option in ("html", "png"):
        if getattr(options, option) is not None:
            raise InputError(
                f"--{option} is of a comparison: give two ladders; report.html and rd.png of one "
                "are written into its folder"
            )
    if is_catalogue(options.folder):
        catalogue = remake_catalogue(options.folder)
        if options.json != "-":
            print_catalogue(options, catalogue)
        emit(options, catalogue.to_json())
        return 0
    ladder = read_ladder(options.folder)
    pictures = find_pictures(ladder, options.ffmpeg)
    write_reports(ladder, pictures)
    if options.json != "-":
        print_ladder(ladder)
    if pictures.trouble:
        say(options, f"no pictures in report.html: {pictures.trouble}")
    emit(options, ladder.to_json())
    return 0


def _against(options: argparse.Namespace) -> int:
    from vqaloop.ladder.against import ladder_against
    from vqaloop.ladder.against_table import print_against

    if options.other or options.html or options.png:
        raise InputError("--against takes one ladder and writes no page; leave out the rest")
    found = ladder_against(
        options.folder,
        options.against,
        audience=options.audience,
        bandwidth_share=options.bandwidth_share,
    )
    if options.json != "-":
        print_against(found)
    emit(options, found.to_json())
    return 0


def _compare(options: argparse.Namespace) -> int:
    from vqaloop.catalogue.report import is_catalogue
    from vqaloop.ladder.compare import compare_ladders
    from vqaloop.ladder.compare_page import pair_page, pair_png
    from vqaloop.ladder.compare_table import print_pair

    check_outputs({"html": options.html, "png": options.png})
    for folder in (options.folder, options.other):
        if is_catalogue(folder):
            raise InputError(
                f"{quoted(folder)} is a catalogue of ladders; name one of those in it, such as "
                f"{quoted(min(folder.glob('*.ladder'), default=folder / 'NAME.CODEC.ladder'))}"
            )
    compared = compare_ladders(options.folder, options.other)
    if options.json != "-":
        print_pair(compared)
    if options.html is not None:
        write_whole(options.html, pair_page(compared))
        say(options, f"wrote {options.html}")
    if options.png is not None:
        write_whole(options.png, pair_png(compared))
        say(options, f"wrote {options.png}")
    emit(options, compared.to_json())
    return compared.exit_code
