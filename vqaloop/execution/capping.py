"""Encodes that keep a bound of their peak bitrate, checked on the packets of the file.

A title is encoded without a cap first. Only where the file's peak is above its bound is it encoded
again, by the encoder's buffer model; these are loose, so the cap is tightened until the file keeps
the bound.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vqaloop.bitstream.packets import Packet, peak_kbps, segment_peak_kbps, stream_packets
from vqaloop.core.option_fields import fault_of
from vqaloop.encoding.options import CAP, mean_of, with_cap
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.execution.options import PeakOptions
from vqaloop.execution.workshop import Workshop
from vqaloop.records import Cap, Encode, Source

PEAK_RATIO = 2.0
"""Peak over average rate that HLS allows at most (Apple's authoring specification, 1.30)."""
TOLERANCE = 0.02
"""Part by which a measured peak may be above its bound."""
AIM = 0.97
"""Part of the bound at which the next cap aims: peaks jump about with the cap."""
NEAR = 0.88
"""Part of the bound from which on a peak is near enough: more bits would buy little."""
MOST_TRIES = 6
"""Encodes under a cap at most, for one file."""
MEAN_TRIES = 3
"""Of these at most with a model that has a mean rate and a fallback: peaks hardly follow it."""
REFINED = 4
"""Encodes after which a file that keeps its bound is not made again to come nearer to it."""
LEAST_CAP = 0.1
"""Part of the first cap below which none is tried: what is left of the file would be of no use."""
_DRAINED = 0.3
"""Part of its buffer that an encoder spends in the fullest second, beyond what refills it."""


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
    """An encode, the plain one or one under a cap, and how it keeps its bound."""

    encode: Encode
    over: float
    """Its peak as a part of the bound."""
    tries: int = 0
    """Encodes under a cap that it took."""

    @property
    def kept(self) -> bool:
        return self.over <= 1 + TOLERANCE


def peak_limit(
    asked: PeakOptions, spec: EncoderSpec, default_ratio: float = math.inf
) -> PeakLimit | None:
    """The bound that options ask for, the default where none is; None for no bound.

    Raises:
        InputError: The numbers make no sense, or the encoder cannot be capped.
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
    wanted = ratio is not None or kbps is not None
    if wanted and not spec.buffer_model:
        with fault_of("codec", "encoder", "peak_ratio", "max_peak"):
            raise InputError(
                f"{spec.name} cannot keep a peak: {spec.buffer_model.cannot}; choose another "
                "encoder, or leave out --peak-ratio and --max-peak"
            )
    if not wanted:
        if default_ratio == math.inf:
            return None
        return PeakLimit(default_ratio, buffer_s=asked.buffer_s, asked=False)
    return PeakLimit(ratio or math.inf, kbps or math.inf, asked.buffer_s)


def measure_peaks(path: Path, spec: EncoderSpec, source: Source) -> Peaks:
    """The bitrates of an encode of a source. Raises ToolError where it cannot be parsed."""
    return peaks_of(stream_packets(path, spec.codec, source.fps), source.duration_s)


def peaks_of(packets: Sequence[Packet], duration_s: float) -> Peaks:
    """The bitrates of the coded frames of a file."""
    mean = sum(packet.size_bytes for packet in packets) * 8 / 1000 / duration_s
    highest = max(peak_kbps(packets, duration_s), segment_peak_kbps(packets, duration_s))
    return Peaks(mean, max(mean, highest))


def keep_peak(shop: Workshop, source: Source, plain: Encode, limit: PeakLimit) -> CappedEncode:
    """An encode that keeps the bound: the plain one where it does, else one under a cap.

    Args:
        shop: Makes the encodes.
        source: What `plain` was made from.
        plain: The encode without this cap.
        limit: The bound.

    Returns:
        The encode of the highest cap that keeps the bound; where none of the tries does, the one
        that comes nearest to it.

    Raises:
        EncodeFailed: An encode under a cap failed.
    """
    spec, two = shop.spec, mean_of(plain.rendition) is not None
    packets = stream_packets(plain.path, spec.codec, source.fps)
    peaks = peaks_of(packets, source.duration_s)
    if peaks.over(limit) <= 1 or not (spec.two_pass.cap if two else spec.buffer_model):
        return CappedEncode(plain, peaks.over(limit))
    clipped = clipping_rate(packets, source.duration_s, limit)
    # two passes keep their mean under a cap, so a bound relative to it does not recede
    rate = (limit.of(peaks.mean_kbps) if two else clipped) / (1 + _DRAINED * limit.buffer_s)
    # an encode that has a cap already never gets a higher one
    most = float(dict(plain.rendition.params).get(CAP, math.inf))
    tries: list[CappedEncode] = []
    model = None if two else spec.buffer_model
    for place in range(2):
        series = _Series(place, min(rate, most), most, MOST_TRIES)
        if model and model.mean:
            mean = sum(clipped_seconds(packets, source.duration_s, clipped)) / source.duration_s
            # more than the plain file takes is no cap
            most_mean = min(most, peaks.mean_kbps)
            count = MEAN_TRIES if model.fallback else MOST_TRIES
            series = _Series(place, min(mean, most_mean), most_mean, count)
        made = _tried(shop, source, plain, limit, series)
        tries += made
        held = [item for item in made if item.over <= 1]
        if held:
            best = max(held, key=lambda item: int(dict(item.encode.rendition.params)[CAP]))
            return replace(best, tries=len(tries))
        if model is None or model.fallback is None:
            break
        model = model.fallback
    return replace(min(tries, key=lambda item: item.over), tries=len(tries))


@dataclass(frozen=True)
class _Series:
    """The caps to try with one buffer model."""

    model: int
    """Its place, as of `with_cap`."""
    first: float
    """The rate in kb/s to begin with."""
    most: float
    """The highest that may be tried."""
    count: int
    """How many at most."""


def _tried(
    shop: Workshop, source: Source, plain: Encode, limit: PeakLimit, series: _Series
) -> list[CappedEncode]:
    """Encodes under caps that come nearer and nearer to the bound."""
    made: list[tuple[float, CappedEncode]] = []
    rate = series.first
    while len(made) < series.count and rate >= LEAST_CAP * series.first:
        maxrate = max(1, round(min(rate, series.most)))
        if maxrate in (at for at, _ in made):
            break
        cap = Cap(maxrate, max(1, round(maxrate * limit.buffer_s)))
        encode = shop.encode(source, with_cap(plain.rendition, cap, series.model))
        over = measure_peaks(encode.path, shop.spec, source).over(limit)
        made.append((maxrate, CappedEncode(encode, over)))
        if NEAR <= over <= 1 or (over <= 1 and len(made) >= REFINED):
            break
        rate = next_rate([(at, item.over) for at, item in made])
    return [item for _, item in made]


def next_rate(made: Sequence[tuple[float, float]]) -> float:
    """The cap in kb/s to try next.

    Args:
        made: The caps tried, and the peak of each as a part of its bound.
    """
    rate, over = made[-1]
    held = [at for at, part in made if part <= 1]
    failed = [at for at, part in made if part > 1]
    if held and failed and max(held) < min(failed):
        return math.sqrt(max(held) * min(failed))
    slope = 1.0
    if len(made) > 1 and made[-2][0] != rate:
        # the average falls with the cap, so a relative bound recedes: by how much is seen by now
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
