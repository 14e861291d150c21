"""Parts of the document `vqaloop.ladder/1`, and what is to be said of a ladder in words."""

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from vqaloop.belief import Dense
from vqaloop.encoder import ffmpeg_version
from vqaloop.encoderspec import EncoderSpec
from vqaloop.hull import Rules, convex_hull, rising_front
from vqaloop.process import file_sha256
from vqaloop.records import RDPoint, Rung, Score, Source, rounded
from vqaloop.trials import Cost


def doubts(rungs: Sequence[Rung], missed: Sequence[Rung], astray: Sequence[Rung]) -> list[str]:
    """Where prediction, score and guard do not agree, in words."""
    doubts = [
        f"{rung.file}: score {rung.score:.1f}, predicted {rung.score_predicted:.1f}"
        for rung in missed
    ]
    doubts += [
        f"{rung.file}: score {rung.score:.1f}, but VMAF {rung.guard['vmaf']:.1f}; the student "
        "does not know such material, use --metric vmaf"
        for rung in astray
    ]
    for low, high in zip(rungs, rungs[1:], strict=False):
        if low.guard["vmaf"] >= high.guard["vmaf"]:
            doubts.append(
                f"VMAF does not rise from {low.file} ({low.guard['vmaf']:.1f}) to "
                f"{high.file} ({high.guard['vmaf']:.1f}), though the score does"
            )
    return doubts


def hull_json(points: Sequence[RDPoint], dense: Dense) -> list[dict[str, Any]]:
    """The hull that rungs are taken from, ascending: of what was measured, and of what is believed
    between two measurements of a size. What is believed beyond them is a guess."""
    rates: dict[tuple[int, int], list[float]] = {}
    for point in points:
        rates.setdefault(point.size, []).append(point.bitrate_kbps)
    between = [
        point
        for point in dense.points
        if point.size in rates
        and min(rates[point.size]) <= point.bitrate_kbps <= max(rates[point.size])
    ]
    return [
        {
            "width": point.width,
            "height": point.height,
            "bitrate_kbps": rounded(point.bitrate_kbps),
            "score": rounded(point.score),
            "knob": point.knob,
            "measured": point.measured,
        }
        for point in convex_hull(rising_front([*points, *between]))
    ]


def source_json(source: Source) -> dict[str, Any]:
    """What a rung is compared with; `input_options` go before -i when it is raw video."""
    return {
        "path": os.fsencode(source.path).decode("utf-8", "replace"),
        "sha256": source.sha256,
        "size_bytes": source.path.stat().st_size if source.path.is_file() else None,
        "width": source.width,
        "height": source.height,
        "fps": float(source.fps),
        "fps_exact": f"{source.fps.numerator}/{source.fps.denominator}",
        "frames": source.frames,
        "duration": source.duration_s,
        "input_options": dict(source.input_options),
    }


def encoder_json(spec: EncoderSpec, version: str, ffmpeg: str, preset: str) -> dict[str, Any]:
    """What encoded: the encoder's name and version, the preset, and the program that ran it: its
    SHA-256, where it was, what it calls itself."""
    return {
        "name": spec.name,
        "library_version": version,
        "ffmpeg": file_sha256(ffmpeg),
        "ffmpeg_path": os.fsencode(ffmpeg).decode("utf-8", "replace"),
        "ffmpeg_version": ffmpeg_version(ffmpeg),
        "preset": preset,
    }


def cost_json(cost: Cost, wall_s: float) -> dict[str, Any]:
    """What a run spent."""
    spent = {name: round(value, 3) for name, value in asdict(cost).items()}
    return {**spent, "wall_s": round(wall_s, 3)}


def metric_json(score: Score) -> dict[str, Any]:
    """Which metric, and what its weights were fitted to."""
    return {
        "name": score.metric,
        "mode": score.mode,
        "weights_sha256": score.weights_sha256,
        "label": score.label,
    }


def rules_json(rules: Rules) -> dict[str, Any]:
    """The rules a ladder kept to; None for no limit."""
    return {
        name: rounded(value) if isinstance(value, float) else value
        for name, value in asdict(rules).items()
    }
