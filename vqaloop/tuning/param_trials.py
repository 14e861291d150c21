"""Measures sets of encoder parameters: each of their encodes against the curves of the defaults.

The defaults are measured first, on each window at some knobs around the operating point. A single
encode of other parameters then gives their bitrate saving at equal score and at equal value of
each guard, their gain in PSNR-Y at equal bitrate, and their CPU time over the defaults'
(default_curves.py). Candidates are confirmed over the whole title, at other knobs, and by the
metric at other places of the pictures than those by which they were found.
"""

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from vqaloop.core.files import file_sha256
from vqaloop.encoding.encode import encode
from vqaloop.errors import DecodeFailed, EncodeFailed, TargetUnreachable, ToolError
from vqaloop.execution.workshop import Workshop
from vqaloop.quality.bdrate import NotComparable, bd_rate, bd_score
from vqaloop.quality.guard import GuardPlan, guard_plan
from vqaloop.records import RDPoint, Rendition, Source
from vqaloop.search.curve_fit import fit_curve
from vqaloop.tuning.default_curves import (
    GUARDS,
    CurvePoint,
    DefaultCurves,
    Gains,
    measured_guards,
    saved_words,
)
from vqaloop.tuning.options import XPSNR_LOSS
from vqaloop.tuning.samplers import Params

ANCHORS = (0.1, 0.5, 0.9)
"""Parts of the knob's search range at which the defaults are measured, to find the target."""
AROUND = (-2, -1, 0, 1, 2)
"""And in steps (`ParamJudge.step`) around the target's knob once it is found."""
STEP = 1 / 12
"""Of the search range: rates about 1.3 times apart."""
VERIFY_DEFAULT = (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)
"""Steps from the operating point at which the defaults are measured on the whole title."""
VERIFY_TUNED = (-1.5, -0.5, 0.5, 1.5)
"""And the tuned parameters: all between the knobs of the search."""
TIME_NOISE = 0.05
"""Part of the defaults' time by which a verified time may exceed the limit: times vary."""
REPEATS = 4
"""Runs of which the least time counts: other work on the machine only ever adds."""
TIMED = 2
"""Windows on which time is verified."""
VMAF_LOSS = 1.0
"""Percent of bitrate that may be lost by VMAF, v0.6.1 or v1, where the metric finds a saving."""


@dataclass(frozen=True)
class Target:
    """Where on the curve to tune: at a score, at a bitrate, or in the middle of the knob."""

    score: float | None = None
    kbps: float | None = None


@dataclass(frozen=True)
class TuneLimits:
    """Constraints on tuned parameters."""

    slowdown: float = 1.1
    """Most CPU time, as a multiple of the defaults' at the same knobs."""
    psnr_loss: float = 0.3
    """Most dB of PSNR-Y lost at equal bitrate."""
    xpsnr_loss: float = XPSNR_LOSS
    """Most percent of bitrate lost at equal XPSNR."""

    def guard_loss(self, name: str) -> float:
        """Most percent of bitrate lost by one of GUARDS."""
        return self.xpsnr_loss if name == "xpsnr" else VMAF_LOSS


@dataclass(frozen=True)
class Setting:
    """What all encodes of a tuning have in common."""

    width: int
    height: int
    preset: str
    bit_depth: int


@dataclass(frozen=True)
class Verification:
    """Parameters that hold against the defaults on the whole title."""

    params: Params
    curve: tuple[CurvePoint, ...]
    saving: float
    """Percent of bitrate at equal score."""
    guards: Mapping[str, float]
    """The same by each of GUARDS that was measured."""
    psnr_gain: float
    """dB of PSNR-Y at equal bitrate."""
    time_ratio: float
    """CPU seconds over the defaults' at the same knobs."""


class ParamJudge:
    """Measures the defaults, finds the operating point, and compares parameters there."""

    knob: float
    """The operating point's; set by `prepare`."""

    def __init__(self, shop: Workshop, windows: Sequence[Source], setting: Setting) -> None:
        self.shop, self.windows, self.setting = shop, tuple(windows), setting
        knob = shop.spec.knob
        # two steps of the knob at least, so that snapped neighbours differ
        self.step = max(2 * knob.step, (knob.search[1] - knob.search[0]) * STEP)
        # parameters may suit the very places that the search looked at
        self.confirming = shop.metric.confirming()

    def rendition(self, params: Params, knob: float) -> Rendition:
        s = self.setting
        name = self.shop.spec.name
        return Rendition(s.width, s.height, name, knob, s.preset, s.bit_depth, params)

    def measure(
        self, source: Source, params: Params, knob: float, *, confirm: bool = False
    ) -> CurvePoint:
        """Encode and score; to confirm by the metric that does, and by guards of all frames.

        Raises ParamsFailed with the reason where the encode fails.
        """
        rendition = self.rendition(params, knob)
        try:
            done = self.shop.encode(source, rendition)
            score = self.shop.score(source, done.path, self.confirming if confirm else None).value
            plan = guard_plan(source, self.shop.ffmpeg, "full", self.shop.spec.decoder)
            if confirm:
                plan = GuardPlan(dict.fromkeys(plan.every, 1))
            guard = self.shop.guard(source, done.path, plan).figures
        except (EncodeFailed, DecodeFailed) as error:
            raise ParamsFailed(str(error)) from error
        if not math.isfinite(score):
            raise ParamsFailed(f"{rendition}: the score is {score}")
        return CurvePoint(
            knob=knob,
            kbps=done.bitrate_kbps,
            score=score,
            vmaf=guard["vmaf"],
            psnr_y=guard["psnr_y"],
            cpu_s=done.cpu_s,
            xpsnr=guard.get("xpsnr"),
            vmaf_v1=guard.get("vmaf_v1"),
            ffmpeg_args=done.ffmpeg_args,
        )

    def prepare(self, target: Target, progress: Callable[[str, int, int], object]) -> None:
        """Measure the defaults on all windows, and find the knob of the target.

        `progress(message, done, total)` is called after each encode. Raises TargetUnreachable for
        a target beyond the reach of the knob, or when the defaults cannot be encoded.
        """
        spec = self.shop.spec
        low, high = spec.knob.search
        anchors = sorted({spec.knob.snap(low + (high - low) * part) for part in ANCHORS})
        done: list[list[CurvePoint]] = [[] for _ in self.windows]
        total = len(self.windows) * (len(ANCHORS) + len(AROUND))
        count = 0

        def add(job: tuple[int, float]) -> CurvePoint:
            nonlocal count
            window, knob = job
            point = self.measure(self.windows[window], (), knob)
            count += 1
            text = f"defaults at {knob:g}: {point.kbps:.0f} kb/s, {point.score:.1f}"
            progress(text, count, total)
            return point

        def fill(knobs: Sequence[float]) -> None:
            jobs = [(w, knob) for w in range(len(self.windows)) for knob in knobs]
            try:
                found = self.shop.map(add, jobs)
            except ParamsFailed as error:
                raise TargetUnreachable(f"the default parameters fail: {error}") from error
            for (window, _), point in zip(jobs, found, strict=True):
                done[window].append(point)

        fill(anchors)
        self.knob = self._locate(target, done)
        near = {spec.knob.snap(self.knob + part * self.step) for part in AROUND}
        fill(sorted(near - set(anchors)))
        # again, on the denser curve
        self.knob = self._locate(target, done)
        self.defaults = [DefaultCurves(points, self.shop.metric.top) for points in done]

    def _locate(self, target: Target, done: Sequence[Sequence[CurvePoint]]) -> float:
        """The knob of the target for all windows together."""
        knob = self.shop.spec.knob
        if target.score is None and target.kbps is None:
            return knob.snap(sum(knob.search) / 2)
        curve = fit_curve(self._means(done), self.shop.metric.top)
        grid = [curve(k) for k in np.arange(knob.min, knob.max + knob.step / 2, knob.step)]
        inside = [p for p in grid if knob.search[0] <= p.knob <= knob.search[1]]
        if target.score is not None:
            wanted, unit, reached = target.score, "", [p.score for p in inside]
            best = min(inside, key=lambda p: abs(p.score - wanted))
        else:
            assert target.kbps is not None
            wanted, unit, reached = target.kbps, " kb/s", [p.bitrate_kbps for p in inside]
            best = min(inside, key=lambda p: abs(np.log(p.bitrate_kbps / wanted)))
        if not min(reached) <= wanted <= max(reached):
            nearest = min(reached, key=lambda value: abs(value - wanted))
            raise TargetUnreachable(
                f"the target {wanted:g}{unit} cannot be reached at {self.setting.width}x"
                f"{self.setting.height}: {knob.name} {knob.search[0]:g} to {knob.search[1]:g} "
                f"gives {min(reached):.5g} to {max(reached):.5g}{unit}, {nearest:.5g}{unit} is "
                "nearest; choose another target or --resolution"
            )
        return knob.snap(best.knob)

    def _means(self, done: Sequence[Sequence[CurvePoint]]) -> list[RDPoint]:
        """Means over the windows at each knob, weighted by duration."""
        weights = [window.duration_s for window in self.windows]
        means = []
        for same in zip(*(sorted(points, key=lambda p: p.knob) for points in done), strict=True):
            kbps = float(np.average([p.kbps for p in same], weights=weights))
            score = float(np.average([p.score for p in same], weights=weights))
            means.append(RDPoint(0, 0, same[0].knob, kbps, score))
        return means

    def schedule(self) -> list[tuple[int, float]]:
        """Window and knob of each encode of a trial, in the order of encoding.

        One window: the operating point first, then below and above. Several: each at one knob,
        below and above in turn, then each at the other.
        """
        knob = self.shop.spec.knob

        def at(window: int, part: float) -> tuple[int, float]:
            return window, knob.snap(self.knob + part * self.step)

        if len(self.windows) == 1:
            jobs = [at(0, 0.0), at(0, -1.0), at(0, 1.0)]
        else:
            sides = [1.0 if w % 2 else -1.0 for w in range(len(self.windows))]
            jobs = [at(w, side) for w, side in enumerate(sides)]
            jobs += [at(w, -side) for w, side in enumerate(sides)]
        return list(dict.fromkeys(jobs))

    def gains(self, job: tuple[int, float], params: Params, beside: bool = False) -> Gains:
        """The gains of one encode of these parameters; `beside`: the defaults are timed again."""
        window, knob = job
        source = self.windows[window]
        gains = self.defaults[window].compare(self.measure(source, params, knob))
        if not beside:
            return gains
        return replace(gains, beside_cpu_s=self._timed(source, params, knob, 1)[0])

    def time_ratio(self, params: Params) -> float:
        """CPU time over the defaults' at the operating point: the least of some runs of each.

        Runs alternate, on the first TIMED windows.
        """
        pairs = [
            self._timed(window, params, self.knob, REPEATS) for window in self.windows[:TIMED]
        ]
        return sum(own for _, own in pairs) / sum(default for default, _ in pairs)

    def _timed(
        self, source: Source, params: Params, knob: float, repeats: int
    ) -> tuple[float, float]:
        """Least CPU seconds of the defaults and, with several repeats, of these parameters.

        Encoded past the cache of encodes, as that holds times of another moment; the times
        themselves are cached for these parameters, so that a resumed run finds the same.
        """
        shop = self.shop
        key = {
            "kind": "time beside",
            "source": source.sha256,
            "rendition": asdict(self.rendition(params, knob)),
            "ffmpeg": file_sha256(shop.ffmpeg),
            "repeats": repeats,
        }
        found = shop.cache.get_json(key)
        if found is None:
            default, own = self._seconds(source, (), knob), math.inf
            # in turns, so that a busy moment of the machine slows down both
            for _ in range(repeats - 1):
                own = min(own, self._seconds(source, params, knob))
                default = min(default, self._seconds(source, (), knob))
            own = own if repeats > 1 else 0.0
            found = {"default": default, "own": own}
            shop.cache.put_json(key, found)
        return float(found["default"]), float(found["own"])

    def _seconds(self, source: Source, params: Params, knob: float) -> float:
        out = self.shop.scratch / f"{uuid.uuid4().hex}{self.shop.spec.suffix}"
        try:
            done = encode(
                source,
                self.rendition(params, knob),
                out,
                ffmpeg=self.shop.ffmpeg,
                timeout_s=self.shop.timeout_s,
            )
        finally:
            out.unlink(missing_ok=True)
        self.shop.count(
            encodes=1,
            encoded_frames=done.frames,
            encoded_pixels=done.frames * self.setting.width * self.setting.height,
            encode_cpu_s=done.cpu_s,
        )
        return done.cpu_s

    def title_curve(
        self, source: Source, params: Params, parts: Sequence[float]
    ) -> list[CurvePoint]:
        """Points of the whole title, at knobs in steps from the operating point, ascending.

        Measured to confirm.
        """
        snap = self.shop.spec.knob.snap
        knobs = sorted({snap(self.knob + part * self.step) for part in parts})
        return self.shop.map(lambda k: self.measure(source, params, k, confirm=True), knobs)

    def check(
        self, source: Source, default: Sequence[CurvePoint], params: Params, limits: TuneLimits
    ) -> Verification | str:
        """Parameters on the whole title, against the defaults' curve (of `title_curve`).

        The comparison, or the reasons why it does not confirm them. Raises ParamsFailed, and
        NotComparable for curves without a BD-rate.
        """
        curve = self.title_curve(source, params, VERIFY_TUNED)

        def saving(what: str) -> float:
            return -bd_rate(_curve(default, what), _curve(curve, what))

        score = saving("score")
        guards = {name: saving(name) for name in measured_guards([*default, *curve])}
        psnr = bd_score(_curve(default, "psnr_y"), _curve(curve, "psnr_y"))
        doubts = []
        if score <= 0:
            doubts.append(f"it needs {-score:.1f} % more bitrate at equal score")
        # they see what suits the metric alone
        doubts += [
            f"by {GUARDS[name]} it needs {-guards[name]:.1f} % more bitrate"
            for name in guards
            if guards[name] < -limits.guard_loss(name)
        ]
        if psnr < -limits.psnr_loss:
            doubts.append(f"PSNR-Y is {-psnr:.2f} dB lower at equal bitrate")
        # last, as it takes several encodes
        ratio = 0.0 if doubts else self.time_ratio(params)
        if ratio > limits.slowdown + TIME_NOISE:
            doubts.append(f"it takes {ratio:.2f} times the defaults' time")
        if doubts:
            return "; ".join(doubts)
        return Verification(params, tuple(curve), score, guards, psnr, ratio)

    def confirm(
        self,
        source: Source,
        candidates: Sequence[Params],
        limits: TuneLimits,
        progress: Callable[[str], object],
    ) -> tuple[Verification | None, list[CurvePoint], list[str]]:
        """The first candidate that the whole title confirms, the defaults' curve, all doubts.

        `progress(message)` is called after each candidate. Raises ParamsFailed when the defaults
        fail.
        """
        default = self.title_curve(source, (), VERIFY_DEFAULT)
        doubts: list[str] = []
        for params in candidates:
            label = " ".join(f"{name}={value}" for name, value in params)
            try:
                found = self.check(source, default, params, limits)
            except (ParamsFailed, NotComparable) as error:
                doubts.append(f"{label} could not be verified: {error}")
            else:
                if isinstance(found, Verification):
                    took = f"{found.time_ratio:.2f} times the time"
                    progress(f"{label}: {saved_words(found.saving)}, {took}")
                    return found, default, doubts
                doubts.append(f"{label} was not confirmed: {found}")
            progress(doubts[-1])
        return None, default, doubts


def _curve(points: Sequence[CurvePoint], what: str) -> list[tuple[float, float]]:
    return [(point.kbps, float(getattr(point, what))) for point in points]


class ParamsFailed(ToolError):
    """An encoder refused these parameters, or failed with them."""
