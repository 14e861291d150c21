"""`vqaloop score`."""

import argparse
import contextlib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vqaloop.cli.arguments import Command
from vqaloop.cli.output import emit, loading, say
from vqaloop.core.option_fields import add_options, given_options
from vqaloop.execution.options import WAYS, MetricOptions, Scoring

if TYPE_CHECKING:
    from vqaloop.quality.scorer import Scorer

SCHEMA = "vqaloop.score/1"


def run_score(options: argparse.Namespace) -> int:
    with loading(options):
        from vqaloop.bitstream.film_grain import has_synthesis
        from vqaloop.core.text import parse_size, quoted, size_within
        from vqaloop.execution.checks import check_metric
        from vqaloop.media.hdr import doubt_note
        from vqaloop.quality.sampling_precision import unreached
        from vqaloop.quality.scorer import Scorer
        from vqaloop.records import rounded

    asked = given_options(MetricOptions, options)
    names = [option.name for option in fields(Scoring)] + ["device", "seed", "ffmpeg"]
    scorer = Scorer(
        **{name: asked[name] for name in names if name in asked},
        allow_hdr=options.allow_hdr,
        tonemap=options.tonemap,
        deinterlace=options.deinterlace,
    )
    check_metric(scorer.metric, options.weights or options.prompt, options.reference is not None)
    canvas = size_within(parse_size(options.canvas)) if options.canvas else None
    if canvas is None and options.reference is None:
        canvas = scorer.canvas_of(options.video)
    found = scorer.score(options.video, options.reference, canvas)
    low, high = found.interval or (found.value, found.value)
    spread = f" (95 % interval {low:.1f} to {high:.1f})" if found.interval else ""
    name = found.metric + (f" of {quoted(options.weights)}" if options.weights else "")
    if found.mean is None:
        say(options, f"{found.value:.2f}  {name}, {found.mode}{spread}")
    else:
        say(options, f"{found.value:.2f}  {name} by {found.pool}, {found.mode}")
        say(options, f"{found.mean:.2f}  mean{spread}")
    if found.opinion is not None:
        say(options, f"In VMAF points; {found.opinion:.2f} as {found.label}.")
    grainy = has_synthesis(options.video)
    if grainy:
        say(options, "Scored without the film grain that decoders add to it.")
    for warning in unreached([found], scorer.metric):
        say(options, f"warning: {warning}")
    if kind := _doubted(options, scorer):
        say(options, f"warning: {doubt_note(f'{kind} transfer')}")
    if canvas is not None:
        given = "--canvas" if options.canvas else "its ladder's source; --canvas sets another"
        say(options, f"Judged at {canvas[0]}x{canvas[1]} ({given}).")
    if found.mode == "no-reference":
        say(
            options,
            "Without its original a video is judged coarsely; give --reference if you have it.",
        )
    emit(
        options,
        {
            "schema": SCHEMA,
            "value": rounded(found.value),
            **(
                {}
                if found.mean is None
                else {"pool": found.pool, "value_mean": rounded(found.mean)}
            ),
            "mode": found.mode,
            "metric": found.metric,
            "label": found.label,
            **({} if found.opinion is None else {"opinion": rounded(found.opinion)}),
            "weights_sha256": found.weights_sha256,
            "interval": [rounded(v) for v in found.interval] if found.interval else None,
            "lowest": rounded(min(found.clips)) if found.clips else None,
            "clips": [rounded(v) for v in found.clips],
            "canvas": None if canvas is None else list(canvas),
            **({"film_grain": "left out"} if grainy else {}),
        },
    )
    return 0


def _doubted(options: argparse.Namespace, scorer: "Scorer") -> str | None:
    """PQ or HLG, where what has scored it is not made for that."""
    from vqaloop.errors import InputError
    from vqaloop.media.container import read_stream

    if scorer.hdr.judged or options.tonemap:
        return None
    # a raw stream of AVS2, which was scored, has no container that tells
    with contextlib.suppress(InputError):
        return read_stream(options.reference or options.video).hdr
    return None


def add_score(command: Command) -> None:
    score = command("score", run_score, "score one video, alone or against its original")
    score.add_argument("video", metavar="VIDEO", type=Path)
    score.add_argument("--reference", metavar="REF", type=Path, help="the original")
    score.add_argument(
        "--canvas",
        metavar="WxH",
        help="without --reference: judge at this size, that of the original (default: of a rung "
        "beside its ladder.json the size of its source, else the video's own)",
    )
    score.add_argument("--allow-hdr", action="store_true", help="score PQ and HLG all the same")
    score.add_argument(
        "--tonemap", action="store_true", help="make PQ and HLG SDR (BT.709) as they are read"
    )
    score.add_argument(
        "--deinterlace",
        choices=WAYS,
        default="auto",
        help="what is made of interlaced video, as of `vqaloop ladder` (default: auto)",
    )
    add_options(score, Scoring)
