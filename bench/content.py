"""What the pictures of a grid's clips hold, for the prior that is conditioned on it.

    python -m bench.content FOLDER GRID... [-o bench/content.csv]

FOLDER has the clips of the grids by name, as `python -m bench.grid` took them; each is cut to the
frames that its grid was made of. Its MANIFEST.csv, if it has one, says which clips are of one
title (`file`, `group`). Clips that the table has already are not looked at again.
"""

import argparse
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd

from bench.grid import cut, read_grid
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import write_whole
from vqaloop.media.content import Content, content_of
from vqaloop.media.probe import probe_source

TABLE = Path(__file__).with_name("content.csv")


@dataclass(frozen=True)
class Clip:
    """What is known of a clip before any encode."""

    group: str
    """Its title, which others may share."""
    content: Content


def read_content(path: Path) -> dict[str, Clip]:
    """The table that was written, by clip."""
    if not path.is_file():
        raise SystemExit(f"no {path}; make it with `python -m bench.content`")
    table = pd.read_csv(path, dtype={"clip": str, "group": str})
    numbers = table[[field.name for field in fields(Content)]].to_numpy(float).tolist()
    return {
        clip: Clip(group, Content(*row))
        for clip, group, row in zip(table["clip"], table["group"], numbers, strict=True)
    }


def groups_of(folder: Path) -> dict[str, str]:
    """The titles of a folder's clips, as far as it says so."""
    listed = folder / "MANIFEST.csv"
    if not listed.is_file():
        return {}
    table = pd.read_csv(listed, dtype=str)
    return {Path(file).stem: group for file, group in zip(table.file, table.group, strict=True)}


def content_of_clip(folder: Path, clip: str, frames: int) -> Content:
    """What the first frames of a clip hold."""
    ffmpeg = ffmpeg_path()
    # of the clip a grid's folder has its cut too
    found = sorted(folder.glob(f"{clip}.*"))
    if not found:
        raise SystemExit(f"no clip {clip} in {folder}; name the folder of the grid's clips")
    with tempfile.TemporaryDirectory() as scratch:
        source = probe_source(cut(found[0], Path(scratch), frames), ffmpeg=ffmpeg)
        content = content_of(source, ffmpeg=ffmpeg)
    if content is None:
        raise SystemExit(f"{found[0]} is too small or too short to be looked at")
    return content


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("grids", nargs="+", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=TABLE)
    options = parser.parse_args()
    table = pd.concat(map(read_grid, options.grids), ignore_index=True).astype({"clip": str})
    known = read_content(options.output) if options.output.exists() else {}
    groups = groups_of(options.folder)
    for clip, rows in table.groupby("clip"):
        if str(clip) not in known:
            content = content_of_clip(options.folder, str(clip), int(rows.frames.max()))
            known[str(clip)] = Clip(groups.get(str(clip), str(clip)), content)
            print(clip, known[str(clip)], file=sys.stderr, flush=True)
    lines = [
        {"clip": name, "group": clip.group, **vars(clip.content)}
        for name, clip in sorted(known.items())
    ]
    write_whole(options.output, pd.DataFrame(lines).to_csv(index=False, float_format="%.4f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
