"""The rules of a ladder as asked for: rung spacing, limits, sizes, time budget."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vqaloop.core import scopes
from vqaloop.core.option_fields import fault_of
from vqaloop.errors import CalledOff, InputError
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder.options import BANDWIDTH_SHARE, LadderOptions
from vqaloop.quality.full_reference import CAMBI
from vqaloop.quality.guard import GuardPlan
from vqaloop.quality.metric import Metric
from vqaloop.records import Source
from vqaloop.search.audience import read_audience
from vqaloop.search.rungs import LEAST_RUNGS, Rules


@dataclass
class Budget:
    """Wall seconds until all is encoded and scored, and what that has taken so far."""

    seconds: float = math.inf
    started: float = field(default_factory=time.monotonic)
    """When they began: with the call, so that probing and the excerpt are of them."""
    ended: bool = False
    """True once it has kept an encode from being made, or called one off."""
    _spent_s: float = 0.0
    _spent_on: float = 0.0

    def affordable(self, sizes: Sequence[float], share: float, least: int) -> int:
        """How many of these encodes (pixels each), in order, fit into a share of the budget.

        The first `least` always do. The cost of one is estimated from those that were made.
        """
        left = self.left_s(share)
        rate = self._spent_s / self._spent_on if self._spent_on else 0.0
        fit = 0
        for size in sizes:
            left -= size * rate
            if left < 0 and fit >= least:
                self.ended = True
                break
            fit += 1
        return fit

    def left_s(self, share: float = 1.0) -> float:
        """Seconds that are left of a share of the budget; less than 0 once it has run out."""
        return self.seconds * share - (time.monotonic() - self.started)

    @contextlib.contextmanager
    def ending(self, share: float, enough: Callable[[], bool]) -> Iterator[Callable[[], None]]:
        """What is done inside is called off when a share of the budget has run out, and `enough`
        is done. The function given is to be called when more is.

        Raises CalledOff only where it is not the budget that ended it.
        """
        scope = scopes.Scope()

        def look() -> None:
            if self.left_s(share) <= 0 and enough():
                scope.cancel()

        most = threading.TIMEOUT_MAX
        timer = threading.Timer(min(most, max(0.0, self.left_s(share))), look)
        timer.daemon = True
        timer.start()
        try:
            with scope.entered():
                yield look
        except CalledOff:
            # not where somebody else has called it off
            scopes.check_cancelled()
            self.ended = True
        finally:
            timer.cancel()

    def spend(self, seconds: float, pixels: float) -> None:
        self._spent_s += seconds
        self._spent_on += pixels


def make_rules(meter: Metric, asked: LadderOptions) -> Rules:
    """The rules asked for, the metric's own where none is. Raises InputError."""
    if asked.rungs is not None and asked.rungs < LEAST_RUNGS:
        with fault_of("rungs"):
            raise InputError(f"a ladder has at least {LEAST_RUNGS} rungs, not {asked.rungs}")
    step = meter.step if asked.min_step is None else asked.min_step
    if not 0 < step < meter.top:
        with fault_of("metric", "min_step"):
            raise InputError(f"the least step must lie between 0 and {meter.top:g}, not {step:g}")
    if not 1 < asked.min_ratio <= 8:
        with fault_of("min_ratio"):
            raise InputError(
                f"the least ratio must lie above 1 and up to 8, not {asked.min_ratio:g}"
            )
    if not 0 <= asked.min_bitrate < asked.max_bitrate:
        with fault_of("min_bitrate", "max_bitrate"):
            raise InputError(
                f"the bitrates are no range: {asked.min_bitrate:g} to {asked.max_bitrate:g} kb/s; "
                "--min-bitrate must be less than --max-bitrate"
            )
    floor = meter.floor if asked.min_score is None else asked.min_score
    ceiling = meter.ceiling if asked.max_score is None else asked.max_score
    if not 0 <= floor < ceiling <= meter.top:
        with fault_of("metric", "min_score", "max_score"):
            raise InputError(
                f"--min-score must lie within 0 and {meter.top:g} and below --max-score; they are "
                f"{floor:g} and {ceiling:g} (for {meter.name} by default {meter.floor:g} and "
                f"{meter.ceiling:g})"
            )
    audience = None
    if asked.audience is not None:
        audience = read_audience(asked.audience, asked.bandwidth_share)
    elif asked.bandwidth_share != BANDWIDTH_SHARE:
        with fault_of("bandwidth_share"):
            raise InputError("--bandwidth-share is of an audience; give --audience too")
    return Rules(
        min_step=step,
        min_ratio=asked.min_ratio,
        floor=floor,
        ceiling=ceiling,
        min_kbps=asked.min_bitrate,
        max_kbps=asked.max_bitrate,
        count=asked.rungs,
        least_top=math.prod(asked.min_top_size or (0,)),
        audience=audience,
    )


def guard_asked(asked: LadderOptions, shop: Workshop, source: Source) -> GuardPlan | None:
    """What the guard measures of rungs of a source. Raises InputError where that lacks a limit."""
    plan = shop.guard_plan(source, asked.guard)
    if asked.max_banding is not None and plan is not None and CAMBI not in plan.every:
        width, height = source.canvas
        with fault_of("max_banding"):
            raise InputError(
                f"--max-banding needs VMAF v1: pictures of {width}x{height} are too small or too "
                "narrow for it, or this ffmpeg lacks it; leave out --max-banding, or give another "
                "ffmpeg with --ffmpeg"
            )
    return plan


def required_sizes(
    asked: Sequence[tuple[int, int]], sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Sizes that must have a rung. Raises InputError for one that is not tried."""
    for width, height in asked:
        if (width, height) not in sizes:
            tried = ", ".join(f"{w}x{h}" for w, h in sizes)
            raise InputError(
                f"--require {width}x{height} is none of the sizes tried ({tried}); "
                "name it in --resolutions too, if the source is as large"
            )
    return tuple(dict.fromkeys(asked))


def allowed_sizes(
    asked: LadderOptions, sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """The sizes that may have a rung. Raises InputError where there is none, or no top."""
    least, top = asked.min_bottom_size, asked.min_top_size
    kept = tuple(s for s in sizes if math.prod(s) >= math.prod(least or (0,)))
    tried = ", ".join(f"{w}x{h}" for w, h in sizes)
    if least and not kept:
        with fault_of("min_bottom_size"):
            raise InputError(
                f"--min-bottom-size {least[0]}x{least[1]} leaves none of the sizes tried "
                f"({tried}); give a smaller one"
            )
    if top and all(math.prod(s) < math.prod(top) for s in kept):
        with fault_of("min_top_size"):
            raise InputError(
                f"--min-top-size {top[0]}x{top[1]} is larger than all sizes tried ({tried}); give "
                "a smaller one, or --resolutions, if the source is as large"
            )
    return kept


def check_codecs(codecs: Sequence[str], encoder: str | None) -> None:
    """Raises InputError where codecs repeat, or an encoder is named for several."""
    with fault_of("codec"):
        if len(set(codecs)) < len(codecs):
            raise InputError(f"--codec {','.join(codecs)} names one twice")
    with fault_of("codec", "encoder"):
        if encoder and len(codecs) > 1:
            raise InputError("--encoder goes with one codec; leave it out, or name one codec")
