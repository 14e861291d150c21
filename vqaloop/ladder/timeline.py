"""Bitrate and score of a rung over its time, as coarse as a plot needs them.

`Rung.over_time`, and `over_time` of a rung in ladder.json, is

    {"step_s": 1.0, "kbps": [...], "span_s": 0.08, "scores": [[0.6, 71.2], ...]}

`kbps` is the rate of each `step_s` seconds, the last of which may be shorter; `scores` are pairs
of a time in seconds, the middle of what was looked at, and the score of the `span_s` seconds
there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqaloop.bitstream.packets import Packet, stream_packets
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import ToolError
from vqaloop.media.planes import CLIP_FRAMES
from vqaloop.records import Score, Source

STEPS_S = (0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300)
"""Spans over which bitrates and scores are averaged."""
MOST_POINTS = 240
"""Points of a curve; a page cannot show more."""
LEAST_S = 4.0
"""From this duration on rates are of a second at least, which is what a player's buffer sees."""


def over_time(path: Path, spec: EncoderSpec, source: Source, score: Score) -> dict[str, Any]:
    """`Rung.over_time` of a rung's file; without bitrates where it cannot be parsed."""
    step_s = step_of(source.duration_s)
    try:
        packets = stream_packets(path, spec.codec, source.fps)
    except (ToolError, OSError):
        packets = []
    rates = {"step_s": step_s, "kbps": rates_of(packets, source.duration_s, step_s)}
    return {**(rates if packets else {}), **scores_of(source, score, step_s)}


def step_of(duration_s: float) -> float:
    """The span that gives a title no more points than MOST_POINTS."""
    fit = [
        step
        for step in STEPS_S
        if duration_s / step <= MOST_POINTS and (step >= 1 or duration_s < LEAST_S)
    ]
    return float(fit[0] if fit else duration_s / MOST_POINTS)


def rates_of(packets: Sequence[Packet], duration_s: float, step_s: float) -> list[float]:
    """kb/s of each span, without the container; the last span may be shorter or longer.

    A remainder of less than half a span belongs to the span before it.
    """
    count = max(1, int(duration_s / step_s + 0.5))
    first = min((packet.time_s for packet in packets), default=0.0)
    held = np.zeros(count)
    for packet in packets:
        # a frame at the very edge is in the later span, whatever the float rounding
        held[min(count - 1, int((packet.time_s - first) / step_s + 1e-6))] += packet.size_bytes
    spans = np.full(count, step_s)
    spans[-1] = duration_s - step_s * (count - 1)
    return [round(float(rate), 2) for rate in held * 8 / 1000 / spans]


def scores_of(source: Source, score: Score, step_s: float) -> dict[str, Any]:
    """Scores over time: of each clip the student scored, or means of all frames over a span."""
    fps = float(source.fps)
    if score.moments:
        half_s = CLIP_FRAMES / 2 / fps
        found = [(frame / fps + half_s, value) for frame, value in sorted(score.moments)]
        return {"span_s": round(2 * half_s, 4), "scores": _pairs(found)}
    if len(score.clips) != source.frames:
        return {}
    each = 1 if source.frames <= MOST_POINTS else max(1, round(step_s * fps))
    parts = [score.clips[at : at + each] for at in range(0, source.frames, each)]
    found = [
        ((index * each + len(part) / 2) / fps, sum(part) / len(part))
        for index, part in enumerate(parts)
    ]
    return {"span_s": round(each / fps, 4), "scores": _pairs(found)}


def _pairs(found: Sequence[tuple[float, float]]) -> list[list[float]]:
    return [[round(time_s, 3), round(value, 2)] for time_s, value in found]
