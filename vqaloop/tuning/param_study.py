"""The Optuna study of a tuning: a trial is a set of encoder parameters, measured encode by encode.

The value of a trial is the percent of bitrate that it saves near the operating point, the mean of
its encodes; the running mean is reported to a pruner after each. A trial that takes too long, or
loses too much by a guard or PSNR, breaks a constraint and is never chosen. Several processes may
share the storage.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner, NopPruner, PercentilePruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from vqaloop.core.text import counted
from vqaloop.records import Event, Watcher, rounded
from vqaloop.search.shared_study import POLL_S, SharedStudy
from vqaloop.tuning.default_curves import GUARDS, Gains, saved_words, time_ratio
from vqaloop.tuning.param_trials import ParamJudge, ParamsFailed, TuneLimits
from vqaloop.tuning.samplers import (
    KNOB,
    DrawSampler,
    Params,
    counted_trials,
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
PART_NOISE = {"vmaf": 1.0, "vmaf_v1": 4.0}
"""Percent of bitrate by which guards may be off in a trial, as they take one of some frames."""
LIMITS = {"time": "time (--slowdown)", "psnr_y": "PSNR-Y", **GUARDS}
LIMITS["xpsnr"] += " (--xpsnr-loss)"
"""Limits that a trial may break, by their names in tuning.json; in words, with their options."""
LEAST_TRIALS = 8
"""Trials with a value below which importance is not estimated."""


class ParamSearch:
    """Runs trials until a study has as many as are asked for."""

    def __init__(
        self,
        judge: ParamJudge,
        limits: TuneLimits,
        sampler: str,
        seed: int,
        *,
        front: bool = False,
    ) -> None:
        self.judge, self.limits, self.front = judge, limits, front
        self.spec = judge.shop.spec
        self.sampler = sampler
        first = default_point(self.spec, judge.knob if front else None)
        self.space = distributions(self.spec, self.spec.knob if front else None)
        self.draws = DrawSampler(sampler, seed, first, 2 if front else 1)

    def run(
        self, storage: BaseStorage, name: str, trials: int, progress: Watcher
    ) -> list[FrozenTrial]:
        """All trials that count, once there are `trials`; other processes may add some."""
        pruner: BasePruner = NopPruner()
        if not self.front:
            pruner = PercentilePruner(KEPT, n_startup_trials=UNPRUNED)
        with _quiet_optuna(), self.seat(storage, name, pruner) as shared:
            self.judge.shop.map(
                lambda _: self._work(shared, trials, progress), range(self.judge.shop.workers)
            )
            return [t for t in counted_trials(shared.study) if t.state != TrialState.RUNNING]

    def seat(
        self, storage: BaseStorage, name: str, pruner: BasePruner | None = None
    ) -> SharedStudy:
        """This process's part in the study of that name."""
        directions: list[Literal["minimize", "maximize"]] = ["maximize"]
        if self.front:
            directions = ["minimize", "maximize"]
        return SharedStudy(storage, name, directions, self.space, self.draws, pruner)

    def _work(self, shared: SharedStudy, trials: int, progress: Watcher) -> None:
        while True:
            shared.release_lost()
            known = counted_trials(shared.study)
            if len(known) >= trials:
                if not any(t.state == TrialState.RUNNING for t in known):
                    return
                # another process works on the last ones, and may yet be lost
                time.sleep(POLL_S)
                continue
            trial = shared.ask()
            before = [t for t in counted_trials(shared.study) if t.number < trial.number]
            if len(before) >= trials:
                # two processes asked for the last one at once
                shared.tell(trial, None)
                continue
            # a trial that was taken for lost was given to another process
            with contextlib.suppress(UpdateFinishedTrialError):
                text = self._one(shared, trial)
                progress(Event("search", text, len(before) + 1, trials))

    def _one(self, shared: SharedStudy, trial: optuna.Trial) -> str:
        params = encoder_params(self.spec, trial.params)
        label = " ".join(f"{name}={value}" for name, value in params) or "defaults"
        gains: list[Gains] = []
        jobs = self.judge.schedule()
        if self.front:
            knob = self.spec.knob.snap(trial.params[KNOB])
            jobs = [(window, knob) for window in range(len(self.judge.windows))]
            label = f"{label} at {knob:g}"
        pruned = False
        try:
            for step, job in enumerate(jobs):
                gains.append(self.judge.gains(job, params, beside=step < BESIDE))
                if self.front or step + 1 == len(jobs):
                    continue
                # what a guard refuses ranks by its loss: by its saving it would prune the others
                loss = self._excess(gains)[0]
                trial.report(-loss if loss > 0 else _mean(gains, "saving"), step)
                if time_ratio(gains) > TOO_SLOW * self.limits.slowdown or trial.should_prune():
                    pruned = True
                    break
        except ParamsFailed as error:
            trial.set_user_attr("error", str(error))
            shared.tell(trial, None)
            return f"{label}: failed ({error})"
        return f"{label}: {self._tell(shared, trial, gains, pruned)}"

    def _tell(
        self, shared: SharedStudy, trial: optuna.Trial, gains: list[Gains], pruned: bool
    ) -> str:
        ratio, psnr = time_ratio(gains), _mean(gains, "psnr_y")
        guards, saving = _guards(gains), _mean(gains, "saving")
        figures = {
            "saving_percent": saving,
            **{f"{name}_saving_percent": value for name, value in guards.items()},
            "vmaf_gain": _mean(gains, "vmaf"),
            "psnr_y_gain": psnr,
            "time_ratio": ratio,
            "cpu_s": sum(g.cpu_s for g in gains),
        }
        for name, value in figures.items():
            trial.set_user_attr(name, rounded(value, 6))
        trial.set_user_attr("encodes", len(gains))
        trial.set_user_attr("pruned", pruned)
        slower, worse = ratio - self.limits.slowdown, -self.limits.psnr_loss - psnr
        trial.set_constraint("time", slower)
        trial.set_constraint("psnr_y", worse)
        # without it a search by a metric that some parameter suits would end where verification
        # refuses all; one for all guards, since some samplers fit a model to each constraint
        loss, guard = self._excess(gains)
        trial.set_constraint("guards", loss)
        broken = {
            "time": f"{ratio:.2f} times the time" if slower > 0 else "",
            "psnr_y": f"{psnr:+.2f} dB of PSNR-Y" if worse > 0 else "",
            guard: f"{guards[guard]:+.1f} % by {GUARDS[guard]}" if loss > 0 else "",
        }
        refusals = {name: text for name, text in broken.items() if text}
        trial.set_user_attr("broken", list(refusals))
        if pruned and self.sampler == "tpe":
            with contextlib.suppress(ValueError):
                shared.study.tell(trial.number, state=TrialState.PRUNED)
        elif self.front:
            weights = [window.duration_s for window in self.judge.windows]
            shared.tell(
                trial,
                [
                    float(np.average([g.kbps for g in gains], weights=weights)),
                    float(np.average([g.score for g in gains], weights=weights)),
                ],
            )
        else:
            # the other samplers ignore trials in Optuna's state "pruned"
            shared.tell(trial, [saving])
        text = saved_words(saving)
        if "time" not in refusals:
            text += f", {ratio:.2f} times the time"
        if pruned:
            text += f", given up after {counted(len(gains), 'encode')}"
        return text + (f", refused: {', '.join(refusals.values())}" if refusals else "")

    def _excess(self, gains: Sequence[Gains]) -> tuple[float, str]:
        """The largest loss by a guard beyond its limit, in percent of bitrate, and which guard."""
        return max(
            (-value - self.limits.guard_loss(name) - PART_NOISE.get(name, 0.0), name)
            for name, value in _guards(gains).items()
        )

    def candidates(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Trials within the limits that save something, the best first, each point once."""
        found: dict[Params, FrozenTrial] = {}
        for trial in self.allowed(trials):
            params = encoder_params(self.spec, trial.params)
            if params and trial.user_attrs["saving_percent"] >= WORTH:
                found.setdefault(params, trial)
        return list(found.values())

    def allowed(self, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
        """Complete trials within the limits, the largest saving first."""
        return sorted(feasible(trials), key=lambda t: (-t.user_attrs["saving_percent"], t.number))


def _mean(gains: Sequence[Gains], what: str) -> float:
    return float(np.mean([getattr(each, what) for each in gains]))


def _guards(gains: Sequence[Gains]) -> dict[str, float]:
    """Mean saving by each guard."""
    return {name: float(np.mean([g.guards[name] for g in gains])) for name in gains[0].guards}


def refused(trials: Sequence[FrozenTrial]) -> str:
    """How many trials would save more but break a limit, and which limits; "" if none."""
    known = [t.user_attrs for t in trials if t.user_attrs.get("broken")]
    saving = [about for about in known if about["saving_percent"] >= WORTH]
    if not saving:
        return ""
    limits = Counter(name for about in saving for name in about["broken"])
    by = ", ".join(f"{LIMITS[name]} {count}" for name, count in limits.most_common())
    most = max(about["saving_percent"] for about in saving)
    return f"refused: {counted(len(saving), 'trial')} saving up to {most:.1f} %, by {by}"


@contextlib.contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Optuna logs errors alone."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def tuning_json(
    documents: Sequence[dict[str, Any]], trials: Sequence[FrozenTrial]
) -> dict[str, Any]:
    """A ladder's record of the study of its parameters; `documents` are the trials as JSON."""
    return {"trials": list(documents), "importance": importance(trials)}


def importance(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Importance of each parameter, largest first, 1 together.

    PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023), as Optuna has it: how differently the
    better trials are spread over a parameter. Empty where the trials are too few, or all alike.
    """
    valued = [t for t in trials if t.state == TrialState.COMPLETE and t.values]
    if len(valued) < LEAST_TRIALS or len({t.values[0] for t in valued}) < 2:
        return {}
    # parameters that never varied have no importance, which Optuna refuses to compute
    with _quiet_optuna(), contextlib.suppress(ValueError, RuntimeError):
        study = optuna.create_study(direction="maximize")
        study.add_trials(valued)
        shares = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
        return {name: round(float(share), 4) for name, share in shares.items()}
    return {}


def trial_json(trial: FrozenTrial, params: dict[str, Any]) -> dict[str, Any]:
    """A trial for tuning.json: its parameters and figures, and the reason if it failed."""
    about = trial.user_attrs
    error = about.get("error")
    state = "failed" if error else "pruned" if about.get("pruned") else "complete"
    names = ["saving_percent", *(f"{name}_saving_percent" for name in GUARDS)]
    names += ["time_ratio", "psnr_y_gain", "vmaf_gain", "cpu_s"]
    return {
        "number": trial.number,
        "state": state,
        "feasible": state == "complete" and all(v <= 0 for v in trial.constraints.values()),
        "broken": list(about.get("broken", ())),
        **{name: rounded(about.get(name)) for name in names},
        "encodes": about.get("encodes", 0),
        "params": params,
        "error": error,
    }
