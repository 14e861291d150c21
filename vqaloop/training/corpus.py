"""Builds a training set labelled by a panel: pristine scenes → encodes and damage → labels.

One shard per scene (safetensors), written under its final name only when whole, so an interrupted
run goes on where it stopped. Labels are measured on whole frames at a few places in time, and on
regions of them; a region is parted into the crops that a student is trained on, so that the crops
pooled are exactly what was measured.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqaloop.core.files import scratch
from vqaloop.core.text import counted, quoted
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import codecs, default_encoder, get_encoder
from vqaloop.encoding.survey import available
from vqaloop.errors import InputError, VqaloopError
from vqaloop.media.frames import read_encode
from vqaloop.media.planes import CLIP_SIZE, Frames, cut
from vqaloop.media.probe import probe_source
from vqaloop.models.head_config import DISTANCES
from vqaloop.panel.labels import LABELS
from vqaloop.panel.measure import (
    COLUMNS,
    PanelTools,
    cvvdp_labels,
    frame_labels,
    region_labels,
)
from vqaloop.panel.pairs import MARGIN
from vqaloop.quality.full_reference import is_4k
from vqaloop.records import Rendition, Source
from vqaloop.training.attacks import ATTACKS, attack
from vqaloop.training.corpus_scenes import CorpusScene, scene_frames
from vqaloop.training.shards import read_about, write_each, write_shard

LABEL = LABELS["v1"].name
"""What the scores of such a corpus are; its shards hold the labels of the panel beside."""
SCALES = ((1.0,), (0.75, 2 / 3), (0.5, 0.375, 0.25))
"""Three bands of resolution, as parts of the source's height."""
LEVELS = 4
"""Bands of quality an encoder's knob range is cut into, as in Waterloo IVC 4K."""
REGION_SIZE = 2 * CLIP_SIZE
"""Pixels a side of a region, which is parted into two by two crops. VMAF v1 takes no smaller ones
than 160x216."""
LEAST_STRENGTH = 0.1
CVVDP_SCENES, CVVDP_EVERY = 0.25, 4
"""ColorVideoVDP judges this part of the scenes, and of these every so many-th encode and all that
is damaged: about a tenth."""


@dataclass(frozen=True)
class CorpusPlan:
    """Encodes, damage and crops of each scene. Raises InputError for values out of range."""

    encodes: int = 20
    """Encodes a scene, of 5 encoders × 3 resolutions × 4 levels."""
    attacks: int = 5
    """Besides, damaged videos: attacks of a random strength on the source or on an encode."""
    places: int = 4
    """Places in time of each scene."""
    regions: int = 2
    """Regions at each place."""
    frames: int = 60
    """Most frames of a scene."""
    seed: int = 0

    def __post_init__(self) -> None:
        least = max(DISTANCES) + 2 * MARGIN + 1
        spans = {
            "encodes": (1, 1000),
            "attacks": (0, 1000),
            "places": (1, 100),
            "regions": (1, 100),
            "frames": (least, 1000),
        }
        for key, (low, high) in spans.items():
            if not low <= getattr(self, key) <= high:
                raise InputError(f"{key} must be {low} to {high}, not {getattr(self, key)}")


@dataclass(frozen=True)
class _Region:
    """One region of a scene: where it is, and which frames its clips take."""

    place: int
    """Number of its place in time."""
    first: int
    """Frame of the place."""
    distance: int
    top: int
    left: int


def build_corpus(
    scenes: Sequence[CorpusScene],
    out: Path,
    plan: CorpusPlan,
    tools: PanelTools,
    *,
    workers: int = 1,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write a shard for every scene that has none yet.

    Args:
        scenes: See `corpus_scenes`.
        out: Folder of the shards; created if missing.
        plan: Encodes, damage and crops of each scene.
        tools: The programs and weights that give the labels.
        workers: Scenes encoded at a time.
        report: Called with a line of progress for each scene; one that cannot be read is reported
            and left out.

    Returns:
        Files of all shards, older ones included.

    Raises:
        InputError: An existing shard is of another plan or has other labels, this ffmpeg has no
            known encoder, a tool is missing, or no scene can be labelled.
    """
    if not any(available(default_encoder(codec), tools.ffmpeg) for codec in codecs()):
        raise InputError(
            f"{quoted(tools.ffmpeg)} has none of the encoders a labelled set is made with; see "
            "`vqaloop encoders`"
        )
    tools.check()
    out.mkdir(parents=True, exist_ok=True)
    shards = {out / f"{scene.name}.safetensors": scene for scene in scenes}
    missing = [p for p, scene in shards.items() if not _is_current(p, scene, plan, tools)]
    jobs = {path.stem: partial(_write_scene, shards[path], path, plan, tools) for path in missing}
    failed = write_each(jobs, workers, report)
    written = [path for path in shards if path.exists()]
    if not written:
        raise InputError(f"no scene could be labelled: {next(iter(failed.values()), '')}")
    return written


def _is_current(path: Path, scene: CorpusScene, plan: CorpusPlan, tools: PanelTools) -> bool:
    """Whether the shard is there. Raises InputError when it was made by another plan."""
    if not path.exists():
        return False
    recorded = read_about(path).get("scene")
    made = recorded if isinstance(recorded, dict) else {}
    wanted = (asdict(plan), list(scene.window), list(tools.names))
    if (made.get("plan"), made.get("window"), made.get("measured")) != wanted:
        raise InputError(
            f"{path} was made with other options (encodes, attacks, regions, windows, seed or "
            "judges), or by an earlier release; choose another folder, or remove it"
        )
    return True


def _write_scene(scene: CorpusScene, path: Path, plan: CorpusPlan, tools: PanelTools) -> str:
    """Write it; how many videos it holds, in words."""
    # everything random depends on the scene alone, so a shard does not depend on the others
    rng = np.random.default_rng([plan.seed, *scene.name.encode("utf-8", "surrogateescape")])
    frames, fps = scene_frames(scene, plan.frames, rng, tools.ffmpeg)
    count, rows, width = frames.shape
    height = rows * 2 // 3
    if min(height, width) < REGION_SIZE or count <= max(DISTANCES) + 2 * MARGIN:
        raise InputError(
            f"{scene.path} is too small or too short: {width}x{height}, "
            f"{counted(count, 'frame')}; regions of {REGION_SIZE} pixels a side are cut out of it"
        )
    regions = _regions(count, height, width, plan, rng)
    rows_of: list[dict[str, Any]] = []
    arrays: dict[str, list[npt.NDArray[Any]]] = defaultdict(list)
    failures: list[str] = []
    # in few scenes, since its program takes long to start, but many videos of each
    for_cvvdp = rng.random() < CVVDP_SCENES and tools.cvvdp is not None
    runs: list[tuple[int, list[Frames]]] = []
    with scratch() as folder:
        source = _raw_source(Path(folder) / "scene.yuv", frames, fps, tools.ffmpeg)
        uhd = is_4k(source)
        for row, video in _videos(source, frames, plan, rng, tools.ffmpeg, failures):
            found = _measured(frames, video, regions, tools, uhd)
            for key, value in found.items():
                arrays[key].append(value)
            means = zip(LABELS, found["frame_labels"].mean(0).tolist(), strict=True)
            labels = {name: mean for name, mean in means if np.isfinite(mean)}
            if for_cvvdp and (row["attack"] or len(rows_of) % CVVDP_EVERY == 0):
                runs.append((len(rows_of), [_region_run(video, region) for region in regions]))
            rows_of.append({**row, "score": labels["v1"], "labels": labels})
    if not rows_of:
        raise InputError(f"{scene.path}: no encode succeeded: {failures[0]}")
    stacked = {name: np.stack(parts) for name, parts in arrays.items()}
    stacked["reference"] = _clips(frames, regions)
    if for_cvvdp:
        own = [_region_run(frames, region) for region in regions]
        jod = cvvdp_labels(
            own * len(runs), [run for _, parts in runs for run in parts], tools, fps=fps, uhd=uhd
        )
        rows = [row for row, _ in runs]
        stacked["region_labels"][rows, :, COLUMNS["cvvdp"]] = jod.reshape(len(runs), -1)
    about = {
        **scene.about(),
        "plan": asdict(plan),
        "measured": tools.names,
        "canvas": (width, height),
        "fps": str(fps),
        "distances": [region.distance for region in regions],
        "places": [region.first for region in regions],
    }
    write_shard(path, stacked, about, rows_of, LABEL, labels=tuple(LABELS), region=4)
    if failures:
        wanted = counted(plan.encodes, "encode")
        left = plan.encodes - len(failures)
        return f"{left} of {wanted}, the others failed: {failures[0]}"
    return counted(len(rows_of), "video")


def _videos(
    source: Source,
    frames: Frames,
    plan: CorpusPlan,
    rng: np.random.Generator,
    ffmpeg: str,
    failures: list[str],
) -> Iterator[tuple[dict[str, Any], Frames]]:
    """Encodes and damaged videos of a scene, with their rows; why encodes failed in `failures`."""
    width, height = source.canvas
    renditions = list(_renditions(width, height, plan, rng, ffmpeg))
    damage = _damage(plan, rng)
    for i, rendition in enumerate(renditions):
        try:
            coded, kbps = _coded(source, rendition, source.path.with_name("trial"), ffmpeg)
        except VqaloopError as error:
            failures.append(str(error))
            continue
        yield {**asdict(rendition), "kbps": kbps, "attack": None}, coded
        # those of the source itself are spread over the encodes as well
        for how in damage[i :: len(renditions)]:
            on_encode = how.pop("on_encode")
            base = coded if on_encode else frames
            own = {**asdict(rendition), "kbps": kbps}
            if not on_encode:
                own = {"width": width, "height": height}
            yield {**own, "attack": how}, attack(base, **how)


def _damage(plan: CorpusPlan, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Arguments of `attack`, and whether it is done to an encode or to the source."""
    names = list(ATTACKS)
    order: list[str] = []
    found = []
    for _ in range(plan.attacks):
        order = order or [names[i] for i in rng.permutation(len(names))]
        found.append(
            {
                "name": order.pop(),
                "strength": round(float(rng.uniform(LEAST_STRENGTH, 1)), 3),
                "seed": int(rng.integers(1 << 30)),
                "on_encode": bool(rng.random() < 0.5),
            }
        )
    return found


def _measured(
    reference: Frames,
    distorted: Frames,
    regions: Sequence[_Region],
    tools: PanelTools,
    uhd: bool,
) -> dict[str, npt.NDArray[Any]]:
    """Arrays of a shard of one video: its clips, and the labels of its regions and frames."""
    places = {region.place: region for region in regions}.values()
    of_places = frame_labels(
        [_run(reference, place) for place in places],
        [_run(distorted, place) for place in places],
        tools,
        uhd=uhd,
    )
    of_regions, features = region_labels(
        [_region_run(reference, region) for region in regions],
        [_region_run(distorted, region) for region in regions],
        tools,
        uhd=uhd,
    )
    at = {region.place: i for i, region in enumerate(places)}
    arrays: dict[str, npt.NDArray[Any]] = {
        "distorted": _clips(distorted, regions),
        "frame_labels": of_places[[at[region.place] for region in regions]],
        "region_labels": of_regions,
    }
    if features is not None:
        arrays["fdim_features"] = features
    return arrays


def _regions(
    count: int, height: int, width: int, plan: CorpusPlan, rng: np.random.Generator
) -> list[_Region]:
    """Regions of a scene, those of a place together: even, for 4:2:0, a frame from either end."""
    found = []
    for place in range(plan.places):
        distance = DISTANCES[place % len(DISTANCES)]
        first = int(rng.integers(MARGIN, count - distance - MARGIN))
        for _ in range(plan.regions):
            top, left = (
                int(rng.integers(0, (side - REGION_SIZE) // 2 + 1)) * 2 for side in (height, width)
            )
            found.append(_Region(place, first, distance, top, left))
    return found


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


def _run(frames: Frames, region: _Region) -> Frames:
    """Frames of a region's place, with MARGIN on either side."""
    return frames[region.first - MARGIN : region.first + region.distance + 1 + MARGIN]


def _region_run(frames: Frames, region: _Region) -> Frames:
    return cut(_run(frames, region), region.top, region.left, REGION_SIZE, REGION_SIZE)


def _clips(frames: Frames, regions: Sequence[_Region]) -> Frames:
    """(C, 2, S·3/2, S): of each region its four crops, row by row, at both ends of its run."""
    corners = [(top, left) for top in (0, CLIP_SIZE) for left in (0, CLIP_SIZE)]
    ends = [frames[[r.first, r.first + r.distance]] for r in regions]
    return np.stack(
        [
            cut(pair, r.top + top, r.left + left, CLIP_SIZE, CLIP_SIZE)
            for pair, r in zip(ends, regions, strict=True)
            for top, left in corners
        ]
    )


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
