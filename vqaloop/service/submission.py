"""What a client may ask for: options of a ladder by their names, read as on the command line.

Only options that a catalogue's table of titles may have, without those that name files.
"""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from vqaloop.core.option_fields import Option, options_of
from vqaloop.core.suggestions import did_you_mean
from vqaloop.errors import InputError
from vqaloop.ladder.options import LadderOptions
from vqaloop.ladder.profiles import read_profile
from vqaloop.search.audience import DEFAULT
from vqaloop.service.titles import TitleWork, title_work

LONGEST_VALUE = 200


class Submission(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a new job."""

    input: str
    codec: str
    options: dict[str, Any] = {}
    profile: str | None = None
    """Of the server's vqaloop.toml, or one that comes along."""
    deliver: bool = True


def read_submission(body: bytes) -> Submission:
    """Raises InputError."""
    try:
        return msgspec.json.decode(body, type=Submission)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InputError(f"the body is no job: {str(error)[:200]}") from error


def allowed_options() -> dict[str, tuple[str, Option]]:
    """Options that a job may have, by their names on the command line: field and option."""
    return {
        made.name: (field, made)
        for field, made in options_of(LadderOptions).items()
        if made.column and (made.parse is not Path or field == "audience")
    }


def asked_work(asked: Submission, place: Path, settings: Path | None) -> TitleWork:
    """The work of a job, checked as far as that goes without its input. Raises InputError."""
    allowed = allowed_options()
    given: dict[str, Any] = {}
    if asked.profile is not None:
        given |= read_profile(asked.profile, settings)
    for name, value in asked.options.items():
        name = name.replace("_", "-")
        if name not in allowed:
            raise InputError(
                f"options: {name[:50]!r} is none of a job's{did_you_mean(name, allowed)}; they "
                f"are {', '.join(allowed)}"
            )
        field, made = allowed[name]
        given[field] = _read(name, value, made)
    if "audience" in asked.options and str(given["audience"]) != DEFAULT:
        raise InputError("options: audience is `default` here; files are the server's own")
    if not 0 < len(asked.codec) <= LONGEST_VALUE:
        raise InputError("codec is missing")
    given["codec"] = asked.codec
    # output, storage and programs are the server's, whatever a profile says
    for own in ("out", "storage"):
        given.pop(own, None)
    return title_work(given, place, () if asked.deliver else None)


def _read(name: str, value: Any, made: Option) -> Any:
    if made.parse is bool:
        if not isinstance(value, bool):
            raise InputError(f"options: {name} is true or false")
        return value
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"options: {name} takes a text or a number")
    text = str(value)
    if len(text) > LONGEST_VALUE or not text.isprintable():
        raise InputError(f"options: {name} is too long, or not printable")
    choices = made.keywords.get("choices")
    if choices and text not in choices:
        raise InputError(f"options: {name} is one of {', '.join(choices)}")
    try:
        return made.parse(text)
    except (InputError, argparse.ArgumentTypeError, ValueError) as error:
        raise InputError(f"options: {name}: {error}") from error
