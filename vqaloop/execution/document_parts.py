"""Parts that all result documents share: source, encoder, metric and cost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vqaloop.bitstream.colour_tags import video_range_of
from vqaloop.core.files import file_sha256
from vqaloop.core.text import utf8
from vqaloop.core.version import __version__
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import encoder_version, ffmpeg_version
from vqaloop.execution.executor import Local
from vqaloop.quality.metric import Metric
from vqaloop.records import Encode, Score, Source

if TYPE_CHECKING:
    from vqaloop.execution.session import Session
    from vqaloop.execution.workshop import Cost


def source_json(source: Source) -> dict[str, Any]:
    """What a rung is compared with; `input_options` go before -i when it is raw video."""
    return {
        "path": utf8(source.path),
        "sha256": source.sha256,
        "size_bytes": source.path.stat().st_size if source.path.is_file() else None,
        "width": source.width,
        "height": source.height,
        "fps": float(source.fps),
        "fps_exact": f"{source.fps.numerator}/{source.fps.denominator}",
        "frames": source.frames,
        "duration": source.duration_s,
        "input_options": dict(source.input_options),
        **({"hdr": hdr_json(source)} if source.hdr or source.dynamic_hdr else {}),
    }


def hdr_json(source: Source) -> dict[str, Any]:
    """The dynamic range of a source, and the metadata that encodes keep (`static`) and lose."""
    static = source.static_hdr
    return {
        "range": video_range_of(source.colour),
        "static": asdict(static) if static else None,
        "dropped": list(source.dynamic_hdr),
    }


def encoder_json(spec: EncoderSpec, version: str, ffmpeg: str, preset: str) -> dict[str, Any]:
    """What encoded: the encoder's name and version, the preset, and the program that ran it: its
    SHA-256, where it was, what it calls itself."""
    return {
        "name": spec.name,
        "library_version": version,
        "ffmpeg": file_sha256(ffmpeg),
        "ffmpeg_path": utf8(ffmpeg),
        "ffmpeg_version": ffmpeg_version(ffmpeg),
        "preset": preset,
    }


def head_json(schema: str, session: Session[Any], score: Score) -> dict[str, Any]:
    """How the document of a job on one title begins: what was encoded and scored, and by what."""
    version = encoder_version(session.spec, session.ffmpeg)
    return {
        "schema": schema,
        "vqaloop": __version__,
        "source": source_json(session.source),
        "codec": session.options.codec,
        "encoder": encoder_json(session.spec, version, session.ffmpeg, session.preset),
        "metric": metric_json(score, session.metric),
    }


def cost_json(cost: Cost, wall_s: float) -> dict[str, Any]:
    """What a run spent."""
    spent = {name: round(value, 3) for name, value in asdict(cost).items()}
    return {**spent, "wall_s": round(wall_s, 3)}


def overhead_json(
    session: Session[Any], delivered: Sequence[Encode], others: Sequence[Encode]
) -> dict[str, Any]:
    """All CPU seconds of a job so far, and those of encoding what it delivers alone.

    Their ratio is None where some encode was made by an earlier run, whose time is unknown here.
    `busy` is the part of this machine's processors that the process used from the first encode it
    made to the last; None where it made none, or other machines did.
    """
    local, busy = isinstance(session.shop.executor, Local), session.shop.busy.processors()
    have = len(os.sched_getaffinity(0))
    cost = session.shop.cost
    total = session.spent_cpu_s()
    if not local:
        # what other machines spent is in the cost alone, and this one has done the rest
        total += cost.encode_cpu_s + cost.score_s + cost.guard_s
    encoding = sum(encode.cpu_s for encode in delivered)
    known = encoding > 0 and all(map(session.shop.has_made, [*delivered, *others]))
    return {
        "cpu_s": round(total, 3),
        "delivered_cpu_s": round(encoding, 3),
        "overhead": round(total / encoding, 3) if known else None,
        "processors": have if local else None,
        "busy": round(min(1.0, busy / have), 3) if local and busy is not None else None,
    }


def metric_json(score: Score, metric: Metric) -> dict[str, Any]:
    """Which metric, what its weights were fitted to, and how that became VMAF points."""
    return {
        "name": score.metric,
        "mode": score.mode,
        "weights_sha256": score.weights_sha256,
        "label": score.label,
        **({} if score.pool == "mean" else {"pool": score.pool}),
        **({"scale": asdict(metric.scale)} if metric.scale else {}),
    }
