"""Encodes that keep a bound of their peak bitrate, checked on the packets of the file.

A title is encoded without a cap first. Only where the file's peak is above its bound is it encoded
again, by the encoder's buffer model; these are loose, so the cap is tightened until the file keeps
the bound. With an encoder that has none the knob is raised instead: of a scene here, of the parts
of a title in ratecontrol/capped_parts.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from vqaloop.bitstream.packets import Packet, peak_kbps, segment_peak_kbps, stream_packets
from vqaloop.core.option_fields import fault_of
from vqaloop.encoding.options import CAP, encoded_knob, gop_frames, mean_of, with_cap, with_raised
from vqaloop.encoding.spec import EncoderSpec, Knob
from vqaloop.errors import InputError
from vqaloop.execution.options import PeakOptions
from vqaloop.execution.workshop import Workshop
from vqaloop.records import Cap, Encode, RungScene, Source

PEAK_RATIO = 2.0
"""Peak over average rate that HLS allows at most (Apple's authoring specification, 1.30)."""
TOLERANCE = 0.02
"""Part by which a measured peak may be above its bound."""
HELD = 1 + TOLERANCE / 2
"""Part of its bound up to which a peak is not lowered any more."""
AIM = 0.97
"""Part of the bound at which the next cap aims: peaks jump about with the cap."""
NEAR = 0.84
"""Part of the bound from which on a peak is near enough: more bits would buy little."""
MOST_TRIES = 6
"""Encodes under a cap at most, for one file."""
REFINED = 4
"""Encodes after which a file that keeps its bound is not made again to come nearer to it."""
LEAST_CAP = 0.1
"""Part of the first cap below which none is tried: what is left of the file would be of no use."""
LEAST_GOP_S = 0.75
"""Seconds of the shortest GOP that is taken for one of a second."""
AGAIN_NEAR = 0.93
"""As NEAR, of a first cap that another rung suggests, which may be too low for this one."""
HALVINGS = 6.0
"""Times that the rate halves over an encoder's search range, until its slope has been seen."""
STEEPEST = 3.0
"""Times that a slope which was seen may differ from that: encodes near to each other show none."""
_DRAINED = 0.5
"""Part of its buffer that an encoder spends in the fullest second, beyond what refills it."""
_FOLLOWS = 0.45
"""Power with which peaks over their bound follow the cap, until it has been seen: the average
falls too, and with it a bound relative to that."""


@dataclass(frozen=True)
class PeakLimit:
    """Bound of the bitrate of any second and of any segment of a file."""

    ratio: float = math.inf
    """Times the file's own average."""
    kbps: float = math.inf
    buffer_s: float = 0.5
    """Size of the encoder's buffer, in seconds of the rate that refills it."""
    asked: bool = True
    """False for a default that nobody asked for."""

    def of(self, mean_kbps: float) -> float:
        """The bound in kb/s of a file of this average."""
        return min(self.kbps, self.ratio * mean_kbps)


@dataclass(frozen=True)
class Peaks:
    """Measured bitrates of a file in kb/s, its container not counted."""

    mean_kbps: float
    highest_kbps: float
    """Over any second, or any segment of whole GOPs that lasts a second or longer."""

    def over(self, limit: PeakLimit) -> float:
        """The peak as a part of its bound: above 1 it breaks it."""
        return self.highest_kbps / limit.of(self.mean_kbps)


@dataclass(frozen=True)
class CappedEncode:
    """An encode, the plain one or one that was made for its bound, and how it keeps that."""

    encode: Encode
    over: float
    """Its peak as a part of the bound."""
    tries: int = 0
    """Runs of the encoder that it took beyond the plain one."""
    frames: int = 0
    """Frames that these encoded."""
    scenes: tuple[RungScene, ...] = ()
    """The parts of which the file is joined, where their knobs differ."""
    share: float | None = None
    """Its cap over the rate that was expected to do; another rung of the title will have a like
    one."""

    @property
    def kept(self) -> bool:
        return self.over <= 1 + TOLERANCE


def peak_limit(asked: PeakOptions, default_ratio: float = math.inf) -> PeakLimit | None:
    """The bound that options ask for, the default where none is; None for no bound.

    Raises:
        InputError: The numbers make no sense.
    """
    ratio, kbps = asked.peak_ratio, asked.max_peak
    with fault_of("peak_ratio"):
        if ratio is not None and not 1.05 <= ratio < math.inf:
            raise InputError(
                f"--peak-ratio {ratio:g} is no bound: from 1.05, nearly constant, to about 4"
            )
    with fault_of("max_peak"):
        if kbps is not None and not 1 <= kbps < math.inf:
            raise InputError(f"--max-peak {kbps:g} is no bound: give 1 kb/s or more")
    with fault_of("buffer_s"):
        if not 0.1 <= asked.buffer_s <= 10:
            raise InputError(f"--buffer {asked.buffer_s:g} s: 0.1 to 10 s are taken")
    if ratio is None and kbps is None:
        if default_ratio == math.inf:
            return None
        return PeakLimit(default_ratio, buffer_s=asked.buffer_s, asked=False)
    return PeakLimit(ratio or math.inf, kbps or math.inf, asked.buffer_s)


def bounded_gop_frames(limit: PeakLimit | None, spec: EncoderSpec, fps: Fraction) -> int | None:
    """The GOP length with which a bound can be kept; None: any.

    In a calm GOP nearly all bits are the key frame's. Any second of a file then has twice the
    average, unless each has a key frame; a buffer model makes them small instead.
    """
    if spec.buffer_model or limit is None or not limit.asked or limit.ratio >= PEAK_RATIO:
        return None
    usual = gop_frames(spec, fps)
    found = second_gop(usual, fps)
    return None if found == usual else found


def second_gop(usual: int, fps: Fraction) -> int:
    """The longest GOP of a second that divides the usual one, in frames; that one itself where
    the next shorter one is far from a second, as at odd frame rates."""
    most = max(1, min(usual, round(fps)))
    least = math.ceil(LEAST_GOP_S * fps)
    return next((n for n in range(most, max(1, least) - 1, -1) if usual % n == 0), usual)


def measure_peaks(path: Path, spec: EncoderSpec, source: Source) -> Peaks:
    """The bitrates of an encode of a source. Raises ToolError where it cannot be parsed."""
    return peaks_of(stream_packets(path, spec.codec, source.fps), source.duration_s)


def peaks_of(packets: Sequence[Packet], duration_s: float) -> Peaks:
    """The bitrates of the coded frames of a file."""
    mean = sum(packet.size_bytes for packet in packets) * 8 / 1000 / duration_s
    highest = max(peak_kbps(packets, duration_s), segment_peak_kbps(packets, duration_s))
    return Peaks(mean, max(mean, highest))


def keep_peak(
    shop: Workshop,
    source: Source,
    plain: Encode,
    limit: PeakLimit,
    share: float | None = None,
) -> CappedEncode:
    """An encode that keeps the bound: the plain one where it does, else one under a cap.

    Without a buffer model the knob is raised, which lowers the average as much as the peak: that
    keeps a bound in kb/s alone.

    Args:
        shop: Makes the encodes.
        source: What `plain` was made from.
        plain: The encode without this cap.
        limit: The bound.
        share: That of another rung's cap, with which to begin.

    Returns:
        The encode of the highest cap that keeps the bound; where none of the tries does, the one
        that comes nearest to it, which may be the plain one.

    Raises:
        EncodeFailed: An encode under a cap failed.
    """
    spec, two = shop.spec, mean_of(plain.rendition) is not None
    packets = stream_packets(plain.path, spec.codec, source.fps)
    peaks = peaks_of(packets, source.duration_s)
    without = CappedEncode(plain, peaks.over(limit))
    if without.over <= HELD or (two and not spec.two_pass.cap):
        return without
    if two or spec.buffer_model:
        # two passes keep their mean under a cap, so a bound relative to it does not recede
        clipped = clipping_rate(packets, source.duration_s, limit)
        rate = limit.of(peaks.mean_kbps) if two else clipped
        usual = 1 / (1 + _DRAINED * limit.buffer_s)
        near = NEAR if share is None else AGAIN_NEAR
        made = _under_caps(shop, source, plain, limit, rate * (share or usual), near)
        made = [replace(item, share=_cap_kbps(item) / rate) for item in made]
    else:
        made = _raised(shop, source, without, limit)
    held = [item for item in made if item.over <= HELD]
    best = max(held, key=_quality) if held else min([without, *made], key=lambda item: item.over)
    return replace(best, tries=len(made), frames=len(made) * source.frames)


def _quality(item: CappedEncode) -> tuple[float, float]:
    """Higher for an encode that may spend more."""
    return _cap_kbps(item), item.over


def _cap_kbps(item: CappedEncode) -> float:
    return float(dict(item.encode.rendition.params).get(CAP, 0))


def _under_caps(
    shop: Workshop,
    source: Source,
    plain: Encode,
    limit: PeakLimit,
    first: float,
    near: float,
) -> list[CappedEncode]:
    """Encodes under caps that come nearer and nearer to the bound: `first` is the first in kb/s,
    and `near` the part of the bound from which on its peak is near enough."""
    # an encode that has a cap already never gets a higher one
    most = float(dict(plain.rendition.params).get(CAP, math.inf))
    made: list[tuple[float, CappedEncode]] = []
    rate = first = min(first, most)
    while len(made) < MOST_TRIES and rate >= LEAST_CAP * first:
        maxrate = max(1, round(min(rate, most)))
        if maxrate in (at for at, _ in made):
            break
        cap = Cap(maxrate, max(1, round(maxrate * limit.buffer_s)))
        encode = shop.encode(source, with_cap(plain.rendition, cap))
        over = measure_peaks(encode.path, shop.spec, source).over(limit)
        made.append((maxrate, CappedEncode(encode, over)))
        if near <= over <= HELD or (over <= HELD and len(made) >= REFINED):
            break
        near = NEAR
        rate = next_rate([(at, item.over) for at, item in made])
    return [item for _, item in made]


def _raised(
    shop: Workshop, source: Source, plain: CappedEncode, limit: PeakLimit
) -> list[CappedEncode]:
    """Encodes at knobs of less quality that come near to the bound; none where there is none."""
    rendition, knob, made = plain.encode.rendition, shop.spec.knob, list[CappedEncode]()
    seen = {encoded_knob(rendition): plain.over}
    while len(made) < MOST_TRIES and (at := next_knob(knob, seen, AIM)) not in seen:
        encode = shop.encode(source, with_raised(rendition, at))
        seen[at] = measure_peaks(encode.path, shop.spec, source).over(limit)
        made.append(CappedEncode(encode, seen[at]))
        if NEAR <= seen[at] <= HELD or (seen[at] <= HELD and len(made) >= REFINED):
            break
    return made


def next_knob(knob: Knob, seen: Mapping[float, float], wanted: float) -> float:
    """The knob at which an amount that falls with quality, such as a rate, will be as wanted.

    Args:
        knob: The encoder's.
        seen: The amounts at knobs that were tried, one at least.
        wanted: The amount to reach, or to come below.

    Returns:
        On the knob's grid and inside its range: what the two knobs show, on a logarithmic scale,
        between which it lies or which are nearest to it. One that was not tried, unless no knob
        of less quality is left or one that was tried is below the amount already.
    """
    worse = 1 if knob.lower_is_better else -1
    near = sorted(seen, key=lambda at: abs(math.log(seen[at] / wanted)))
    above = [at for at in near if seen[at] > wanted]
    below = [at for at in near if seen[at] <= wanted]
    pair = [above[0], below[0]] if above and below else near[:2]
    slope = _slope(knob, {at: seen[at] for at in pair})
    found = knob.snap(near[0] + worse * math.log(seen[near[0]] / wanted) / slope)
    while seen.get(found, 0.0) > wanted and knob.snap(found + worse * knob.step) != found:
        found = knob.snap(found + worse * knob.step)
    return found


def expected(knob: Knob, seen: Mapping[float, float], at: float) -> float:
    """The amount that is expected at a knob, as of `next_knob`."""
    if at in seen:
        return seen[at]
    worse = 1 if knob.lower_is_better else -1
    near = sorted(seen, key=lambda k: abs(k - at))
    beyond = [k for k in near if (k - at) * (near[0] - at) < 0]
    pair = [near[0], beyond[0]] if beyond else near[:2]
    slope = _slope(knob, {k: seen[k] for k in pair})
    return seen[near[0]] * math.exp(-slope * worse * (at - near[0]))


def _slope(knob: Knob, seen: Mapping[float, float]) -> float:
    """By how much the logarithm of an amount falls for each 1 of the knob, for less quality; as of
    encoders in general where only one was seen."""
    usual = HALVINGS * math.log(2) / abs(knob.search[1] - knob.search[0])
    if len(seen) < 2:
        return usual
    first, last = sorted(seen, reverse=not knob.lower_is_better)
    slope = math.log(seen[first] / seen[last]) / abs(last - first)
    return min(usual * STEEPEST, max(usual / STEEPEST, slope))


def next_rate(made: Sequence[tuple[float, float]]) -> float:
    """The cap in kb/s to try next.

    Args:
        made: The caps tried, and the peak of each as a part of its bound.
    """
    rate, over = made[-1]
    held = [at for at, part in made if part <= HELD]
    failed = [at for at, part in made if part > HELD]
    if held and failed and max(held) < min(failed):
        return math.sqrt(max(held) * min(failed))
    slope = _FOLLOWS
    if len(made) > 1 and made[-2][0] != rate:
        before, earlier = made[-2]
        slope = math.log(over / earlier) / math.log(rate / before)
    step = math.log(AIM / over) / min(1.5, max(0.3, slope))
    # peaks follow the cap, but never by more than so much at once
    return rate * min(1.5, max(0.4, math.exp(step)))


def clipping_rate(packets: Sequence[Packet], duration_s: float, limit: PeakLimit) -> float:
    """The rate in kb/s at which clipping every second of a file makes it keep the bound.

    Clipping lowers the average too, and with it a bound relative to that: this is the fixed point.
    """
    seconds = clipped_seconds(packets, duration_s, math.inf)

    def breaks(rate: float) -> bool:
        mean = sum(min(second, rate) for second in seconds) / duration_s
        return rate > limit.of(mean)

    low, high = 0.0, max(seconds)
    if not breaks(high):
        # a second or segment that straddles these breaks it
        return high
    # each halving gains a bit: far finer than a kb/s
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return max(low, 1.0)


def clipped_seconds(packets: Sequence[Packet], duration_s: float, rate: float) -> list[float]:
    """The kbit of every second of a file, none above `rate`."""
    count = max(1, math.ceil(duration_s - 1e-6))
    seconds = [0.0] * count
    for packet in packets:
        at = int(packet.time_s - packets[0].time_s + 1e-6)
        seconds[min(count - 1, at)] += packet.size_bytes * 8 / 1000
    return [min(second, rate) for second in seconds]
