"""What a network sees of a scored video, and shards of it from a data set.

The same files give shards in several views: for one view after another the same videos, the same
number of clips and, where their lengths allow, the same moments.
"""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from vqaloop import process
from vqaloop.datasets import AUTHORS, Dataset, Found, Video, find
from vqaloop.errors import InputError, VqaloopError
from vqaloop.files import write_whole
from vqaloop.frames import Frames, cut
from vqaloop.process import quoted
from vqaloop.watch import Measured, measure, watch

VIEWS = ("native", "squeezed", "fragments")
FRAGMENT = 32
"""Height and width of a fragment in pixels."""
MAX_SHARD_BYTES = 4 << 30
"""Largest shard; all of it is in memory while it is made."""
FRAMES_AT_ONCE = 64
"""Frames of a video held together while its clips are cut: 64 of 8 bit 4K take 0.8 GB."""
SAME_LENGTH = 0.1
"""Part by which lengths of encodes of one content may differ; some encoders drop last frames."""


@dataclass(frozen=True)
class View:
    """How clips are cut out of a video. Raises InputError for what cannot be."""

    kind: str = "native"
    """native: squares of the picture at its size on the screen, the content's largest. squeezed:
    the whole picture, its shorter side brought to `size`, its middle cut out (InternVQA).
    fragments: patches of 32 from a grid over the picture, put together (FAST-VQA)."""
    frames: int = 8
    """Frames of a clip."""
    stride: int = 8
    """Frames of the video from one of the clip to the next."""
    size: int = 224
    """Height and width of a clip in pixels."""
    clips: int = 4
    """Clips of each video, spread over its time."""

    def __post_init__(self) -> None:
        if self.kind not in VIEWS:
            raise InputError(f"view {self.kind!r} is not known; choose one of {', '.join(VIEWS)}")
        spans = {"frames": (1, 64), "stride": (1, 64), "size": (32, 1024), "clips": (1, 64)}
        for key, (low, high) in spans.items():
            if not low <= getattr(self, key) <= high:
                raise InputError(f"{key} must be {low} to {high}, not {getattr(self, key)}")
        unit = FRAGMENT if self.kind == "fragments" else 2
        if self.size % unit:
            raise InputError(f"the size of a {self.kind} clip is a multiple of {unit}")

    def times(self, count: int) -> npt.NDArray[np.int64]:
        """(C, T) frames looked at of `count`; those after the last are the last again."""
        span = (self.frames - 1) * self.stride + 1
        middles = (np.arange(self.clips) + 0.5) / self.clips
        starts = (middles * max(0, count - span)).round().astype(np.int64)
        steps = np.arange(self.frames) * self.stride
        times: npt.NDArray[np.int64] = np.minimum(starts[:, None] + steps, count - 1)
        return times


class Looks:
    """A view of one content: every encode of it is cut at the same places."""

    def __init__(self, view: View, canvas: tuple[int, int], seed: Sequence[int]) -> None:
        """`canvas` is (width, height). Raises InputError where it is too small for the view."""
        self.view = view
        width, height = self.canvas = canvas
        rng = np.random.default_rng(seed)
        if view.kind == "native":
            if min(canvas) < view.size:
                raise InputError(
                    f"the picture is {width}x{height}, less than a clip of {view.size} pixels; "
                    "ask for a smaller size, or another view"
                )
            rooms = (height - view.size) // 2 + 1, (width - view.size) // 2 + 1
            self.places = 2 * rng.integers(0, rooms, (view.clips, 2))
        elif view.kind == "fragments":
            from vqaloop.models.fragments import fragment_places

            grid = view.size // FRAGMENT
            self.places = np.stack(
                [fragment_places(height, width, rng, grid, FRAGMENT) for _ in range(view.clips)]
            )

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height at which a video of `size` is to be decoded."""
        return size if self.view.kind == "squeezed" else self.canvas

    def cut(self, frame: Frames, clip: int) -> Frames:
        """(1, H·3/2, W) to (1, S·3/2, S), as clip number `clip` has it."""
        if self.view.kind == "squeezed":
            return squeezed(frame, self.view.size)
        if self.view.kind == "fragments":
            from vqaloop.models.fragments import cut_fragments

            return cut_fragments(frame, self.places[clip], FRAGMENT)
        top, left = self.places[clip]
        return cut(frame, int(top), int(left), self.view.size, self.view.size)


def squeezed(frames: Frames, size: int) -> Frames:
    """(N, H·3/2, W) to (N, S·3/2, S): the shorter side to `size`, the middle of the longer.

    Bilinear between the nearest four samples, without a low-pass before, as InternVQA does.
    """
    import torch
    import torch.nn.functional as F

    count, lines, width = frames.shape
    height = lines * 2 // 3
    scale = size / min(height, width)
    tall, wide = (max(size, round(side * scale / 2) * 2) for side in (height, width))
    chroma = frames[:, height:].reshape(count, 2, height // 2, width // 2)
    planes = []
    for plane, part in ((frames[:, None, :height], 1), (chroma, 2)):
        small = F.interpolate(
            torch.tensor(plane, dtype=torch.float32),
            (tall // part, wide // part),
            mode="bilinear",
            align_corners=False,
        )
        rounded = small.round().clamp(0, 255).to(torch.uint8).numpy()
        top, left = ((side - size) // 4 * 2 // part for side in (tall, wide))
        square = rounded[:, :, top : top + size // part, left : left + size // part]
        planes.append(square.reshape(count, -1))
    return np.concatenate(planes, 1).reshape(count, size * 3 // 2, size)


def clips_of(
    view: View,
    canvas: tuple[int, int],
    count: int,
    read: Callable[[list[int]], Frames],
    seed: int,
) -> Frames:
    """(C, T, S·3/2, S) clips of a video of `count` frames; `read` gives frames by ascending index.

    At most FRAMES_AT_ONCE frames are asked for and held at a time, those of one clip or of several
    in turn. Raises InputError where the picture is too small for the view.
    """
    looks = Looks(view, canvas, [seed])
    groups: list[dict[int, list[int]]] = []  # {clip: its frames}, few enough together
    for clip, row in enumerate(view.times(count).tolist()):
        if groups and len({*row, *chain(*groups[-1].values())}) <= FRAMES_AT_ONCE:
            groups[-1][clip] = row
        else:
            groups.append({clip: row})
    clips: list[Frames] = []
    for group in groups:
        indices = sorted({index for row in group.values() for index in row})
        frames = dict(zip(indices, read(indices), strict=True))
        clips += [
            np.concatenate([looks.cut(frames[index][None], clip) for index in row])
            for clip, row in group.items()
        ]
    return np.stack(clips)


def prepare(
    dataset: Dataset,
    out: Path,
    view: View,
    *,
    ffmpeg: str,
    workers: int = 1,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Make a shard of every content that has none yet; returns all shards.

    Files that are missing or do not decode are left out and named in `out`/report.json; a content
    without any other is left out. A shard made before is kept if it holds the same view of the
    same files and scores. Raises InputError when nothing can be made, or `out` holds another view.
    """
    found = find(dataset)
    report(f"{dataset.label}: {found}")
    there: dict[str, list[Video]] = {}
    for video in found.videos:
        there.setdefault(video.content, []).append(video)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {quoted(out)}: {error.strerror}") from error
    made = {
        content: out / f"{quote(content, safe='')[:120]}.safetensors" for content in sorted(there)
    }
    if len(set(made.values())) < len(made):
        raise InputError("two contents have names that begin alike for 120 characters; shorten")
    about = {**asdict(view), "seed": seed}
    missing = [c for c, path in made.items() if not _is_made(path, dataset, there[c], about)]
    failed: dict[str, str] = {}
    with process.team(workers) as submit:
        jobs = {
            submit(_make, dataset, c, there[c], made[c], view, seed, ffmpeg): c for c in missing
        }
        for done, job in enumerate(as_completed(jobs), 1):
            content = jobs[job]
            try:
                report(f"{done}/{len(jobs)} {content}: {job.result()}")
            except VqaloopError as error:
                failed[content] = str(error)
                report(f"{done}/{len(jobs)} {content} left out: {error}")
    shards = [path for path in made.values() if path.exists()]
    _write_report(out / "report.json", dataset, found, shards, failed, about)
    if not shards:
        raise InputError(
            f"no content of {dataset.label} could be prepared: {found}; "
            f"{quoted(out / 'report.json')} says what is missing and what failed"
        )
    return shards


def _is_made(path: Path, dataset: Dataset, videos: Sequence[Video], view: dict[str, Any]) -> bool:
    """Whether the shard is there and up to date. Raises InputError when it is of another view."""
    if not path.exists():
        return False
    from vqaloop.shards import read_about

    about = read_about(path)
    scene = about.get("scene", {})
    if scene.get("view") != view or scene.get("dataset") != dataset.name:
        raise InputError(
            f"{quoted(path)} holds another view, seed or data set; choose another folder, or "
            "remove it"
        )
    looked_at = [*about["encodes"], *scene["left_out"]]
    known = {(encode["path"], encode["raw"]) for encode in looked_at}
    return known == {(_shown(dataset, video.path), video.raw) for video in videos}


def _make(
    dataset: Dataset,
    content: str,
    videos: Sequence[Video],
    path: Path,
    view: View,
    seed: int,
    ffmpeg: str,
) -> str:
    """Write the shard of one content; what to say of it. Raises VqaloopError."""
    measured: dict[Path, Measured] = {}
    why: dict[Path, str] = {}
    source = dataset.sources.get(content)
    sizes = {video.path: (video.width or 0, video.height or 0) for video in videos}
    for file in (*sizes, *([source] if source else [])):
        process.check_cancelled()
        try:
            measured[file] = measure(file, sizes.get(file, (0, 0)))
        except VqaloopError as error:
            why[file] = str(error)
    middle = _middle([m.seconds for p, m in measured.items() if p != source])
    for file, found in list(measured.items()):
        if found.seconds < middle * (1 - SAME_LENGTH) and file != source:
            why[file] = f"is cut short: {found.seconds:.2f} s, where others have {middle:.2f} s"
            del measured[file]
    usual = round(_middle([m.frames for p, m in measured.items() if p != source]))
    canvas = max((m.size for m in measured.values()), key=np.prod, default=(0, 0))
    good = [video for video in videos if video.path in measured]
    if not good:
        raise InputError(f"no video of it can be read: {next(iter(why.values()), '')}")
    shape = (len(good), view.clips, view.frames, view.size * 3 // 2, view.size)
    if np.prod(shape, dtype=float) > MAX_SHARD_BYTES:
        raise InputError(f"a shard of {shape} bytes is too large; ask for fewer or smaller clips")
    looks = Looks(view, canvas, [seed, *content.encode()])

    def clips(file: Path, into: Frames) -> None:
        found = measured[file]
        own = abs(found.frames - usual) > usual * SAME_LENGTH
        times = view.times(found.frames if own else usual)
        size = looks.scaled(found.size)
        wanted: dict[int, list[tuple[int, int]]] = {}
        for (clip, step), index in np.ndenumerate(times):
            wanted.setdefault(int(index), []).append((clip, step))

        def take(index: int, frame: Frames) -> None:
            for clip, step in wanted[index]:
                into[clip, step] = looks.cut(frame, clip)[0]

        watch(file, found, sorted(wanted), size, take, ffmpeg=ffmpeg)

    distorted = np.empty(shape, np.uint8)
    encodes: list[dict[str, Any]] = []
    for video in good:
        process.check_cancelled()
        try:
            clips(video.path, distorted[len(encodes)])
        except VqaloopError as error:
            why[video.path] = str(error)
            continue
        width, height = measured[video.path].size
        row = {**asdict(video), "width": width, "height": height}
        del row["content"]
        row["path"] = _shown(dataset, video.path)
        encodes.append({key: value for key, value in row.items() if value is not None})
    from vqaloop.shards import write_shard

    process.check_cancelled()
    if not encodes:
        raise InputError(f"no video of it can be decoded: {next(iter(why.values()), '')}")
    arrays: dict[str, npt.NDArray[Any]] = {"distorted": distorted[: len(encodes)]}
    others = [m.frames for m in measured.values()]
    if source in measured and min(others) >= max(others) * (1 - SAME_LENGTH):
        reference = np.empty(shape[1:], np.uint8)
        try:
            clips(source, reference)
            arrays["reference"] = reference
        except VqaloopError as error:
            why[source] = str(error)
    title = dataset.title(content)
    raws = {video.path: video.raw for video in videos}
    scene = {
        "dataset": dataset.name,
        "content": title,
        "authors_held_out": title in AUTHORS.get(dataset.label, ()),
        "view": {**asdict(view), "seed": seed},
        "canvas": canvas,
        "left_out": [
            {"path": _shown(dataset, file), "raw": raws[file], "why": why[file]}
            for file in why
            if file in raws
        ],
    }
    try:
        write_shard(path, arrays, scene, encodes, dataset.label)
    except OSError as error:
        raise InputError(f"could not write {quoted(path)}: {error.strerror}") from error
    kept = f"{len(encodes)} of {len(videos)} encodes"
    return kept if "reference" in arrays else f"{kept}, without reference"


def _middle(values: Sequence[float]) -> float:
    """One of the values, with as many below as above."""
    return sorted(values)[len(values) // 2] if values else 0.0


def _shown(dataset: Dataset, path: Path) -> str:
    """A path as shard and report name it: below the data set's folder, else the file alone."""
    return str(path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path.name)


def _write_report(
    path: Path,
    dataset: Dataset,
    found: Found,
    shards: Sequence[Path],
    failed: dict[str, str],
    view: dict[str, Any],
) -> None:
    """What was found, what was missing and what did not decode, over all runs so far."""
    from vqaloop.shards import read_about

    scenes = {shard.name: read_about(shard)["scene"] for shard in shards}
    document = {
        "dataset": dataset.name,
        "label": dataset.label,
        "view": view,
        "expected": found.expected,
        "listed": found.listed,
        "found": len(found.videos),
        "encoders": {name: {"found": n, "listed": of} for name, (n, of) in found.encoders.items()},
        "missing": [_shown(dataset, file) for file in found.missing],
        "undecodable": [left for scene in scenes.values() for left in scene["left_out"]],
        "contents_left_out": failed,
        "shards": list(scenes),
    }
    write_whole(path, json.dumps(document, indent=1) + "\n")
