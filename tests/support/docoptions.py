"""The options of every command as docs/commands.md lists them, from the parser itself."""

import argparse
import re

from vqaloop.cli.parser import make_parser


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (
        action
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(choices.choices)


def described(action: argparse.Action) -> str:
    """An argument as an item of a list: its names, what it takes, the parser's own help."""
    takes = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    if action.option_strings:
        value = f"[{takes}]" if action.nargs == "?" else takes
        shown = ", ".join(f"{name} {value}".rstrip() for name in action.option_strings)
    else:
        shown = {"?": f"[{takes}]", "+": f"{takes}...", "*": f"[{takes}...]"}.get(
            str(action.nargs), takes
        )
    needed = "needed" if action.option_strings and action.required else ""
    help = (action.help or "") % vars(action)
    # options are code, and nothing else in a help is Markdown or HTML
    help = re.sub(r"(?<![`\w])(--[\w-]+)(?![`\w])", r"`\1`", help).replace("<", "&lt;")
    numbers = isinstance(action.default, int | float) and not isinstance(action.default, bool)
    default = f"{action.default:g}" if numbers else action.default
    if isinstance(default, str) and default not in ("", "inf") and "default" not in help:
        help = f"{help} (default: {default})" if help else f"default: {default}"
    told = "; ".join(part for part in (needed, help) if part)
    return f"- `{shown}`" + (f": {told}" if told else "")


def option_lists() -> dict[str, str]:
    """Markdown lists of the options: those of all commands, and each command's own."""
    parsers = subcommands()
    groups = {
        name: [
            (group.title or "", [a for a in group._group_actions if a.dest != "help"])
            for group in parser._action_groups
        ]
        for name, parser in parsers.items()
    }
    found = {}
    for name, several in {"common": groups["sample"], **groups}.items():
        lines = []
        for title, actions in several:
            if not actions or (title == "common options") != (name == "common"):
                continue
            if title not in ("positional arguments", "options", "common options"):
                lines += ["", f"{title[0].upper()}{title[1:]}:", ""]
            lines += [described(action) for action in actions]
        found[name] = "\n".join(lines).strip("\n")
    return found
