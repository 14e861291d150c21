"""Trials of one title or its excerpt: proposed in batches, made through a study, reported."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from optuna.trial import FrozenTrial, TrialState

from vqaloop.core import frame_progress
from vqaloop.core.text import counted
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder.request import Budget
from vqaloop.ladder.run_costs import RunCosts
from vqaloop.records import Encode, Event, RDPoint, Rendition, Source, Trial, Watcher
from vqaloop.search.explore import MOST_A_RUNG, Measurement, explore
from vqaloop.search.rungs import LEAST_RUNGS, Rules
from vqaloop.search.shared_study import Outcome, SharedStudy
from vqaloop.search.space import Space, TrialPoint, params_of, point_of
from vqaloop.search.surrogates import Surrogate


class TrialLoop(Protocol):
    """What stages of one ladder share."""

    shop: Workshop
    space: Space
    budget: Budget
    progress: Watcher
    costs: RunCosts | None
    tried: dict[tuple[bool, TrialPoint], Trial]
    """Trials by whether they are probes, and by their point."""

    def rendition(self, point: TrialPoint) -> Rendition:
        """That of a rung."""

    def probe(self, point: TrialPoint) -> Rendition:
        """That of a probe."""

    def stays(self, source: Source, encode: Encode) -> bool:
        """Whether a rung would be this encode."""

    def guard_ahead(self, source: Source, encode: Encode) -> None:
        """Begin its guard."""


@dataclass(frozen=True)
class SearchResult:
    """The results of a search."""

    points: list[RDPoint]
    """Everything measured."""
    failed: list[TrialPoint]
    predicted: dict[TrialPoint, float]
    """Score that was predicted before the point was measured."""


@dataclass
class Stage:
    """Trials of one title, or of its excerpt: proposed in batches, made through a study, counted
    and reported."""

    loop: TrialLoop
    name: str
    """As events have it."""
    title: Source
    probing: bool
    """Whether its trials are probes of an excerpt."""
    study: SharedStudy
    most: int
    """Trials that may be made at most."""
    most_a_rung: float = MOST_A_RUNG
    """Trials a rung beyond which none is made for the hull's sake alone."""
    share: float = 1.0
    """Part of the time budget that it may take."""
    done: int = 0
    """Trials that have ended."""
    _at_once: int = 1
    _check_budget: Callable[[], None] = lambda: None

    def explore(self, rules: Rules, surrogate: Surrogate) -> SearchResult:
        """Make trials until nothing is left to learn, or the budget has run out."""
        space = self.loop.space
        found = explore(
            *(space, rules, self._evaluate),
            surrogate=surrogate,
            most=self.most,
            most_a_rung=self.most_a_rung,
        )
        return SearchResult(*found)

    def _rendition(self, point: TrialPoint) -> Rendition:
        return self.loop.probe(point) if self.probing else self.loop.rendition(point)

    def _evaluate(self, batch: Sequence[TrialPoint]) -> dict[TrialPoint, Measurement]:
        """The results of a batch, or of as much of it as the budget allows."""
        loop, budget = self.loop, self.loop.budget
        # without so many there is no ladder, so these are made whatever they take
        least = max(0, LEAST_RUNGS - self.done)
        batch = batch[: budget.affordable([self._pixels(p) for p in batch], self.share, least)]
        if not batch:
            return {}
        self._at_once = len(batch)
        wanted, crew = [params_of(p) for p in batch], range(min(loop.shop.at_once, len(batch)))
        settled: list[FrozenTrial] = []
        with budget.ending(self.share, lambda: self.done >= LEAST_RUNGS) as self._check_budget:
            settled = self.study.settle(
                wanted, self._work, lambda drain: loop.shop.map(drain, crew)
            )
        for point, trial in zip(batch, settled, strict=False):
            # made by another run of the same study, or by an earlier one
            if (self.probing, point) not in loop.tried:
                self._ended(point, self._recalled(trial, point), " (done before)")
        # in the order proposed, in which the document has them, whoever ended first
        keys = [(self.probing, p) for p in batch if (self.probing, p) in loop.tried]
        loop.tried |= {key: loop.tried.pop(key) for key in keys}
        tried = {key[1]: loop.tried[key] for key in keys}
        return {point: outcome(trial) for point, trial in tried.items()}

    def _work(self, params: dict[str, Any]) -> Outcome:
        """One trial, as the study has it."""
        loop, point, started = self.loop, point_of(params), time.monotonic()
        width, height, knob = point
        title = self.title

        def report(frames: int) -> None:
            head = f"{width}x{height} at {knob:g}: {min(frames, title.frames)} of "
            self._report(head + counted(title.frames, "frame"))

        with frame_progress.counted_frames(report):
            made = loop.shop.try_one(title, self._rendition(point))
        trial = replace(made, whole_title=not self.probing)
        if not (trial.encode and trial.encode.cached):
            # several run at once: each has taken its part of the time that went by
            at_once = max(1, min(loop.shop.at_once, self._at_once))
            loop.budget.spend((time.monotonic() - started) / at_once, self._pixels(point))
        self._ended(point, trial)
        good = trial.encode if trial.score is not None else None
        # of the whole title, chosen on an excerpt: nearly all of these are rungs
        if self.name == "verify" and good and loop.stays(title, good):
            loop.guard_ahead(title, good)
        self._check_budget()
        found = outcome(trial)
        return Outcome(found) if found else Outcome(None, {"error": trial.error})

    def _ended(self, point: TrialPoint, trial: Trial, remark: str = "") -> None:
        self.loop.tried[self.probing, point] = trial
        self.done += 1
        if self.loop.costs:
            self.loop.costs.note()
        self._report(describe(trial) + remark, trial)

    def _report(self, message: str, trial: Trial | None = None) -> None:
        self.loop.progress(Event(self.name, message, self.done, self.most, trial, at_most=True))

    def _pixels(self, point: TrialPoint) -> int:
        return point[0] * point[1] * self.title.frames

    def _recalled(self, trial: FrozenTrial, point: TrialPoint) -> Trial:
        """A trial that another run made, as its study has it."""
        found = measured(trial)
        rendition = self._rendition(point)
        if found is None:
            error = trial.user_attrs["error"]
            return Trial(rendition, error=error, whole_title=not self.probing)
        return Trial(rendition, *found, whole_title=not self.probing)


def measured(trial: FrozenTrial) -> Measurement:
    if trial.state != TrialState.COMPLETE:
        return None
    kbps, score = trial.values
    return kbps, score


def outcome(trial: Trial) -> Measurement:
    if trial.bitrate_kbps is None or trial.score is None:
        return None
    return trial.bitrate_kbps, trial.score


def describe(trial: Trial) -> str:
    """A trial in one line."""
    r = trial.rendition
    head = f"{r.width}x{r.height} at {r.knob:g}"
    if trial.error or trial.bitrate_kbps is None or trial.score is None:
        return f"{head}: failed ({trial.error})"
    again = " (cached)" if trial.encode and trial.encode.cached else ""
    return f"{head}: {trial.bitrate_kbps:.0f} kb/s, score {trial.score:.1f}{again}"
