"""Pristine material of a corpus: videos, pictures in motion, montages of pictures, dead leaves."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vqaloop.bitstream.demux import open_video
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.frames import read_source
from vqaloop.media.limits import MAX_PIXELS
from vqaloop.media.planes import CLIP_SIZE, Frames
from vqaloop.media.probe import probe_source
from vqaloop.training.synthetic_motion import dead_leaves, montage_in_motion, picture_in_motion

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
_STILL = "image2,jpeg_pipe,png_pipe,webp_pipe"
"""ffmpeg's names of their formats; a name is no pattern, so that none opens other files."""
VIDEOS = {".mp4", ".mkv", ".mov", ".webm", ".y4m"}
SYNTHETIC, MONTAGE = "synthetic", "montage"
"""`CorpusScene.basis` of generated material."""
MONTAGE_PICTURES = 16
"""Most pictures of a montage."""
FRAME_PIXELS = 32e6
"""Pixels of all frames of a scene: larger pictures have fewer frames."""
LEAST_FRAMES = 20
"""Frames of a scene of pictures of any size, where there are so many."""


@dataclass(frozen=True)
class CorpusScene:
    """A file of pristine material, and where it may be split from others."""

    path: Path
    name: str
    content: str
    """Title; material of one title stays on one side of a split."""
    licence: str
    basis: str
    """`explicit` when the licence names this very file, `repo` when only its collection."""
    window: tuple[int, int] = (0, 1)
    """Which of how many equal parts of a video the scene is from."""
    pictures: tuple[Path, ...] = ()
    """Of a montage."""
    size: tuple[int, int] | None = None
    """Width and height of a montage."""

    def about(self) -> dict[str, Any]:
        """JSON for a shard's header, without the folders of the files."""
        names = tuple(picture.name for picture in self.pictures)
        return {**asdict(self), "path": self.path.name, "pictures": names}


def list_scenes(sources: Sequence[Path], windows: int = 1) -> list[CorpusScene]:
    """Videos and pictures in files and folders; a MANIFEST.csv beside them names their titles.

    Of each video, up to `windows` scenes, from as many equal parts of it. Raises InputError when
    a source is not there, when there are no scenes, or two of the same name.
    """
    if windows < 1:
        raise InputError(f"at least one scene is made of each video, not {windows}")
    scenes: list[CorpusScene] = []
    for source in sources:
        if not source.exists():
            raise InputError(f"{quoted(source)} does not exist; check the path")
        folder = source if source.is_dir() else source.parent
        known = _manifest(folder / "MANIFEST.csv")
        for path in sorted(source.iterdir()) if source.is_dir() else [source]:
            if path.suffix.lower() in PICTURES | VIDEOS:
                row = known.get(path.name, {})
                count = windows if path.suffix.lower() in VIDEOS else 1
                title = row.get("group") or path.stem
                licence, basis = (row.get(k, "unknown") for k in ("licence", "licence_basis"))
                for i in range(count):
                    name = path.stem + (f".{i}" if count > 1 else "")
                    scenes.append(CorpusScene(path, name, title, licence, basis, (i, count)))
    if not scenes:
        raise InputError(f"no videos or pictures in {', '.join(map(str, sources))}")
    names = Counter(scene.name for scene in scenes)
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise InputError(
            f"several files are called {', '.join(twice[:5])} (whatever their suffix or folder); "
            "a scene's name is that of its shard, so rename all but one"
        )
    return scenes


def synthetic_scenes(count: int) -> list[CorpusScene]:
    """Scenes of overlapping textured leaves, each a title of its own; see `dead_leaves`."""
    return [
        CorpusScene(
            Path(f"leaves{i:03}"), f"leaves{i:03}", f"leaves{i:03}", "generated", SYNTHETIC
        )
        for i in range(count)
    ]


def with_montages(
    scenes: Sequence[CorpusScene], sizes: Mapping[tuple[int, int], int], seed: int
) -> list[CorpusScene]:
    """The scenes, with montages in place of the pictures: so many of each (width, height).

    A montage is a title of its own, and shares pictures with others made of the same material: it
    stays in the set of that material. Raises InputError where there are no pictures.
    """
    pictures = [scene.path for scene in scenes if scene.path.suffix.lower() in PICTURES]
    if not pictures:
        raise InputError("montages are made of pictures, of which there are none")
    rng = np.random.default_rng(seed)
    found = [scene for scene in scenes if scene.path not in pictures]
    for size, count in sizes.items():
        for i in range(count):
            chosen = rng.permutation(len(pictures))[:MONTAGE_PICTURES]
            name = f"montage{size[1]}.{i:02}"
            parts = tuple(pictures[j] for j in chosen)
            licence = "as its pictures"
            scene = CorpusScene(Path(name), name, name, licence, MONTAGE, (0, 1), parts, size)
            found.append(scene)
    return found


def part_of_titles(scenes: Sequence[CorpusScene], part: int, parts: int) -> list[CorpusScene]:
    """The scenes of every `parts`-th title in order of their names, from the `part`-th (1..) on.

    Raises InputError for a part that there is not.
    """
    if not 1 <= part <= parts:
        raise InputError(f"there is no part {part} of {parts}; count from 1")
    titles = sorted({scene.content for scene in scenes})
    kept = set(titles[part - 1 :: parts])
    return [scene for scene in scenes if scene.content in kept]


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["file"]: row for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(f"{path} is no table with a column `file`: {error!r}") from error


def scene_frames(
    scene: CorpusScene, most: int, rng: np.random.Generator, ffmpeg: str
) -> tuple[Frames, Fraction]:
    """The frames of a scene, at most so many, and their rate.

    Raises InputError for material that is too small or too short, or cannot be read.
    """
    if scene.basis == SYNTHETIC:
        return picture_in_motion(dead_leaves(rng), most, rng), Fraction(25)
    if scene.size is not None:
        pictures = [_picture(path) for path in scene.pictures]
        frames = _count(most, scene.size)
        return montage_in_motion(pictures, scene.size, frames, rng), Fraction(25)
    if scene.path.suffix.lower() in PICTURES:
        return picture_in_motion(_picture(scene.path), most, rng), Fraction(25)
    source = probe_source(scene.path, allow_hdr=True, ffmpeg=ffmpeg)
    wanted = _count(most, source.canvas)
    part, parts = scene.window
    # a short video has fewer windows than asked, so that none shares frames with another
    parts = min(parts, max(1, source.frames // wanted))
    if part >= parts:
        raise InputError(f"{scene.path} is too short for {scene.window[1]} windows")
    count = min(wanted, source.frames)
    start, end = (source.frames * i // parts for i in (part, part + 1))
    first = int(rng.integers(start, end - count + 1))
    return read_source(source, range(first, first + count), ffmpeg=ffmpeg), source.fps


def _count(most: int, size: tuple[int, int]) -> int:
    """Frames of a scene of that size."""
    return min(most, max(LEAST_FRAMES, int(FRAME_PIXELS / (size[0] * size[1]))))


def _picture(path: Path) -> torch.Tensor:
    """(3, H, W) RGB in 0..1, large enough for a clip."""
    import av

    try:
        # or a name with % in it stands for a sequence of pictures
        with open_video(path, _STILL, options={"pattern_type": "none"}) as container:
            size = container.streams.video[0]
            if size.width * size.height > MAX_PIXELS:
                raise InputError(f"{path} is too large: {size.width}x{size.height} pixels")
            pixels = next(container.decode(video=0)).to_ndarray(format="rgb24")
    except (av.FFmpegError, StopIteration, IndexError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}") from error
    if min(pixels.shape[:2]) < CLIP_SIZE:
        raise InputError(f"{path} is too small: less than {CLIP_SIZE} pixels a side")
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
