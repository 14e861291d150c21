"""The pages of the documentation as data: fenced blocks, the commands in them, inline code."""

import re
import shlex
from dataclasses import dataclass

from tests.support.media import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "recipes").rglob("*.md"),
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "bench/README.md")),
    )
)
"""Every page that tells people what to type."""

LANGUAGES = {"sh", "console", "python", "toml", "ini", "yaml", "csv", "json", "text", ""}
"""Of the last two, and of these alone, nothing is to be typed."""


@dataclass(frozen=True)
class Block:
    """One block of code: in a fence, or indented."""

    page: str
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """What the block tells people to type; each && and each line is a command of its own."""
        if self.text.startswith("#!"):
            return [self.text.splitlines()[0]]
        found = []
        for line in self.text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*_split(line.removeprefix("$ ")), "&&"]:
                if word != "&&":
                    words.append(word)
                elif words:
                    # quoted where a space asks for it alone, so that a * stays one
                    found.append(" ".join(shlex.quote(w) if " " in w else w for w in words))
                    words = []
        return found


def _split(line: str) -> list[str]:
    """Words and operators of a line of sh, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(lexer)


def read(page: str) -> str:
    return (REPOSITORY / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """The blocks of a page in their order."""
    text, found = read(page), []
    fence = r"^```(?P<language>\w*)[^\n]*\n(?P<fenced>.*?)^```$"
    # lists are indented too, so of indented lines those count that begin as a command does
    indented = r"(?P<bare>(?:^ {4}(?:vqaloop|python|pip|pytest|mkdocs) [^\n]*\n?)+)"
    for match in re.finditer(f"{fence}|{indented}", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        language = "sh" if match["bare"] else match["language"]
        found.append(Block(page, line, language, match["bare"] or match["fenced"]))
    return found


def commands(page: str) -> list[str]:
    """All commands of a page in their order."""
    found = [block.commands() for block in blocks(page) if block.language in ("sh", "console")]
    return [command for several in found for command in several]


def inline(page: str) -> list[str]:
    """Code within sentences and tables of a page; a table's \\| is the | it stands for."""
    prose = re.sub(r"^```.*?^```$", "", read(page), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()).replace("\\|", "|") for code in re.findall("`([^`]+)`", prose)]
