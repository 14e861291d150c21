"""Surrogate model of a title's scenes: score and bits over the knob, conditioned on their encodes.

The prior learnt on other titles (search/prior.py) is updated by the title's own scenes, as further
titles of a population, and then conditioned on the encodes of each scene.
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
class SceneState:
    """The encodes of one scene, and whether more are to come."""

    scene: Scene
    weight: float
    """Its share of the title's frames."""
    probes: dict[float, Probe] = field(default_factory=dict)
    """By knob."""
    failed: set[float] = field(default_factory=set)
    """Knobs."""
    tries: int = 0
    """Encodes suggested or reported."""
    pending: float | None = None
    """The knob that was suggested and not reported yet."""
    done: bool = False
    stuck: bool = False
    """Done because nothing was left to try."""


class SceneCurves:
    """Curves of scenes of one title at one size, for one encoder."""

    def __init__(
        self, knob: Knob, width: int, height: int, prior: Prior | None, top: float
    ) -> None:
        space = Space(((width, height),), knob)
        self.top, self._pixels, self.quality = top, width * height, space.quality
        steps = round((knob.max - knob.min) / knob.step)
        every = {knob.snap(knob.min + knob.step * index) for index in range(steps + 1)}
        self.knobs = sorted(
            (k for k in every if -BEYOND <= space.quality(k) <= 1 + BEYOND), key=space.quality
        )
        """All that may be tried, from worst to best quality."""
        self.q = np.array([space.quality(k) for k in self.knobs])
        """Their places: the search range is 0..1."""
        self._prior = self._start = prior or vague_prior()
        nothing = self._start.given(TitlePoints(*np.zeros((4, 0))))
        rate, share, _, _ = nothing.at(np.zeros_like(self.q), self.q)
        self._usual = tuple(np.maximum(np.diff(c), 0.0) for c in (rate, logit(share)))
        """By how much the curves of other titles rise from each knob to the next."""
        self._learnt_at = 0
        self._known: dict[Scene, tuple[Prior, int, Values, Values]] = {}

    def learn(self, states: Sequence[SceneState]) -> None:
        """Update the prior by the scenes that were measured, once there are enough new ones."""
        measured = [state for state in states if state.probes]
        if len(measured) >= max(self._learnt_at + 1, GROWTH * self._learnt_at):
            self._learnt_at = len(measured)
            latest = [self._titles(state) for state in measured[-LEARNT_FROM:]]
            self._prior = learn(latest, replace(self._start, titles=TITLE_WEIGHT), rounds=2)

    def of(self, state: SceneState) -> tuple[Values, Values]:
        """Predicted scores and bits at all `knobs`, both rising."""
        known = self._known.get(state.scene)
        if known is None or known[0] is not self._prior or known[1] != len(state.probes):
            posterior = self._prior.given(self._titles(state))
            # reports that contradict each other may lead anywhere
            with np.errstate(over="ignore"):
                rate, share, _, _ = posterior.at(np.zeros_like(self.q), self.q)
                scores = expit(self._rising(logit(share), self._usual[1], state)) * self.top
            rate = np.clip(self._rising(rate, self._usual[0], state), -LARGEST_RATE, LARGEST_RATE)
            bits = 2.0**rate * (state.scene.frames * self._pixels)
            known = self._prior, len(state.probes), scores, bits
            self._known[state.scene] = known
        return known[2], known[3]

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
        """Drop the prediction of a scene, after a change of its encodes."""
        self._known.pop(scene, None)

    def _titles(self, state: SceneState) -> TitlePoints:
        probes = list(state.probes.values())
        size = state.scene.frames * self._pixels
        return TitlePoints(
            np.zeros(len(probes)),
            np.array([self.quality(p.knob) for p in probes]),
            np.array([math.log2(p.bits / size) for p in probes]),
            np.array([p.score / self.top for p in probes]),
        )


def vague_prior() -> Prior:
    """For an encoder or a metric without a prior: curves that rise over the search range as those
    of most encoders do, and may lie anywhere."""
    mean, spread = np.zeros(2 * TERMS), np.full(2 * TERMS, 1e-4)
    # bits a pixel from 1/64 to 1, score from 40 % of the top to 97 %
    mean[[0, 1, TERMS, TERMS + 1]] = -6.0, 6.0, -0.4, 4.0
    spread[[0, 1, 2, TERMS, TERMS + 1, TERMS + 2]] = 4.0, 2.0, 1.0, 2.0, 2.0, 1.0
    return Prior(mean, np.diag(spread), 1.0)
