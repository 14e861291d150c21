"""`vqaloop audit`: somebody's finished ladder measured, and what could be better about it."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.audit.options import AuditOptions
from vqaloop.core.files import write_whole
from vqaloop.core.option_fields import add_options, given_options

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_audit(command: "Command") -> None:
    """The command with its options."""
    parser = command(
        "audit", run_audit, "measure a finished ladder, and say what is wrong with it"
    )
    parser.add_argument(
        "target",
        metavar="FOLDER|MANIFEST",
        type=Path,
        help="video files, an HLS master playlist or a DASH manifest",
    )
    add_options(parser, AuditOptions)
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write it as Markdown too")


def run_audit(options: argparse.Namespace) -> int:
    """Exit status 1 where there is a finding."""
    from vqaloop.cli.options import check_outputs
    from vqaloop.cli.output import emit, loading

    with loading(options):
        from vqaloop.audit.audit import audit_ladder
        from vqaloop.audit.tables import markdown, print_audit
        from vqaloop.report.progress import Progress

    check_outputs({"markdown": options.markdown})
    given = given_options(AuditOptions, options)
    source = given.pop("source")
    with Progress(quiet=options.quiet) as progress:
        audit = audit_ladder(
            options.target,
            source,
            **given,
            device=options.device or "auto",
            seed=options.seed or 0,
            ffmpeg=options.ffmpeg,
            progress=progress,
        )
    if options.json != "-":
        print_audit(audit)
    if options.markdown:
        write_whole(options.markdown, markdown(audit).encode())
    emit(options, audit.to_json())
    return 1 if audit.findings else 0
