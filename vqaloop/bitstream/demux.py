"""Opening video files with PyAV, restricted to container formats that open no other files."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import av
from av.container import InputContainer

from vqaloop.core.ffmpeg import file_url


@contextlib.contextmanager
def open_video(
    path: Path,
    formats: str | None,
    *,
    options: Mapping[str, str] | None = None,
    demuxer: str | None = None,
    by_name: bool = True,
) -> Iterator[InputContainer]:
    """Open a video or picture file; what goes wrong, there or later, is PyAV's own exception.

    Args:
        path: The file.
        formats: ffmpeg's names of the formats that it may have, joined by commas, so that a
            playlist under a video's name does not open what it lists; None for any.
        options: Further options of the demuxer.
        demuxer: ffmpeg's name of the demuxer to use, None for the one that fits.
        by_name: Whether the name counts in choosing the demuxer, as bare streams need it. Without
            it names need not be UTF-8.

    Yields:
        The open container.
    """
    limits = {"format_whitelist": formats} if formats else {}
    with contextlib.ExitStack() as stack:
        target: Any = file_url(path)
        if not by_name:
            target = _Nameless(stack.enter_context(open(path, "rb")))
        yield stack.enter_context(
            av.open(
                target,
                format=demuxer,
                options={**limits, **(options or {})},
                metadata_errors="replace",
            )
        )


class _Nameless:
    """A binary file without its name, for PyAV."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def main_video(container: Any) -> Any:
    """The first video stream of a container that is no cover art, or None."""
    return next(iter(video_streams(container)), None)


def video_streams(container: Any) -> list[Any]:
    """The video streams of a container that are no cover art, in their order."""
    cover = av.stream.Disposition.attached_pic
    return [s for s in container.streams.video if not s.disposition & cover]
