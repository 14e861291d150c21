"""HTML pages that open offline: templates beside this file, in one frame with one style.

All that a template prints is escaped, with control characters made visible; markup of our own
(a drawing) is passed as `Markup`.
"""

import base64
import hashlib
import html
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from vqaloop.core.text import printable

_FOLDER = Path(__file__).parent


def _shown(value: object) -> object:
    """A value on one line, control characters as escapes; markup as it is."""
    return value if isinstance(value, Markup) else printable(str(value))


_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,
    finalize=_shown,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(template: str, *, script: str = "", **context: Any) -> str:
    """A page from a template that extends page.html.

    Args:
        template: Name of a file beside this one.
        script: Another such file, the only script that the page's policy lets run; with it come
            pictures that the page holds itself.
        context: What the template names; `title` is always needed.

    Returns:
        The whole page, which loads nothing from anywhere.
    """
    policy, code = "default-src 'none'; style-src 'unsafe-inline'", ""
    if script:
        code = _beside(script)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy += f"; img-src data:; script-src 'sha256-{digest}'"
    frame = {
        "policy": Markup(policy),
        "style": Markup(_beside("page.css")),
        "script": Markup(code),
    }
    return _TEMPLATES.get_template(template).render(context, **frame)


def filled(body: str, *, title: str, script: str = "", **parts: str) -> str:
    """A page of a `string.Template` whose parts are HTML already."""
    inner = Markup(Template(_beside(body)).substitute(parts, title=title))
    return render("page.html", script=script, title=Markup(title), body=inner)


def _beside(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


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
