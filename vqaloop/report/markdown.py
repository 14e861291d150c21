"""Words of others as Markdown that shows them as they are, in lists and tables."""

import re
from collections.abc import Iterable, Sequence

from vqaloop.core.text import printable

LONGEST_LIST = 20
"""Lines of a list in a comment; the rest is counted."""


def listed(lines: Sequence[str]) -> list[str]:
    """A block of bullets, or none."""
    more = [f"{len(lines) - LONGEST_LIST} more"] if len(lines) > LONGEST_LIST else []
    bullets = "\n".join(f"- {line}" for line in [*lines[:LONGEST_LIST], *more])
    return [bullets] if lines else []


def pipes(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of numbers between what they are of and what they mean, which are words."""
    lines: list[Sequence[str]] = [headings, ["---", *["---:"] * (len(headings) - 2), "---"]]
    for first, *numbers, last in rows:
        lines.append([prose(first), *numbers, last if last == "-" else prose(last)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(name: str) -> str:
    """A name as code, in which no site looks for mentions or addresses; in tables too."""
    text = printable(name).replace("`", "\\x60").replace("|", "\\x7c")
    return f"`{text}`" if text.strip() else "(no name)"


def prose(text: str) -> str:
    """Words of others as Markdown that shows them as they are.

    What could be markup becomes a character reference, which CommonMark never takes for structure.
    Sites look for @people, #issues and addresses in what is rendered; a space of no width within
    them keeps these from being found.
    """
    words = printable(text).strip()
    words = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", words)
    return _LINKED.sub(lambda found: f"{found[0]}&#8203;", words)


_MARKUP = re.compile(r"^[-+](?![\d.])|^\d(?=\d*[.)](?:\s|$))|[^\w\s.,;:/'()+%-]|_")
_LINKED = re.compile(r"&#(?:33|35|36|38|64|126);(?=\S)|%(?=\w)|:(?=//)|\bwww(?=\.)", re.IGNORECASE)
