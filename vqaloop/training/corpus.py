"""Builds a training set labelled by VMAF: pristine scenes → encodes → crops → VMAF of each crop.

One shard per scene (safetensors), written under its final name only when whole, so an interrupted
run goes on where it stopped. Pictures become scenes by synthetic camera motion.
"""

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vqaloop.bitstream.demux import open_video
from vqaloop.core.files import scratch
from vqaloop.core.text import counted, quoted
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import codecs, default_encoder, get_encoder
from vqaloop.encoding.survey import available
from vqaloop.errors import InputError, VqaloopError
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.limits import MAX_PIXELS
from vqaloop.media.planes import CLIP_FRAMES, CLIP_SIZE, Frames, cut
from vqaloop.media.probe import probe_source
from vqaloop.models.student import OUTPUTS
from vqaloop.quality.libvmaf import vmaf_of_pairs
from vqaloop.records import Rendition, Source
from vqaloop.training.shards import read_about, write_each, write_shard
from vqaloop.training.synthetic_motion import dead_leaves, picture_in_motion

PICTURES = {".jpg", ".jpeg", ".png", ".webp"}
_STILL = "image2,jpeg_pipe,png_pipe,webp_pipe"
"""ffmpeg's names of their formats; a name is no pattern, so that none opens other files."""
VIDEOS = {".mp4", ".mkv", ".mov", ".webm", ".y4m"}
LABEL = "VMAF v0.6.1"
"""The model behind the scores of such a corpus."""
SYNTHETIC = "synthetic"
"""`CorpusScene.basis` of generated material."""
SCALES = ((1.0,), (0.75, 2 / 3), (0.5, 0.375, 0.25))
"""Three bands of resolution, as parts of the source's height."""
LEVELS = 4
"""Bands of quality an encoder's knob range is cut into, as in Waterloo IVC 4K."""


@dataclass(frozen=True)
class CorpusPlan:
    """Encodes and crops of each scene. Raises InputError for values out of range."""

    encodes: int = 30
    """Encodes a scene, of 5 encoders × 3 resolutions × 4 levels."""
    crops: int = 24
    """Crops of each encode."""
    frames: int = 20
    """Frames of a scene."""
    seed: int = 0

    def __post_init__(self) -> None:
        spans = {"encodes": (1, 1000), "crops": (1, 1000), "frames": (CLIP_FRAMES + 2, 1000)}
        for key, (low, high) in spans.items():
            if not low <= getattr(self, key) <= high:
                raise InputError(f"{key} must be {low} to {high}, not {getattr(self, key)}")


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


def _manifest(path: Path) -> dict[str, dict[str, str]]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {row["file"]: row for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise InputError(f"{path} is no table with a column `file`: {error!r}") from error


def build_corpus(
    scenes: Sequence[CorpusScene],
    out: Path,
    plan: CorpusPlan,
    *,
    ffmpeg: str,
    workers: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write a shard for every scene that has none yet.

    Args:
        scenes: See `list_scenes` and `synthetic_scenes`.
        out: Folder of the shards; created if missing.
        plan: Encodes and crops of each scene.
        ffmpeg: Path of the ffmpeg binary.
        workers: Scenes encoded at a time.
        report: Called with a line of progress for each scene; one that cannot be read is reported
            and left out.

    Returns:
        Files of all shards, older ones included.

    Raises:
        InputError: An existing shard is of another plan, this ffmpeg has no known encoder, or no
            scene can be labelled.
    """
    if not any(available(default_encoder(codec), ffmpeg) for codec in codecs()):
        raise InputError(
            f"{quoted(ffmpeg)} has none of the encoders a labelled set is made with; see "
            "`vqaloop encoders`"
        )
    out.mkdir(parents=True, exist_ok=True)
    shards = {out / f"{scene.name}.safetensors": scene for scene in scenes}
    missing = [path for path, scene in shards.items() if not _is_current(path, scene, plan)]
    jobs = {path.stem: partial(_write_scene, shards[path], path, plan, ffmpeg) for path in missing}
    failed = write_each(jobs, workers, report)
    written = [path for path in shards if path.exists()]
    if not written:
        raise InputError(f"no scene could be labelled: {next(iter(failed.values()), '')}")
    return written


def _is_current(path: Path, scene: CorpusScene, plan: CorpusPlan) -> bool:
    """Whether the shard is there. Raises InputError when it was made by another plan."""
    if not path.exists():
        return False
    recorded = read_about(path).get("scene")
    # shards of an earlier release do not record their plan
    if not isinstance(recorded, dict) or "plan" not in recorded:
        return True
    if (recorded["plan"], recorded.get("window")) != (asdict(plan), list(scene.window)):
        raise InputError(
            f"{path} was made with other options (encodes, crops, windows or seed); choose "
            "another folder, or remove it"
        )
    return True


def _write_scene(scene: CorpusScene, path: Path, plan: CorpusPlan, ffmpeg: str) -> str:
    """Write it; how many encodes it holds, in words."""
    # everything random depends on the scene alone, so a shard does not depend on the others
    rng = np.random.default_rng([plan.seed, *scene.name.encode("utf-8", "surrogateescape")])
    frames, fps = _scene_frames(scene, plan, rng, ffmpeg)
    count, rows, width = frames.shape
    height = rows * 2 // 3
    if min(height, width) < CLIP_SIZE or count < CLIP_FRAMES + 2:
        raise InputError(f"{scene.path} is too small or too short: {width}x{height}, {count}")
    crops = _crop_positions(count, height, width, plan.crops, rng)
    # motion2 compares a frame with those before and after it: the margin gives it both
    pristine = _clips(frames, crops, margin=1)
    encodes: list[dict[str, Any]] = []
    labelled: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    failures: list[str] = []
    with scratch() as folder:
        source = _raw_source(Path(folder) / "scene.yuv", frames, fps, ffmpeg)
        for rendition in _renditions(width, height, plan, rng, ffmpeg):
            try:
                coded, kbps = _coded(source, rendition, Path(folder) / "trial", ffmpeg)
            except VqaloopError as error:
                failures.append(str(error))
                continue
            clips = _clips(coded, crops, margin=1)
            per_frame = _features(frames, coded, ffmpeg)
            per_crop = _features(pristine, clips, ffmpeg).reshape(plan.crops, -1, len(OUTPUTS))
            labelled["distorted"].append(_without_margin(clips, plan.crops))
            labelled["region_labels"].append(per_crop[:, 1:-1].mean(1))
            labelled["frame_labels"].append(
                np.stack([per_frame[t : t + CLIP_FRAMES].mean(0) for t, _, _ in crops])
            )
            score = float(per_frame[:, 0].mean())
            encodes.append({**asdict(rendition), "kbps": kbps, "score": score})
    if not encodes:
        raise InputError(f"{scene.path}: no encode succeeded: {failures[0]}")
    arrays = {name: np.stack(parts) for name, parts in labelled.items()}
    arrays["reference"] = _without_margin(pristine, plan.crops)
    about = {**asdict(scene), "path": scene.path.name, "plan": asdict(plan)}
    about |= {"canvas": [width, height], "distances": [1] * plan.crops}
    about["places"] = [first for first, _, _ in crops]
    write_shard(path, arrays, about, encodes, LABEL, labels=OUTPUTS)
    if failures:
        wanted = counted(plan.encodes, "encode")
        return f"{len(encodes)} of {wanted}, the others failed: {failures[0]}"
    return counted(len(encodes), "encode")


def _crop_positions(
    count: int, height: int, width: int, crops: int, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """(frame, top, left) of each crop: even, for 4:2:0, and a frame away from either end."""
    return [
        (
            int(rng.integers(1, count - CLIP_FRAMES)),
            int(rng.integers(0, (height - CLIP_SIZE) // 2 + 1)) * 2,
            int(rng.integers(0, (width - CLIP_SIZE) // 2 + 1)) * 2,
        )
        for _ in range(crops)
    ]


def _raw_source(path: Path, frames: Frames, fps: Fraction, ffmpeg: str) -> Source:
    """Frames of a scene written as raw video, to be encoded."""
    _, rows, width = frames.shape
    path.write_bytes(frames.tobytes())
    size = f"{width}x{rows * 2 // 3}"
    return probe_source(
        path, video_size=size, pix_fmt="yuv420p", framerate=str(fps), ffmpeg=ffmpeg
    )


def _coded(source: Source, rendition: Rendition, path: Path, ffmpeg: str) -> tuple[Frames, float]:
    """An encode's frames at the source's size, and its bitrate in kbit/s."""
    encoded = encode(source, rendition, path, ffmpeg=ffmpeg)
    frames = read_encode(
        path,
        range(source.frames),
        (source.width, source.height),
        source.fps,
        decoder=get_encoder(rendition.encoder).decoder,
        ffmpeg=ffmpeg,
    )
    path.unlink()
    return frames, encoded.bitrate_kbps


def _without_margin(clips: Frames, crops: int) -> Frames:
    """Crops end to end to (C, T, S·3/2, S), without the frame on either side of each."""
    return clips.reshape(crops, -1, *clips.shape[1:])[:, 1:-1]


def _clips(frames: Frames, crops: Sequence[tuple[int, int, int]], margin: int) -> Frames:
    """Crops at (frame, top, left), each with `margin` frames on either side, end to end."""
    return np.concatenate(
        [
            cut(frames[t - margin : t + CLIP_FRAMES + margin], top, left, CLIP_SIZE, CLIP_SIZE)
            for t, top, left in crops
        ]
    )


def _features(reference: Frames, distorted: Frames, ffmpeg: str) -> npt.NDArray[np.float32]:
    table = vmaf_of_pairs(reference, distorted, ffmpeg=ffmpeg)
    return table[list(OUTPUTS)].to_numpy(np.float32)


def _renditions(
    width: int, height: int, plan: CorpusPlan, rng: np.random.Generator, ffmpeg: str
) -> Iterator[Rendition]:
    """A balanced draw from encoders × resolutions × levels, knobs jittered within their level."""
    specs = [s for s in map(default_encoder, codecs()) if available(s, ffmpeg)]
    cells = [(band, level) for band in range(len(SCALES)) for level in range(LEVELS)]
    orders = {spec.name: rng.permutation(len(cells)) for spec in specs}
    for i in range(plan.encodes):
        spec = specs[i % len(specs)]
        band, level = cells[orders[spec.name][i // len(specs) % len(cells)]]
        drawn = float(rng.choice(SCALES[band]))
        # small material becomes too small for some encoders: then the next larger part of it
        larger = sorted({scale for part in SCALES for scale in part if scale >= drawn})
        sizes = [(round(width * part / 2) * 2, round(height * part / 2) * 2) for part in larger]
        least = spec.min_size
        fits = [(w, h) for w, h in sizes if w >= least[0] and h >= least[1]]
        size = (fits or sizes)[0]
        low, high = spec.knob.search
        knob = low + (high - low) * (level + rng.random()) / LEVELS
        yield Rendition(
            width=size[0],
            height=size[1],
            encoder=spec.name,
            knob=spec.knob.snap(knob),
            preset=spec.default_preset,
        )


def _scene_frames(
    scene: CorpusScene, plan: CorpusPlan, rng: np.random.Generator, ffmpeg: str
) -> tuple[Frames, Fraction]:
    if scene.basis == SYNTHETIC:
        return picture_in_motion(dead_leaves(rng), plan.frames, rng), Fraction(25)
    if scene.path.suffix.lower() in PICTURES:
        picture = _picture(scene.path)
        if min(picture.shape[1:]) < CLIP_SIZE:
            raise InputError(f"{scene.path} is too small: less than {CLIP_SIZE} pixels a side")
        return picture_in_motion(picture, plan.frames, rng), Fraction(25)
    source = probe_source(scene.path, allow_hdr=True, ffmpeg=ffmpeg)
    part, parts = scene.window
    # a short video has fewer windows than asked, so that none shares frames with another
    parts = min(parts, max(1, source.frames // plan.frames))
    if part >= parts:
        raise InputError(f"{scene.path} is too short for {scene.window[1]} windows")
    count = min(plan.frames, source.frames)
    start, end = (source.frames * i // parts for i in (part, part + 1))
    first = int(rng.integers(start, end - count + 1))
    return read_source(source, range(first, first + count), ffmpeg=ffmpeg), source.fps


def _picture(path: Path) -> torch.Tensor:
    """(3, H, W) RGB in 0..1."""
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
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
