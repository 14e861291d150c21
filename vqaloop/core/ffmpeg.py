"""The ffmpeg program: which one runs, and its command lines as graphs.

The only module that imports ffmpeg-python, and only when a graph is built: training does without.
Others build graphs with `input`, `filter`, `concat` and the methods of `Node`. They import this
module as `ffmpeg_graph`: there `ffmpeg` is a path.
"""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vqaloop.core.frame_progress import QUIET
from vqaloop.errors import InputError


class Node(Protocol):
    """A stream of a graph, or its output: what is used of ffmpeg-python's nodes."""

    def filter(self, name: str, /, *arguments: object, **options: object) -> "Node":
        """The stream after a filter."""

    def filter_multi_output(self, name: str, /, *arguments: object) -> "Node":
        """A filter with several outputs, taken by their index."""

    def output(self, name: str, /, **options: object) -> "Node":
        """The stream written to a file; names are keys of `compiled`."""

    def __getitem__(self, stream: str | int) -> "Node":
        """The streams of a specifier, such as "V:0", or an output of a filter."""

    def compile(self, cmd: list[str]) -> list[str]:
        """The command line after `cmd`."""


def _library() -> Any:
    """The module of ffmpeg-python. Raises InputError where another one has taken its place."""
    import ffmpeg

    # two packages of PyPI have a module `ffmpeg`: whichever is installed last overwrites the other
    if not hasattr(ffmpeg, "input"):
        raise InputError(
            f"the Python module ffmpeg ({ffmpeg.__file__}) is not that of ffmpeg-python: "
            "another package, such as `ffmpeg` of PyPI, has taken its place; run `pip uninstall "
            "ffmpeg` and `pip install --force-reinstall --no-deps ffmpeg-python`"
        )
    return ffmpeg


def input(name: str, **options: object) -> Node:
    """A file that is read, with its options before -i; names are keys of `compiled`."""
    node: Node = _library().input(name, **options)
    return node


def filter(nodes: Sequence[Node], name: str, **options: object) -> Node:
    """One filter with several inputs."""
    node: Node = _library().filter(nodes, name, **options)
    return node


def concat(*nodes: Node) -> Node:
    """Streams one after another."""
    node: Node = _library().concat(*nodes)
    return node


def merge_outputs(*nodes: Node) -> Node:
    """Outputs of one command."""
    node: Node = _library().merge_outputs(*nodes)
    return node


def input_arguments(options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Options before -i as `input` takes them: ffmpeg-python has another use for `video_size`."""
    return {"s" if key == "video_size" else key: value for key, value in options}


def append_filters(node: Node, text: str) -> Node:
    """Filters written as in -vf, put after `node` (ffmpeg-python does its own escaping)."""

    def tokens(part: str, separator: str) -> list[str]:
        lexer = shlex.shlex(part, posix=True)
        lexer.whitespace, lexer.quotes, lexer.commenters = separator, "'", ""
        lexer.whitespace_split = True
        return list(lexer)

    for item in tokens(text, ","):
        name, _, arguments = item.partition("=")
        pairs = [argument.partition("=") for argument in tokens(arguments, ":")]
        named = {key: value for key, equals, value in pairs if equals}
        node = node.filter(name, *(key for key, equals, _ in pairs if not equals), **named)
    return node


def ffmpeg_path(path: str | os.PathLike[str] | None = None) -> str:
    """The ffmpeg to run: `path`, else `$VQALOOP_FFMPEG`, else the one imageio-ffmpeg carries.

    Raises InputError when that file is not there or cannot be executed.
    """
    chosen = os.fspath(path) if path else os.environ.get("VQALOOP_FFMPEG", "")
    if not chosen:
        import imageio_ffmpeg

        try:
            return str(imageio_ffmpeg.get_ffmpeg_exe())
        except RuntimeError as error:
            raise InputError(
                "no ffmpeg found: reinstall imageio-ffmpeg, or name one with --ffmpeg"
            ) from error
    if not (os.path.isfile(chosen) and os.access(chosen, os.X_OK)):
        raise InputError(f"{chosen} is not an executable ffmpeg; check --ffmpeg or VQALOOP_FFMPEG")
    return os.path.abspath(chosen)


def file_url(path: str | os.PathLike[str]) -> str:
    """A path as ffmpeg must be given it: no name can then pass for an option or a protocol."""
    return "file:" + os.fspath(Path(path).absolute())


def compiled(
    graph: Node, ffmpeg: str, files: Mapping[str, str | os.PathLike[str]], *global_args: str
) -> list[str]:
    """The argv of a graph of which the file names are keys of `files`.

    ffmpeg-python hashes its nodes as UTF-8 and fails on names that are not; it also takes two
    equal inputs for one, so each is given a key of its own: "INPUT", "REFERENCE", "OUTPUT".
    ffmpeg reads no stdin, speaks of errors only and overwrites; `global_args` come last of the
    global options, so they win, and the output stays the last argument.
    """
    head = [ffmpeg, *QUIET, *global_args]
    return [file_url(files[part]) if part in files else part for part in graph.compile(cmd=head)]
