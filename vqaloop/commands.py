"""What each command does with its options; the exit status it returns.

What is heavy is imported by the command that needs it, so that the others are quick.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vqaloop import process
from vqaloop.errors import InputError
from vqaloop.files import write_whole
from vqaloop.options import encoding_of, opened_executor
from vqaloop.terminal import printable

UNTRUSTED = 3


def emit(options: argparse.Namespace, document: Any) -> None:
    """Write the JSON document where it was asked for, whole or not at all."""
    if not options.json:
        return
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    path = Path(options.json)
    if not path.exists() or path.is_file():
        write_whole(path, text)
        return
    try:
        # a pipe or a device is written to, never replaced
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"could not write {process.quoted(path)}: {error.strerror or error}"
        ) from error


def say(options: argparse.Namespace, text: str) -> None:
    """A message for people; stdout is left alone when the JSON goes there."""
    if options.json != "-":
        encoding = sys.stdout.encoding or "utf-8"
        print(printable(text).encode(encoding, "backslashreplace").decode(encoding))


def sample(options: argparse.Namespace) -> int:
    from vqaloop.request import parse_size
    from vqaloop.sample import write_sample

    path = write_sample(
        options.output,
        seconds=options.seconds,
        size=parse_size(options.size),
        fps=options.fps,
        seed=options.seed,
        overwrite=options.overwrite,
    )
    say(options, f"wrote {path}")
    emit(options, {"path": printable(str(path)), "bytes": path.stat().st_size})
    return 0


def ladder(options: argparse.Namespace) -> int:
    from vqaloop.cataloguecommand import are_many, build, tell
    from vqaloop.ladder import build_ladder, build_ladders
    from vqaloop.records import Ladder
    from vqaloop.request import parse_duration, parse_resolutions, parse_rungs, parse_size
    from vqaloop.terminal import Progress, print_ladder

    codecs = options.codec.split(",")
    with opened_executor(options) as workers, Progress(quiet=options.quiet) as progress:
        asked: dict[str, Any] = dict(
            resolutions=parse_resolutions(options.resolutions),
            rungs=parse_rungs(options.rungs),
            min_step=options.min_step,
            min_ratio=options.min_ratio,
            min_bitrate=options.min_bitrate,
            max_bitrate=options.max_bitrate,
            min_score=options.min_score,
            max_score=options.max_score,
            require=[parse_size(word) for word in (options.require or "").split(",") if word],
            budget_s=None if options.budget is None else parse_duration(options.budget),
            prior=options.prior,
            tune_trials=options.tune_params,
            progress=progress,
            storage=options.storage,
            out=options.output,
            **encoding_of(options, workers),
        )
        made: dict[str, Ladder] = {}
        if many := are_many(options.input):
            catalogue = build(options, progress, asked)
        elif len(codecs) == 1:
            made[codecs[0]] = build_ladder(options.input[0], codec=codecs[0], **asked)
        else:
            made = build_ladders(options.input[0], codecs=codecs, **asked)
    if many:
        return tell(options, catalogue)
    for codec, ladder in made.items() if options.json != "-" else ():
        if len(made) > 1:
            say(options, "")
            say(options, codec)
        print_ladder(ladder)
    documents = {codec: ladder.to_json() for codec, ladder in made.items()}
    several = {"schema": "vqaloop.ladders/1", "ladders": documents}
    emit(options, several if len(codecs) > 1 else documents[codecs[0]])
    return 0 if all(ladder.trusted for ladder in made.values()) else UNTRUSTED


def tune(options: argparse.Namespace) -> int:
    from vqaloop.request import parse_size
    from vqaloop.terminal import Progress
    from vqaloop.tune import tune_encoder
    from vqaloop.tuning import told

    with opened_executor(options) as workers, Progress(quiet=options.quiet) as progress:
        tuning = tune_encoder(
            options.input,
            codec=options.codec,
            target_score=options.target_score,
            bitrate=options.bitrate,
            trials=options.trials,
            sampler=options.sampler,
            slowdown=options.slowdown,
            resolution=parse_size(options.resolution) if options.resolution else None,
            progress=progress,
            storage=options.storage,
            out=options.output,
            **encoding_of(options, workers),
        )
    for line in told(tuning):
        say(options, line)
    emit(options, tuning.to_json())
    return 0 if tuning.trusted else UNTRUSTED


def score(options: argparse.Namespace) -> int:
    from vqaloop.precision import unreached
    from vqaloop.records import rounded
    from vqaloop.request import check_metric, parse_size
    from vqaloop.score import Scorer

    scorer = Scorer(
        options.metric,
        device=options.device,
        seed=options.seed,
        weights=options.weights,
        score_precision=options.score_precision,
        allow_hdr=options.allow_hdr,
    )
    check_metric(scorer.metric, options.weights, options.reference is not None)
    canvas = parse_size(options.canvas) if options.canvas else None
    if canvas is None and options.reference is None:
        canvas = scorer.canvas_of(options.video)
    found = scorer.score(options.video, options.reference, canvas)
    low, high = found.interval or (found.value, found.value)
    spread = f" (95 % interval {low:.1f} to {high:.1f})" if found.interval else ""
    say(options, f"{found.value:.2f}  {found.metric}, {found.mode}{spread}")
    for warning in unreached([found], scorer.metric):
        say(options, f"warning: {warning}")
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
            "value": rounded(found.value),
            "mode": found.mode,
            "metric": found.metric,
            "label": found.label,
            "weights_sha256": found.weights_sha256,
            "interval": [rounded(v) for v in found.interval] if found.interval else None,
            "clips": [rounded(v) for v in found.clips],
            "canvas": None if canvas is None else list(canvas),
        },
    )
    return 0


def encoders(options: argparse.Namespace) -> int:
    from vqaloop.terminal import print_encoders, survey_encoders

    found = survey_encoders()
    if options.json != "-":
        say(options, f"of {process.ffmpeg_path()}:")
        print_encoders(found, verbose=options.verbose)
    emit(options, found)
    return 0
