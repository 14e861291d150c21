"""Prepares published data sets with opinion scores: cuts their videos into shards of clips."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from vqaloop.core import scopes
from vqaloop.core.documents import document_text
from vqaloop.core.files import write_whole
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, VqaloopError
from vqaloop.media.frame_stream import VideoFacts, measure, stream_frames
from vqaloop.media.planes import Frames
from vqaloop.quality.clip_views import PlacedView, View
from vqaloop.training.datasets import AUTHORS, Available, Dataset, Video, find
from vqaloop.training.shards import read_about, write_each, write_shard
from vqaloop.training.vmaf_labels import SAME_LENGTH, vmaf_of_encodes

MAX_SHARD_BYTES = 4 << 30
"""Largest shard; all of it is in memory while it is written."""


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
    """Write a shard of every content that has none yet.

    Files that are missing or do not decode are left out and named in `out`/report.json; a content
    without any other is left out. An existing shard is kept if it holds the same view of the same
    files and scores.

    Args:
        dataset: Videos, scores and references, see `datasets.read_dataset`.
        out: Folder of the shards; created if missing.
        view: How clips are cut.
        ffmpeg: Path of the ffmpeg binary.
        workers: Contents prepared at a time.
        seed: Of the positions of crops and fragments.
        report: Called with a line of progress for each content.

    Returns:
        Files of all shards, older ones included, by content.

    Raises:
        InputError: No content can be prepared, or `out` holds another view.
    """
    files = find(dataset)
    report(f"{dataset.label}: {files}")
    contents: dict[str, list[Video]] = {}
    for video in files.videos:
        contents.setdefault(video.content, []).append(video)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write in {quoted(out)}: {error.strerror}") from error
    paths = {c: out / f"{quote(c, safe='')[:120]}.safetensors" for c in sorted(contents)}
    if len(set(paths.values())) < len(paths):
        raise InputError("two contents have names that begin alike for 120 characters; shorten")
    about = recorded_view(view, seed)
    missing = [
        c for c, path in paths.items() if not _is_current(path, dataset, contents[c], about)
    ]
    jobs = {
        c: partial(_write_content, dataset, c, contents[c], paths[c], view, seed, ffmpeg)
        for c in missing
    }
    failed = write_each(jobs, workers, report)
    shards = [path for path in paths.values() if path.exists()]
    _write_report(out / "report.json", dataset, files, shards, failed, about)
    if not shards:
        raise InputError(
            f"no content of {dataset.label} could be prepared: {files}; "
            f"{quoted(out / 'report.json')} says what is missing and what failed"
        )
    return shards


def recorded_view(view: View, seed: int) -> dict[str, Any]:
    """What shards record of a view; `crop` is of weights alone."""
    return {**{key: value for key, value in asdict(view).items() if key != "crop"}, "seed": seed}


def _is_current(
    path: Path, dataset: Dataset, videos: Sequence[Video], view: dict[str, Any]
) -> bool:
    """Whether the shard exists and is up to date. Raises InputError when it is of another view."""
    if not path.exists():
        return False
    about = read_about(path)
    scene = about.get("scene", {})
    if scene.get("view") != view or scene.get("dataset") != dataset.name:
        raise InputError(
            f"{quoted(path)} holds another view, seed or data set; choose another folder, or "
            "remove it"
        )
    recorded = [*about["encodes"], *scene["left_out"]]
    known = {(encode["path"], encode["raw"]) for encode in recorded}
    return known == {(_recorded_path(dataset, video.path), video.raw) for video in videos}


@dataclass(frozen=True)
class UsableVideos:
    """Files of one content that can be read."""

    videos: list[Video]
    facts: dict[Path, VideoFacts]
    """Of each video and, where it can be read, of the reference."""
    refused: dict[Path, str]
    """Why the other files are left out."""
    frames: int
    """Median frame count of the videos."""
    canvas: tuple[int, int]
    """(width, height) of the largest file, at which all are compared."""


def usable_videos(videos: Sequence[Video], source: Path | None) -> UsableVideos:
    """Probe all videos of a content and its reference `source`.

    Videos that end early are left out: their clips would be of other times than the others'.
    Raises InputError when none is left.
    """
    sizes = {video.path: (video.width or 0, video.height or 0) for video in videos}
    facts: dict[Path, VideoFacts] = {}
    refused: dict[Path, str] = {}
    for file in (*sizes, *([source] if source else [])):
        scopes.check_cancelled()
        try:
            facts[file] = measure(file, sizes.get(file, (0, 0)))
        except VqaloopError as error:
            refused[file] = str(error)
    seconds = _median([fact.seconds for path, fact in facts.items() if path != source])
    for file, fact in list(facts.items()):
        if fact.seconds < seconds * (1 - SAME_LENGTH) and file != source:
            refused[file] = (
                f"is cut short: {fact.seconds:.2f} s, where others have {seconds:.2f} s"
            )
            del facts[file]
    good = [video for video in videos if video.path in facts]
    if not good:
        raise InputError(f"no video of it can be read: {next(iter(refused.values()), '')}")
    frames = round(_median([fact.frames for path, fact in facts.items() if path != source]))
    canvas = max((fact.size for fact in facts.values()), key=np.prod)
    return UsableVideos(good, facts, refused, frames, canvas)


def cut_clips(
    file: Path, usable: UsableVideos, placed: PlacedView, into: Frames, ffmpeg: str
) -> None:
    """Decode a file's (C, T, S·3/2, S) clips `into` an array of that shape."""
    fact, view = usable.facts[file], placed.view
    # encodes that lack a last frame or two are cut at the others' times; one at another frame rate
    # has as many seconds but other frames, so its clips are spread over its own count
    differs = abs(fact.frames - usable.frames) > usable.frames * SAME_LENGTH
    times = view.times(fact.frames if differs else usable.frames)
    wanted: dict[int, list[tuple[int, int]]] = {}  # {frame: its places in `into`}
    for (clip, step), index in np.ndenumerate(times):
        wanted.setdefault(int(index), []).append((clip, step))

    def take(index: int, frame: Frames) -> None:
        for clip, step in wanted[index]:
            into[clip, step] = placed.cut(frame, clip)[0]

    stream_frames(file, fact, sorted(wanted), placed.scaled(fact.size), take, ffmpeg=ffmpeg)


def cut_encodes(
    usable: UsableVideos, placed: PlacedView, ffmpeg: str
) -> tuple[Frames, list[Video], dict[Path, str]]:
    """(E, C, T, S·3/2, S) clips of the videos that decode, those videos, and why others do not.

    Raises InputError when none decodes, or all together are too large.
    """
    view = placed.view
    shape = (len(usable.videos), view.clips, view.frames, view.size * 3 // 2, view.size)
    if np.prod(shape, dtype=float) > MAX_SHARD_BYTES:
        raise InputError(f"a shard of {shape} bytes is too large; ask for fewer or smaller clips")
    # one array from the start: joining the clips at the end would take twice the memory
    distorted = np.empty(shape, np.uint8)
    decoded: list[Video] = []
    failed: dict[Path, str] = {}
    for video in usable.videos:
        scopes.check_cancelled()
        try:
            cut_clips(video.path, usable, placed, distorted[len(decoded)], ffmpeg)
            decoded.append(video)
        except VqaloopError as error:
            failed[video.path] = str(error)
    scopes.check_cancelled()
    if not decoded:
        reasons = {**usable.refused, **failed}
        raise InputError(f"no video of it can be decoded: {next(iter(reasons.values()), '')}")
    return distorted[: len(decoded)], decoded, failed


def reference_of(
    source: Path, usable: UsableVideos, placed: PlacedView, ffmpeg: str
) -> Frames | None:
    """(C, T, S·3/2, S) clips of the reference; None if it does not decode or match the encodes."""
    counts = [fact.frames for fact in usable.facts.values()]
    # frames are compared one with one, so all files must have the same frame rate and length
    if source not in usable.facts or min(counts) < max(counts) * (1 - SAME_LENGTH):
        return None
    view = placed.view
    clips = np.empty((view.clips, view.frames, view.size * 3 // 2, view.size), np.uint8)
    try:
        cut_clips(source, usable, placed, clips, ffmpeg)
    except VqaloopError:
        return None
    return clips


def shard_about(
    dataset: Dataset, content: str, placed: PlacedView, seed: int, left_out: list[dict[str, Any]]
) -> dict[str, Any]:
    """The shard's header: title, split, view and the encodes left out."""
    title = dataset.title(content)
    return {
        "dataset": dataset.name,
        "content": title,
        "authors_held_out": title in AUTHORS.get(dataset.label, ()),
        "view": recorded_view(placed.view, seed),
        "canvas": placed.canvas,
        "left_out": left_out,
    }


def _write_content(
    dataset: Dataset,
    content: str,
    videos: Sequence[Video],
    path: Path,
    view: View,
    seed: int,
    ffmpeg: str,
) -> str:
    """Write the shard of one content; the line to report of it. Raises VqaloopError."""
    source = dataset.sources.get(content)
    usable = usable_videos(videos, source)
    places = [seed, *content.encode()]
    placed = PlacedView(view, usable.canvas, places)
    distorted, decoded, failed = cut_encodes(usable, placed, ffmpeg)
    arrays: dict[str, npt.NDArray[Any]] = {"distorted": distorted}
    reference = reference_of(source, usable, placed, ffmpeg) if source else None
    if reference is not None:
        arrays["reference"] = reference
    raws = {video.path: video.raw for video in videos}
    left_out = [
        {"path": _recorded_path(dataset, file), "raw": raws[file], "why": why}
        for file, why in {**usable.refused, **failed}.items()
        if file in raws
    ]
    about = shard_about(dataset, content, placed, seed, left_out)
    encodes = [_encode_row(dataset, video, usable.facts[video.path].size) for video in decoded]
    if source is not None and reference is not None:
        kept_facts = {file: usable.facts[file] for file in (source, *(v.path for v in decoded))}
        points = vmaf_of_encodes(source, kept_facts, usable.canvas, places, ffmpeg)
        for row, video in zip(encodes, decoded, strict=True):
            if video.path in points:
                row["vmaf"] = points[video.path]
    try:
        write_shard(path, arrays, about, encodes, dataset.label)
    except OSError as error:
        raise InputError(f"could not write {quoted(path)}: {error.strerror}") from error
    kept = f"{len(encodes)} of {len(videos)} encodes"
    if "reference" not in arrays:
        return f"{kept}, without reference"
    return kept if any("vmaf" in row for row in encodes) else f"{kept}, without VMAF"


def _encode_row(dataset: Dataset, video: Video, size: tuple[int, int]) -> dict[str, Any]:
    """What a shard records of an encode: all that is known of it, with its decoded size."""
    width, height = size
    row = {
        **asdict(video),
        "width": width,
        "height": height,
        "path": _recorded_path(dataset, video.path),
    }
    del row["content"]
    return {key: value for key, value in row.items() if value is not None}


def _median(values: Sequence[float]) -> float:
    """The upper median, which is one of the values; 0 of none."""
    return sorted(values)[len(values) // 2] if values else 0.0


def _recorded_path(dataset: Dataset, path: Path) -> str:
    """A path as shard and report record it: below the data set's folder, else the file alone."""
    return str(path.relative_to(dataset.root) if path.is_relative_to(dataset.root) else path.name)


def _write_report(
    path: Path,
    dataset: Dataset,
    files: Available,
    shards: Sequence[Path],
    failed: dict[str, str],
    view: dict[str, Any],
) -> None:
    """Write report.json: files present, missing and undecodable, over all runs so far."""
    scenes = {shard.name: read_about(shard)["scene"] for shard in shards}
    document = {
        "dataset": dataset.name,
        "label": dataset.label,
        "view": view,
        "expected": files.expected,
        "listed": files.listed,
        "found": len(files.videos),
        "encoders": {name: {"found": n, "listed": of} for name, (n, of) in files.encoders.items()},
        "missing": [_recorded_path(dataset, file) for file in files.missing],
        "undecodable": [left for scene in scenes.values() for left in scene["left_out"]],
        "contents_left_out": failed,
        "shards": list(scenes),
    }
    write_whole(path, document_text(document))
