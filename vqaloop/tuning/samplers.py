"""Optuna's samplers over an encoder's tunables, made reproducible across interruptions.

Optuna's samplers hold a random generator in the process, so a resumed study would differ from an
uninterrupted one. Here every trial has a number, its draw, and a new sampler seeded by (seed,
draw): what is suggested depends on the storage alone. Draw 0 is always the encoder's defaults. A
trial that was lost leaves its draw to the next.
"""

import hashlib
import importlib.util
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from vqaloop.encoding.spec import EncoderSpec, Knob, Tunable
from vqaloop.errors import InputError

SAMPLERS = ("gp", "tpe", "cmaes", "nsga2")
KNOB = "quality knob"
"""Name of the knob as a parameter where it is searched too; no tunable's name has a space."""

_DRAW = "vqaloop:draw"
_STARTUP = 8
"""Draws before tpe and gp fit a model: the defaults with some parameters changed at random."""
_KEPT = 0.5
"""Part of the parameters that stay at their default there: most other values are worse, and a
point with all of them drawn at random shows little of any."""
_POPULATION = 6
"""Trials of a generation, for a search of some tens of trials."""
_STEPS = 20
"""A float's range is divided into about so many steps, or up to five times as many."""
_CMA = "vqaloop:cma"

Params = tuple[tuple[str, str], ...]


def distributions(spec: EncoderSpec, knob: Knob | None = None) -> dict[str, BaseDistribution]:
    """The search space of an encoder's tunables, and of `knob` where it is given.

    Raises InputError for an encoder whose file lists none.
    """
    if not spec.tunables:
        raise InputError(
            f"{spec.name} has no parameters to tune; list some as [[tunable]] in its file"
        )
    space = {tunable.name: _distribution(tunable) for tunable in spec.tunables}
    if knob:
        low, high = (knob.snap(value) for value in knob.search)
        space[KNOB] = FloatDistribution(low, high, step=knob.step)
    return space


def _distribution(tunable: Tunable) -> BaseDistribution:
    if tunable.type == "choice":
        return CategoricalDistribution(tunable.choices)
    low, high = tunable.range or (0.0, 0.0)
    if tunable.type == "int":
        return IntDistribution(int(low), int(high))
    # 1, 2 or 5 times a power of ten, the largest whose grid holds both the end and the default
    power = 10.0 ** math.floor(math.log10((high - low) / _STEPS))
    for step in (5 * power, 2 * power, power):
        parts = [(high - low) / step, (float(tunable.default) - low) / step]
        if parts[0] >= _STEPS - 1e-6 and all(abs(part - round(part)) < 1e-6 for part in parts):
            return FloatDistribution(low, high, step=step)
    return FloatDistribution(low, high)


def default_point(spec: EncoderSpec, knob: float | None = None) -> dict[str, Any]:
    """The point of the space at the encoder's defaults."""
    read = {"int": int, "float": float, "choice": str}
    point: dict[str, Any] = {t.name: read[t.type](t.default) for t in spec.tunables}
    return point if knob is None else {**point, KNOB: knob}


def encoder_params(spec: EncoderSpec, point: Mapping[str, Any]) -> Params:
    """A point as a Rendition's params: sorted, without parameters at their default.

    So the default point leaves all to the preset, whichever that is.
    """
    defaults = default_point(spec)
    return tuple(
        sorted(
            (name, value if isinstance(value, str) else f"{value:.6g}")
            for name, value in point.items()
            if name != KNOB and not _same(value, defaults[name])
        )
    )


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, str) or isinstance(default, str):
        return bool(value == default)
    return math.isclose(value, default, abs_tol=1e-9)


def counted_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count: running, finished, or failed with a recorded reason."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        or "error" in trial.user_attrs
    ]


def check_sampler(name: str, objectives: int = 1) -> None:
    """Raises InputError for a sampler that is unknown, not installed, or for one value only."""
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    if name != "cmaes":
        return
    if objectives > 1:
        raise InputError(
            "cmaes searches for one value only; give a target score or a bitrate, or choose "
            "nsga2 or tpe"
        )
    if importlib.util.find_spec("cmaes") is None:
        raise InputError(
            "the sampler cmaes needs the package cmaes: pip install cmaes, or choose another"
        )


class DrawSampler(BaseSampler):
    """Seeds a new sampler for each trial, by the trial's draw."""

    def __init__(self, name: str, seed: int, first: Mapping[str, Any], objectives: int = 1):
        check_sampler(name, objectives)
        self.name, self.seed, self.first, self.objectives = name, seed, dict(first), objectives
        self._inner: BaseSampler | None = None
        self._kept: frozenset[str] = frozenset()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        others = [t for t in counted_trials(study) if t.number != trial.number]
        taken = {t.system_attrs.get(_DRAW) for t in others}
        draw = next(i for i in range(len(taken) + 1) if i not in taken)
        study._storage.set_trial_system_attr(trial._trial_id, _DRAW, draw)
        self._inner, self._kept = None, frozenset(self.first)
        if draw:
            text = f"{self.seed}/{draw}".encode()
            seed = int.from_bytes(hashlib.sha256(text).digest()[:4])
            chance = random.Random(seed)
            # CMA-ES starts at the defaults by itself
            near = draw <= _STARTUP and self.name != "cmaes"
            kept = {name for name in self.first if chance.random() < _KEPT and name != KNOB}
            self._kept = frozenset(kept if near else ())
            self._inner = self._make(seed)
            self._inner.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        with _quiet():
            return self._inner.infer_relative_search_space(study, trial) if self._inner else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with _quiet():
            if self._inner is None:
                return {}
            return self._inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if self._inner is None or param_name in self._kept:
            return self.first[param_name]
        with _quiet():
            return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def _make(self, seed: int) -> BaseSampler:
        if self.name == "tpe":
            return TPESampler(seed=seed, multivariate=True, n_startup_trials=_STARTUP)
        if self.name == "gp":
            return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)
        if self.name == "nsga2":
            return NSGAIISampler(seed=seed, population_size=_POPULATION * self.objectives)
        return CmaSampler(seed, self.first)


def _quiet() -> warnings.catch_warnings:
    """Suppresses Optuna's warnings of experimental features, which users cannot act on."""
    return warnings.catch_warnings(action="ignore")


class CmaSampler(BaseSampler):
    """CMA-ES with margin (Hamano et al. 2022), for integers and choices beside floats.

    Optuna's own draws choices at random and stores its state as a pickle. This one encodes a
    choice by its index, and replays the finished generations to restore its state. A trial that
    failed, or breaks a constraint, is worse than any that does not.
    """

    def __init__(self, seed: int, first: Mapping[str, Any]) -> None:
        self.seed, self.first = seed, dict(first)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        known = optuna.search_space.intersection_search_space(study.get_trials(deepcopy=False))
        return {name: known[name] for name in sorted(known) if not known[name].single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        from cmaes import CMAwM

        if not search_space:
            return {}
        axes = [_Axis(distribution) for distribution in search_space.values()]
        middle = [a.place(self.first[n]) for a, n in zip(axes, search_space, strict=True)]
        optimiser = CMAwM(
            mean=np.array(middle),
            sigma=0.25,
            bounds=np.array([[0.0, 1.0]] * len(axes)),
            steps=np.array([axis.step for axis in axes]),
            population_size=_POPULATION,
            seed=self.seed,
        )
        finished = [t for t in counted_trials(study) if t.state != TrialState.RUNNING]
        finished.sort(key=lambda t: int(t.system_attrs.get(_DRAW, 0)))
        generation = 0
        # a generation is replayed once all its trials are finished
        while True:
            own = [t for t in finished if t.system_attrs.get(_CMA, [None])[0] == generation]
            if len(own) < _POPULATION:
                break
            optimiser.tell(
                [(np.array(t.system_attrs[_CMA][1]), _loss(t)) for t in own[:_POPULATION]]
            )
            generation += 1
        # the point to evaluate is on the grid; the optimiser learns from the one before rounding
        point, unrounded = optimiser.ask()
        state = [generation, unrounded.tolist()]
        study._storage.set_trial_system_attr(trial._trial_id, _CMA, state)
        return {
            name: axis.value(float(place))
            for name, axis, place in zip(search_space, axes, point, strict=True)
        }

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        independent = optuna.samplers.RandomSampler(seed=self.seed)
        return independent.sample_independent(study, trial, param_name, param_distribution)


def _loss(trial: FrozenTrial) -> float:
    broken = sum(max(0.0, value) for value in trial.constraints.values())
    if trial.value is None:
        return 1e9
    return -trial.value + (1e6 * (1 + broken) if broken else 0.0)


class _Axis:
    """A distribution mapped to 0..1."""

    def __init__(self, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        if isinstance(distribution, CategoricalDistribution):
            self.low, self.high, step = 0.0, float(len(distribution.choices) - 1), 1.0
        else:
            assert isinstance(distribution, IntDistribution | FloatDistribution)
            self.low, self.high = float(distribution.low), float(distribution.high)
            step = float(distribution.step or 0.0)
        self.step = step / (self.high - self.low)

    def place(self, value: Any) -> float:
        if isinstance(self.distribution, CategoricalDistribution):
            value = self.distribution.choices.index(value)
        return (float(value) - self.low) / (self.high - self.low)

    def value(self, place: float) -> Any:
        at = self.low + min(max(place, 0.0), 1.0) * (self.high - self.low)
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices[round(at)]
        if isinstance(self.distribution, IntDistribution):
            return round(at)
        assert isinstance(self.distribution, FloatDistribution)
        step = self.distribution.step
        return self.low + round((at - self.low) / step) * step if step else at


def feasible(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Complete trials, not pruned, that break no constraint."""
    return [
        trial
        for trial in trials
        if trial.state == TrialState.COMPLETE
        and not trial.user_attrs.get("pruned")
        and all(value <= 0 for value in trial.constraints.values())
    ]
