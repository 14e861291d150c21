"""The titles that the table of metrics is made of: those never trained on, split in two.

    python -m bench.panel_material --clips FOLDER --stills FOLDER --out DIR

Both folders have a MANIFEST.csv. Material of the licence basis `repo` is held out of training; its
titles, in sorted order, belong to the validation set (the first, third, ...), on which choices are
made, and to the third set (the second, fourth, ...), on which nothing is. Stills are split alike
by their file names, and those of the third set are laid edge to edge, at their own pixels, to
pictures of 1080 and 2160 lines over which a camera pans slowly. `DIR/titles.csv` lists all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from bench.judges import write_y4m
from vqaloop.core.files import write_whole
from vqaloop.media.colour import to_planes
from vqaloop.media.planes import Frames
from vqaloop.records import Source

SETS = VALIDATION, THIRD = ("validation", "third")
BASIS = "repo"
"""Of licences: of material held out of training."""
SIZES = ((1920, 1080), (3840, 2160))
FRAMES, FPS = 40, 25
STEP = (0.61, 0.37)
"""Pixels to the right and down by which the camera moves from a frame to the next."""


def held_out(folder: Path) -> pd.DataFrame:
    """The rows of a folder's manifest that training leaves out."""
    table = pd.read_csv(folder / "MANIFEST.csv")
    if missing := {"file", "licence_basis"} - set(table):
        raise SystemExit(f"{folder}/MANIFEST.csv has no column {', '.join(sorted(missing))}")
    return table[table["licence_basis"] == BASIS]


def split(names: Sequence[str]) -> dict[str, str]:
    """The set of each name: they alternate in sorted order."""
    return {name: SETS[number % 2] for number, name in enumerate(sorted(set(names)))}


def titles(folder: Path) -> pd.DataFrame:
    """file, title and set of every clip held out, set by set."""
    table = held_out(folder).sort_values("file")
    sets = split(table["group"].tolist())
    rows = [
        {"file": str(folder / str(row.file)), "title": row.group, "set": sets[str(row.group)]}
        for row in table.itertuples(index=False)
    ]
    return pd.DataFrame(rows).sort_values("set", kind="stable", ascending=False)


def laid(pictures: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """(3, H, W) of `size` (W, H): rows of pictures cut to equal height, edge to edge."""
    width, height = size
    tall = min(picture.shape[1] for picture in pictures)
    rows: list[torch.Tensor] = []
    number = 0
    while sum(row.shape[1] for row in rows) < height:
        parts: list[torch.Tensor] = []
        while sum(part.shape[2] for part in parts) < width:
            picture = pictures[number % len(pictures)]
            top = (picture.shape[1] - tall) // 2
            parts.append(picture[:, top : top + tall])
            number += 1
        rows.append(torch.cat(parts, 2)[:, :, :width])
    return torch.cat(rows, 1)[:, :height]


def pan(picture: torch.Tensor, size: tuple[int, int], frames: int) -> Iterator[Frames]:
    """(H·3/2, W) frames of a camera that moves by STEP over a picture, sampled to sub-pixels."""
    (width, height), (tall, wide) = size, picture.shape[1:]
    # where a view's middle lies, in units of half the picture, from its top left corner on
    middle = torch.tensor([width / wide - 1, height / tall - 1])
    step = torch.tensor(STEP) * 2 / torch.tensor([wide, tall])
    for number in range(frames):
        theta = torch.zeros(1, 2, 3)
        theta[0, 0, 0], theta[0, 1, 1] = width / wide, height / tall
        theta[0, :, 2] = middle + number * step
        grid = F.affine_grid(theta, [1, 3, height, width], align_corners=False)
        view = F.grid_sample(picture[None], grid, "bicubic", "border", align_corners=False)
        yield to_planes(view)[0].numpy()


def montage(stills: Sequence[Path], size: tuple[int, int], out: Path, frames: int) -> None:
    """Write the pan over stills laid edge to edge as uncompressed video."""
    margin = [int(np.ceil(step * frames)) for step in STEP]
    picture = laid(
        [read_still(path) for path in stills], (size[0] + margin[0], size[1] + margin[1])
    )
    source = Source(out, "", *size, Fraction(FPS), frames, "yuv420p")
    write_y4m(out, pan(picture, size, frames), source)


def read_still(path: Path) -> torch.Tensor:
    """(3, H, W) RGB in 0..1."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def make_parser() -> argparse.ArgumentParser:
    words = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser("bench.panel_material", description=words)
    parser.add_argument("--clips", type=Path, required=True, help="folder with MANIFEST.csv")
    parser.add_argument("--stills", type=Path, required=True, help="folder with MANIFEST.csv")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--montages", default=THIRD, help="sets that have montages")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a montage")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    o = make_parser().parse_args(argv)
    o.out.mkdir(parents=True, exist_ok=True)
    table = titles(o.clips)
    sets = split(held_out(o.stills)["file"].tolist())
    rows = []
    for group in o.montages.split(","):
        own = [o.stills / name for name, of in sets.items() if of == group]
        if not own:
            raise SystemExit(f"no stills of the set {group} in {o.stills}; there are {SETS}")
        first = 0
        for size in SIZES:
            name = f"montage-{group}-{size[1]}"
            path = o.out / f"{name}.y4m"
            # the next stills, so that two montages have few in common
            turned = own[first:] + own[:first]
            first = len(own) // 4
            if not path.exists():
                montage(turned, size, path, o.frames)
            rows.append({"file": str(path), "title": name, "set": group})
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    write_whole(o.out / "titles.csv", table.to_csv(index=False))
    print(table.groupby("set")["title"].nunique().to_string(), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
