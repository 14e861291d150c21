"""Options of `vqaloop deliver` and `package_ladder`."""

import os
from dataclasses import dataclass
from pathlib import Path

from vqaloop.core.option_fields import number, option
from vqaloop.errors import InputError

SEGMENT_S, LEAST_SEGMENT_S, MOST_SEGMENT_S = 6.0, 1.0, 30.0
THUMBNAIL_S, LEAST_THUMBNAIL_S = 5.0, 0.5


@dataclass(frozen=True)
class DeliveryOptions:
    """What is delivered, and how."""

    hls: bool = option(False, "HLS; with neither: all that can be")
    dash: bool = option(False, "DASH")
    segment_s: float = option(
        SEGMENT_S,
        "seconds of a segment, rounded to whole GOPs",
        flags=("--segment",),
        parse=number,
        metavar="S",
    )
    audio: bool = option(True, "leave the source's audio out", flags=("--no-audio",))
    subtitles: bool = option(True, "leave its subtitles out", flags=("--no-subtitles",))
    single_file: bool = option(
        False, "one file for each rendition, of which players fetch byte ranges"
    )
    thumbnail_s: float = option(
        0.0,
        f"preview images for seeking, one every S seconds (default: {THUMBNAIL_S:g}; without the "
        "option none)",
        flags=("--thumbnails",),
        parse=number,
        nargs="?",
        const=THUMBNAIL_S,
        metavar="S",
    )
    keys: str | os.PathLike[str] | None = option(
        None,
        "encrypt the segments with the keys of this file",
        flags=("--encrypt",),
        parse=Path,
        metavar="FILE",
    )
    packager: str = option(
        "auto",
        "what encrypts: shaka (Shaka Packager), ffmpeg, or auto: Shaka Packager where it is "
        "installed",
        metavar="NAME",
    )

    page: bool = option(False, "a page too that plays it in a browser, play.html")

    def check(self) -> None:
        """Raises InputError for a number out of its range, and for what does not go together."""
        if not LEAST_SEGMENT_S <= self.segment_s <= MOST_SEGMENT_S:
            raise InputError(
                f"segments of {self.segment_s:g} s: {LEAST_SEGMENT_S:g} to {MOST_SEGMENT_S:g} s "
                "are taken"
            )
        if self.page and (self.keys is not None or not self.hls):
            raise InputError(
                "--page plays HLS that is not encrypted; leave it out, or "
                + ("--encrypt" if self.keys is not None else "deliver HLS too")
            )
        if self.thumbnail_s and not LEAST_THUMBNAIL_S <= self.thumbnail_s <= 3600:
            raise InputError(
                f"preview images every {self.thumbnail_s:g} s: {LEAST_THUMBNAIL_S:g} to 3600 s "
                "are taken"
            )
