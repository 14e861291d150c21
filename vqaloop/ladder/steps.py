"""The steps of a ladder between probing and reporting: search, verify, deliver."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState

from vqaloop.core import process
from vqaloop.core.files import place_file
from vqaloop.core.text import counted
from vqaloop.errors import DecodeFailed, EncodeFailed, TargetUnreachable
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder.rules import Budget
from vqaloop.ladder.timeline import over_time
from vqaloop.quality.sampling_precision import unreached
from vqaloop.records import (
    Encode,
    Event,
    RDPoint,
    Rendition,
    Rung,
    Score,
    Source,
    Trial,
    Watcher,
    rounded,
)
from vqaloop.search.explore import Measured, explore, rungs_of
from vqaloop.search.rungs import LEAST_RUNGS, Rules, keep_rules
from vqaloop.search.shared_study import Outcome, SharedStudy
from vqaloop.search.space import Point, Space, params_of, point_of
from vqaloop.search.surrogates import ExcerptShift, Surrogate

Made = TypeVar("Made")

MOST_TRIALS = 40
"""Bound on the encodes of a search, whatever the sizes asked for."""
MARGIN = 1.1
"""Rungs chosen on an excerpt leave this much more room than the rules ask for: the whole title
differs a little from what stands for it."""
NEAR_WHOLE = 0.5
"""Steps below the hull at which a whole encode that was made is taken for a rung all the same."""
SPARE = 2
"""Encodes of a whole title, beyond one a rung, that may go into mending an excerpt's promises."""
EXCERPT_SHARE = 0.4
"""Part of a time budget that the search on an excerpt may take."""


@dataclass(frozen=True)
class SearchResult:
    """What the search learnt."""

    points: list[RDPoint]
    """Everything measured."""
    failed: list[Point]
    predicted: dict[Point, float]
    """Score that was expected before the point was measured."""


@dataclass(frozen=True)
class Checked:
    """A rung over the whole title."""

    expected: float
    """Score that was expected of it before it was made."""
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
        budget: Budget | None = None,
        params: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.shop, self.space, self.rules = shop, space, rules
        self.preset, self.bit_depth, self.progress = preset, bit_depth, progress
        self.budget, self.params = budget or Budget(), params
        self.tried: dict[tuple[bool, Point], Trial] = {}
        self.warnings: list[str] = []
        self._finer = shop.metric.finer()
        self._closer: set[str] = set()
        self.estimate: dict[str, Any] | None = None
        """How far an excerpt was from its title."""

    @property
    def trials(self) -> list[Trial]:
        """All that was tried, by this run or another of the same study."""
        return list(self.tried.values())

    def rendition(self, point: Point) -> Rendition:
        width, height, knob = point
        name = self.shop.spec.name
        return Rendition(
            width, height, name, knob, self.preset, self.bit_depth, params=self.params
        )

    def search(
        self, title: Source, whole: bool, study: SharedStudy, belief: Surrogate
    ) -> SearchResult:
        """Run the study on the title, or on what stands for it."""
        share = 1.0 if whole else EXCERPT_SHARE
        rules = self.rules if whole else self._roomier()
        found = self._explore("search", title, whole, study, belief, rules, MOST_TRIALS, share)
        failures = self._failures(found, whole)
        self.warnings += [f"a trial failed and was left out: {text}" for text in failures]
        return replace(found, points=self._rechecked(title, found.points))

    def _failures(self, found: SearchResult, whole: bool) -> list[str]:
        """Why trials of the title or its excerpt failed; TargetUnreachable if too few did not."""
        tried = [trial for trial in self.trials if trial.whole_title == whole]
        failures = sorted({trial.error for trial in tried if trial.error})
        if len(found.points) < LEAST_RUNGS:
            raise TargetUnreachable(
                f"only {len(found.points)} of {len(tried)} trials succeeded, too few for a "
                "ladder: " + "; ".join(failures)[:1500]
            )
        return failures

    def _explore(
        self,
        stage: str,
        title: Source,
        whole: bool,
        study: SharedStudy,
        belief: Surrogate,
        rules: Rules,
        most: int,
        share: float,
    ) -> SearchResult:
        done = running = 0
        look: Callable[[], None] = lambda: None  # noqa: E731

        def work(params: dict[str, Any]) -> Outcome:
            nonlocal done
            point, started = point_of(params), time.monotonic()
            width, height, knob = point

            def tell(frames: int) -> None:
                far = f"{width}x{height} at {knob:g}: {min(frames, title.frames)} of "
                said = f"{far}{counted(title.frames, 'frame')}"
                self.progress(Event(stage, said, done, most, at_most=True))

            with process.counted_frames(tell):
                made = self.shop.try_one(title, self.rendition(point))
            trial = replace(made, whole_title=whole)
            if not (trial.encode and trial.encode.cached):
                self.budget.spend(
                    (time.monotonic() - started) / max(1, min(self.shop.workers, running)),
                    width * height * title.frames,
                )
            self.tried[whole, point] = trial
            done += 1
            self.progress(Event(stage, describe(trial), done, most, trial, at_most=True))
            look()
            found = _outcome(trial)
            return Outcome(found) if found else Outcome(None, {"error": trial.error})

        def evaluate(batch: Sequence[Point]) -> dict[Point, Measured]:
            nonlocal done, running, look
            least = max(0, LEAST_RUNGS - done)
            sizes = [w * h * title.frames for w, h, _ in batch]
            batch = batch[: self.budget.affordable(sizes, share, least)]
            if not batch:
                return {}
            running = len(batch)
            wanted, crew = [params_of(p) for p in batch], range(min(self.shop.workers, len(batch)))
            settled: list[FrozenTrial] = []
            with self.budget.ending(share, lambda: done >= LEAST_RUNGS) as look:
                settled = study.settle(wanted, work, lambda drain: self.shop.map(drain, crew))
            for point, trial in zip(batch, settled, strict=False):
                if (whole, point) not in self.tried:
                    done += 1
                    self.tried[whole, point] = self._recalled(trial, point, whole)
                    known = self.tried[whole, point]
                    again = describe(known) + " (done before)"
                    self.progress(Event(stage, again, done, most, known, at_most=True))
            tried = {p: self.tried[whole, p] for p in batch if (whole, p) in self.tried}
            return {point: _outcome(trial) for point, trial in tried.items()}

        found = explore(self.space, rules, evaluate, belief=belief, most=most)
        return SearchResult(*found)

    def _recalled(self, trial: FrozenTrial, point: Point, whole: bool) -> Trial:
        """A trial that another run made, as its study has it."""
        found = _measured(trial)
        rendition = self.rendition(point)
        if found is None:
            return Trial(rendition, error=trial.user_attrs["error"], whole_title=whole)
        return Trial(rendition, *found, whole_title=whole)

    def _rechecked(self, title: Source, points: Sequence[RDPoint]) -> list[RDPoint]:
        """The points; where a score falls while the rate rises all are measured again, finer.

        All of them, since scores of one ladder must be of the same crops.
        """
        # which takes time again
        finer = self._finer if _falls(points) and self.budget.left_s() > 0 else None
        checked = list(points)
        if finer:
            again = "a score falls while bits rise: looking again, closer"
            try:
                with self._counted("search", again, len(checked)) as one:
                    checked = self.shop.map(lambda p: one(self._looked_at(title, p)), checked)
                self._closer.add(title.sha256)
            except (EncodeFailed, DecodeFailed) as error:
                self.warnings.append(f"scores could not be measured again: {error}")
        for low, high in _falls(checked):
            looked = (
                "measured again with more crops"
                if finer
                else "all frames were measured"
                if not self._finer
                else "the time budget left no second look"
            )
            self.warnings.append(
                f"{low.width}x{low.height}: the score falls from {low.score:.2f} at "
                f"{low.bitrate_kbps:.0f} kb/s to {high.score:.2f} at {high.bitrate_kbps:.0f} kb/s "
                f"({looked})"
            )
        return checked

    @contextlib.contextmanager
    def _counted(self, stage: str, message: str, total: int) -> Iterator[Callable[[Made], Made]]:
        """Announces `total` things to do; the function given counts those that pass through it."""
        done = 0

        def one(made: Made) -> Made:
            nonlocal done
            done += 1
            self.progress(Event(stage, message, done, total))
            return made

        self.progress(Event(stage, message, 0, total))
        yield one

    def _looked_at(self, title: Source, point: RDPoint) -> RDPoint:
        made = self.shop.encode(title, self.rendition(point.key))
        return replace(point, score=self.shop.score(title, made.path, self._finer).value)

    def _roomier(self) -> Rules:
        """For an excerpt, whose title will differ a little: room between the rungs."""
        rules = self.rules
        return replace(rules, min_step=rules.min_step * MARGIN, min_ratio=rules.min_ratio * MARGIN)

    def _thrifty(self) -> Rules:
        """For whole encodes, which are dear: what was made stands, if it keeps the rules."""
        return replace(self.rules, near=NEAR_WHOLE, slack=MARGIN)

    def verify(
        self,
        source: Source,
        found: SearchResult,
        whole: bool,
        study: SharedStudy,
        belief: Surrogate,
    ) -> list[Checked]:
        """The rungs, encoded and scored over the whole title, those that keep the rules.

        Where the search ran on the whole title this only recalls its own trials. Else the first
        rungs tell by how much the excerpt was off, and the others are chosen with that mended.
        Raises TargetUnreachable when fewer than two rungs are left.
        """
        top = self.shop.metric.top
        if not whole:
            dense = [*found.points, *belief.dense(found.points).points]
            promised = rungs_of(self.space, self._roomier(), found.points, belief, found.failed)
            belief = ExcerptShift(dense, top)
            title = self._explore(
                "verify",
                source,
                True,
                study,
                belief,
                self._thrifty(),
                len(promised) + SPARE,
                1.0,
            )
            self._failures(title, True)
            self.estimate = _estimate(title.points, dense)
            found = replace(title, points=self._rechecked(source, title.points))
        rules = self.rules if whole else replace(self.rules, near=NEAR_WHOLE)
        chosen = rungs_of(self.space, rules, found.points, belief, found.failed)
        kept = keep_rules(chosen, self.rules)
        if self.budget.ended:
            self.warnings.append(
                f"the time budget of {self.budget.seconds:g} s ended the search after "
                f"{len(self.tried)} trials; with more time the ladder may be better"
            )
        if len(kept) < LEAST_RUNGS:
            raise TargetUnreachable(self._too_few(kept, found.points))
        if self.rules.count is not None and len(kept) < self.rules.count:
            self.warnings.append(
                f"{self.rules.count} rungs were asked for and the rules leave {len(kept)}; "
                "loosen --min-step or --min-ratio for more"
            )
        for width, height in self.rules.required:
            if not any(p.size == (width, height) for p in kept):
                self.warnings.append(
                    f"{width}x{height} was required and has no rung that keeps the other rules"
                )

        metric = self._finer if source.sha256 in self._closer else None

        def check(point: RDPoint) -> Checked | str:
            key = point.key
            try:
                # from the cache, unless another machine made it and keeps its own
                made = self.shop.encode(source, self.rendition(key))
                score = self.shop.score(source, made.path, metric)
            except (EncodeFailed, DecodeFailed) as error:
                return str(error)
            return Checked(found.predicted.get(key, score.value), made, score)

        with self._counted("verify", "measuring the rungs", len(kept)) as one:
            results = self.shop.map(lambda point: one(check(point)), kept)
        checked = [result for result in results if isinstance(result, Checked)]
        self.warnings += [f"a rung could not be made: {r}" for r in results if isinstance(r, str)]
        self.warnings += unreached([item.score for item in checked], self.shop.metric)
        if len(checked) < LEAST_RUNGS:
            raise TargetUnreachable("; ".join(self.warnings)[:1500])
        return checked

    def _too_few(self, kept: Sequence[RDPoint], points: Sequence[RDPoint]) -> str:
        scores, rates = [p.score for p in points], [p.bitrate_kbps for p in points]
        early = "; the time budget ended the search early" if self.budget.ended else ""
        return (
            f"the rules leave {len(kept)} rung(s) of this title: scores from {min(scores):.1f} to "
            f"{max(scores):.1f} at {min(rates):.0f} to {max(rates):.0f} kb/s; loosen --min-step, "
            f"--min-score, --min-bitrate or --max-bitrate{early}"
        )

    def deliver(
        self, source: Source, folder: Path, checked: Sequence[Checked], placed: list[Path]
    ) -> list[Rung]:
        """Guard each rung and place its file in the folder; `placed` gets those that are new."""
        spec = self.shop.spec
        guards = self._guarded(source, checked)
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
                    score_predicted=item.expected,
                    guard=guard,
                    knob=(spec.knob.name, rendition.knob),
                    params=dict(rendition.params),
                    ffmpeg_args=item.encode.ffmpeg_args,
                    file=name,
                    over_time=over_time(item.encode.path, spec, source, item.score),
                )
            )
        return rungs

    def _guarded(self, source: Source, checked: Sequence[Checked]) -> list[dict[str, float]]:
        """The guard of each rung, counted in frames."""
        seen, total = dict[int, int](), source.frames * len(checked)

        def guard(place: int) -> dict[str, float]:
            encode = checked[place].encode
            size = f"{encode.rendition.width}x{encode.rendition.height}"

            def tell(frames: int) -> None:
                seen[place] = min(frames, source.frames)
                rungs = f"rung {place + 1} of {len(checked)}, {size}"
                self.progress(Event("guard", rungs, sum(seen.values()), total))

            tell(0)
            with process.counted_frames(tell):
                found = self.shop.guard(source, encode.path)
            tell(source.frames)
            return found

        return self.shop.map(guard, range(len(checked)))


def _measured(trial: FrozenTrial) -> Measured:
    if trial.state != TrialState.COMPLETE:
        return None
    kbps, score = trial.values
    return kbps, score


def _outcome(trial: Trial) -> Measured:
    if trial.bitrate_kbps is None or trial.score is None:
        return None
    return trial.bitrate_kbps, trial.score


def _falls(points: Iterable[RDPoint]) -> list[tuple[RDPoint, RDPoint]]:
    """Neighbours in rate of one size of which the dearer has the lower score."""
    by_size: dict[tuple[int, int], list[RDPoint]] = {}
    for point in sorted(points, key=lambda p: p.bitrate_kbps):
        by_size.setdefault(point.size, []).append(point)
    return [
        (low, high)
        for group in by_size.values()
        for low, high in zip(group, group[1:], strict=False)
        if high.score < low.score
    ]


def _estimate(points: Sequence[RDPoint], excerpt: Sequence[RDPoint]) -> dict[str, Any]:
    """How far the title is from what its excerpt promised, measured or believed.

    Rates in percent, scores in points.
    """
    there = {p.key: p for p in excerpt}
    pairs = [(there[key], p) for p in points if (key := p.key) in there]
    rates = [100 * (p.bitrate_kbps / e.bitrate_kbps - 1) for e, p in pairs]
    scores = [p.score - e.score for e, p in pairs]
    return {
        "encodes": len(pairs),
        "bitrate_percent": rounded(sum(rates) / len(pairs)) if pairs else None,
        "bitrate_percent_worst": rounded(max(rates, key=abs)) if pairs else None,
        "score": rounded(sum(scores) / len(pairs)) if pairs else None,
        "score_worst": rounded(max(scores, key=abs)) if pairs else None,
    }


def describe(trial: Trial) -> str:
    """A trial in one line."""
    r = trial.rendition
    head = f"{r.width}x{r.height} at {r.knob:g}"
    if trial.error or trial.bitrate_kbps is None or trial.score is None:
        return f"{head}: failed ({trial.error})"
    again = " (cached)" if trial.encode and trial.encode.cached else ""
    return f"{head}: {trial.bitrate_kbps:.0f} kb/s, score {trial.score:.1f}{again}"
