"""Runs of two builds side by side: the same frames, the same points, in turns.

Whatever else the machine does meets both builds alike, since their runs alternate and each goes
first as often as the other. Both read the same Y4M file, so neither scaling nor decoding of the
source is part of what is compared.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqaloop.builds import (
    Build,
    BuildFailed,
    BuildInput,
    Point,
    decode_md5,
    default_timeout_s,
    file_suffix,
    make,
    write_view,
)
from vqaloop.encoderspec import EncoderSpec
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.excerpt import excerpt
from vqaloop.files import scratch
from vqaloop.process import quoted
from vqaloop.records import Event, Source
from vqaloop.regression import BASELINE, CANDIDATE, REPEAT, ClipRuns, Failure, Run
from vqaloop.saved import Journal, Saved
from vqaloop.score import Metric
from vqaloop.trials import GUARDS, Workshop

Watcher = Callable[[Event], None]

HANG_TIMES, HANG_LEAST_S = 20.0, 30.0
"""A run is held to hang after so many times what the baseline took, and no sooner than this."""


@dataclass(frozen=True)
class RunPlan:
    """What every clip goes through."""

    spec: EncoderSpec
    preset: str
    points: tuple[Point, ...]
    sizes: tuple[tuple[int, int], ...]
    """None given: the clip's own."""
    bit_depth: int | None
    """None: the clip's own."""
    frames: int | None
    """How many of each clip; None: all."""
    timeout_s: float | None
    """Of one run; None: by what the baseline took."""
    metrics: tuple[Metric, ...]
    """Besides VMAF and PSNR-Y."""

    def sizes_of(self, source: Source) -> tuple[tuple[int, int], ...]:
        return self.sizes or (source.canvas,)


def run_clip(
    clip: Source,
    name: str,
    builds: Mapping[str, Build],
    plan: RunPlan,
    shop: Workshop,
    tell: Callable[[str], None],
    usual_s: float | None = None,
) -> ClipRuns:
    """All runs on one clip; `builds` by role: baseline, candidate, repeat.

    A run that fails is part of the answer. After a hang the build's other points of the clip are
    left out, as they would most likely cost as long. `usual_s` is what a saved baseline took at
    most. `tell` is called before each run with a line for people.
    """
    runs: list[Run] = []
    failures: list[Failure] = []
    known: dict[str, dict[str, float]] = {}
    hung: set[str] = set()
    with scratch(shop.scratch) as folder:
        source = clip
        if plan.frames is not None and plan.frames < clip.frames:
            part = Path(folder) / "part.mkv"
            source = excerpt(clip, [(0, plan.frames)], part, ffmpeg=shop.ffmpeg)
        for size in plan.sizes_of(source):
            view = write_view(
                source,
                size,
                # by the clip's name, so that a command line or an encoder's log tells it
                Path(folder) / f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(name).stem)[:100]}.y4m",
                bit_depth=plan.bit_depth or source.bit_depth,
                frames=None,
                ffmpeg=shop.ffmpeg,
            )
            slowest = usual_s
            for index, point in enumerate(plan.points):
                for role in _in_turn(tuple(builds), index):
                    if role in hung:
                        continue
                    tell(f"{name} {size[0]}x{size[1]} {point}: {role}")
                    out = Path(folder) / f"{role}{file_suffix(builds[role], plan.spec)}"
                    limit = plan.timeout_s or _limit_s(plan, view, slowest)
                    try:
                        run = _one(
                            builds[role], role, source, view, point, out, plan, shop, limit, known
                        )
                    except BuildFailed as error:
                        failures.append(Failure(role, *size, str(point), error.kind, str(error)))
                        if error.kind == "hang":
                            hung.add(role)
                        continue
                    runs.append(run)
                    if role == BASELINE:
                        slowest = max(slowest or 0.0, run.wall_s)
    return ClipRuns(
        name,
        clip.sha256,
        *source.canvas,
        source.frames,
        f"{source.fps.numerator}/{source.fps.denominator}",
        tuple(runs),
        tuple(failures),
    )


def _in_turn(roles: Sequence[str], index: int) -> list[str]:
    """The roles from another one on each time; the baseline opens the first round."""
    start = index % len(roles)
    return [*roles[start:], *roles[:start]]


def _limit_s(plan: RunPlan, view: BuildInput, slowest_s: float | None) -> float:
    if slowest_s is None:
        return default_timeout_s(plan.spec, view, plan.preset)
    return max(HANG_LEAST_S, HANG_TIMES * slowest_s)


def _one(
    build: Build,
    role: str,
    source: Source,
    view: BuildInput,
    point: Point,
    out: Path,
    plan: RunPlan,
    shop: Workshop,
    limit_s: float,
    known: dict[str, dict[str, float]],
) -> Run:
    """One run, decoded and scored; equal pictures are scored once."""
    try:
        made = make(
            build,
            plan.spec,
            view,
            point,
            out,
            timeout_s=limit_s,
            preset=plan.preset,
            ffmpeg=shop.ffmpeg,
        )
        shop.count(
            encodes=1,
            encoded_frames=made.frames,
            encoded_pixels=made.frames * view.width * view.height,
            encode_cpu_s=made.cpu_s,
        )
        decoded = decode_md5(out, plan.spec, ffmpeg=shop.ffmpeg, frames=view.frames)
        if decoded not in known:
            try:
                known[decoded] = _scores(source, out, plan, shop)
            except DecodeFailed as error:
                raise BuildFailed("not-scored", str(error)) from error
    finally:
        out.unlink(missing_ok=True)
    return Run(
        role,
        view.width,
        view.height,
        str(point),
        point.value,
        made.size_bytes * 8 / 1000 / float(view.frames / view.fps),
        known[decoded],
        made.cpu_s,
        made.wall_s,
        made.peak_bytes,
        made.stream_sha256,
        decoded,
    )


def _scores(source: Source, path: Path, plan: RunPlan, shop: Workshop) -> dict[str, float]:
    """By name: VMAF and PSNR-Y in one run of ffmpeg, and the other metrics."""
    found = shop.guard(source, path)
    for metric in plan.metrics:
        if metric.name not in (*GUARDS, *found):
            found[metric.name] = shop.score(source, path, metric).value
    return found


def longest_s(clip: ClipRuns) -> float | None:
    """What the baseline took at most for a run of this clip."""
    return max((run.wall_s for run in clip.of(BASELINE)), default=None)


def run_clips(
    titles: Mapping[str, Source],
    baseline: Build | Saved,
    candidate: Build | Saved | None,
    plan: RunPlan,
    shop: Workshop,
    journal: Journal,
    progress: Watcher,
) -> list[ClipRuns]:
    """The runs on every clip, those of saved results among them; raises InputError where a saved
    result lacks a clip."""
    builds = {
        role: build
        for role, build in ((BASELINE, baseline), (CANDIDATE, candidate), (REPEAT, baseline))
        if isinstance(build, Build)
    }
    saved = {
        name: [
            *_of_saved(baseline, BASELINE, source, name),
            *_of_saved(candidate, CANDIDATE, source, name),
        ]
        for name, source in titles.items()
    }
    each = sum(len(plan.sizes_of(s)) for s in titles.values()) * len(plan.points) * len(builds)
    done = 0

    def tell(line: str) -> None:
        nonlocal done
        progress(Event("compare", line, done, each))
        done += 1

    def measure(name: str) -> ClipRuns:
        nonlocal done
        source = titles[name]
        clip = journal.finished(source)
        if clip is not None:
            done += len(clip.runs) + len(clip.failures)
            progress(Event("compare", f"{name}: as before the interruption", done, each))
            clip = replace(clip, clip=name)
        elif builds:
            usual = max((longest_s(part) or 0.0 for part in saved[name]), default=0.0)
            clip = run_clip(source, name, builds, plan, shop, tell, usual or None)
            journal.keep(clip)
        parts = [*saved[name], *([clip] if clip else [])]
        return replace(
            parts[-1],
            clip=name,
            runs=tuple(run for part in parts for run in part.runs),
            failures=tuple(failure for part in parts for failure in part.failures),
        )

    made = shop.map(measure, list(titles))
    journal.close()
    return made


def _of_saved(result: object, role: str, source: Source, name: str) -> list[ClipRuns]:
    if not isinstance(result, Saved):
        return []
    for clip in result.clips:
        if clip.sha256 == source.sha256:
            if role == BASELINE:
                return [clip]
            runs = tuple(replace(run, build=role) for run in clip.of(BASELINE))
            failures = tuple(replace(f, build=role) for f in clip.failures if f.build == BASELINE)
            return [replace(clip, runs=runs, failures=failures)]
    raise InputError(
        f"{quoted(name)} is not among the clips of the saved {role}: "
        f"{', '.join(clip.clip for clip in result.clips)[:300]}"
    )
