"""The steps of a ladder between probing and reporting: search, verify, deliver."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqaloop import request
from vqaloop.cache import place_file
from vqaloop.errors import TargetUnreachable
from vqaloop.hull import Rules, keep_rules
from vqaloop.records import Encode, Event, RDPoint, Rendition, Rung, Score, Source, Trial
from vqaloop.search import Outcome, Point, Space, plan, run_study
from vqaloop.trials import Workshop

MOST_TRIALS = 40
"""Bound on the encodes of a search, whatever the sizes asked for."""
MARGIN = 1.1
"""Rungs chosen on an excerpt leave this much more room than the rules ask for: the whole title
differs a little from what stands for it."""

Watcher = Callable[[Event], None]
"""Whoever is told of progress."""


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
        failed = [
            (t.rendition.width, t.rendition.height, t.rendition.knob)
            for t in self.tried
            if t.error
        ]
        chosen = plan(self.space, rules, found.points, self.shop.metric.top, failed)
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
            expected = point.score
            if whole:
                # on the whole title the point is this very file: what a fit said before it
                key = (point.width, point.height, point.knob)
                expected = found.predicted.get(key, expected)
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
                    "breaks the rules of step, ratio or bitrate"
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
        if self.rules.count is not None and len(kept) < self.rules.count:
            self.warnings.append(
                f"{self.rules.count} rungs were asked for and the rules leave {len(kept)}; "
                "loosen --min-step or --min-ratio for more"
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
