"""Did-you-mean suggestions for unknown names, for the end of a message."""

import difflib
import re
from collections.abc import Collection, Mapping

CLOSE = 0.7
"""Least difflib ratio (twice the letters in common over all letters) of a suggestion."""


def did_you_mean(
    word: str, known: Collection[str], others: Mapping[str, str] | None = None, option: str = ""
) -> str:
    """ " (did you mean NAME?)", or nothing.

    `others` are further names, as `plain` gives them, and what each stands for; these must be met
    exactly. `option` is put before the name. Names with other digits are other things, not slips.
    """
    wanted = plain(word)
    names = {plain(name): name for name in known}
    found = names.get(wanted) or (others or {}).get(wanted)
    if found is None:
        # x264 is no slip for x265
        alike = [name for name in names if _digits(name) == _digits(wanted)]
        close = difflib.get_close_matches(wanted, alike, n=1, cutoff=CLOSE)
        found = names[close[0]] if close else None
    return f" (did you mean {f'{option} {found}'.strip()}?)" if found else ""


def plain(word: str) -> str:
    """Its letters and digits alone, in lower case."""
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _digits(word: str) -> list[str]:
    return sorted(filter(str.isdigit, word))
