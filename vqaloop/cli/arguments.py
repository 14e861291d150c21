"""The argument parser: refusals in one message, options between inputs, common options."""

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from vqaloop.core.suggestions import did_you_mean
from vqaloop.errors import InputError

Command = Callable[[str, Callable[..., int], str], "Parser"]
"""Adds a command: its name, what runs it, what it does in a line."""


class Parser(argparse.ArgumentParser):
    """Refuses as everything else does: with one message. Inputs may have options between them."""

    _anew = False
    _words: Sequence[str] = ()

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        words = None if args is None else list(args)
        self._words = words or []
        found, left = super().parse_known_args(words, namespace)
        # only then: of what is missing the plain way tells better
        if not left or self._anew or self._subparsers is not None:
            return found, left
        self._anew = True
        try:
            found, left = self.parse_known_intermixed_args(words)
        finally:
            self._anew = False
        if left:
            # here, where the options are known that may have been meant
            hint = did_you_mean(left[0].split("=")[0], list(self._option_string_actions))
            self.error(f"unrecognized arguments: {' '.join(left)}{hint}")
        return found, left

    def error(self, message: str) -> NoReturn:
        wanting = re.fullmatch(r"argument (?:-\w/)?(--[\w-]+): expected one argument", message)
        if wanting:
            message += f"; one that begins with a dash is given as {wanting[1]}='-...'"
        if message.startswith("the following arguments are required"):
            message += self._unknown_words()
        raise InputError(f"{message}; see `{self.prog} --help`")

    def _unknown_words(self) -> str:
        """The first option given that there is none of: perhaps the one that is missing."""
        for word in self._words:
            name = word.split("=")[0]
            if name.startswith("--") and name != "--" and name not in self._option_string_actions:
                hint = did_you_mean(name, list(self._option_string_actions))
                return f", and {name} is unknown{hint}"
        return ""

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            # argparse takes it for any ValueError, and has other words for it
            if isinstance(error.__context__, InputError):
                raise error.__context__ from None
            raise

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            error.message += did_you_mean(str(value), list(action.choices or ()))
            raise
