"""Encoding a title to a score: scene by scene, joined, and verified as a whole.

A scene's encode that landed is its part of the result: nothing is encoded twice. What was encoded
stays in the cache, so an interrupted call goes on where it was.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vqaloop.bitstream.packets import peak_kbps, stream_packets
from vqaloop.core.files import scratch
from vqaloop.core.folders import check_writable
from vqaloop.core.option_fields import fault_of, taken
from vqaloop.core.text import counted, quoted, utf8
from vqaloop.encoding.checks import check_film_grain, hdr_warnings
from vqaloop.encoding.options import BUFFER, CAP, GRAIN, RAISED, ZONES, encoded_knob
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError, TargetUnreachable
from vqaloop.execution.capping import (
    HELD,
    TOLERANCE,
    PeakLimit,
    bounded_gop_frames,
    clipping_rate,
    keep_peak,
    next_rate,
    peak_limit,
    peaks_of,
)
from vqaloop.execution.document_parts import cost_json, head_json
from vqaloop.execution.executor import Executor
from vqaloop.execution.session import Session, open_session
from vqaloop.execution.stage_progress import counted_of, described
from vqaloop.execution.tools import chosen_tools
from vqaloop.media.scene_cuts import Scene, even_gop, find_scenes
from vqaloop.quality.guard import Guarded
from vqaloop.quality.metric import LEARNED, Metric
from vqaloop.quality.registry import DEFAULT_METRIC, kindred
from vqaloop.quality.sampling_precision import unreached
from vqaloop.ratecontrol.concat import Joined, join, output_muxer
from vqaloop.ratecontrol.controller import RateController
from vqaloop.ratecontrol.options import EncodeOptions
from vqaloop.ratecontrol.scene_goals import CAP_USED
from vqaloop.ratecontrol.scene_trials import SceneTrials, report_trial
from vqaloop.records import Event, Rendition, Score, Source, Trial, Watcher, rounded
from vqaloop.search.prior_store import PriorUse, prior_use

FAR, SCENE_FAR = 1 / 8, 1 / 2
"""Parts of a metric's step (4 points of VMAF) by which title and scene may miss the target."""
LEARNED_FAR = 1 / 4
"""The same of the title by a learned metric, which looks at a sample of the frames."""

MOST_BOUNDS = 3
"""Times that the scenes' bound is tightened until the whole keeps its own."""
RATE_FAR = 1 / 10
"""Part of a bitrate asked for by which a title may miss it: knobs have steps, and so bitrates."""


@dataclass(frozen=True)
class Take:
    """The title, encoded and joined."""

    controller: RateController
    trials: Sequence[tuple[Scene, Trial]]
    joined: Joined
    score: Score
    over: float
    """Its peak as a part of the bound that was asked for; 0 where there is none."""


@dataclass(frozen=True)
class Encoded:
    """A title encoded to a score or bitrate, as `encode_to_target` returns it."""

    path: Path
    score: float
    """Of the whole file, by the pool that was asked for."""
    document: dict[str, Any]
    """vqaloop.encode/1, as --json writes it."""
    reached: bool
    """False when the score is below its target, or the bitrate off the one asked for: out of the
    encoder's range, or held back by bounds."""
    trusted: bool
    """False when the whole file does not score what its scenes do."""

    @property
    def exit_code(self) -> int:
        """The exit status of `vqaloop encode`.

        Returns:
            0; 1 when the target was not reached; 3 when the score is not to be trusted.
        """
        return 1 if not self.reached else 0 if self.trusted else 3


def encode_to_target(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    codec: str,
    target_score: float | None = None,
    bitrate: float | str | None = None,
    allocation: str | None = None,
    max_bitrate: float | str | None = None,
    max_encodes: int | None = None,
    peak_ratio: float | None = None,
    max_peak: float | str | None = None,
    buffer_s: float = 0.5,
    film_grain: int | str = "off",
    one_run: bool = False,
    guard: Literal["full", "sampled", "off"] | None = None,
    prior: PriorUse | bool = "shipped",
    encoder: str | None = None,
    preset: str | None = None,
    bit_depth: int | None = None,
    metric: str = DEFAULT_METRIC,
    weights: str | os.PathLike[str] | None = None,
    prompt: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    pool: str = "mean",
    display: str = "monitor",
    cvvdp: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | Executor = 1,
    seed: int = 0,
    cache: bool = True,
    timeout_s: float | str | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    tonemap: bool = False,
    dynamic_hdr: Literal["drop", "refuse"] = "drop",
    deinterlace: Literal["auto", "frames", "fields", "telecine"] = "auto",
    progress: Watcher = lambda event: None,
) -> Encoded:
    """Encode a title such that it scores `target_score`, or best at `bitrate` kb/s.

    The title is split at its cuts, and every scene is encoded by itself.

    Args:
        input: The video.
        output: An .mp4, .mkv or .webm (VP9 and AV1) with the sound and all else of the input, or
            an .avs2 for AVS2; it appears when all is done, replacing what is there.
        codec: h264, hevc, vp9, av1 or avs2.
        target_score: Of the whole title, by the metric; either this or `bitrate`.
        bitrate: Of the whole title, in kb/s.
        allocation: "target": every scene at the target; "equal-slope": bits go where they buy
            most, and the mean is the target. None: "target", and for a bitrate "equal-slope".
        max_bitrate: Cap of a scene's mean rate in kb/s and, with encoders that can, of its buffer
            of a second.
        max_encodes: Of scenes, in all, with those that caps take; one for each scene at least.
        peak_ratio: Most that any second and any segment may take, times the file's average
            bitrate; None: no such bound.
        max_peak: The same in kb/s; None: no such bound.
        buffer_s: Size of the encoder's buffer where a scene takes a cap, in seconds of the cap.
        film_grain: Of AV1, a strength at which the picture is denoised and its grain left to
            decoders; "off": it is coded as it is.
        one_run: Make the knobs found zones of one more run over the whole (x264, x265), instead of
            joining the scenes' own files.
        guard: "full", "sampled" or "off", as of `build_ladder`.
        prior: What the search begins with, as of `build_ladder`.
        encoder: By name; None: the codec's default one.
        preset: Of the encoder; None: its default one.
        bit_depth: 8 or 10; None: the source's.
        metric: By name, see `vqaloop.Scorer`.
        weights: Of the learned metric; None: those that come with vqaloop.
        prompt: Of the learned metric: what adapts its scores; None: none.
        score_precision: Half-width of a score's interval at which scoring stops, in points.
        pool: How scores are pooled over time: mean, harmonic, p5, p1 or min-scene.
        display: Of cvvdp: monitor, phone, tablet, tv or hdr-tv.
        cvvdp: ColorVideoVDP's program; None: by $VQALOOP_CVVDP or the PATH.
        device: Of the learned metric: auto, cpu or cuda.
        workers: How many encodes are made at once, or an Executor that makes them elsewhere.
        seed: Of the metric.
        cache: Whether encodes and scores are kept for the next call.
        timeout_s: Seconds of one encode.
        ffmpeg: The program; None: the bundled one.
        video_size: WxH, of raw video.
        pix_fmt: ffmpeg's name, of raw video.
        framerate: Of raw video; of another input the constant rate it is brought to.
        allow_hdr: Take PQ and HLG with any metric, though those of SDR do not hold for them.
        tonemap: Make PQ and HLG SDR (BT.709) as they are read, and score against that.
        dynamic_hdr: "drop" Dolby Vision and HDR10+ metadata with a warning, or "refuse" inputs
            that have them.
        deinterlace: "auto" inverts telecine where it is recognised and makes one frame of each
            pair of fields of other interlaced video, "frames" always that, "fields" one frame of
            each field; "telecine" inverts it, recognised or not.
        progress: Called with every event.

    Returns:
        The encode; where the target was missed, `reached` is False.

    Raises:
        InputError: Something is refused before any work.
        TargetUnreachable: Some scene has no encode at all.
    """
    options = EncodeOptions(**taken(EncodeOptions, locals()))
    return _encode(Path(input), Path(output), options)


def _encode(input: Path, out: Path, options: EncodeOptions) -> Encoded:
    prior = prior_use(options.prior)
    tools = chosen_tools(options)
    spec, top, target = tools.spec, tools.metric.top, options.target_score
    _check_place(input, out, options.codec)
    if options.one_run and not spec.zones:
        raise InputError(f"{spec.name} takes no zones in one run; leave out --one-run")
    if target is not None and not 0 < target <= top:
        raise InputError(f"the target score must lie between 0 and {top:g}, not {target:g}")
    limit = peak_limit(options)
    with fault_of("codec", "encoder", "film_grain"):
        check_film_grain(spec, options.film_grain)
    with open_session(input, options, tools) as session:
        scenes = _scenes(session)
        # beside the output: it gets its name once it is known to be right
        with scratch(out.parent) as folder:
            whole = Path(folder) / out.name
            take = _within_peak(session, scenes, prior, limit, whole)
            joined = take.joined
            guard = _guarded(session, whole, out)
            peak = _peak(joined, spec, session.source)
            os.replace(whole, out)
        made = TitleEncode(session, take, out, guard, peak, limit)
        return _answer(made, _checked(made))


def _guarded(session: Session[EncodeOptions], whole: Path, out: Path) -> Guarded:
    """The guard of the file that becomes `out`."""
    source, options = session.source, session.options
    plan = session.shop.guard_plan(source, options.guard)
    if plan is None:
        return Guarded()
    total = plan.frames(source)
    with counted_of(total, options.progress, "guard", f"guarding {quoted(out)}"):
        return session.shop.guard(source, whole, plan)


def _within_peak(
    session: Session[EncodeOptions],
    scenes: Sequence[Scene],
    prior: PriorUse,
    limit: PeakLimit | None,
    whole: Path,
) -> Take:
    """The title as `whole`, such that its peak keeps the bound; the nearest to it where none does.

    A bound relative to the average is known once the whole is there: then scenes are encoded again
    where they are above it, and others share out what the score lost.
    """
    trials: list[tuple[Scene, Trial]] = []
    bound = None if limit is None or limit.kbps == math.inf else limit
    tried: list[tuple[float, float]] = []
    most, spent = session.options.max_encodes or math.inf, 0
    while True:
        controller = _controller(session, scenes, prior, spent)
        _drive(controller, trials, session, scenes, bound)
        files = _files(controller, trials, scenes)
        if session.options.one_run:
            files = [_in_one_run(controller, session, limit)]
        joined, score = _joined(session, files, scenes, whole)
        if limit is None:
            return Take(controller, trials, joined, score, 0.0)
        packets = stream_packets(whole, session.spec.codec, session.source.fps)
        over = peaks_of(packets, session.source.duration_s).over(limit)
        spent += controller.encodes
        # each scene is encoded once at least under the next bound
        used_up = spent + len(scenes) > most
        if over <= HELD or session.options.one_run or used_up or len(tried) >= MOST_BOUNDS:
            return Take(controller, trials, joined, score, over)
        rate = clipping_rate(packets, session.source.duration_s, limit)
        if bound:
            tried.append((bound.kbps, over))
            rate = next_rate(tried)
        bound = PeakLimit(kbps=min(rate, limit.kbps), buffer_s=limit.buffer_s)
        message = f"a peak {100 * (over - 1):.0f} % too high: scenes under {bound.kbps:.0f} kb/s"
        session.options.progress(Event("encode", message, 0, len(scenes)))


def _scenes(session: Session[EncodeOptions]) -> Sequence[Scene]:
    """The title split at its cuts."""
    source, progress = session.source, session.options.progress
    progress(Event("probe", described(source)))
    progress(Event("scenes", f"looking for the cuts of {quoted(source.path)}"))
    scenes = find_scenes(source, ffmpeg=session.ffmpeg, gop_s=session.spec.gop_s)
    progress(Event("scenes", counted(len(scenes), "scene"), len(scenes), len(scenes)))
    return scenes


def _controller(
    session: Session[EncodeOptions], scenes: Sequence[Scene], prior: PriorUse, spent: int
) -> RateController:
    """`spent`: encodes that were made already, of those allowed."""
    options, metric = session.options, session.metric
    most = options.max_encodes
    return RateController.for_title(
        session.source,
        scenes,
        session.spec,
        metrics=kindred(metric),
        preset=session.preset,
        prior=prior,
        target=options.target_score,
        bitrate_kbps=options.bitrate,
        allocation=options.how,
        top=metric.top,
        tolerance=tolerance_of(metric),
        scene_tolerance=SCENE_FAR * metric.step,
        max_encodes=None if most is None else most - spent,
        max_kbps=options.max_bitrate,
    )


def _rendition(session: Session[EncodeOptions]) -> Rendition:
    """What all encodes have in common."""
    spec, most = session.spec, session.options.max_bitrate
    params = {CAP: f"{most:.0f}"} if most is not None and spec.cap else {}
    if (grain := session.options.film_grain) != "off":
        params[GRAIN] = str(grain)
    pairs = tuple(sorted(params.items()))
    gop = bounded_gop_frames(peak_limit(session.options), spec, session.source.fps)
    name, knob = spec.name, spec.knob.min
    return Rendition(*session.sizes[0], name, knob, session.preset, session.depth, pairs, gop)


@dataclass(frozen=True)
class TitleEncode:
    """The encode of a title, and all that its document is made from."""

    session: Session[EncodeOptions]
    take: Take
    path: Path
    guard: Guarded
    peak_kbps: float
    limit: PeakLimit | None

    @property
    def controller(self) -> RateController:
        return self.take.controller

    @property
    def joined(self) -> Joined:
        return self.take.joined

    @property
    def score(self) -> Score:
        return self.take.score


@dataclass(frozen=True)
class TargetCheck:
    """How the encode meets what was asked."""

    reached: bool
    trusted: bool
    remarks: Sequence[str]


def _checked(made: TitleEncode) -> TargetCheck:
    options, controller = made.session.options, made.controller
    metric, score = made.session.metric, made.score.value
    far = tolerance_of(metric)
    if options.bitrate is None:
        missed = score - (options.target_score or 0.0)
        # a title that scores more even at the worst knob has what was asked for, with a warning
        reached, off = missed >= -far, abs(missed) > far
        outcome = f"scores {score:.2f}, {missed:+.2f} from the target {options.target_score:g}"
    else:
        rate = made.joined.video_kbps
        missed = rate - options.bitrate
        off = abs(missed) > RATE_FAR * options.bitrate
        reached = not off
        outcome = f"takes {rate:.1f} kb/s where {options.bitrate:g} were asked for"
    # of the whole the controller knows the sum of its scenes only
    remarks = [remark.text for remark in controller.remarks() if remark.kind != "whole"]
    if off:
        held = _held_back(made, above=missed > 0)
        remarks.append(f"the whole {outcome}{'' if reached else ', not reached'}{held}")
    # means alone: of a percentile the whole's need not lie among those of its scenes
    mean, of_scenes = _means(made)
    trusted = abs(mean - of_scenes) <= SCENE_FAR * metric.step
    if not trusted:
        remarks.append(
            f"the whole scores {mean:.2f} where its scenes score {of_scenes:.2f} on average"
        )
    if made.take.over > 1 + TOLERANCE:
        trusted = False
        remarks.append(
            f"the peak is {100 * (made.take.over - 1):.0f} % above its bound, and no cap on the "
            "scenes brought it below"
        )
    return TargetCheck(reached, trusted, [*remarks, *unreached([made.score], metric)])


def _means(made: TitleEncode) -> tuple[float, float]:
    """Mean score of the whole, and of the scenes' encodes that are its parts."""
    score, controller = made.score, made.controller
    if score.mean is None:
        return score.value, controller.mean_score
    means = _scene_means(made)
    frames = sum(scene.frames for scene in means)
    return score.mean, sum(scene.frames * mean for scene, mean in means.items()) / frames


def _scene_means(made: TitleEncode) -> dict[Scene, float]:
    """Mean score of each scene's encode; none where scores are means themselves."""
    known = {(scene, t.rendition.knob): t.mean for scene, t in made.take.trials}
    means = {s: known.get((s, p.knob)) for s, p in made.controller.choices.items()}
    return {scene: mean for scene, mean in means.items() if mean is not None}


def _answer(made: TitleEncode, outcome: TargetCheck) -> Encoded:
    """The encode with its document."""
    session, controller, joined = made.session, made.controller, made.joined
    source, options, means = session.source, session.options, _scene_means(made)
    knobs = {(scene, t.rendition.knob): encoded_knob(t.rendition) for scene, t in made.take.trials}
    document = {
        **head_json("vqaloop.encode/1", session, made.score),
        "target": {
            "score": options.target_score,
            "bitrate_kbps": options.bitrate,
            "allocation": options.how,
            "aim": rounded(controller.target_score),
            "tolerance": tolerance_of(session.metric),
            "one_run": options.one_run,
            **({} if options.film_grain == "off" else {"film_grain": options.film_grain}),
        },
        "file": utf8(made.path),
        "score": rounded(made.score.value),
        **({} if made.score.mean is None else {"score_mean": rounded(made.score.mean)}),
        **({} if made.score.opinion is None else {"opinion": rounded(made.score.opinion)}),
        "score_of_scenes": rounded(controller.mean_score),
        "guard": {name: rounded(value) for name, value in made.guard.figures.items()},
        **({"guard_interval": _spreads(made.guard)} if made.guard.intervals else {}),
        "bitrate_kbps": rounded(joined.video_kbps),
        "peak_kbps": rounded(made.peak_kbps),
        **({"peak_of_bound": rounded(made.take.over)} if made.limit else {}),
        "frames": joined.frames,
        "duration": joined.duration_s,
        "scenes": [
            {
                **_scene_json(scene, knobs[scene, probe.knob], probe.score, probe.bits, source),
                **({"score_mean": rounded(means[scene])} if scene in means else {}),
            }
            for scene, probe in controller.choices.items()
        ],
        "trials": [
            {"start_frame": scene.start_frame, "end_frame": scene.end_frame, **trial.to_json()}
            for scene, trial in made.take.trials
        ],
        "cost": cost_json(session.shop.cost, time.monotonic() - session.started),
        "warnings": [
            *(*source.notes, *session.shop.remarks, *joined.notes, *outcome.remarks),
            *hdr_warnings(source, session.spec, [made.path]),
        ],
        "reached": outcome.reached,
        "trusted": outcome.trusted,
    }
    return Encoded(made.path, made.score.value, document, outcome.reached, outcome.trusted)


def _spreads(guard: Guarded) -> dict[str, list[float | None]]:
    return {name: list(map(rounded, ends)) for name, ends in guard.intervals.items()}


def tolerance_of(metric: Metric) -> float:
    """By how much a title may miss its target, in the metric's points: 0.5 of VMAF."""
    return metric.step * (LEARNED_FAR if metric.mode in LEARNED else FAR)


def _held_back(made: TitleEncode, *, above: bool) -> str:
    """What kept the title from its target, as far as that is known; `above`: it is beyond it."""
    controller, source = made.controller, made.session.source
    max_encodes, max_bitrate = made.session.options.max_encodes, made.session.options.max_bitrate
    used_up = max_encodes is not None and controller.encodes >= max_encodes
    held = ["--max-encodes"] * used_up
    rates = [
        probe.bits / 1000 / float(scene.frames / source.fps)
        for scene, probe in controller.choices.items()
    ]
    if not above and max_bitrate is not None and max(rates) > CAP_USED * max_bitrate:
        held.append("--max-bitrate")
    end = "worst-knob" if above else "best-knob"
    chosen = {(scene, probe.knob) for scene, probe in controller.choices.items()}
    renditions = [t.rendition for s, t in made.take.trials if (s, t.rendition.knob) in chosen]
    if not above and any({BUFFER, RAISED} & dict(r.params).keys() for r in renditions):
        held.append("the bound of its peaks")
    elif any(remark.kind == end for remark in controller.remarks()):
        held.append(f"the range of the knob ({end.split('-')[0]} quality)")
    return f"; held back by {' and '.join(held)}" if held else ""


def _check_place(input: Path, out: Path, codec: str) -> None:
    output_muxer(out, codec)
    if out.is_dir():
        raise InputError(f"{quoted(out)} is a folder; name a file")
    if not out.parent.is_dir():
        raise InputError(f"the folder {quoted(out.parent)} does not exist; create it first")
    if out.exists() and input.exists() and out.samefile(input):
        raise InputError(f"{quoted(out)} is the source itself; choose another name for the output")
    check_writable(out.parent, "choose another folder for the output")


def _drive(
    controller: RateController,
    trials: list[tuple[Scene, Trial]],
    session: Session[EncodeOptions],
    scenes: Sequence[Scene],
    limit: PeakLimit | None,
) -> None:
    """Encode and score what the controller asks for until it has what it wants.

    Appends to `trials`. Raises TargetUnreachable when a scene is left without an encode.
    """
    shop, spec, progress = session.shop, session.spec, session.options.progress
    plain = _rendition(session)
    work = SceneTrials(shop, session.source, even_gop)

    def attempt(asked: tuple[Scene, float]) -> Trial:
        scene, knob = asked
        return work.attempt(scene, replace(plain, knob=knob), limit)

    while asked := controller.next_trials(shop.workers):
        under_caps = work.capped
        made = list(zip(asked, shop.map(attempt, asked), strict=True))
        # those under caps are of --max-encodes too
        controller.encodes += work.capped - under_caps
        for (scene, _), trial in made:
            trials.append((scene, trial))
            report_trial(controller, scene, trial, work)
        done = [scene for scene in scenes if controller.is_done(scene)]
        for (scene, knob), trial in made:
            outcome = trial.error or f"{spec.knob.name} {knob:g}: score {trial.score:.2f}"
            where = f"frames {scene.start_frame} to {scene.end_frame - 1}"
            progress(Event("encode", f"{where}, {outcome}", len(done), len(scenes), trial))
        work.drop(done)
    work.drop(scenes)
    if bare := [scene for scene in scenes if scene not in controller.choices]:
        raise TargetUnreachable(_nothing_made(bare, trials))


def _files(
    controller: RateController, trials: Sequence[tuple[Scene, Trial]], scenes: Sequence[Scene]
) -> list[Path]:
    """The encodes that the controller chose, in order."""
    made = {(scene, t.rendition.knob): t.encode.path for scene, t in trials if t.encode}
    return [made[scene, controller.choices[scene].knob] for scene in scenes]


def _in_one_run(
    controller: RateController, session: Session[EncodeOptions], limit: PeakLimit | None
) -> Path:
    """The whole by one run of the encoder, with the scenes' knobs as zones of it."""
    source, shop, plain = session.source, session.shop, _rendition(session)
    choices = controller.choices
    frames = sum(scene.frames for scene in choices)
    mean = sum(scene.frames * probe.knob for scene, probe in choices.items()) / frames
    knob = shop.spec.knob.snap(mean)
    zones = zones_of([(s.start_frame, s.end_frame, p.knob) for s, p in choices.items()], knob)
    params = (*plain.params, (ZONES, zones))
    message = f"one run over the whole, {counted(len(choices), 'zone')} about {knob:g}"
    with counted_of(source.frames, session.options.progress, "encode", message):
        made = shop.encode(source, replace(plain, knob=knob, params=params))
        return (keep_peak(shop, source, made, limit).encode if limit else made).path


def zones_of(scenes: Sequence[tuple[int, int, float]], crf: float) -> str:
    """Zones of x264 and x265 for (start, end, CRF) of scenes, within a run at `crf`.

    A step of 6 in QP halves the rate, as the quantiser's step then doubles (ITU-T H.264, 8.5.9).
    """
    return "/".join(
        f"{start},{end - 1},b={2 ** ((crf - own) / 6):.4f}" for start, end, own in scenes
    )


def _joined(
    session: Session[EncodeOptions],
    files: Sequence[Path],
    scenes: Sequence[Scene],
    whole: Path,
) -> tuple[Joined, Score]:
    """The chosen encodes as one file `whole`, named as the output will be, and its score."""
    source, shop, progress = session.source, session.shop, session.options.progress
    parts = f"{counted(len(files), 'part')} to {quoted(whole.name)}"
    with counted_of(source.frames, progress, "join", parts):
        joined = join(files, source, whole, spec=shop.spec, ffmpeg=shop.ffmpeg)
    meter = shop.metric.scene_by_scene([(scene.start_frame, scene.frames) for scene in scenes])
    with counted_of(source.frames, progress, "verify", f"scoring {quoted(whole.name)} as a whole"):
        starts = [scene.start_frame for scene in scenes]
        return joined, shop.score(source, whole, meter, starts)


def _nothing_made(scenes: Sequence[Scene], trials: Sequence[tuple[Scene, Trial]]) -> str:
    first = scenes[0]
    why = next((t.error for scene, t in trials if scene == first and t.error), "it was not tried")
    return (
        f"no encode of frames {first.start_frame} to {first.end_frame - 1} succeeded"
        f"{f' (and of {len(scenes) - 1} scenes more)' if len(scenes) > 1 else ''}: {why}"
    )


def _scene_json(
    scene: Scene, knob: float, score: float, bits: float, source: Source
) -> dict[str, Any]:
    return {
        "start_frame": scene.start_frame,
        "end_frame": scene.end_frame,
        "knob": knob,
        "score": rounded(score),
        "bitrate_kbps": rounded(bits / 1000 / float(scene.frames / source.fps)),
    }


def _peak(joined: Joined, spec: EncoderSpec, source: Source) -> float:
    packets = stream_packets(joined.path, spec.codec, source.fps)
    return max(joined.video_kbps, peak_kbps(packets, joined.duration_s))
