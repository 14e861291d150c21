"""HTML pages that open offline: templates beside this file, in one frame with one style.

Whatever a template prints is escaped, with control characters made visible; own markup, such as a
plot, is passed as `Markup`.
"""

import base64
import hashlib
import shlex
from pathlib import Path
from typing import Any
from urllib.parse import quote

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


def render(
    template: str,
    *,
    script: str = "",
    connects: bool = False,
    plays: bool = False,
    **context: Any,
) -> str:
    """A page from a template that extends page.html.

    Args:
        template: Name of a file beside this one.
        script: Another such file, the only script that the page's policy lets run; with it come
            pictures that the page holds itself.
        connects: Whether the script asks the server that the page comes from.
        plays: Whether it plays media that it has fetched.
        context: What the template names; `title` is always needed.

    Returns:
        The whole page, which loads nothing from anywhere.
    """
    policy, code = "default-src 'none'; style-src 'unsafe-inline'", ""
    if script:
        code = _beside(script)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy += f"; img-src data:; script-src 'sha256-{digest}'"
        policy += "; connect-src 'self'" * connects + "; media-src blob:" * plays
    frame = {
        "policy": Markup(policy),
        "style": Markup(_beside("page.css")),
        "script": Markup(code),
    }
    return _TEMPLATES.get_template(template).render(context, **frame)


def _beside(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def link(path: str, text: str) -> Markup:
    """A link to a file beside the page."""
    address = quote(path, errors="replace")
    return Markup('<a href="{}">{}</a>').format(address, printable(text))


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
