"""What pages that open offline have in common; everything that is data in them is escaped."""

import base64
import hashlib
import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from vqaloop.terminal import printable


def filled(body: str, *, title: str, script: str = "", **parts: str) -> str:
    """A page: `body`, a file beside this one, with its parts (HTML), in the frame of all.

    `script`, another such file, is the only one that the page's policy lets run; with it come
    pictures that the page holds itself.
    """

    def beside(name: str) -> str:
        return Path(__file__).with_name(name).read_text(encoding="utf-8")

    inner = Template(beside(body)).substitute(parts, title=title)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        code = beside(script)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy += f"; img-src data:; script-src 'sha256-{digest}'"
        inner += f"<script>{code}</script>\n"
    return Template(beside("page.html")).substitute(
        title=title, policy=policy, style=beside("page.css"), body=inner
    )


def bullets(lines: Iterable[str]) -> str:
    """A list of lines that are HTML already; nothing where there are none."""
    items = "\n".join(f"<li>{line}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def escaped(rows: Iterable[Iterable[str]]) -> list[list[str]]:
    """Cells of others for `table`."""
    return [list(map(safe, row)) for row in rows]


def safe(text: str) -> str:
    """Text of others for HTML: on one line, control characters as escapes."""
    return html.escape(printable(text))


def whole(*parts: str) -> str:
    """Text of others for a cell, to be broken between its parts alone."""
    words = " ".join(f'<span class="whole">{safe(part)}</span>' for part in parts)
    return f"<span>{words}</span>"


def table(kind: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already.

    On a phone a row of kind "cards" is a list of what it holds; "dense" stays a table.
    """
    head = "".join(f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td data-label="{heading}">{cell}</td>'
            for heading, cell in zip(headings, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def shell_word(word: str) -> str:
    """A word quoted for the shell; one with control characters so that it is safe to paste."""
    if word.isprintable():
        return shlex.quote(word)
    parts = [
        c
        if c.isprintable() and c not in "\\'"
        else "".join(f"\\{byte:03o}" for byte in c.encode("utf-8", "backslashreplace"))
        for c in word
    ]
    return f"$'{''.join(parts)}'"
