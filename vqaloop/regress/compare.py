"""Compares two builds of an encoder: checks the request, runs both, and makes the document."""

import datetime
import hashlib
import json
import os
import platform
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqaloop.bitstream.colour_tags import colour_range
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.folders import check_writable
from vqaloop.core.option_fields import taken
from vqaloop.core.text import quoted, size_text, utf8
from vqaloop.core.version import __version__
from vqaloop.encoding import checks
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.execution.cache import Cache
from vqaloop.execution.checks import check_metric
from vqaloop.execution.options import PathName
from vqaloop.execution.stage_progress import TimeLeft
from vqaloop.execution.tools import chosen_metric
from vqaloop.execution.workshop import Cost, Workshop
from vqaloop.media.hdr import HdrUse
from vqaloop.media.probe import probe_source
from vqaloop.quality.classical_metric import CLASSICAL
from vqaloop.quality.metric import FOR_HDR, Metric
from vqaloop.quality.registry import DEFAULT_METRIC, open_metric
from vqaloop.records import Event, Source, Watcher
from vqaloop.regress.build_command import Build, Point
from vqaloop.regress.builds import check_arguments, open_build
from vqaloop.regress.document import outcome_json
from vqaloop.regress.interleaved_runs import JUDGES, RunPlan, pooled_name, run_clips
from vqaloop.regress.options import RegressOptions
from vqaloop.regress.saved_runs import (
    Journal,
    Saved,
    check_any_run,
    differing,
    is_saved,
    read_saved,
    save_summary,
    without_candidate,
    write_saved,
)
from vqaloop.regress.statistics import BASELINE, CANDIDATE, ClipRuns, Limits
from vqaloop.regress.verdict import judge

POINTS = (0.2, 0.4, 0.6, 0.8)
"""Where on the knob's search range the curves are measured."""
LEAST_POINTS = 4
"""PCHIP through fewer says little of a curve; JVET-T2010 takes 4, the conditions of AOM take 6."""
BUNDLED = "bundled"
"""Stands for the ffmpeg that vqaloop itself runs, in the place of a build's path."""

Settings = Mapping[str, str]
Side = Build | Saved
"""What is compared: a build to be run, or the kept runs of one."""


@dataclass(frozen=True)
class Comparison:
    """Two builds compared."""

    document: dict[str, Any]
    """vqaloop.regress/1, as --json writes it."""

    @property
    def verdict(self) -> str:
        """regression, improvement, no change, cannot tell; or saved, without a candidate."""
        return str(self.document["verdict"])

    @property
    def regressed(self) -> bool:
        return self.verdict == "regression"

    @property
    def exit_code(self) -> int:
        """0, or 1 for a regression, or 2 where nothing could be compared."""
        return {"regression": 1, "cannot tell": 2}.get(self.verdict, 0)

    @property
    def summary(self) -> str:
        """The verdict in a sentence or two."""
        return str(self.document["summary"])


def compare_builds(
    baseline: str | os.PathLike[str],
    candidate: str | os.PathLike[str] | None = None,
    *,
    codec: str,
    clips: Sequence[str | os.PathLike[str]],
    encoder: str | None = None,
    preset: str | None = None,
    knobs: Sequence[float] = (),
    bitrates: Sequence[float | str] = (),
    resolutions: str | Sequence[tuple[int, int] | str] = (),
    frames: int | None = None,
    bit_depth: int | None = None,
    baseline_args: str | Sequence[str] = (),
    candidate_args: str | Sequence[str] = (),
    threshold: float = 0.5,
    clip_threshold: float = 5.0,
    time_threshold: float | None = None,
    memory_threshold: float | None = None,
    rate_threshold: float | None = None,
    metric: str = DEFAULT_METRIC,
    gate: Sequence[str] = (),
    save: str | os.PathLike[str] | None = None,
    timeout_s: float | str | None = None,
    device: str = "auto",
    workers: int = 1,
    seed: int = 0,
    cache: bool = True,
    ffmpeg: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    prompt: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    pool: str = "mean",
    display: str = "monitor",
    cvvdp: str | os.PathLike[str] | None = None,
    allow_hdr: bool = False,
    progress: Watcher = lambda event: None,
) -> Comparison:
    """Is the candidate worse than the baseline?

    Each clip is encoded at every point and size, by the baseline twice and by the candidate once,
    in turns; the curves are compared by BD-rate.

    Args:
        baseline: An ffmpeg, a standalone encoder of the codec, or a result that `save` wrote.
        candidate: The same; None only to save the baseline.
        codec: h264, hevc, vp9, av1 or avs2.
        clips: Videos to encode.
        encoder: By name; None: the codec's default one.
        preset: Of the encoder; None: its default one.
        knobs: Values of the encoder's quality knob; by default four across its range.
        bitrates: In place of knobs, target bitrates in kb/s.
        resolutions: Width and height in pixels; by default the clip's own.
        frames: How many of each clip, from its start; None: all.
        bit_depth: 8 or 10; None: the clip's own.
        baseline_args: Added to the baseline's arguments; a text is split as a shell would.
        candidate_args: The same for the candidate.
        threshold: Mean BD-rate from which on there is a regression, in percent.
        clip_threshold: BD-rate of a single clip, in percent.
        time_threshold: CPU time, in percent; None: not judged, as below.
        memory_threshold: Peak memory, in percent.
        rate_threshold: Bitrate at the same knob, or error against the target, in percent.
        metric: Leads: its BD-rate is the headline.
        gate: Metrics that may call a regression; by default the leading one, VMAF and PSNR-Y.
        save: File for the baseline's runs.
        timeout_s: Seconds of one run; None: by what the baseline took.
        device: Of the learned metric: auto, cpu or cuda.
        workers: Clips at a time.
        seed: Of the bootstrap and the metric.
        cache: Whether scores and finished clips are kept for the next call.
        ffmpeg: Decodes and scores; None: the bundled one.
        weights: Of the learned metric; None: those that come with vqaloop.
        prompt: Of the learned metric: what adapts its scores; None: none.
        score_precision: Half-width of a score's interval at which scoring stops, in points.
        pool: How scores are pooled over time: mean, harmonic, p5, p1 or min-scene.
        display: Of cvvdp: monitor, phone, tablet, tv or hdr-tv.
        cvvdp: ColorVideoVDP's program; None: by $VQALOOP_CVVDP or the PATH.
        allow_hdr: Take PQ and HLG, though SDR metrics do not hold for them.
        progress: Called with every event.

    Returns:
        The document `vqaloop.regress/1` with the verdict.

    Raises:
        InputError: Something cannot be compared, or a file is not what it should be.
    """
    progress = TimeLeft(progress)
    options = RegressOptions(**taken(RegressOptions, locals()))
    return _compare(options)


def _compare(options: RegressOptions) -> Comparison:
    started = time.monotonic()
    binary = ffmpeg_path(options.ffmpeg)
    plan = _plan(options, binary)
    lead = plan.metrics[1]
    gated = _gated(options.gate, plan, lead, options.pool)
    one = _opened(options.baseline, plan, options.baseline_args, "--baseline-args", binary)
    other = None
    if options.candidate is not None:
        words = options.candidate_args
        other = _opened(options.candidate, plan, words, "--candidate-args", binary)
    settings = _settings(plan, options.pool)
    _check_pair(one, other, settings, options.save)
    titles = _probed(options, plan, binary)
    _check_range(titles, one, other, plan.spec)
    # what hung by another limit need not hang by this one
    limited = {**settings, "time limit": str(options.timeout_s)}
    journal = _journal((one, other), limited, list(titles.values()), options.cache)
    with Workshop(
        # raw streams of standalone encoders have no times by which PyAV would find a frame
        replace(plan.spec, decoder="ffmpeg"),
        lead,
        Cache(enabled=options.cache),
        ffmpeg=binary,
        workers=options.workers,
        pool=options.pool,
    ) as shop:
        measured = run_clips(titles, one, other, plan, shop, journal, options.progress)
    if options.save is not None:
        if other is None:
            check_any_run(measured)
        _save(options.save, one, measured, settings)
    outcome = judge(
        measured,
        _limits(options),
        metrics=[
            *(pooled_name(name, options.pool) for name in _names(plan)),
            *(_names(plan) if options.pool != "mean" else ()),
        ],
        lead=pooled_name(_named(lead), options.pool),
        gate=gated,
        targets=bool(options.bitrates),
        timed=_same_machine(one, other),
        seed=options.seed,
    )
    head = _head(plan, _metric_json(lead, options.pool), one, other)
    document = {**head, **outcome_json(outcome)}
    if other is None:
        document |= {"verdict": "saved", "summary": save_summary(measured, options.save or "")}
    return Comparison({**document, "cost": _cost_json(shop.cost, time.monotonic() - started)})


def _plan(options: RegressOptions, binary: str) -> RunPlan:
    """What is run of each clip; the metrics are the learned one and the one that leads."""
    # whether it runs, the builds show
    spec = checks.named_encoder(options.codec, options.encoder)
    lead = chosen_metric(options)
    check_metric(lead, options.weights or options.prompt)
    student = lead
    if options.metric in CLASSICAL:
        seed, device = options.seed, options.device
        student = open_metric(DEFAULT_METRIC, ffmpeg=binary, device=device, seed=seed)
    return RunPlan(
        spec,
        checks.checked_preset(spec, options.preset),
        _points(spec, options.knobs, options.bitrates),
        tuple(options.resolutions),
        options.bit_depth,
        options.frames,
        options.timeout_s,
        (student, lead),
    )


def _limits(options: RegressOptions) -> Limits:
    return Limits(
        options.threshold,
        options.clip_threshold,
        options.time_threshold,
        options.memory_threshold,
        options.rate_threshold,
    )


def _same_machine(*sides: Side | None) -> bool:
    """Whether all was run here, so that times can be compared."""
    return all(not isinstance(side, Saved) or side.machine == _machine() for side in sides)


def _cost_json(cost: Cost, wall_s: float) -> dict[str, Any]:
    return {
        "encodes": cost.encodes,
        "encode_cpu_s": round(cost.encode_cpu_s, 3),
        "score_s": round(cost.score_s + cost.guard_s, 3),
        "wall_s": round(wall_s, 3),
    }


def _check_pair(one: Side, other: Side | None, settings: Settings, save: PathName | None) -> None:
    """Raises InputError where there is nothing to do, or a saved result does not fit."""
    if other is None and save is None:
        raise InputError("there is nothing to compare with; give --candidate, or --save FILE")
    if save is not None:
        check_writable(Path(save).absolute().parent, "save to another folder")
    for result, role in ((one, BASELINE), (other, CANDIDATE)):
        if isinstance(result, Saved) and (why := differing(result.settings, settings)):
            raise InputError(f"the saved {role} was made otherwise: {'; '.join(why)}")


def _journal(
    sides: tuple[Side, Side | None], settings: Settings, clips: Sequence[Source], enabled: bool
) -> Journal:
    """Where this comparison keeps the clips it has finished."""
    about = [
        {"role": role, **_described(build)}
        for role, build in zip((BASELINE, CANDIDATE), sides, strict=True)
        if isinstance(build, Build)
    ]
    return Journal(about, settings, _machine(), clips, enabled=enabled and bool(about))


def _save(path: PathName, baseline: Side, clips: Sequence[ClipRuns], settings: Settings) -> None:
    """Write the baseline's runs."""
    if isinstance(baseline, Build):
        baseline = Saved(_build_json(baseline), {}, _machine(), ())
    own = tuple(map(without_candidate, clips))
    write_saved(replace(baseline, settings=settings, clips=own), Path(path))


def _head(
    plan: RunPlan, metric: dict[str, Any], baseline: Side, candidate: Side | None
) -> dict[str, Any]:
    """What was compared, and how: the first part of the document."""
    return {
        "schema": "vqaloop.regress/1",
        "vqaloop": __version__,
        "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "codec": plan.spec.codec,
        "encoder": plan.spec.name,
        "preset": plan.preset,
        "points": [str(point) for point in plan.points],
        "sizes": [size_text(size) for size in plan.sizes] or ["source"],
        "metric": metric,
        "baseline": _described(baseline),
        "candidate": _described(candidate) if candidate is not None else None,
    }


def _points(
    spec: EncoderSpec, knobs: Sequence[float], bitrates: Sequence[float]
) -> tuple[Point, ...]:
    knob = spec.knob
    if knobs and bitrates:
        raise InputError("--knobs and --bitrates are two ways to say the same; give one")
    low, high = knob.search
    values = [*bitrates] or [*knobs] or [knob.snap(low + (high - low) * part) for part in POINTS]
    if len(set(values)) < LEAST_POINTS or len(set(values)) < len(values):
        raise InputError(
            f"a curve needs at least {LEAST_POINTS} different points, and these are "
            f"{', '.join(f'{value:g}' for value in values)}"
        )
    for value in values:
        if bitrates and not 0 < value <= 1e6:
            raise InputError(f"--bitrates: {value:g} kb/s is not a bitrate to encode at")
        if not bitrates and not (
            knob.min <= value <= knob.max and abs(knob.snap(value) - value) < 1e-6
        ):
            raise InputError(
                f"--knobs: {spec.name} takes {knob.name} from {knob.min:g} to {knob.max:g} in "
                f"steps of {knob.step:g}, not {value:g}"
            )
    return tuple(Point("bitrate" if bitrates else knob.name, value) for value in sorted(values))


def _named(metric: Metric) -> str:
    return JUDGES.get(metric.name, metric.name)


def _names(plan: RunPlan) -> list[str]:
    """Of all that is measured, the learned one first."""
    return list(dict.fromkeys([*map(_named, plan.metrics), *JUDGES.values()]))


def _gated(gate: Sequence[str], plan: RunPlan, lead: Metric, pool: str) -> list[str]:
    aliases = {"internvqa": plan.metrics[0].name, "psnr": "psnr_y"}
    wanted = [aliases.get(name, name) for name in gate]
    known = _names(plan)
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(
            f"--gate: {', '.join(unknown)} is not measured here; choose from {', '.join(known)}"
        )
    names = wanted or list(dict.fromkeys([_named(lead), *JUDGES.values()]))
    return [pooled_name(name, pool) for name in names]


def _opened(
    path: PathName, plan: RunPlan, words: str | Sequence[str], option: str, ffmpeg: str
) -> Side:
    args = split_args(words, option)
    if os.fspath(path) == BUNDLED:
        path = ffmpeg
    place = Path(path)
    if is_saved(place):
        if args:
            raise InputError(f"{quoted(place)} is a saved result, to which {option} do nothing")
        return read_saved(place)
    build = open_build(path, plan.spec, args)
    if args:
        point, preset = plan.points[0], plan.preset
        check_arguments(build, plan.spec, option, point=point, preset=preset, ffmpeg=ffmpeg)
    return build


def _settings(plan: RunPlan, pool: str) -> dict[str, str]:
    """What must be equal for two results to be comparable, as people would say it."""
    identities = json.dumps([metric.identity() for metric in plan.metrics], sort_keys=True)
    return {
        "encoder": plan.spec.name,
        "preset": plan.preset,
        "points": " ".join(f"{point}" for point in plan.points),
        "sizes": " ".join(map(size_text, plan.sizes)) or "source",
        "bit depth": str(plan.bit_depth or "source"),
        "frames": str(plan.frames or "all"),
        **({} if pool == "mean" else {"pool": pool}),
        "vqaloop": __version__,
        "metric, weights, ffmpeg, device or seed": hashlib.sha256(identities.encode()).hexdigest()[
            :12
        ],
    }


def _probed(options: RegressOptions, plan: RunPlan, binary: str) -> dict[str, Source]:
    """The clips by the names that the answer gives them."""
    clips, progress = options.clips, options.progress
    if isinstance(clips, str | os.PathLike):
        raise InputError(f"clips are a list, and this is one name: {quoted(clips)}")
    if not clips:
        raise InputError("there are no clips to compare on; name one or more")
    times = Counter(Path(clip).name for clip in clips)
    use = HdrUse(judged=plan.metrics[-1].name in FOR_HDR, tonemaps=False)
    found: dict[str, Source] = {}
    for index, clip in enumerate(clips):
        progress(Event("probe", f"{quoted(clip)}", index, len(clips)))
        name = Path(clip).name if times[Path(clip).name] == 1 else os.fspath(clip)
        source = probe_source(clip, allow_hdr=options.allow_hdr, hdr=use, ffmpeg=binary)
        if name in found or source.sha256 in {other.sha256 for other in found.values()}:
            raise InputError(f"{quoted(clip)} is there twice; a clip counts once")
        check_metric(plan.metrics[-1], options.weights or options.prompt, canvas=source.canvas)
        checks.checked_depth(source, plan.spec, plan.bit_depth)
        checks.choose_sizes(source, plan.spec, plan.sizes_of(source))
        for note in source.notes:
            progress(Event("probe", f"{name}: {note}", index, len(clips)))
        found[name] = source
    return found


def _check_range(
    titles: Mapping[str, Source], one: Side, other: Side | None, spec: EncoderSpec
) -> None:
    """Refuse full range for a program whose streams would be taken for limited range."""
    own = [b for b in (one, other) if isinstance(b, Build) and b.kind == "standalone"]
    if not own or spec.standalone is None or spec.standalone.full_range is not None:
        return
    for name, source in titles.items():
        if colour_range(source) == "pc":
            raise InputError(
                f"{quoted(name)} has full range, which {spec.standalone.program} cannot write "
                "into its stream: every player would take it for limited range; convert the clip, "
                "or compare builds of ffmpeg"
            )


def _build_json(build: Build) -> dict[str, Any]:
    return {
        "name": utf8(Path(build.path).name),
        "kind": build.kind,
        "version": build.version,
        "sha256": build.sha256,
        "args": list(build.args),
    }


def _described(build: Side) -> dict[str, Any]:
    if isinstance(build, Saved):
        return {**build.build, "saved": True}
    return {**_build_json(build), "saved": False}


def _metric_json(metric: Metric, pool: str) -> dict[str, Any]:
    return {
        "name": pooled_name(_named(metric), pool),
        "weights_sha256": metric.identity().get("weights_sha256"),
        **({} if pool == "mean" else {"pool": pool}),
    }


def split_args(args: str | Sequence[str], option: str) -> tuple[str, ...]:
    """Arguments one by one, a text split as a shell would; InputError where a quote is open."""
    if not isinstance(args, str):
        return tuple(args)
    try:
        return tuple(shlex.split(args))
    except ValueError as error:
        raise InputError(f"{option} {args!r}: {error}") from error


def _machine() -> str:
    """Processor and number of cores: what times depend on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{model}, {len(os.sched_getaffinity(0))} cores"
