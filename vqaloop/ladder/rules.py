"""The rules of a ladder as asked for: rung spacing, limits, sizes, time budget."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from vqaloop.core import scopes
from vqaloop.errors import CalledOff, InputError
from vqaloop.quality.metric import Metric
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

        The first `least` always do. What one costs is told by those that were made.
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


def make_rules(
    meter: Metric,
    rungs: int | None,
    min_step: float | None,
    min_ratio: float,
    min_bitrate: float,
    max_bitrate: float,
    min_score: float | None = None,
    max_score: float | None = None,
) -> Rules:
    """The rules asked for, the metric's own where nothing was said. Raises InputError."""
    if rungs is not None and rungs < LEAST_RUNGS:
        raise InputError(f"a ladder has at least {LEAST_RUNGS} rungs, not {rungs}")
    step = meter.step if min_step is None else min_step
    if not 0 < step < meter.top:
        raise InputError(f"the least step must lie between 0 and {meter.top:g}, not {step:g}")
    if not 1 < min_ratio <= 8:
        raise InputError(f"the least ratio must lie above 1 and up to 8, not {min_ratio:g}")
    if not 0 <= min_bitrate < max_bitrate:
        raise InputError(
            f"the bitrates are no range: {min_bitrate:g} to {max_bitrate:g} kb/s; "
            "--min-bitrate must be less than --max-bitrate"
        )
    floor = meter.floor if min_score is None else min_score
    ceiling = meter.ceiling if max_score is None else max_score
    if not 0 <= floor < ceiling <= meter.top:
        raise InputError(
            f"--min-score must lie within 0 and {meter.top:g} and below --max-score; they are "
            f"{floor:g} and {ceiling:g} (for {meter.name} by default {meter.floor:g} and "
            f"{meter.ceiling:g})"
        )
    return Rules(
        min_step=step,
        min_ratio=min_ratio,
        floor=floor,
        ceiling=ceiling,
        min_kbps=min_bitrate,
        max_kbps=max_bitrate,
        count=rungs,
    )


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


def checked_budget(seconds: float | None) -> float:
    if seconds is None:
        return math.inf
    if not 0 < seconds < math.inf:
        raise InputError(f"the budget must be a time above 0, not {seconds:g} s")
    return seconds
