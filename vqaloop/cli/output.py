"""What commands print and write: messages on stdout, the JSON document where asked for."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqaloop.core.documents import document_text
from vqaloop.core.files import write_whole
from vqaloop.core.text import printable, quoted
from vqaloop.errors import InputError
from vqaloop.report.console import encodable

UNTRUSTED = 3


@contextlib.contextmanager
def loading(options: argparse.Namespace) -> Iterator[None]:
    """Around a command's imports, which are announced where they take long."""
    from vqaloop.report.progress import Progress

    with Progress(quiet=options.quiet) as progress, progress.loading():
        yield


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
