"""Settings of a project in TOML: options of commands, and named profiles of them.

A file has tables of options by their names on the command line: `[defaults]` for every command
that has them, `[ladder]` and others for one, `[profiles.NAME]` for whoever asks for that profile;
`profile = "NAME"` asks for one always.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqaloop.core.documents import toml_values
from vqaloop.core.option_fields import options_of
from vqaloop.core.suggestions import did_you_mean
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.ladder.options import LadderOptions

PROJECT_FILE = "vqaloop.toml"
"""Is read where a command is run."""
SHIPPED = Path(__file__).parent / "profiles.toml"
DEFAULTS, PROFILES, PROFILE = "defaults", "profiles", "profile"

Value = str | int | float | bool
"""Of an option; a list stands for its items with commas between."""


@dataclass(frozen=True)
class Setting:
    """One option of a file."""

    name: str
    """As on the command line, without dashes before it."""
    value: Value
    origin: str
    """The file and the table in it, for messages."""


@dataclass(frozen=True)
class Settings:
    """A file of settings, with the profiles that come along."""

    tables: Mapping[str, tuple[Setting, ...]]
    """By command, and DEFAULTS."""
    profiles: Mapping[str, tuple[Setting, ...]]
    profile: str | None
    """The one that is asked for always."""

    def of(self, command: str, profile: str | None) -> dict[str, Setting]:
        """The settings of a command, by option: a profile's before the command's own before
        those of all. Raises InputError for a profile that is not there."""
        name = self.profile if profile is None else profile
        if name is not None and name not in self.profiles:
            known = ", ".join(sorted(self.profiles))
            hint = did_you_mean(name, self.profiles)
            raise InputError(f"there is no profile {name[:50]!r}{hint}; there are {known}")
        tables = (
            self.tables.get(DEFAULTS, ()),
            self.tables.get(command, ()),
            self.profiles[name] if name is not None else (),
        )
        return {setting.name: setting for table in tables for setting in table}


def read_settings(path: Path | None, commands: Collection[str] | None = None) -> Settings:
    """The settings in a file, or of the profiles that come along alone.

    Args:
        path: The file; None: PROJECT_FILE of the current folder, if there is one.
        commands: Names that a table may have; None: any.

    Raises:
        InputError: The file cannot be read or is wrong; names the place.
    """
    project = Path(PROJECT_FILE)
    if path is None and project.is_file():
        path = project
    if path is None:
        return Settings({}, _shipped(), None)
    name = quoted(path)
    values = toml_values(path, name)
    profile = values.pop(PROFILE, None)
    if profile is not None and not isinstance(profile, str):
        raise InputError(f"{name}: {PROFILE} is the name of one; it is {profile!r}")
    profiles = {**_shipped(), **_profiles(values.pop(PROFILES, {}), name)}
    for table in values:
        if commands is not None and table not in (DEFAULTS, *commands):
            hint = did_you_mean(table, (DEFAULTS, PROFILES, *commands))
            raise InputError(
                f"{name}: {table[:50]!r} is neither {PROFILE}, {DEFAULTS}, {PROFILES} nor a "
                f"command{hint}"
            )
    tables = {table: _settings(found, f"{name}, [{table}]") for table, found in values.items()}
    return Settings(tables, profiles, profile)


@functools.cache
def _shipped() -> dict[str, tuple[Setting, ...]]:
    return _profiles(toml_values(SHIPPED, str(SHIPPED))[PROFILES], "vqaloop's own profiles")


def _profiles(found: Any, name: str) -> dict[str, tuple[Setting, ...]]:
    if not isinstance(found, dict):
        raise InputError(f"{name}: {PROFILES} are tables; write [{PROFILES}.NAME]")
    return {
        profile: _settings(table, f"{name}, [{PROFILES}.{profile}]")
        for profile, table in found.items()
    }


def _settings(table: Any, origin: str) -> tuple[Setting, ...]:
    if not isinstance(table, dict):
        raise InputError(f"{origin} is a table of options: NAME = VALUE in each of its lines")
    return tuple(Setting(key, _value(value, key, origin), origin) for key, value in table.items())


def _value(value: Any, key: str, origin: str) -> Value:
    if isinstance(value, list) and all(isinstance(one, str | int | float) for one in value):
        return ",".join(map(str, value))
    if not isinstance(value, str | int | float):
        raise InputError(f"{origin} {key}: an option is a text, a number, a list of them or true")
    return value


def read_profile(name: str, file: str | Path | None = None) -> dict[str, Any]:
    """The options of a profile that `build_ladder` takes, for a call of it.

    Args:
        name: mobile, tv, archive, live-to-vod, or one of the file's.
        file: With further profiles; None: vqaloop.toml of the current folder, if there is one.

    Returns:
        Arguments by name.

    Raises:
        InputError: There is no such profile, or the file is wrong.
    """
    settings = read_settings(None if file is None else Path(file))
    fields = {made.name: (field, made) for field, made in options_of(LadderOptions).items()}
    found: dict[str, Any] = {}
    for setting in settings.of("ladder", name).values():
        if setting.name in fields:
            field, made = fields[setting.name]
            # a switch such as no-cache turns off what it names
            off = made.parse is bool and made.name != field.replace("_", "-")
            found[field] = not setting.value if off else setting.value
    return found
