"""`vqaloop regress`: its options, and what it does with them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.cli.options import check_outputs, metric_option, number, whole
from vqaloop.cli.output import emit, say
from vqaloop.core.files import write_whole
from vqaloop.errors import InputError

if TYPE_CHECKING:
    from vqaloop.cli.arguments import Command


def add_regress(command: "Command") -> None:
    """The command with its options."""
    parser = command("regress", run_regress, "tell whether a build of an encoder got worse")
    parser.add_argument("clips", metavar="CLIP", type=Path, nargs="*", help="what is encoded")
    parser.add_argument(
        "--baseline",
        metavar="BUILD",
        type=Path,
        help="an ffmpeg ('bundled' for vqaloop's own), a standalone encoder (x264, x265, "
        "SvtAv1EncApp, aomenc, vpxenc, rav1e), or a result that --save wrote",
    )
    parser.add_argument("--candidate", metavar="BUILD", type=Path, help="the build in question")
    parser.add_argument("--codec", metavar="h264|hevc|vp9|av1|avs2")
    parser.add_argument("--encoder", metavar="NAME", help="another than the codec's default")
    runs = parser.add_argument_group("what is run")
    runs.add_argument("--preset", metavar="P", help="the encoder's preset")
    runs.add_argument(
        "--knobs", metavar="V,...", help="four or more of the quality knob (default: of its range)"
    )
    runs.add_argument("--bitrates", metavar="K,...", help="target bitrates in kb/s instead")
    runs.add_argument(
        "--resolutions", metavar="WxH,...", help="sizes, compared by hulls (default: the clip's)"
    )
    runs.add_argument("--frames", type=whole, metavar="N", help="of each clip the first N")
    runs.add_argument("--bit-depth", type=whole, metavar="8|10", help="default: the clip's")
    runs.add_argument("--args", default="", metavar="TEXT", help="more arguments of both builds")
    runs.add_argument("--baseline-args", default="", metavar="TEXT")
    runs.add_argument("--candidate-args", default="", metavar="TEXT")
    runs.add_argument(
        "--time-limit", type=number, metavar="S", help="a run that takes longer hangs"
    )
    runs.add_argument("--save", type=Path, metavar="FILE", help="keep the baseline's runs")
    limits = parser.add_argument_group("what is worse, in percent")
    limits.add_argument(
        "--threshold",
        type=number,
        default=0.5,
        metavar="P",
        help="mean BD-rate (default: %(default)s; never below the noise floor)",
    )
    limits.add_argument(
        "--clip-threshold",
        type=number,
        default=5.0,
        metavar="P",
        help="BD-rate of a single clip (default: %(default)s)",
    )
    limits.add_argument("--time-threshold", type=number, metavar="P", help="CPU time")
    limits.add_argument("--memory-threshold", type=number, metavar="P", help="peak memory")
    limits.add_argument(
        "--rate-threshold", type=number, metavar="P", help="bitrate at equal knob, or off target"
    )
    limits.add_argument(
        "--gate",
        metavar="NAME,...",
        help="metrics that may call a regression (default: the --metric, vmaf and psnr_y)",
    )
    metric_option(parser)
    parser.add_argument("--allow-hdr", action="store_true", help="take PQ and HLG all the same")
    outputs = parser.add_argument_group("outputs, besides the table and --json")
    outputs.add_argument("--junit", type=Path, metavar="FILE", help="a test case a clip and check")
    outputs.add_argument("--markdown", type=Path, metavar="FILE", help="for a pull request")
    outputs.add_argument("--html", type=Path, metavar="FILE", help="a page with the curves")
    outputs.add_argument(
        "--history",
        type=Path,
        metavar="FILE",
        help="add the result to this store; alone: show its trend and where it changed",
    )


def run_regress(options: argparse.Namespace) -> int:
    from vqaloop.core.text import parse_resolutions
    from vqaloop.regress.compare import compare_builds, split_args
    from vqaloop.regress.summary import print_verdict
    from vqaloop.report.progress import Progress

    if options.history and not options.baseline:
        return _trend(options)
    if not options.baseline or not options.codec:
        raise InputError("--baseline and --codec are needed; see `vqaloop regress --help`")
    outputs = {name: getattr(options, name) for name in ("junit", "markdown", "html")}
    check_outputs({**outputs, "history": options.history})
    if options.history:
        from vqaloop.trend.store import check_store

        check_store(options.history)
    both = split_args(options.args, "--args")
    with Progress(quiet=options.quiet) as progress:
        compared = compare_builds(
            options.baseline,
            options.candidate,
            codec=options.codec,
            encoder=options.encoder,
            clips=options.clips,
            preset=options.preset,
            knobs=_numbers(options.knobs, "--knobs"),
            bitrates=_numbers(options.bitrates, "--bitrates"),
            resolutions=parse_resolutions(options.resolutions or "auto") or (),
            frames=options.frames,
            bit_depth=options.bit_depth,
            baseline_args=[*both, *split_args(options.baseline_args, "--baseline-args")],
            candidate_args=[*both, *split_args(options.candidate_args, "--candidate-args")],
            threshold=options.threshold,
            clip_threshold=options.clip_threshold,
            time_threshold=options.time_threshold,
            memory_threshold=options.memory_threshold,
            rate_threshold=options.rate_threshold,
            metric=options.metric,
            weights=options.weights,
            score_precision=options.score_precision,
            gate=[name for word in (options.gate or "").split(",") if (name := word.strip())],
            save=options.save,
            timeout_s=options.time_limit,
            device=options.device,
            workers=options.workers,
            seed=options.seed,
            cache=not options.no_cache,
            allow_hdr=options.allow_hdr,
            progress=progress,
        )
    document = compared.document
    if compared.verdict == "saved":
        say(options, compared.summary)
    elif options.json != "-":
        print_verdict(document)
    _write_outputs(document, outputs)
    if options.history and document["candidate"]:
        from vqaloop.trend.store import append

        append(document, options.history)
    emit(options, document)
    return compared.exit_code


def _write_outputs(document: dict[str, Any], paths: dict[str, Path | None]) -> None:
    """The comparison in every form asked for, each file whole or not at all."""
    from vqaloop.regress.junit import junit_xml
    from vqaloop.regress.page import regress_page
    from vqaloop.regress.summary import markdown

    forms: dict[str, Callable[[dict[str, Any]], str | bytes]]
    forms = {"junit": junit_xml, "markdown": markdown, "html": regress_page}
    for name, path in paths.items():
        if path is not None:
            write_whole(path, forms[name](document))


def _trend(options: argparse.Namespace) -> int:
    from vqaloop.trend.plot import show_trend

    if options.clips or options.candidate:
        raise InputError(
            "to compare, give a --baseline too; for the trend of a history give --history alone"
        )
    trends = show_trend(
        options.history, options.html, codec=options.codec, say=lambda line: say(options, line)
    )
    emit(options, {"schema": "vqaloop.trend/1", "trends": [trend.to_json() for trend in trends]})
    return 0


def _numbers(text: str | None, option: str) -> list[float]:
    try:
        values = [float(word) for word in (text or "").split(",") if word]
    except ValueError as error:
        raise InputError(f"{option} {text!r} are not numbers with commas between") from error
    return values
