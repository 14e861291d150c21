"""What commands print and write: messages on stdout, the JSON document where asked for."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.core.documents import document_text
from vqaloop.core.files import write_whole
from vqaloop.core.text import printable, quoted
from vqaloop.errors import InputError
from vqaloop.report.console import encodable

if TYPE_CHECKING:
    from vqaloop.report.progress import Progress

UNTRUSTED = 3


@contextlib.contextmanager
def loading(options: argparse.Namespace) -> Iterator[None]:
    """Around a command's imports, which are announced where they take long."""
    with progress_of(options) as progress, progress.loading():
        yield


def progress_of(options: argparse.Namespace) -> "Progress":
    """Who is told of a command's work, as --quiet, --progress and --log ask."""
    from vqaloop.report.progress import Progress

    return Progress(options.quiet, getattr(options, "events", None))


def emit(options: argparse.Namespace, document: Any) -> None:
    """Write the JSON document where it was asked for, whole or not at all."""
    if not options.json:
        return
    text = document_text(document)
    if options.json == "-":
        sys.stdout.write(text)
        return
    path = Path(options.json)
    if not path.exists() or path.is_file():
        write_whole(path, text)
        return
    try:
        # a pipe or a device is written to, never replaced
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"could not write {quoted(path)}: {error.strerror or error}") from error


def say(options: argparse.Namespace, text: str) -> None:
    """A message for people; stdout is left alone when the JSON goes there."""
    if options.json != "-":
        print(encodable(printable(text), sys.stdout.encoding))
