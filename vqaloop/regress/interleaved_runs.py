"""Interleaved runs of two builds on the same frames at the same points.

Runs alternate and each build goes first as often as the other, so that other load on the machine
affects both alike. Both read the same Y4M file, so neither scaling nor decoding of the source is
part of the comparison.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqaloop.core.files import scratch
from vqaloop.core.text import quoted, size_within
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import DecodeFailed, InputError
from vqaloop.execution.workshop import Workshop
from vqaloop.media.excerpt import excerpt
from vqaloop.quality.guard import GuardPlan
from vqaloop.quality.metric import Metric
from vqaloop.records import Event, Source, Watcher
from vqaloop.regress.build_command import (
    Build,
    BuildInput,
    BuildRun,
    Point,
    default_timeout_s,
    file_suffix,
)
from vqaloop.regress.builds import make, write_view
from vqaloop.regress.faults import BuildFailed, decode_md5
from vqaloop.regress.saved_runs import Journal, Saved
from vqaloop.regress.statistics import BASELINE, CANDIDATE, REPEAT, ClipRuns, Failure, ScoredRun

JUDGES = {"vmaf": "vmaf", "psnr": "psnr_y"}
"""Metrics of every run besides those asked for, and their names in documents."""

HANG_TIMES, HANG_LEAST_S = 20.0, 30.0
"""A run is held to hang after so many times what the baseline took, and no sooner than this."""


def pooled_name(metric: str, pool: str) -> str:
    """The name in documents of a metric's scores by a pool; of means the metric's own."""
    return metric if pool == "mean" else f"{metric} {pool}"


@dataclass(frozen=True)
class RunPlan:
    """Encoder, points, sizes and metrics of the runs on every clip."""

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
        return tuple(size_within(s, source.canvas) for s in self.sizes) or (source.canvas,)


class ClipRunner:
    """Runs builds on one clip, at one size after the other; equal pictures are scored once."""

    view: BuildInput
    """What all builds read, written by `set_size`."""

    def __init__(
        self,
        clip: Source,
        name: str,
        builds: Mapping[str, Build],
        plan: RunPlan,
        shop: Workshop,
        folder: Path,
    ) -> None:
        self.builds, self.plan, self.shop, self.folder = builds, plan, shop, folder
        self.source = clip
        """The clip, or as many of its first frames as the plan takes."""
        if plan.frames is not None and plan.frames < clip.frames:
            part = folder / "part.mkv"
            self.source = excerpt(clip, [(0, plan.frames)], part, ffmpeg=shop.ffmpeg)
        # named after the clip, which then shows in command lines and encoders' logs
        self._y4m = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(name).stem)[:100]}.y4m"
        self._scores: dict[str, dict[str, float]] = {}
        """By MD5 of the decoded frames, then by metric."""

    def set_size(self, size: tuple[int, int], slowest_s: float | None) -> None:
        """Write the input of further runs; `slowest_s`: the baseline's longest run so far."""
        self.view = write_view(
            self.source,
            size,
            self._y4m,
            bit_depth=self.plan.bit_depth or self.source.bit_depth,
            frames=None,
            ffmpeg=self.shop.ffmpeg,
        )
        self._slowest_s = slowest_s

    def run(self, role: str, point: Point) -> ScoredRun:
        """One run, decoded and scored. Raises BuildFailed."""
        view, plan, build = self.view, self.plan, self.builds[role]
        out = self.folder / f"{role}{file_suffix(build, plan.spec)}"
        try:
            encoded = make(
                build,
                plan.spec,
                BuildRun(view, point, plan.preset, out),
                timeout_s=plan.timeout_s or self._limit_s(),
                ffmpeg=self.shop.ffmpeg,
            )
            self.shop.count(
                encodes=1,
                encoded_frames=encoded.frames,
                encoded_pixels=encoded.frames * view.width * view.height,
                encode_cpu_s=encoded.cpu_s,
            )
            decoded = decode_md5(out, plan.spec, ffmpeg=self.shop.ffmpeg, frames=view.frames)
            scores = self._scores_of(out, decoded)
        finally:
            out.unlink(missing_ok=True)
        if role == BASELINE:
            self._slowest_s = max(self._slowest_s or 0.0, encoded.wall_s)
        return ScoredRun(
            role,
            view.width,
            view.height,
            str(point),
            point.value,
            encoded.size_bytes * 8 / 1000 / float(view.frames / view.fps),
            scores,
            encoded.cpu_s,
            encoded.wall_s,
            encoded.peak_bytes,
            encoded.stream_sha256,
            decoded,
        )

    def _limit_s(self) -> float:
        """Seconds after which a run is held to hang."""
        if self._slowest_s is None:
            return default_timeout_s(self.plan.spec, self.view, self.plan.preset)
        return max(HANG_LEAST_S, HANG_TIMES * self._slowest_s)

    def _scores_of(self, path: Path, decoded: str) -> dict[str, float]:
        """By name: VMAF and PSNR-Y in one run of ffmpeg, and the other metrics."""
        if decoded not in self._scores:
            try:
                # all frames: builds differ by less than sampled ones would tell
                found = self.shop.measured(self.source, path, GuardPlan(dict.fromkeys(JUDGES, 1)))
                made = {
                    JUDGES[name]: self.shop.pooled(self.source, score)
                    for name, score in found.items()
                }
                for metric in self.plan.metrics:
                    if metric.name not in (*JUDGES, *made):
                        made[metric.name] = self.shop.score(self.source, path, metric)
            except DecodeFailed as error:
                raise BuildFailed("not-scored", str(error)) from error
            self._scores[decoded] = {
                **{pooled_name(name, score.pool): score.value for name, score in made.items()},
                # beside the verdict's scores
                **{name: score.mean for name, score in made.items() if score.mean is not None},
            }
        return self._scores[decoded]


def run_clip(
    clip: Source,
    name: str,
    builds: Mapping[str, Build],
    plan: RunPlan,
    shop: Workshop,
    announce: Callable[[str], None],
    usual_s: float | None = None,
) -> ClipRuns:
    """All runs on one clip.

    A run that fails is part of the result. After a hang the build's other points of the clip are
    left out, as they would most likely cost as long.

    Args:
        clip: What is encoded.
        name: How the clip is called in messages and in the result.
        builds: By role: baseline, candidate, repeat.
        plan: Sizes, points and all else that every clip goes through.
        shop: Scores, and counts what is spent.
        announce: Called before each run with a line for people.
        usual_s: Seconds that a run of a saved baseline took at most.

    Returns:
        The runs and failures, in the order in which they ran.
    """
    runs: list[ScoredRun] = []
    failures: list[Failure] = []
    hung: set[str] = set()
    with scratch(shop.scratch) as folder:
        runner = ClipRunner(clip, name, builds, plan, shop, Path(folder))
        source = runner.source
        for size in plan.sizes_of(source):
            runner.set_size(size, usual_s)
            for role, point in _in_turn(tuple(builds), plan.points):
                if role in hung:
                    continue
                announce(f"{name} {size[0]}x{size[1]} {point}: {role}")
                try:
                    runs.append(runner.run(role, point))
                except BuildFailed as error:
                    failures.append(Failure(role, *size, str(point), error.kind, str(error)))
                    if error.kind == "hang":
                        hung.add(role)
    return ClipRuns(
        name,
        clip.sha256,
        *source.canvas,
        source.frames,
        f"{source.fps.numerator}/{source.fps.denominator}",
        tuple(runs),
        tuple(failures),
    )


def _in_turn(roles: Sequence[str], points: Sequence[Point]) -> Iterator[tuple[str, Point]]:
    """Every role at every point, beginning with another role each time, the baseline first."""
    for index, point in enumerate(points):
        start = index % len(roles)
        for role in (*roles[start:], *roles[:start]):
            yield role, point


def longest_s(clip: ClipRuns) -> float | None:
    """Wall seconds of the baseline's longest run on this clip."""
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

    def announce(line: str) -> None:
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
            clip = run_clip(source, name, builds, plan, shop, announce, usual or None)
            journal.keep(clip)
        parts = [*saved[name], *([clip] if clip else [])]
        return replace(
            parts[-1],
            clip=name,
            runs=tuple(run for part in parts for run in part.runs),
            failures=tuple(failure for part in parts for failure in part.failures),
        )

    measured = shop.map(measure, list(titles))
    journal.close()
    return measured


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
