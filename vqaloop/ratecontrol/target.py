"""Encoding a title to a score: scene by scene, joined, and verified as a whole.

A scene's encode that landed is its part of the result: nothing is encoded twice. What was encoded
stays in the cache, so an interrupted call goes on where it was.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqaloop.bitstream.packets import peak_kbps, stream_packets
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import scratch
from vqaloop.core.folders import check_writable
from vqaloop.core.text import counted, quoted
from vqaloop.core.version import __version__
from vqaloop.encoding import checks
from vqaloop.encoding.options import CAP, ZONES, gop_frames
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError, TargetUnreachable
from vqaloop.execution.cache import Cache
from vqaloop.execution.checks import check_metric, check_run
from vqaloop.execution.document_parts import cost_json, encoder_json, metric_json, source_json
from vqaloop.execution.executor import Executor
from vqaloop.execution.stage_progress import counted_of, described, report_if_slow
from vqaloop.execution.workshop import Workshop
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import Scene, SceneExcerpts, even_gop, find_scenes
from vqaloop.quality.metric import Metric
from vqaloop.quality.registry import DEFAULT_METRIC, kindred, open_metric
from vqaloop.quality.sampling_precision import unreached
from vqaloop.ratecontrol.concat import Joined, join, output_muxer
from vqaloop.ratecontrol.controller import RateController
from vqaloop.ratecontrol.scene_goals import CAP_USED, Allocation
from vqaloop.records import Event, Rendition, Score, Source, Trial, Watcher, rounded
from vqaloop.search.prior_store import PriorUse, prior_use

FAR, SCENE_FAR = 1 / 8, 1 / 2
"""Parts of a metric's step (4 points of VMAF) by which title and scene may miss the target."""
LEARNED_FAR = 1 / 4
"""The same of the title by a learned metric, which looks at a sample of the frames."""

RATE_FAR = 1 / 10
"""Part of a bitrate asked for by which a title may miss it: knobs have steps, and so bitrates."""


@dataclass(frozen=True)
class Encoded:
    """A title encoded to a score or bitrate, as `encode_to_target` returns it."""

    path: Path
    score: float
    """Measured on the whole file."""
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
    bitrate: float | None = None,
    allocation: str | None = None,
    max_bitrate: float | None = None,
    max_encodes: int | None = None,
    one_run: bool = False,
    prior: PriorUse | bool = "shipped",
    encoder: str | None = None,
    preset: str | None = None,
    bit_depth: int | None = None,
    metric: str = DEFAULT_METRIC,
    weights: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    device: str = "auto",
    workers: int | Executor = 1,
    seed: int = 0,
    cache: bool = True,
    timeout_s: float | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    progress: Watcher = lambda event: None,
) -> Encoded:
    """Encode `input` to `output` such that it scores `target_score`, or best at `bitrate` kb/s.

    The title is split at its cuts. With the allocation "target" every scene is brought to the
    score; with "equal-slope" (the only one for a bitrate, and its default) bits go where they buy
    most, and the mean is the target. `max_bitrate` bounds each scene's mean rate in kb/s and, with
    encoders that can, its buffer of a second; `max_encodes` bounds the encodes of scenes. With
    `one_run` the knobs found become zones of one more run over the whole (x264, x265), instead of
    the scenes' own files being joined. `prior` is what the search begins with, as of
    `build_ladder`. `output` is an .mp4, .mkv or .webm (VP9 and AV1) with the
    sound and all else of the input, .avs2 for AVS2; it appears when all is done, replacing what is
    there.

    Raises InputError for what is refused before any work, TargetUnreachable when some scene has no
    encode at all. A target that was missed is told by the result.
    """
    started = time.monotonic()
    binary = ffmpeg_path(ffmpeg)
    out = Path(output)
    check_run(workers, seed, device, timeout_s)
    use = prior_use(prior)
    spec = checks.choose_encoder(codec, encoder, binary)
    preset = checks.checked_preset(spec, preset)
    meter = open_metric(
        metric, ffmpeg=binary, device=device, seed=seed, weights=weights, precision=score_precision
    )
    how = _allocation(target_score, bitrate, allocation)
    _check_place(Path(input), out, codec)
    if one_run and not spec.zones:
        raise InputError(f"{spec.name} takes no zones in one run; leave out --one-run")
    with report_if_slow(progress, Event("probe", f"looking at {quoted(input)}")):
        source = probe_source(
            Path(input),
            video_size=video_size,
            pix_fmt=pix_fmt,
            framerate=framerate,
            allow_hdr=allow_hdr,
            ffmpeg=binary,
        )
    checks.choose_sizes(source, spec, [source.canvas])
    depth = checks.checked_depth(source, spec, bit_depth)
    check_metric(meter, weights)
    if target_score is not None and not 0 < target_score <= meter.top:
        raise InputError(
            f"the target score must lie between 0 and {meter.top:g}, not {target_score:g}"
        )
    progress(Event("probe", described(source)))
    progress(Event("scenes", f"looking for the cuts of {quoted(input)}"))
    scenes = find_scenes(source, ffmpeg=binary, gop_s=spec.gop_s)
    progress(Event("scenes", counted(len(scenes), "scene"), len(scenes), len(scenes)))
    width, height = source.canvas
    far = tolerance_of(meter)
    controller = RateController.for_title(
        source,
        scenes,
        spec,
        metrics=kindred(meter),
        preset=preset,
        prior=use,
        target=target_score,
        bitrate_kbps=bitrate,
        allocation=how,
        top=meter.top,
        tolerance=far,
        scene_tolerance=SCENE_FAR * meter.step,
        max_encodes=max_encodes,
        max_kbps=max_bitrate,
    )
    capped = ((CAP, f"{max_bitrate:.0f}"),) if max_bitrate is not None and spec.cap else ()
    plain = Rendition(width, height, spec.name, spec.knob.min, preset, depth, capped)
    with (
        Cache(enabled=cache) as store,
        Workshop(spec, meter, store, ffmpeg=binary, workers=workers, timeout_s=timeout_s) as shop,
    ):
        trials: list[tuple[Scene, Trial]] = []
        _drive(controller, trials, source, scenes, plain, shop, progress)
        files = _files(controller, trials, scenes)
        if one_run:
            files = [_in_one_run(controller, plain, source, shop, progress)]
        # beside the output: it gets its name once it is known to be right
        with scratch(out.parent) as folder:
            whole = Path(folder) / out.name
            joined, score = _joined(files, scenes, source, whole, out, shop, progress)
            with counted_of(source, progress, "guard", f"guarding {quoted(out)}"):
                guard = shop.guard(source, whole)
            peak_kbps = _peak(joined, spec, source)
            os.replace(whole, out)
        cost = cost_json(shop.cost, time.monotonic() - started)
    aim = controller.target_score
    if bitrate is None:
        missed = score.value - (target_score or 0.0)
        # a title that scores more even at the worst knob has what was asked for, and is told
        reached, off = missed >= -far, abs(missed) > far
        outcome = f"scores {score.value:.2f}, {missed:+.2f} from the target {target_score:g}"
    else:
        missed = joined.video_kbps - bitrate
        off = abs(missed) > RATE_FAR * bitrate
        reached = not off
        outcome = f"takes {joined.video_kbps:.1f} kb/s where {bitrate:g} were asked for"
    # of the whole the controller knows the sum of its scenes only
    remarks = [remark.text for remark in controller.remarks() if remark.kind != "whole"]
    if off:
        held = _held_back(controller, max_encodes, max_bitrate, source, above=missed > 0)
        remarks.append(f"the whole {outcome}{'' if reached else ', not reached'}{held}")
    trusted = abs(score.value - controller.mean_score) <= SCENE_FAR * meter.step
    if not trusted:
        remarks.append(
            f"the whole scores {score.value:.2f} where its scenes score "
            f"{controller.mean_score:.2f} on average"
        )
    remarks += unreached([score], meter)
    document = {
        "schema": "vqaloop.encode/1",
        "vqaloop": __version__,
        "source": source_json(source),
        "codec": codec,
        "encoder": encoder_json(spec, encoder_version(spec, binary), binary, preset),
        "metric": metric_json(score),
        "target": {
            "score": target_score,
            "bitrate_kbps": bitrate,
            "allocation": how,
            "aim": rounded(aim),
            "tolerance": far,
            "one_run": one_run,
        },
        "file": os.fsencode(out).decode("utf-8", "replace"),
        "score": rounded(score.value),
        "score_of_scenes": rounded(controller.mean_score),
        "guard": {name: rounded(value) for name, value in guard.items()},
        "bitrate_kbps": rounded(joined.video_kbps),
        "peak_kbps": rounded(peak_kbps),
        "frames": joined.frames,
        "duration": joined.duration_s,
        "scenes": [
            _scene_json(scene, probe.knob, probe.score, probe.bits, source)
            for scene, probe in controller.choices.items()
        ],
        "trials": [
            {"start_frame": scene.start_frame, "end_frame": scene.end_frame, **trial.to_json()}
            for scene, trial in trials
        ],
        "cost": cost,
        "warnings": [*source.notes, *shop.remarks, *joined.notes, *remarks],
        "reached": reached,
        "trusted": trusted,
    }
    return Encoded(out, score.value, document, reached, trusted)


def tolerance_of(metric: Metric) -> float:
    """By how much a title may miss its target, in the metric's points: 0.5 of VMAF."""
    return metric.step * (LEARNED_FAR if metric.mode == "anchored" else FAR)


def _held_back(
    controller: RateController,
    max_encodes: int | None,
    max_bitrate: float | None,
    source: Source,
    *,
    above: bool,
) -> str:
    """What kept the title from its target, as far as can be told; `above`: it is beyond it."""
    used_up = max_encodes is not None and controller.encodes >= max_encodes
    held = ["--max-encodes"] * used_up
    rates = [
        probe.bits / 1000 / float(scene.frames / source.fps)
        for scene, probe in controller.choices.items()
    ]
    if not above and max_bitrate is not None and max(rates) > CAP_USED * max_bitrate:
        held.append("--max-bitrate")
    end = "worst-knob" if above else "best-knob"
    if any(remark.kind == end for remark in controller.remarks()):
        held.append(f"the range of the knob ({end.split('-')[0]} quality)")
    return f"; held back by {' and '.join(held)}" if held else ""


def _allocation(target: float | None, bitrate: float | None, allocation: str | None) -> Allocation:
    if (target is None) == (bitrate is None):
        raise InputError("give --target-score S, or --bitrate K to spend best; one of the two")
    how = allocation or ("target" if bitrate is None else "equal-slope")
    if how == "target":
        return "target"
    if how == "equal-slope":
        return "equal-slope"
    raise InputError(f"--allocation {how!r} is neither target nor equal-slope")


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
    source: Source,
    scenes: Sequence[Scene],
    plain: Rendition,
    shop: Workshop,
    progress: Watcher,
) -> None:
    """Encode and score what the controller asks for until it has what it wants.

    Appends to `trials`. Raises TargetUnreachable when a scene is left without an encode.
    """
    excerpts = SceneExcerpts(source, shop.scratch, shop.ffmpeg)

    def attempt(asked: tuple[Scene, float]) -> Trial:
        scene, knob = asked
        gop = even_gop(scene.frames, gop_frames(shop.spec, source.fps))
        return shop.try_one(excerpts.of(scene), replace(plain, knob=knob, gop=gop))

    while asked := controller.next_trials(shop.workers):
        made = list(zip(asked, shop.map(attempt, asked), strict=True))
        for (scene, _), trial in made:
            trials.append((scene, trial))
            _report(controller, scene, trial, shop.spec, source)
        done = [scene for scene in scenes if controller.is_done(scene)]
        for (scene, knob), trial in made:
            told = trial.error or f"{plain.encoder} {knob:g}: {trial.score:.2f}"
            where = f"frames {scene.start_frame} to {scene.end_frame - 1}"
            progress(Event("encode", f"{where}, {told}", len(done), len(scenes), trial))
        excerpts.prune(done)
    excerpts.prune(scenes)
    if bare := [scene for scene in scenes if scene not in controller.choices]:
        raise TargetUnreachable(_nothing_made(bare, trials))


def _report(
    controller: RateController, scene: Scene, trial: Trial, spec: EncoderSpec, source: Source
) -> None:
    knob = trial.rendition.knob
    if trial.encode is None or trial.score is None:
        controller.report(scene, knob, failed=True)
    else:
        # of the frames alone: a scene's container is no part of the joined file
        packets = stream_packets(trial.encode.path, spec.codec, source.fps)
        bits = 8 * sum(packet.size_bytes for packet in packets)
        controller.report(scene, knob, bits, trial.score)


def _files(
    controller: RateController, trials: Sequence[tuple[Scene, Trial]], scenes: Sequence[Scene]
) -> list[Path]:
    """The encodes that the controller chose, in order."""
    made = {(scene, t.rendition.knob): t.encode.path for scene, t in trials if t.encode}
    return [made[scene, controller.choices[scene].knob] for scene in scenes]


def _in_one_run(
    controller: RateController, plain: Rendition, source: Source, shop: Workshop, tell: Watcher
) -> Path:
    """The whole by one run of the encoder, with the scenes' knobs as zones of it."""
    choices = controller.choices
    frames = sum(scene.frames for scene in choices)
    mean = sum(scene.frames * probe.knob for scene, probe in choices.items()) / frames
    knob = shop.spec.knob.snap(mean)
    zones = zones_of([(s.start_frame, s.end_frame, p.knob) for s, p in choices.items()], knob)
    params = (*plain.params, (ZONES, zones))
    said = f"one run over the whole, {counted(len(choices), 'zone')} about {knob:g}"
    with counted_of(source, tell, "encode", said):
        return shop.encode(source, replace(plain, knob=knob, params=params)).path


def zones_of(scenes: Sequence[tuple[int, int, float]], crf: float) -> str:
    """Zones of x264 and x265 for (start, end, CRF) of scenes, within a run at `crf`.

    A step of 6 in QP halves the rate, as the quantiser's step then doubles (ITU-T H.264, 8.5.9).
    """
    return "/".join(
        f"{start},{end - 1},b={2 ** ((crf - own) / 6):.4f}" for start, end, own in scenes
    )


def _joined(
    files: Sequence[Path],
    scenes: Sequence[Scene],
    source: Source,
    whole: Path,
    out: Path,
    shop: Workshop,
    progress: Watcher,
) -> tuple[Joined, Score]:
    """The chosen encodes as one file `whole`, of which `out` will be the name, and its score."""
    with counted_of(source, progress, "join", f"{counted(len(files), 'part')} to {quoted(out)}"):
        joined = join(files, source, whole, spec=shop.spec, ffmpeg=shop.ffmpeg)
    meter = shop.metric.scene_by_scene([(scene.start_frame, scene.frames) for scene in scenes])
    with counted_of(source, progress, "verify", f"scoring {quoted(out)} as a whole"):
        return joined, shop.score(source, whole, meter)


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
