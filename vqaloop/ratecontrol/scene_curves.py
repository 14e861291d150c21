"""Surrogate model of a title's scenes: score and bits over the knob, conditioned on their encodes.

The prior learnt on other titles (search/prior.py) is updated by the title's own scenes, as further
titles of a population, and then conditioned on the encodes of each scene. Encodes at one size
condition the curves at the others as well, by the prior's polynomials in size and knob.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from vqaloop.encoding.spec import Knob
from vqaloop.media.scene_cuts import Scene
from vqaloop.ratecontrol.equal_slope import Values
from vqaloop.search.prior import TERMS, Prior, TitlePoints, expit, learn, logit
from vqaloop.search.space import Space

Size = tuple[int, int]
"""Width and height in pixels."""

TITLE_WEIGHT = 6.0
"""Titles that the prior counts as, against the scenes of this one."""
LEARNT_FROM = 24
"""Latest scenes that are learnt from."""
GROWTH = 1.25
"""Times as many scenes as before that are worth learning from again."""
BEYOND = 0.6
"""Part of the search range that may be tried beyond either end, once the end itself was."""
LARGEST_RATE = 40.0
"""Log2 of bits a pixel that nothing exceeds."""
LEAST_RISE = 0.5
"""Part of other titles' slope that a scene's curve has at least where it was not measured."""
SHUN = 1 / 16
"""Part of the search range around a failed knob that is left alone."""


@dataclass(frozen=True)
class Probe:
    """One encode of a scene, as it was reported."""

    knob: float
    bits: float
    score: float


@dataclass(eq=False)
class SceneEncodes:
    """All encodes of one scene, at every size: what the states of that scene share."""

    made: dict[Size, dict[float, Probe]] = field(default_factory=dict)
    """By size and knob."""
    failed: dict[Size, set[float]] = field(default_factory=dict)
    """Knobs, by size."""

    @property
    def count(self) -> int:
        return sum(len(probes) for probes in self.made.values())


@dataclass(eq=False)
class SceneState:
    """The encodes of one scene at one size, and whether more are to come."""

    scene: Scene
    weight: float
    """Its share of the title's frames."""
    size: Size
    """Width and height of the encodes."""
    encodes: SceneEncodes = field(default_factory=SceneEncodes)
    tries: int = 0
    """Encodes suggested or reported."""
    pending: float | None = None
    """The knob that was suggested and not reported yet."""
    done: bool = False
    stuck: bool = False
    """Done because nothing was left to try."""

    @property
    def probes(self) -> dict[float, Probe]:
        """The encodes at this size, by knob."""
        return self.encodes.made.setdefault(self.size, {})

    @property
    def failed(self) -> set[float]:
        """Knobs that failed at this size."""
        return self.encodes.failed.setdefault(self.size, set())


class SceneCurves:
    """Curves of scenes of one title, for one encoder, at the title's size and others."""

    def __init__(self, knob: Knob, canvas: Size, prior: Prior | None, top: float) -> None:
        space = Space((canvas,), knob)
        self.top, self._canvas, self.quality = top, canvas, space.quality
        steps = round((knob.max - knob.min) / knob.step)
        every = {knob.snap(knob.min + knob.step * index) for index in range(steps + 1)}
        self.knobs = sorted(
            (k for k in every if -BEYOND <= space.quality(k) <= 1 + BEYOND), key=space.quality
        )
        """All that may be tried, from worst to best quality."""
        self.q = np.array([space.quality(k) for k in self.knobs])
        """Their places: the search range is 0..1."""
        self._prior = self._start = prior or vague_prior()
        self._rises: dict[Size, tuple[Values, Values]] = {}
        self._learnt_at = 0
        self._known: dict[tuple[Scene, Size], tuple[Prior, int, Values, Values]] = {}

    def learn(self, states: Sequence[SceneState], *, again: bool = False) -> None:
        """Update the prior by the scenes that were measured, once there are enough new ones.

        `again`: also where no scene is new, as its other encodes are.
        """
        measured = [state for state in states if state.encodes.count]
        if again or len(measured) >= max(self._learnt_at + 1, GROWTH * self._learnt_at):
            self._learnt_at = len(measured)
            latest = [self._titles(state) for state in measured[-LEARNT_FROM:]]
            self._prior = learn(latest, replace(self._start, titles=TITLE_WEIGHT), rounds=2)

    def of(self, state: SceneState) -> tuple[Values, Values]:
        """Predicted scores and bits at all `knobs`, both rising."""
        known = self._known.get((state.scene, state.size))
        if known is None or known[0] is not self._prior or known[1] != state.encodes.count:
            posterior = self._prior.given(self._titles(state))
            usual_rate, usual_score = self._usual(state.size)
            # reports that contradict each other may lead anywhere
            with np.errstate(over="ignore"):
                rate, share, _, _ = posterior.at(self._u(state.size), self.q)
                scores = expit(self._rising(logit(share), usual_score, state)) * self.top
            rate = np.clip(self._rising(rate, usual_rate, state), -LARGEST_RATE, LARGEST_RATE)
            bits = 2.0**rate * self._samples(state)
            known = self._prior, state.encodes.count, scores, bits
            self._known[state.scene, state.size] = known
        return known[2], known[3]

    def _u(self, size: Size) -> Values:
        """The prior's measure of a size, at all knobs: log2 of its width over the title's."""
        return np.full_like(self.q, math.log2(size[0] / self._canvas[0]))

    def _samples(self, state: SceneState) -> int:
        """Pixels of the scene at the title's own size, over which rates are."""
        return state.scene.frames * self._canvas[0] * self._canvas[1]

    def _usual(self, size: Size) -> tuple[Values, Values]:
        """By how much the curves of other titles rise from each knob to the next."""
        if size not in self._rises:
            nothing = self._start.given(TitlePoints(*np.zeros((4, 0))))
            curve, share, _, _ = nothing.at(self._u(size), self.q)
            rate, score = (np.maximum(np.diff(c), 0.0) for c in (curve, logit(share)))
            self._rises[size] = rate, score
        return self._rises[size]

    def _rising(self, curve: Values, usual: Values, state: SceneState) -> Values:
        """A curve of logits or of log rate made to rise; beyond a scene's encodes by LEAST_RISE of
        the usual at least.

        A cubic that bends down there would predict that more bits buy nothing, or cost nothing.
        """
        curve = np.maximum.accumulate(curve)
        if state.probes:
            places = [self.quality(knob) for knob in state.probes]
            low, high = np.clip(
                np.searchsorted(self.q, [min(places), max(places)]), 0, len(curve) - 1
            )
            steps = np.maximum(np.diff(curve), LEAST_RISE * usual)
            below = curve[low] - np.cumsum(steps[:low][::-1])[::-1]
            above = curve[high] + np.cumsum(steps[high:])
            curve = np.concatenate([below, curve[low : high + 1], above])
        return curve

    def in_reach(self, state: SceneState) -> npt.NDArray[np.bool_]:
        """Which knobs may be tried: the search range, and beyond an end of it that was tried."""
        places = [self.quality(knob) for knob in state.probes]
        inside = (self.q >= 0) & (self.q <= 1)
        worst, best = self.q[inside][0], self.q[inside][-1]
        below = (self.q < 0) & (min(places, default=1.0) <= worst)
        above = (self.q > 1) & (max(places, default=0.0) >= best)
        return np.asarray(inside | below | above)

    def untried(self, state: SceneState) -> npt.NDArray[np.bool_]:
        """Which of the knobs in reach have no encode and are not near one that failed."""
        able = self.in_reach(state) & np.array([k not in state.probes for k in self.knobs])
        for knob in state.failed:
            able &= np.abs(self.q - self.quality(knob)) > SHUN
        return np.asarray(able)

    def forget(self, scene: Scene) -> None:
        """Drop the predictions of a scene, after a change of its encodes."""
        for key in [key for key in self._known if key[0] == scene]:
            del self._known[key]

    def _titles(self, state: SceneState) -> TitlePoints:
        made = [(s[0], p) for s, probes in state.encodes.made.items() for p in probes.values()]
        samples = self._samples(state)
        return TitlePoints(
            np.array([math.log2(width / self._canvas[0]) for width, _ in made]),
            np.array([self.quality(p.knob) for _, p in made]),
            np.array([math.log2(p.bits / samples) for _, p in made]),
            np.array([p.score / self.top for _, p in made]),
        )


@dataclass(frozen=True)
class SharedScenes:
    """What controllers of one title share, each of another size or target: curves and encodes."""

    curves: SceneCurves
    encodes: dict[Scene, SceneEncodes] = field(default_factory=dict)

    def encodes_of(self, scene: Scene) -> SceneEncodes:
        """The encodes of a scene, to which all controllers add."""
        return self.encodes.setdefault(scene, SceneEncodes())


def vague_prior() -> Prior:
    """For an encoder or a metric without a prior: curves that rise over the search range as those
    of most encoders do, and may lie anywhere."""
    mean, spread = np.zeros(2 * TERMS), np.full(2 * TERMS, 1e-4)
    # bits a pixel from 1/64 to 1, score from 40 % of the top to 97 %
    mean[[0, 1, TERMS, TERMS + 1]] = -6.0, 6.0, -0.4, 4.0
    spread[[0, 1, 2, TERMS, TERMS + 1, TERMS + 2]] = 4.0, 2.0, 1.0, 2.0, 2.0, 1.0
    # at half the width a third of the bits and a lower score, most of all at the best quality
    mean[[4, TERMS + 4, TERMS + 5]] = 1.6, 0.8, 1.0
    spread[[4, TERMS + 4, TERMS + 5]] = 0.3, 0.5, 0.5
    return Prior(mean, np.diag(spread), 1.0)
