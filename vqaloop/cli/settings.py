"""Settings of a project on the command line: options that a file gives and the words do not."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.cli.output import emit, say
from vqaloop.core.suggestions import did_you_mean
from vqaloop.core.text import size_text
from vqaloop.errors import InputError
from vqaloop.ladder.profiles import Setting, Settings, read_settings

OWN = ("profile", "preset-file", "show-config")
"""Options about settings, which no file gives."""
_EXCLUSIVE = (
    frozenset(("target-score", "bitrate")),
    frozenset(("no-cap", "peak-ratio", "max-peak")),
    frozenset(("prior", "no-prior")),
)
"""Options that do not go together: one in the words puts aside the others of a file."""

MADE_OF = {"watch": ("ladder", "deliver")}
"""Commands that run others, whose tables count for them too."""

Commands = Mapping[str, argparse.ArgumentParser]


@dataclass(frozen=True)
class _Found:
    """A command with the settings that count for it."""

    name: str
    settings: tuple[Setting, ...]
    words: tuple[str, ...]
    """The command line with the settings before its own options."""


def add_settings(parser: Any) -> None:
    """The options about settings; `parser` may be a group."""
    parser.add_argument(
        "--profile",
        metavar="NAME",
        help="options of a profile: mobile, tv, archive, live-to-vod, or one of a settings file",
    )
    parser.add_argument(
        "--preset-file",
        metavar="FILE",
        help="a settings file (default: vqaloop.toml of the current folder, if there is one)",
    )
    parser.add_argument(
        "--show-config", action="store_true", help="say which options count, and end"
    )


def parse_with_settings(
    parser: argparse.ArgumentParser, commands: Commands, words: Sequence[str]
) -> argparse.Namespace:
    """The options that words and settings give. Raises InputError."""
    command = commands.get(words[0]) if words else None
    if command is None or "-h" in words or "--help" in words:
        return parser.parse_args(words)
    found = _found(commands, words)
    shows = "--show-config" in words
    if shows:
        _ask_for_nothing(command)
    options = parser.parse_args(found.words)
    if shows:
        options.run = lambda options: _show(options, command, found)
    return options


def _found(commands: Commands, words: Sequence[str]) -> _Found:
    command, own = words[0], _value_of(words, "--preset-file")
    settings = read_settings(None if own is None else Path(own), commands)
    every = {name for one in commands.values() for name in one._option_string_actions}
    _check_known(settings, every)
    given = {word.split("=")[0] for word in words if word.startswith("-")}
    actions = commands[command]._option_string_actions
    counted, more = [], list[str]()
    profile, named = _value_of(words, "--profile"), dict[str, Setting]()
    for table in (*MADE_OF.get(command, ()), command):
        named |= settings.of(table, profile)
    for name, setting in named.items():
        action = actions.get(f"--{name}")
        if action is None or _put_aside(action, given, actions):
            continue
        counted.append(setting)
        more += _words(action, setting)
    return _Found(command, tuple(counted), (command, *more, *words[1:]))


def _check_known(settings: Settings, every: set[str]) -> None:
    """Raises InputError for an option that no command has, in any table."""
    names = {name.removeprefix("--") for name in every if name.startswith("--")} - set(OWN)
    for table in (*settings.tables.values(), *settings.profiles.values()):
        for setting in table:
            if setting.name not in names:
                hint = did_you_mean(setting.name, names)
                raise InputError(
                    f"{setting.origin}: no command has an option {setting.name[:50]!r}{hint}"
                )


def _put_aside(
    action: argparse.Action, given: set[str], actions: Mapping[str, argparse.Action]
) -> bool:
    """Whether the words give this option, or one that does not go with it."""
    rivals = set(action.option_strings)
    for group in _EXCLUSIVE:
        flags = {f"--{name}" for name in group}
        if flags & rivals:
            rivals |= flags & actions.keys()
    return bool(rivals & given)


def _words(action: argparse.Action, setting: Setting) -> list[str]:
    """A setting as words, its value checked. Raises InputError that names its place."""
    flag, value, place = f"--{setting.name}", setting.value, f"{setting.origin} {setting.name}"
    if isinstance(value, bool):
        if action.nargs not in (0, "?"):
            raise InputError(f"{place} takes a value; it is {str(value).lower()}")
        return [flag] if value else []
    if action.nargs == 0:
        raise InputError(f"{place} is a switch; it is true or false, not {str(value)[:50]!r}")
    try:
        if callable(action.type):
            action.type(str(value))
        if action.choices is not None and value not in action.choices:
            hint = did_you_mean(str(value), list(action.choices))
            raise InputError(f"{value!r} is none of {', '.join(action.choices)}{hint}")
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{place}: {error}") from error
    return [f"{flag}={value}"]


def _value_of(words: Sequence[str], flag: str) -> str | None:
    """The value of one option in words that are not parsed yet; the last one counts."""
    found = None
    for place, word in enumerate(words):
        if word == flag and place + 1 < len(words):
            found = words[place + 1]
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def _ask_for_nothing(command: argparse.ArgumentParser) -> None:
    """What is only shown needs neither an input nor a codec."""
    for action in command._actions:
        action.required = False
        if not action.option_strings:
            action.nargs = "*"


def _show(options: argparse.Namespace, command: argparse.ArgumentParser, found: _Found) -> int:
    """Every option that is not at its default, with where it comes from."""
    settings = {f"--{setting.name}": setting for setting in found.settings}
    shown: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    for flag, action in command._option_string_actions.items():
        name, value = flag.removeprefix("--"), getattr(options, action.dest, None)
        if not flag.startswith("--") or name in (*OWN, "help", "json") or action.dest in seen:
            continue
        # a switch that is another option's too is that one's where it has its value
        if value in (None, action.default) or (action.nargs == 0 and value != action.const):
            continue
        seen.add(action.dest)
        shown[name] = (
            {"value": settings[flag].value, "origin": settings[flag].origin}
            if flag in settings
            else {"value": _plain(value), "origin": "the command line"}
        )
    for name, row in shown.items():
        say(options, f"{name} = {row['value']}  ({row['origin']})")
    say(options, f"All other options of `vqaloop {found.name}` are at their defaults.")
    emit(options, {"schema": "vqaloop.config/1", "command": found.name, "options": shown})
    return 0


def _plain(value: Any) -> Any:
    """A value as JSON has it, sizes as they are written."""
    if isinstance(value, tuple) and len(value) == 2:
        return size_text(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
