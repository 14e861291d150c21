"""The steps of a ladder between probing and reporting: search, verification, delivery."""

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vqaloop.core import frame_progress
from vqaloop.core.files import place_file
from vqaloop.core.scopes import waited_for
from vqaloop.core.text import counted
from vqaloop.encoding.options import (
    BUFFER,
    CAP,
    MEAN,
    RAISED,
    cap_of,
    in_two_passes,
    mean_of,
)
from vqaloop.errors import DecodeFailed, EncodeFailed, TargetUnreachable, ToolError
from vqaloop.execution.capping import (
    HELD,
    TOLERANCE,
    CappedEncode,
    PeakLimit,
    measure_peaks,
)
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder.request import Budget
from vqaloop.ladder.run_costs import RunCosts
from vqaloop.ladder.stage import SearchResult, Stage, measured
from vqaloop.ladder.timeline import over_time
from vqaloop.ladder.warnings import (
    NO_LADDER_CAPPED,
    budget_warning,
    capped_away_warning,
    failed_passes_warning,
    falling_score_warning,
    is_undecided,
    late_warning,
    missed_goal_warning,
    one_pass_warning,
    rules_warnings,
    two_pass_away_warning,
    unbounded_warning,
)
from vqaloop.media.scene_cuts import SceneExcerpts
from vqaloop.quality.guard import Guarded, GuardPlan
from vqaloop.quality.metric import Metric
from vqaloop.quality.sampling_precision import unreached
from vqaloop.ratecontrol.capped_parts import keep_title_peak
from vqaloop.records import (
    Encode,
    Event,
    RDPoint,
    Rendition,
    Rung,
    RungScene,
    Score,
    Source,
    Trial,
    TwoPasses,
    Watcher,
    rounded,
)
from vqaloop.search.explore import plan, rungs_of
from vqaloop.search.rungs import LEAST_RUNGS, Rules, keep_rules
from vqaloop.search.shared_study import SharedStudy
from vqaloop.search.space import Space, TrialPoint, point_of
from vqaloop.search.surrogates import Apart, Surrogate

Made = TypeVar("Made")

MOST_TRIALS = 40
"""Bound on the encodes of a search, whatever the sizes asked for."""
MARGIN = 1.1
"""Probes are searched for rungs that leave this much more room than the rules ask for: those of
the title differ a bit."""
NEAR_HULL = 0.1
"""Steps below the hull at which an encode still counts as a rung, where probes predict it."""
SPARE = 4
"""Encodes of a title, beyond one a rung, that may go into correcting what its probes predict."""
PROBED_A_RUNG = 1.0
"""Trials a rung, of probes and of what they predict, beyond which none is made for the hull's sake
alone."""
SLIGHT_FALL = 0.05
"""Steps by which a sampled score may fall while the rate rises: less is far below its noise, and
measuring all again moves the rungs."""
RUNGS_SHARE = 0.3
"""Part of a time budget that is left for the rungs' caps and second passes, where these were asked
for."""
CLOSER_LOOKS = 2
"""Times that a rung whose sampled guard leaves its verdict open is measured at more places."""
PROBES_SHARE = 0.4
"""Part of a time budget that probes may take."""
GOAL_FAR = 0.05
"""Part of its goal by which the mean rate of two passes may miss it without a warning."""
_NO_PARAMS = (BUFFER, CAP, MEAN, RAISED)
"""Of a rendition's parameters those that a rung has as its cap and its passes."""


@dataclass(frozen=True)
class Checked:
    """A rung over the whole title."""

    expected: float
    """Score that was predicted before it was encoded; under a cap, less what the cap cost."""
    encode: Encode
    score: Score
    over: float = 0.0
    """Its peak as a part of the bound that was asked for; 0 where there is none."""
    goal_kbps: int | None = None
    """The mean rate that two passes were to reach."""
    scenes: tuple[RungScene, ...] = ()
    """Of a per-shot ladder, and of a rung that keeps its bound by the knobs of its parts."""
    remade: bool = False
    """Whether it is another encode than its trial's, for a bound or in two passes."""

    @property
    def point(self) -> RDPoint:
        r = self.encode.rendition
        return RDPoint(r.width, r.height, r.knob, self.encode.bitrate_kbps, self.score.value)


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
        self.probe_preset = preset
        """Preset of probes."""
        self.budget, self.params = budget or Budget(), params
        self.gop: int | None = None
        """Frames of a GOP; None: as the encoder's file has it."""
        self.tried: dict[tuple[bool, TrialPoint], Trial] = {}
        self.limit: PeakLimit | None = None
        """Bound of the peaks of rungs."""
        self.two_pass = False
        """Whether rungs are made in two passes, at the mean rates found."""
        self.guard: GuardPlan | None = None
        """What is measured of delivered rungs; None: nothing."""
        self.costs: RunCosts | None = None
        """Where the study keeps what runs spend."""
        self._ahead: dict[Path, Future[Guarded]] = {}
        """Guards begun while other encodes are made."""
        self._reports: dict[Path, Callable[[int], None]] = {}
        """Who is told the frames of these, once somebody waits for them."""
        self._capped: list[Trial] = []
        self._late: list[Checked] = []
        self.warnings: list[str] = []
        self._finer = shop.metric.finer()
        self._closer: set[str] = set()
        self._excerpts: SceneExcerpts | None = None
        """Of the title, for rungs whose parts have knobs of their own."""
        self._excerpting = threading.Lock()
        self._cap_share: float | None = None
        """That of the first rung under a cap, with which those of the others begin."""
        self._share_seen: float | None = None
        self.estimate: dict[str, Any] | None = None
        """How far an excerpt was from its title."""

    @property
    def trials(self) -> list[Trial]:
        """All that was tried, by this run or another of the same study."""
        return [*self.tried.values(), *self._capped]

    def rendition(self, point: TrialPoint) -> Rendition:
        """That of a rung."""
        width, height, knob = point
        name = self.shop.spec.name
        return Rendition(
            *(width, height, name, knob, self.preset, self.bit_depth),
            params=self.params,
            gop=self.gop,
        )

    def probe(self, point: TrialPoint) -> Rendition:
        return replace(self.rendition(point), preset=self.probe_preset)

    def report_kept(self, title: Source, study: SharedStudy, probing: bool) -> None:
        """Say of how many trials that earlier runs made the encodes are still kept."""
        done = [trial for trial in study.standing().values() if measured(trial)]
        if not done:
            return
        rendition = self.probe if probing else self.rendition
        points = [point_of(trial.params) for trial in done]
        kept = sum(self.shop.keeps(title, rendition(point)) for point in points)
        message = f"going on: {kept} of {counted(len(done), 'encode')} kept"
        self.progress(Event("search", message, 0, MOST_TRIALS, at_most=True))

    def search(self, title: Source, study: SharedStudy, surrogate: Surrogate) -> SearchResult:
        """Make trials of the title, at the preset of its rungs."""
        share = self._search_share()
        stage = Stage(self, "search", title, False, study, MOST_TRIALS, share=share)
        found = self._explored(stage, self.rules, surrogate)
        return replace(found, points=self._rechecked(title, found.points))

    def search_by_probes(
        self, title: Source, study: SharedStudy, surrogate: Surrogate
    ) -> SearchResult:
        """Make probes of an excerpt."""
        share = self._search_share() * PROBES_SHARE
        stage = Stage(self, "search", title, True, study, MOST_TRIALS, PROBED_A_RUNG, share)
        return self._explored(stage, self._roomier(), Apart(self.space, surrogate))

    def search_given_probes(
        self, source: Source, study: SharedStudy, surrogate: Surrogate
    ) -> SearchResult:
        """Make trials of the title that its probes show to be rungs.

        The first ones show by how much the probes are off, and the others are chosen with that
        corrected.
        """
        rules, expected = self._thrifty(), surrogate.dense(())
        most = len(plan(rules, (), expected)) + SPARE
        share = self._search_share()
        stage = Stage(self, "verify", source, False, study, most, PROBED_A_RUNG, share)
        found = self._explored(stage, rules, surrogate)
        self.estimate = _estimate(found.points, expected.points)
        return replace(found, points=self._rechecked(source, found.points))

    def _explored(self, stage: Stage, rules: Rules, surrogate: Surrogate) -> SearchResult:
        """A stage's results, with a warning for every kind of failure.

        Raises TargetUnreachable if too few trials succeeded.
        """
        found = stage.explore(rules, surrogate)
        tried = [trial for (probing, _), trial in self.tried.items() if probing == stage.probing]
        failures = sorted({trial.error for trial in tried if trial.error})
        if len(found.points) < LEAST_RUNGS:
            raise TargetUnreachable(
                f"only {len(found.points)} of {len(tried)} trials succeeded, too few for a "
                "ladder: " + "; ".join(failures)[:1500]
            )
        self.warnings += [f"a trial failed and was left out: {text}" for text in failures]
        return found

    def _search_share(self) -> float:
        """The part of the time budget that goes into trials."""
        asked = self.two_pass or (self.limit is not None and self.limit.asked)
        return 1 - RUNGS_SHARE if asked else 1.0

    def _rechecked(self, title: Source, points: Sequence[RDPoint]) -> list[RDPoint]:
        """The points; where a score falls while the rate rises all are measured again, finer.

        All of them, since scores of one ladder must be of the same crops.
        """
        # which takes time again
        slight = SLIGHT_FALL * self.shop.metric.step if self._finer else 0.0
        finer = self._finer if _falls(points, slight) and self.budget.left_s() > 0 else None
        checked = list(points)
        if finer:
            again = "a score falls while bits rise: looking again, closer"
            try:
                with self.counted("search", again, len(checked)) as one:
                    checked = self.shop.map(
                        lambda p: one(lambda: self._looked_at(title, p)), checked
                    )
                # the rungs of this title are then scored in the same way
                self._closer.add(title.sha256)
            except (EncodeFailed, DecodeFailed) as error:
                self.warnings.append(f"scores could not be measured again: {error}")
        for low, high in _falls(checked, slight):
            looked = (
                "measured again with more crops"
                if finer
                else "all frames were measured"
                if not self._finer
                else "the time budget left no second look"
            )
            self.warnings.append(falling_score_warning(low, high, looked))
        return checked

    @contextlib.contextmanager
    def counted(
        self, stage: str, message: str, total: int
    ) -> Iterator[Callable[[Callable[[], Made]], Made]]:
        """Announces `total` things to do; the function given does one and counts it, with the
        frames that its programs put out."""
        done = 0

        def report(frames: int) -> None:
            self.progress(Event(stage, f"{message}: {counted(frames, 'frame')}", done, total))

        def one(work: Callable[[], Made]) -> Made:
            nonlocal done
            with frame_progress.counted_frames(report):
                made = work()
            done += 1
            self.progress(Event(stage, message, done, total))
            return made

        self.progress(Event(stage, message, 0, total))
        yield one

    def _looked_at(self, title: Source, point: RDPoint) -> RDPoint:
        made = self.shop.encode(title, self.rendition(point.key))
        return replace(point, score=self.shop.score(title, made.path, self._finer).value)

    def _roomier(self) -> Rules:
        """For probes, from which rungs will differ a little: room between them."""
        rules = self.rules
        return replace(rules, min_step=rules.min_step * MARGIN, min_ratio=rules.min_ratio * MARGIN)

    def _thrifty(self) -> Rules:
        """For costly encodes of the whole title: those made stay, if they keep the rules."""
        return replace(self.rules, near=NEAR_HULL)

    def verify(
        self, source: Source, found: SearchResult, surrogate: Surrogate, probed: bool
    ) -> list[Checked]:
        """The rungs, encoded and scored over the whole title, those that keep the rules.

        This only recalls trials of the search, but for rungs under a cap or in two passes. Raises
        TargetUnreachable when fewer than two rungs are left.
        """
        # after probes encodes of the title are few: a rung is accepted further below the hull
        rules = self._thrifty() if probed else self.rules
        chosen = rungs_of(self.space, rules, found.points, surrogate, found.failed)
        kept = keep_rules(chosen, self.rules)
        if self.budget.ended:
            self.warnings.append(budget_warning(self.budget.seconds, len(self.tried)))
        if len(kept) < LEAST_RUNGS:
            raise TargetUnreachable(self.too_few(kept, found.points))
        self.warnings += rules_warnings(kept, self.rules)
        checked = self._checked(source, kept, found.predicted)
        if self.two_pass:
            checked = self._in_order(checked)
        elif any(item.remade for item in checked):
            checked = self._chosen_again(source, found, checked, rules, surrogate)
        if len(checked) < LEAST_RUNGS and self.limit and not self.limit.asked:
            # nobody asked for the bound that leaves no ladder
            self.limit = None
            self.warnings[-1:] = [NO_LADDER_CAPPED]
            checked = self._checked(source, kept, found.predicted)
        self.warnings += unreached([item.score for item in checked], self.shop.metric)
        if len(checked) < LEAST_RUNGS:
            raise TargetUnreachable("; ".join(self.warnings)[:1500])
        return checked

    def _chosen_again(
        self,
        source: Source,
        found: SearchResult,
        checked: Sequence[Checked],
        rules: Rules,
        surrogate: Surrogate,
    ) -> list[Checked]:
        """The rungs, chosen again with the rates and scores that some have under their caps.

        Of the other trials those that keep the bound without a cap: capping more of them would
        take encodes, and move rates and scores again.
        """
        settled = {item.point.key: item for item in checked}
        points = [item.point for item in checked]
        points += [p for p in found.points if p.key not in settled and self._keeps(source, p)]
        chosen = rungs_of(self.space, rules, points, surrogate, found.failed)
        chosen = keep_rules(chosen, self.rules)
        if len(chosen) < len(checked):
            # the hull predicted without caps may be out of reach
            chosen = max(chosen, _spread(keep_rules(points, self.rules), len(checked)), key=len)
        new = [p for p in chosen if p.key not in settled]
        more = self._checked(source, new, found.predicted) if new else []
        settled |= {item.point.key: item for item in more}
        kept = [settled[point.key] for point in chosen if point.key in settled]
        if len(kept) < len(checked):
            self.warnings.append(capped_away_warning(len(checked), len(kept)))
        return kept

    def _wasteful(self, kbps: float, score: float) -> bool:
        """Whether a score is more than a step below what was tried reaches at this rate."""
        every = [(t.bitrate_kbps, t.score) for t in self.tried.values() if t.whole_title]
        rising = sorted((rate, value) for rate, value in every if rate and value is not None)
        if not rising or kbps <= 0:
            return False
        rates, best = np.log([rate for rate, _ in rising]), [value for _, value in rising]
        reached = float(np.interp(math.log(kbps), rates, np.maximum.accumulate(best)))
        return score < reached - self.shop.metric.step

    def _keeps(self, source: Source, point: RDPoint) -> bool:
        """Whether a trial of the whole title keeps the bound of peaks as it is."""
        try:
            made = self.shop.encode(source, self.rendition(point.key))
            peaks = measure_peaks(made.path, self.shop.spec, source)
        except ToolError:
            return False
        return self.limit is None or peaks.over(self.limit) <= HELD

    def _checked(
        self, source: Source, kept: Sequence[RDPoint], predicted: Mapping[TrialPoint, float]
    ) -> list[Checked]:
        """The rungs' encodes and scores; those that fail are left out, with a warning."""
        metric = self._finer if source.sha256 in self._closer else None

        def check(point: RDPoint) -> Checked | str:
            key = point.key
            try:
                # from the cache, unless another machine made it and keeps its own
                made = self.shop.encode(source, self.rendition(key))
                score = self.shop.score(source, made.path, metric)
            except (EncodeFailed, DecodeFailed) as error:
                return str(error)
            plain = Checked(predicted.get(key, score.value), made, score)
            again = self._two_pass_rung if self.two_pass else self._capped_rung
            done = again(source, plain, metric)
            if isinstance(done, Checked):
                self.guard_ahead(source, done.encode)
            return done

        message = "measuring the rungs" + " and capping their peaks" * (self.limit is not None)
        message += ", in two passes" * self.two_pass
        first, results = 0, list[Checked | str]()
        with self.counted("verify", message, len(kept)) as one:
            if self.limit and self.shop.spec.buffer_model and self._cap_share is None:
                # the cheapest rung shows where caps end, for all others alike
                first, self._share_seen = 1, None
                results = [one(lambda: check(kept[0]))]
                self._cap_share = self._share_seen
            results += self.shop.map(lambda point: one(lambda: check(point)), kept[first:])
        made = [item.encode.rendition for item in results if isinstance(item, Checked)]
        # as above; those of a check before, or that failed, come first
        self._capped.sort(key=lambda t: made.index(t.rendition) if t.rendition in made else -1)
        self.warnings += [f"a rung could not be made: {r}" for r in results if isinstance(r, str)]
        if self._late:
            self.warnings.append(late_warning(self.budget.seconds, len(self._late)))
            self._late.clear()
        return [result for result in results if isinstance(result, Checked)]

    def _capped_rung(self, source: Source, plain: Checked, metric: Metric | None) -> Checked | str:
        """The rung itself where its peak keeps the bound, else its encode under a cap; what went
        wrong, where that cannot be made."""
        if not self.limit:
            return plain
        try:
            over = measure_peaks(plain.encode.path, self.shop.spec, source).over(self.limit)
        except ToolError as error:
            return str(error)
        if not self.limit.asked and over > 1 and self.budget.left_s() <= 0:
            # a bound that was asked for is kept whatever it takes
            self._late.append(plain)
            return replace(plain, over=over)
        try:
            found = self._within(source, plain.encode, self.limit)
            if not found.tries:
                return replace(plain, over=found.over)
            score = self.shop.score(source, found.encode.path, metric)
        except (EncodeFailed, DecodeFailed, ToolError) as error:
            if self.limit.asked:
                return str(error)
            self.warnings.append(unbounded_warning(plain.encode.rendition, error))
            return replace(plain, over=over)
        if not self.limit.asked and self._wasteful(found.encode.bitrate_kbps, score.value):
            # a default shall not spoil a rung: some buffer models do at low rates
            return replace(plain, over=over)
        return self._remade(plain, found, score)

    def _within(self, source: Source, plain: Encode, limit: PeakLimit) -> CappedEncode:
        """An encode within the bound; raises EncodeFailed."""
        excerpts = self._excerpts_of(source)
        # caps of two passes are set from another rate
        share = self._cap_share if mean_of(plain.rendition) is None else None
        found = keep_title_peak(self.shop, source, plain, limit, excerpts, share)
        if found.kept and mean_of(found.encode.rendition) is None:
            self._share_seen = found.share
        return found

    def _excerpts_of(self, source: Source) -> SceneExcerpts:
        with self._excerpting:
            if self._excerpts is None:
                self._excerpts = SceneExcerpts(source, self.shop.scratch, self.shop.ffmpeg)
            return self._excerpts

    def _remade(self, plain: Checked, found: CappedEncode, score: Score) -> Checked:
        """A rung by another encode than that of its trial."""
        made, loss = found.encode, plain.score.value - score.value
        trial = Trial(made.rendition, made.bitrate_kbps, score.value, encode=made, mean=score.mean)
        self._capped.append(replace(trial, parts=len(found.scenes)))
        return Checked(
            plain.expected - loss, made, score, found.over, scenes=found.scenes, remade=True
        )

    def _two_pass_rung(
        self, source: Source, plain: Checked, metric: Metric | None
    ) -> Checked | str:
        """The rung in two passes at the mean rate found, under a cap where its peak is above its
        bound; what went wrong, where that cannot be made."""
        shop, limit = self.shop, self.limit
        if self.budget.left_s() <= 0:
            self._late.append(plain)
            return self._capped_rung(source, plain, metric)
        try:
            mean = measure_peaks(plain.encode.path, shop.spec, source).mean_kbps
            goal = max(1, round(mean))
            made = self._at_mean(source, plain.encode.rendition, goal)
            free = CappedEncode(made, 0.0)
            found = self._within(source, made, limit) if limit else free
            if limit and found.over > 1 + TOLERANCE and not shop.spec.two_pass.cap:
                self.warnings.append(one_pass_warning(plain.encode.rendition, shop.spec.name))
                return self._capped_rung(source, plain, metric)
            score = shop.score(source, found.encode.path, metric)
            lost = self._wasteful(found.encode.bitrate_kbps, score.value)
            if limit and not limit.asked and found.tries and lost:
                # as of one pass: a default shall not spoil a rung
                over = measure_peaks(made.path, shop.spec, source).over(limit)
                found, score = CappedEncode(made, over), shop.score(source, made.path, metric)
        except (EncodeFailed, DecodeFailed, ToolError) as error:
            self.warnings.append(failed_passes_warning(plain.encode.rendition, error))
            return self._capped_rung(source, plain, metric)
        return replace(self._remade(plain, found, score), goal_kbps=goal)

    def _at_mean(self, source: Source, rendition: Rendition, goal: int) -> Encode:
        """An encode in two passes at a mean rate; a second one where the first misses it, asked
        for as much more or less: on short titles some encoders miss it by a fifth."""
        shop = self.shop

        def missed(made: Encode) -> float:
            return measure_peaks(made.path, shop.spec, source).mean_kbps / goal - 1

        first = shop.encode(source, in_two_passes(rendition, goal))
        off = missed(first)
        if abs(off) <= GOAL_FAR:
            return first
        second = shop.encode(source, in_two_passes(rendition, max(1, round(goal / (1 + off)))))
        return second if abs(missed(second)) < abs(off) else first

    def _in_order(self, checked: Sequence[Checked]) -> list[Checked]:
        """The rungs that still keep the rules with what two passes have made of them."""
        rising = sorted(checked, key=lambda item: item.encode.bitrate_kbps)
        settled = {item.point.key: item for item in rising}
        kept = [settled[p.key] for p in keep_rules([item.point for item in rising], self.rules)]
        if len(kept) < len(checked):
            self.warnings.append(two_pass_away_warning(len(checked), len(kept)))
        return kept

    def too_few(self, kept: Sequence[RDPoint], points: Sequence[RDPoint]) -> str:
        """What to say of a title that the rules leave too few rungs of."""
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
            size, goal = f"{rendition.width}x{rendition.height}", item.goal_kbps
            by = f"{spec.knob.name}{rendition.knob:g}" if goal is None else f"{goal}k"
            name = f"{size}_{by}{spec.suffix}"
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
                    opinion=item.score.opinion,
                    score_mean=item.score.mean,
                    guard=guard.figures,
                    guard_interval=guard.intervals,
                    banding_at_s=guard.banding_at_s,
                    knob=(spec.knob.name, rendition.knob),
                    params={k: v for k, v in rendition.params if k not in _NO_PARAMS},
                    cap=cap_of(rendition),
                    two_pass=self._passes(source, item),
                    ffmpeg_args=item.encode.ffmpeg_args,
                    file=name,
                    over_time=over_time(item.encode.path, spec, source, item.score),
                    scenes=item.scenes,
                )
            )
        return rungs

    def _passes(self, source: Source, item: Checked) -> TwoPasses | None:
        """How a rung was made in two passes, with a warning where it misses its goal."""
        goal, made = item.goal_kbps, item.encode
        if goal is None:
            return None
        mean = measure_peaks(made.path, self.shop.spec, source).mean_kbps
        found = TwoPasses(goal, mean, made.first_pass_args)
        if abs(found.missed) > GOAL_FAR:
            self.warnings.append(missed_goal_warning(made.rendition, found))
        return found

    def stays(self, source: Source, encode: Encode) -> bool:
        """Whether a rung would be this encode, without a cap or a second pass."""
        if self.two_pass or self.limit is None:
            return not self.two_pass
        try:
            return measure_peaks(encode.path, self.shop.spec, source).over(self.limit) <= HELD
        except ToolError:
            return False

    def guard_ahead(self, source: Source, encode: Encode) -> None:
        """Begin the guard of what will likely be delivered, while other encodes are made."""
        plan, path = self.guard, encode.path
        if plan is None or self.shop.at_once == 1 or path in self._ahead:
            return

        def report(frames: int) -> None:
            if waiting := self._reports.get(path):
                waiting(frames)

        def guard() -> Guarded:
            with frame_progress.counted_frames(report):
                return self.shop.guard(source, path, plan)

        self._ahead[path] = self.shop.beside.begin(guard)

    def _guarded(self, source: Source, checked: Sequence[Checked]) -> list[Guarded]:
        """The guard of each rung, counted in frames."""
        plan = self.guard
        if plan is None:
            return [Guarded()] * len(checked)
        each = plan.frames(source)
        seen, total = dict[int, int](), each * len(checked)

        def guard(place: int) -> Guarded:
            encode, score = checked[place].encode, checked[place].score
            size = f"{encode.rendition.width}x{encode.rendition.height}"

            def report(frames: int) -> None:
                seen[place] = min(frames, each)
                rungs = f"rung {place + 1} of {len(checked)}, {size}"
                self.progress(Event("guard", rungs, sum(seen.values()), total))

            report(0)
            self._reports[encode.path] = report
            ahead = self._ahead.get(encode.path)
            with frame_progress.counted_frames(report):
                found = waited_for(ahead) if ahead else self.shop.guard(source, encode.path, plan)
            closer, mean = plan, score.value if score.mean is None else score.mean
            for _ in range(CLOSER_LOOKS):
                if not is_undecided(mean, found, self.shop.metric):
                    break
                # the verdict shall not hang on which places were drawn
                closer = closer.finer()
                found = self.shop.guard(source, encode.path, closer)
            report(each)
            return found

        return self.shop.map(guard, range(len(checked)))


def _spread(points: Sequence[RDPoint], count: int) -> list[RDPoint]:
    """As many of the points, evenly from the first to the last."""
    count = min(len(points), count)
    if count < LEAST_RUNGS:
        return list(points[:count])
    return [points[i * (len(points) - 1) // (count - 1)] for i in range(count)]


def _falls(points: Iterable[RDPoint], slight: float) -> list[tuple[RDPoint, RDPoint]]:
    """Neighbours in rate of one size of which the dearer has a score lower by more than that."""
    by_size: dict[tuple[int, int], list[RDPoint]] = {}
    for point in sorted(points, key=lambda p: p.bitrate_kbps):
        by_size.setdefault(point.size, []).append(point)
    return [
        (low, high)
        for group in by_size.values()
        for low, high in zip(group, group[1:], strict=False)
        if high.score < low.score - slight
    ]


def _estimate(points: Sequence[RDPoint], excerpt: Sequence[RDPoint]) -> dict[str, Any]:
    """How far the title is from its excerpt, whose points were measured or predicted.

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
