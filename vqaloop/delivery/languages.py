"""Language tags of RFC 5646, from the codes of ISO 639 that containers hold, and their names."""

import functools
import re
from importlib import resources

_TAG = re.compile(r"[a-z]{2,3}(-[a-z0-9]{1,8})*")
_UNKNOWN = ("und", "mis", "mul", "zxx")
"""Codes of ISO 639 that name no language."""


def language_tag(text: str) -> str | None:
    """The shortest tag of a language, as RFC 5646 demands it: `fra` and `fre` become `fr`.

    None for what names no language. `pt_br` becomes `pt-BR`, `zho-hans` `zh-Hans`.
    """
    code = text.strip().lower().replace("_", "-")
    if not _TAG.fullmatch(code):
        return None
    language, *rest = code.split("-")
    if language in _UNKNOWN:
        return None
    parts = [_shortest().get(language, language)]
    for part in rest:
        # behind a single letter (an extension) cases have no meaning
        if any(len(other) == 1 for other in parts):
            parts.append(part)
        elif len(part) == 4 and part.isalpha():
            parts.append(part.title())
        else:
            parts.append(part.upper() if len(part) == 2 else part)
    return "-".join(parts)


def language_name(tag: str) -> str:
    """The English name of a tag's language, with what follows it: "Portuguese (BR)"."""
    language, _, rest = tag.partition("-")
    name = _names().get(language, language)
    return f"{name} ({rest})" if rest else name


def _rows() -> list[list[str]]:
    text = resources.files("vqaloop.delivery").joinpath("languages.tsv").read_text("utf-8")
    return [line.split("\t") for line in text.splitlines()]


@functools.cache
def _shortest() -> dict[str, str]:
    """Two letters for three: both codes of ISO 639-2, the terminological and the bibliographic."""
    return {
        code: short for short, term, bibliographic, _ in _rows() for code in (term, bibliographic)
    }


@functools.cache
def _names() -> dict[str, str]:
    return {short: name for short, _, _, name in _rows()}
