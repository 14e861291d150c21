"""The study of a tuning: one trial is one set of encoder parameters, judged encode by encode.

The value of a trial is the percent of bitrate that it saves near the operating point, the mean of
its encodes; the running mean is reported to a pruner after each. What takes too long, or loses too
much PSNR, breaks a constraint and never wins. Several processes may share the storage.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, NopPruner, PercentilePruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from vqaloop.records import Event, Watcher, rounded
from vqaloop.search.shared_study import POLL_S, SharedStudy
from vqaloop.tuning.default_curves import Verdict, time_ratio
from vqaloop.tuning.param_trials import ParamJudge, ParamsFailed, TuneLimits
from vqaloop.tuning.samplers import (
    KNOB,
    DrawSampler,
    Params,
    counted,
    default_point,
    distributions,
    encoder_params,
    feasible,
)

KEPT = 60.0
"""Percent of the finished trials that a running mean must not be worse than, or it is pruned."""
UNPRUNED = 5
"""Trials before any is pruned."""
BESIDE = 2
"""Encodes of a trial beside which the defaults are timed again."""
WORTH = 0.5
"""Percent of bitrate below which a saving is not worth other parameters."""
TOO_SLOW = 1.5
"""A trial this many times beyond the time limit is given up, whatever it saves."""


class ParamSearch:
    """Trials of one judge, until a study has as many as are asked for."""

    def __init__(
        self, judge: ParamJudge, rules: TuneLimits, sampler: str, seed: int, *, front: bool = False
    ) -> None:
        self.judge, self.rules, self.front = judge, rules, front
        self.spec = judge.shop.spec
        self.sampler = sampler
        first = default_point(self.spec, judge.knob if front else None)
        self.space = distributions(self.spec, self.spec.knob if front else None)
        self.draws = DrawSampler(sampler, seed, first, 2 if front else 1)

    def run(
        self, storage: BaseStorage, name: str, trials: int, progress: Watcher
    ) -> list[FrozenTrial]:
        """All trials that count, once there are `trials`; made here unless another does."""
        pruner: BasePruner = NopPruner()
        if not self.front:
            pruner = PercentilePruner(KEPT, n_startup_trials=UNPRUNED)
        with _fewer_words(), self.seat(storage, name, pruner) as shared:
            self.judge.shop.map(
                lambda _: self._work(shared, trials, progress), range(self.judge.shop.workers)
            )
            return [t for t in counted(shared.study) if t.state != TrialState.RUNNING]

    def seat(
        self, storage: BaseStorage, name: str, pruner: BasePruner | None = None
    ) -> SharedStudy:
        """A seat at the study of that name."""
        directions: list[Literal["minimize", "maximize"]] = ["maximize"]
        if self.front:
            directions = ["minimize", "maximize"]
        return SharedStudy(storage, name, directions, self.space, self.draws, pruner)

    def _work(self, shared: SharedStudy, trials: int, progress: Watcher) -> None:
        while True:
            shared.release_lost()
            known = counted(shared.study)
            if len(known) >= trials:
                if not any(t.state == TrialState.RUNNING for t in known):
                    return
                # another is at the last ones, and may yet be lost
                time.sleep(POLL_S)
                continue
            trial = shared.ask()
            before = [t for t in counted(shared.study) if t.number < trial.number]
            if len(before) >= trials:
                # two asked for the last one at once
                shared.tell(trial, None)
                continue
            # whoever took the trial for lost has given it to another
            with contextlib.suppress(UpdateFinishedTrialError):
                text = self._one(shared, trial)
                progress(Event("search", text, len(before) + 1, trials))

    def _one(self, shared: SharedStudy, trial: optuna.Trial) -> str:
        params = encoder_params(self.spec, trial.params)
        words = " ".join(f"{name}={value}" for name, value in params) or "defaults"
        verdicts: list[Verdict] = []
        jobs = self.judge.schedule()
        if self.front:
            knob = self.spec.knob.snap(trial.params[KNOB])
            jobs = [(window, knob) for window in range(len(self.judge.windows))]
            words = f"{words} at {knob:g}"
        pruned = False
        try:
            for step, job in enumerate(jobs):
                verdicts.append(self.judge.verdict(job, params, beside=step < BESIDE))
                if self.front or step + 1 == len(jobs):
                    continue
                trial.report(_mean(verdicts, "saving"), step)
                if time_ratio(verdicts) > TOO_SLOW * self.rules.slowdown or trial.should_prune():
                    pruned = True
                    break
        except ParamsFailed as error:
            trial.set_user_attr("error", str(error))
            shared.tell(trial, None)
            return f"{words}: failed ({error})"
        return f"{words}: {self._tell(shared, trial, verdicts, pruned)}"

    def _tell(
        self, shared: SharedStudy, trial: optuna.Trial, verdicts: list[Verdict], pruned: bool
    ) -> str:
        ratio, psnr = time_ratio(verdicts), _mean(verdicts, "psnr_y")
        saving = _mean(verdicts, "saving")
        figures = {
            "saving_percent": saving,
            "vmaf_gain": _mean(verdicts, "vmaf"),
            "psnr_y_gain": psnr,
            "time_ratio": ratio,
            "cpu_s": sum(v.cpu_s for v in verdicts),
        }
        for name, value in figures.items():
            trial.set_user_attr(name, rounded(value, 6))
        trial.set_user_attr("encodes", len(verdicts))
        trial.set_user_attr("pruned", pruned)
        trial.set_constraint("time", ratio - self.rules.slowdown)
        trial.set_constraint("psnr_y", -self.rules.psnr_loss - psnr)
        if pruned and self.sampler == "tpe":
            with contextlib.suppress(ValueError):
                shared.study.tell(trial.number, state=TrialState.PRUNED)
        elif self.front:
            weights = [window.duration_s for window in self.judge.windows]
            shared.tell(
                trial,
                [
                    float(np.average([v.kbps for v in verdicts], weights=weights)),
                    float(np.average([v.score for v in verdicts], weights=weights)),
                ],
            )
        else:
            # the other samplers learn nothing from trials that Optuna holds as pruned
            shared.tell(trial, [saving])
        given_up = f", given up after {len(verdicts)}" if pruned else ""
        return f"{saving:+.1f} % saved, {ratio:.2f} times the time{given_up}"

    def candidates(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials that keep to the rules and save something, the best first, each point once."""
        found: dict[Params, FrozenTrial] = {}
        for trial in self.allowed(trials):
            params = encoder_params(self.spec, trial.params)
            if params and trial.user_attrs["saving_percent"] >= WORTH:
                found.setdefault(params, trial)
        return list(found.values())

    def allowed(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials judged to the end that break no rule, the largest saving first."""
        return sorted(feasible(trials), key=lambda t: (-t.user_attrs["saving_percent"], t.number))


def _mean(verdicts: Sequence[Verdict], what: str) -> float:
    return float(np.mean([getattr(verdict, what) for verdict in verdicts]))


@contextlib.contextmanager
def _fewer_words() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def trial_json(trial: FrozenTrial, params: dict[str, Any]) -> dict[str, Any]:
    """A trial for tuning.json: its parameters, figures, and the reason where it failed."""
    about = trial.user_attrs
    error = about.get("error")
    state = "failed" if error else "pruned" if about.get("pruned") else "complete"
    names = ("saving_percent", "time_ratio", "psnr_y_gain", "vmaf_gain", "cpu_s")
    return {
        "number": trial.number,
        "state": state,
        "feasible": state == "complete" and all(v <= 0 for v in trial.constraints.values()),
        **{name: rounded(about.get(name)) for name in names},
        "encodes": about.get("encodes", 0),
        "params": params,
        "error": error,
    }
