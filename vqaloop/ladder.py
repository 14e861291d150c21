"""The loop: a title goes in, the best ladder for it comes out, every rung measured.

probe → excerpt of a long title → search (encode, score, fit, hull) → rungs → the whole title
encoded, scored and guarded for each → a folder with the files, ladder.json, ladder.csv, reports.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vqaloop import process, request
from vqaloop.cache import Cache, place_file
from vqaloop.encoder import encoder_version
from vqaloop.errors import TargetUnreachable
from vqaloop.excerpt import choose_windows, excerpt
from vqaloop.hull import Rules, convex_hull, densify, keep_rules
from vqaloop.records import (
    Encode,
    Event,
    Ladder,
    RDPoint,
    Rendition,
    Rung,
    Score,
    Source,
    Trial,
    rounded,
)
from vqaloop.report import SCHEMA, write_reports
from vqaloop.score import DEFAULT_METRIC, open_metric
from vqaloop.search import Outcome, Point, Space, plan, run_study
from vqaloop.source import probe_source
from vqaloop.trials import Workshop

MOST_TRIALS = 40
"""Bound on the encodes of a search, whatever the sizes asked for."""
MARGIN = 1.1
"""Rungs chosen on an excerpt leave this much more room than the rules ask for: the whole title
differs a little from what stands for it."""

NOTICE_S = 1.0
"""Seconds of probing after which a watcher is told what takes so long."""
TOLERANCE_STEPS = 1.5
"""Steps (of the metric's own) by which a rung may miss its prediction before the ladder is not to
be trusted; on VMAF's scale 6 points, about one just noticeable difference."""


Watcher = Callable[[Event], None]


def build_ladder(
    input: str | os.PathLike[str],
    *,
    codec: str,
    encoder: str | None = None,
    resolutions: Sequence[tuple[int, int]] | None = None,
    metric: str = DEFAULT_METRIC,
    rungs: int | None = None,
    min_step: float | None = None,
    min_ratio: float = 1.4,
    min_bitrate: float = 0.0,
    max_bitrate: float = float("inf"),
    preset: str | None = None,
    bit_depth: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int = 1,
    seed: int = 0,
    cache: bool = True,
    timeout_s: float | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    progress: Watcher = lambda event: None,
) -> Ladder:
    """The per-title ladder of a video, its files and reports written to `out`.

    `min_step` is the least difference in score between neighbouring rungs (by default the
    metric's own), `min_ratio` the least ratio of their bitrates, bitrates are in kb/s, `rungs` a
    number or None for as many as pay, `timeout_s` a limit for one encode, `out` a folder (by
    default NAME.CODEC.ladder here). `video_size`, `pix_fmt` and `framerate` describe raw video.

    Raises InputError for anything refused before work starts, TargetUnreachable when too few rungs
    could be made. What was encoded until then, or until an interruption, stays in the cache, so
    the same call goes on from there.
    """
    started = time.monotonic()
    binary = process.ffmpeg_path(ffmpeg)
    request.check_run(workers, seed, device, timeout_s)
    spec = request.choose_encoder(codec, encoder, binary)
    preset = request.checked_preset(spec, preset)
    meter = open_metric(metric, ffmpeg=binary, device=device, seed=seed, weights=weights)
    rules = request.make_rules(meter, rungs, min_step, min_ratio, min_bitrate, max_bitrate)
    folder = Path(out) if out is not None else Path(f"{Path(input).stem}.{codec}.ladder")
    request.check_folder(folder, Path(input))
    with _told_if_slow(progress, Event("probe", f"looking at {process.quoted(input)}")):
        source = probe_source(
            Path(input),
            video_size=video_size,
            pix_fmt=pix_fmt,
            framerate=framerate,
            allow_hdr=allow_hdr,
            ffmpeg=binary,
        )
    space = Space(request.choose_sizes(source, spec, resolutions), spec.knob)
    depth = request.checked_depth(source, spec, bit_depth)
    request.check_metric(meter, weights)
    progress(Event("probe", _described(source)))
    with (
        _undone_on_failure(folder) as placed,
        Cache(enabled=cache) as store,
        Workshop(spec, meter, store, ffmpeg=binary, workers=workers, timeout_s=timeout_s) as shop,
    ):
        loop = Loop(shop, space, rules, preset, depth, progress)
        windows = choose_windows(source, seed=seed)
        title, whole = source, windows == ((0, source.frames),)
        if not whole:
            progress(Event("excerpt", f"{len(windows)} windows stand for the title"))
            title = excerpt(source, windows, shop.scratch / "excerpt.mkv", ffmpeg=binary)
        found = loop.search(title, whole)
        checked = loop.verify(source, found, whole)
        rungs_made = loop.deliver(source, folder, checked, placed)
        tolerance = TOLERANCE_STEPS * meter.step
        # a search on the whole title has measured these very files and planned with the figures
        missed = [
            r for r in rungs_made if not whole and abs(r.score - r.score_predicted) > tolerance
        ]
        document = {
            "schema": SCHEMA,
            "vqaloop": _version(),
            "source": _source_json(source),
            "codec": codec,
            "encoder": {
                "name": spec.name,
                "library_version": encoder_version(spec, binary),
                "ffmpeg": process.file_sha256(binary),
                "preset": preset,
            },
            "metric": _metric_json(checked[0].score),
            "hull": _hull_json(found.points, space, meter.top),
            "trials": [trial.to_json() for trial in loop.tried],
            "cost": {
                **{name: round(value, 3) for name, value in asdict(shop.cost).items()},
                "wall_s": round(time.monotonic() - started, 3),
            },
            "rules": {
                name: rounded(value) if isinstance(value, float) else value
                for name, value in asdict(rules).items()
            },
            "windows": [list(window) for window in windows],
            "warnings": [*source.notes, *loop.warnings, *_doubts(rungs_made, missed)],
        }
        ladder = Ladder(folder, tuple(rungs_made), document, trusted=not missed)
        progress(Event("write", f"writing {process.quoted(folder)}"))
        write_reports(ladder)
        return ladder


@contextlib.contextmanager
def _told_if_slow(progress: Watcher, event: Event) -> Iterator[None]:
    """An announcement of what takes long, so that a quick refusal comes alone."""
    timer = threading.Timer(NOTICE_S, progress, [event])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """For the files that are put into `folder`; they, and folders made for it, go on a failure."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    placed: list[Path] = []
    try:
        yield placed
    except BaseException:
        with contextlib.suppress(OSError):
            for path in placed:
                path.unlink(missing_ok=True)
            for place in missing:
                place.rmdir()
        raise


@dataclass(frozen=True)
class Found:
    """What the search learnt."""

    points: list[RDPoint]
    """Everything measured."""
    predicted: dict[Point, float]
    """Score a fit gave before the point was measured."""


@dataclass(frozen=True)
class Checked:
    """A rung over the whole title."""

    point: RDPoint
    """What the search knew of it, on the title or an excerpt."""
    trial: Trial
    encode: Encode
    score: Score


class Loop:
    """The steps of `build_ladder` that share a workshop and the trials made so far."""

    def __init__(
        self,
        shop: Workshop,
        space: Space,
        rules: Rules,
        preset: str,
        bit_depth: int,
        progress: Watcher,
    ) -> None:
        self.shop, self.space, self.rules = shop, space, rules
        self.preset, self.bit_depth, self.progress = preset, bit_depth, progress
        self.tried: list[Trial] = []
        self.warnings: list[str] = []

    def rendition(self, point: Point) -> Rendition:
        width, height, knob = point
        name = self.shop.spec.name
        return Rendition(width, height, name, knob, self.preset, self.bit_depth)

    def search(self, title: Source, whole: bool) -> Found:
        """Run the study on the title, or on what stands for it."""
        asked = 0

        def one(point: Point) -> Trial:
            trial = replace(self.shop.try_one(title, self.rendition(point)), whole_title=whole)
            self.tried.append(trial)
            self.progress(Event("search", describe(trial), len(self.tried), asked, trial))
            return trial

        def evaluate(batch: Sequence[Point]) -> list[Outcome]:
            nonlocal asked
            asked += len(batch)
            trials = self.shop.map(one, batch)
            return [Outcome(trial.bitrate_kbps, trial.score) for trial in trials]

        points, predicted = run_study(
            self.space,
            self.rules if whole else self._roomier(),
            evaluate,
            most=MOST_TRIALS,
            top_score=self.shop.metric.top,
        )
        failures = sorted({trial.error for trial in self.tried if trial.error})
        if len(points) < request.LEAST_RUNGS:
            raise TargetUnreachable(
                f"only {len(points)} of {len(self.tried)} trials succeeded, too few for a ladder: "
                + "; ".join(failures)[:1500]
            )
        self.warnings += [f"a trial failed and was left out: {text}" for text in failures]
        return Found(points, predicted)

    def _roomier(self) -> Rules:
        rules = self.rules
        return replace(rules, min_step=rules.min_step * MARGIN, min_ratio=rules.min_ratio * MARGIN)

    def verify(self, source: Source, found: Found, whole: bool) -> list[Checked]:
        """The chosen rungs encoded and scored over the whole title, those that keep the rules.

        Where the search ran on the whole title this only recalls its own trials. Raises
        TargetUnreachable when fewer than two rungs are left.
        """
        rules = self.rules if whole else self._roomier()
        chosen = plan(self.space, rules, found.points, self.shop.metric.top)
        if whole:
            chosen = [point for point in chosen if point.measured]
        done = 0

        def one(point: RDPoint) -> Checked | Trial:
            nonlocal done
            rendition = self.rendition((point.width, point.height, point.knob))
            trial = self.shop.try_one(source, rendition)
            done += 1
            if not whole:
                self.tried.append(trial)
                self.progress(Event("verify", describe(trial), done, len(chosen), trial))
            if trial.error or trial.encode is None:
                return trial
            expected = found.predicted.get((point.width, point.height, point.knob), point.score)
            score = self.shop.score(source, trial.encode)
            return Checked(replace(point, score=expected), trial, trial.encode, score)

        results = self.shop.map(one, chosen)
        checked = {
            (r.trial.rendition.width, r.trial.rendition.height, r.trial.rendition.knob): r
            for r in results
            if isinstance(r, Checked)
        }
        points = [
            RDPoint(*key, bitrate_kbps=r.encode.bitrate_kbps, score=r.score.value)
            for key, r in checked.items()
        ]
        kept = keep_rules(points, self.rules)
        for trial in results:
            if isinstance(trial, Trial):
                self.warnings.append(f"a rung could not be made: {trial.error}")
        for point in points:
            if point not in kept:
                self.warnings.append(
                    f"{point.width}x{point.height} at {point.knob:g} was left out: measured over "
                    f"the whole title ({point.bitrate_kbps:.0f} kb/s, {point.score:.1f}) it "
                    "stands too close to its neighbour"
                )
        if len(kept) < request.LEAST_RUNGS:
            raise TargetUnreachable(
                f"the rules leave {len(kept)} rung(s) of this title: scores from "
                f"{min(p.score for p in found.points):.1f} to "
                f"{max(p.score for p in found.points):.1f} at "
                f"{min(p.bitrate_kbps for p in found.points):.0f} to "
                f"{max(p.bitrate_kbps for p in found.points):.0f} kb/s; "
                "loosen --min-step, --min-bitrate or --max-bitrate"
            )
        return [checked[(p.width, p.height, p.knob)] for p in kept]

    def deliver(
        self, source: Source, folder: Path, checked: Sequence[Checked], placed: list[Path]
    ) -> list[Rung]:
        """Guard each rung and place its file in the folder; `placed` gets those that are new."""
        spec = self.shop.spec
        guards = self.shop.map(lambda c: self.shop.guard(source, c.encode), checked)
        folder.mkdir(parents=True, exist_ok=True)
        rungs = []
        for item, guard in zip(checked, guards, strict=True):
            rendition = item.encode.rendition
            size = f"{rendition.width}x{rendition.height}"
            name = f"{size}_{spec.knob.name}{rendition.knob:g}{spec.suffix}"
            if not (folder / name).exists():
                placed.append(folder / name)
            place_file(item.encode.path, folder / name)
            rungs.append(
                Rung(
                    rendition.width,
                    rendition.height,
                    bitrate_kbps=item.encode.bitrate_kbps,
                    peak_kbps=item.encode.peak_kbps,
                    score=item.score.value,
                    score_predicted=item.point.score,
                    guard=guard,
                    knob=(spec.knob.name, rendition.knob),
                    params=dict(rendition.params),
                    ffmpeg_args=item.encode.ffmpeg_args,
                    file=name,
                )
            )
        return rungs


def describe(trial: Trial) -> str:
    """A trial in one line."""
    r = trial.rendition
    head = f"{r.width}x{r.height} at {r.knob:g}"
    if trial.error or trial.bitrate_kbps is None or trial.score is None:
        return f"{head}: failed ({trial.error})"
    again = " (cached)" if trial.encode and trial.encode.cached else ""
    return f"{head}: {trial.bitrate_kbps:.0f} kb/s, score {trial.score:.1f}{again}"


def _doubts(rungs: Sequence[Rung], missed: Sequence[Rung]) -> list[str]:
    """Where prediction, score and guard do not agree, in words."""
    doubts = [
        f"{rung.file}: score {rung.score:.1f}, predicted {rung.score_predicted:.1f}"
        for rung in missed
    ]
    for low, high in zip(rungs, rungs[1:], strict=False):
        if low.guard["vmaf"] >= high.guard["vmaf"]:
            doubts.append(
                f"VMAF does not rise from {low.file} ({low.guard['vmaf']:.1f}) to "
                f"{high.file} ({high.guard['vmaf']:.1f}), though the score does"
            )
    return doubts


def _hull_json(points: Sequence[RDPoint], space: Space, top: float) -> list[dict[str, Any]]:
    return [
        {
            "width": point.width,
            "height": point.height,
            "bitrate_kbps": rounded(point.bitrate_kbps),
            "score": rounded(point.score),
            "knob": point.knob,
            "measured": point.measured,
        }
        for point in convex_hull(densify(points, space.grid(), top))
    ]


def _described(source: Source) -> str:
    width, height = source.canvas
    rate = f"{float(source.fps):.6g} frames a second"
    return f"{process.quoted(source.path)}: {width}x{height}, {rate}, {source.frames} frames"


def _source_json(source: Source) -> dict[str, Any]:
    return {
        "path": os.fsencode(source.path).decode("utf-8", "replace"),
        "sha256": source.sha256,
        "width": source.width,
        "height": source.height,
        "fps": float(source.fps),
        "fps_exact": f"{source.fps.numerator}/{source.fps.denominator}",
        "frames": source.frames,
        "duration": source.duration_s,
        "input_options": dict(source.input_options),
    }


def _metric_json(score: Score) -> dict[str, Any]:
    return {
        "name": score.metric,
        "mode": score.mode,
        "weights_sha256": score.weights_sha256,
        "label": score.label,
    }


def _version() -> str:
    from vqaloop import __version__

    return __version__
