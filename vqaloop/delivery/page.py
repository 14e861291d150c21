"""play.html: a page beside the manifests that plays the delivery by its HLS playlists."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vqaloop.core.version import __version__
from vqaloop.delivery.hls import MEDIA
from vqaloop.report.html import render

PAGE = "play.html"


def write_page(folder: Path, about: Mapping[str, Any]) -> None:
    """Write the page into the folder of a delivery.

    Args:
        folder: The delivery, its HLS playlists written.
        about: Its document, up to the list of files.
    """
    rungs = [
        {
            "id": each["id"],
            "kind": "video",
            "codecs": each["codecs"],
            "words": f"{each['width']}x{each['height']}, "
            f"{each['average_bandwidth'] / 1000:.0f} kb/s, score {each['score']:.1f}, "
            f"{each['codec']}",
        }
        # the best is last, which is where the page begins
        for each in sorted(about["renditions"], key=lambda each: float(each["score"]))
        if (folder / each["id"] / MEDIA).is_file()
    ]
    audio = about["audio"]
    heard = {"id": audio["id"], "kind": "audio", "codecs": audio["codecs"]} if audio else None
    text = json.dumps({"rungs": rungs, "audio": heard})
    page = render(
        "play.html",
        script="play.js",
        connects=True,
        plays=True,
        title=Path(about["source"]["path"]).name,
        # no text in it may end the element that holds it
        delivery=Markup(text.replace("<", "\\u003c")),
        version=__version__,
    )
    (folder / PAGE).write_text(page, encoding="utf-8", errors="replace")
