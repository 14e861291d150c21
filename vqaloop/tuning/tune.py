"""Tuning: the encoder parameters that save most bits of a title at an equal speed class.

defaults measured → operating point → Optuna study over the encoder's own parameters (trials judged
encode by encode, the bad ones given up early) → the best verified on the whole title, at knobs
that the search has not seen → what to give ffmpeg, or the defaults where nothing was confirmed.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from vqaloop.core.option_fields import taken
from vqaloop.core.text import counted, quoted
from vqaloop.errors import InputError
from vqaloop.execution.checks import check_folder, folder_undone
from vqaloop.execution.document_parts import cost_json, head_json
from vqaloop.execution.executor import Executor
from vqaloop.execution.session import Session, open_session
from vqaloop.execution.tools import chosen_tools
from vqaloop.media.excerpt import excerpt
from vqaloop.quality.registry import DEFAULT_METRIC
from vqaloop.records import Event, RDPoint, Score, Source, Watcher, rounded
from vqaloop.search.curve_fit import fit_curve
from vqaloop.search.shared_study import default_storage, kept_in, open_storage, shown
from vqaloop.tuning.default_curves import GUARDS, CurvePoint
from vqaloop.tuning.options import XPSNR_LOSS, TuneOptions
from vqaloop.tuning.param_study import ParamSearch, refused, trial_json, tuning_json
from vqaloop.tuning.param_trials import (
    ParamJudge,
    ParamsFailed,
    Setting,
    Target,
    TuneLimits,
    Verification,
)
from vqaloop.tuning.result import SCHEMA, Tuning, study_name, write_tuning
from vqaloop.tuning.samplers import KNOB, Params, check_sampler, distributions, encoder_params

CANDIDATES = 6
"""Of the best trials, so many are verified until one is confirmed."""
MISS = 5.0
"""Percent of bitrate by which a verified saving may fall short of what the search found."""


@dataclass(frozen=True)
class TuneGoal:
    """What parameters are searched for, and how."""

    setting: Setting
    trials: int
    target: Target = Target()
    limits: TuneLimits = TuneLimits()
    sampler: str = "gp"
    front: bool = False
    """Whether the knob is searched too, for a front of bitrate and score."""


@dataclass(frozen=True)
class ParamsFound:
    """What the study of a title came to."""

    judge: ParamJudge
    search: ParamSearch
    name: str
    """The study's."""
    storage: BaseStorage
    trials: Sequence[FrozenTrial]
    best: Sequence[FrozenTrial]
    """Candidates for verification, the most saving first."""

    def params_of(self, trial: FrozenTrial) -> Params:
        return encoder_params(self.search.spec, trial.params)


def tune_params(
    session: Session[Any],
    title: Source,
    parts: Sequence[Source],
    goal: TuneGoal,
    storage: str | None,
    progress: Watcher,
) -> ParamsFound:
    """Search parameters on the parts that stand for a title.

    Raises TargetUnreachable when the defaults cannot be encoded.
    """
    seed = session.options.seed
    judge = ParamJudge(session.shop, parts, goal.setting)
    judge.prepare(goal.target, lambda text, done, n: progress(Event("probe", text, done, n)))
    search = ParamSearch(judge, goal.limits, goal.sampler, seed, front=goal.front)
    asked = bool(session.options.framerate)
    name = study_name(judge, title, goal.target, goal.sampler, seed, goal.limits, rate_asked=asked)
    kept = open_storage(storage)
    found = search.run(kept, name, goal.trials, progress)
    return ParamsFound(judge, search, name, kept, found, search.candidates(found))


def best_params(
    session: Session[Any], title: Source, trials: int, storage: str | None
) -> tuple[Params, dict[str, Any]]:
    """Parameters for all rungs of a ladder, and the study as ladder.json has it.

    They are tuned at the middle of the knob's range, on `title`: the whole or its excerpt. Empty
    where nothing better than the defaults was confirmed. Raises InputError, and TargetUnreachable
    when the defaults cannot be encoded.
    """

    def progress(event: Event) -> None:
        session.options.progress(Event("tune", event.message, event.done, event.total))

    size = session.sizes[len(session.sizes) // 2]
    goal = TuneGoal(Setting(*size, session.preset, session.depth), trials)
    found = tune_params(session, title, [title], goal, storage, progress)
    candidates = [found.params_of(trial) for trial in found.best]

    def confirmed() -> list[list[str]]:
        if not candidates:
            return []
        check, _, _ = found.judge.confirm(
            title,
            candidates[:CANDIDATES],
            goal.limits,
            lambda text: progress(Event("tune", text)),
        )
        return [list(pair) for pair in check.params] if check else []

    # once for all who share the study: times vary, and ladders of other parameters are others
    answer = f"confirmed of {trials}"
    with found.search.seat(found.storage, found.name) as study:
        params = tuple((str(key), str(value)) for key, value in study.begun(answer, confirmed))
    return params, tuning_json(_trials_json(found), found.trials)


def tune_encoder(
    input: str | os.PathLike[str],
    *,
    codec: str,
    encoder: str | None = None,
    target_score: float | None = None,
    bitrate: float | str | None = None,
    trials: int = 30,
    storage: str | None = None,
    sampler: str = "gp",
    slowdown: float = 1.1,
    xpsnr_loss: float = XPSNR_LOSS,
    metric: str = DEFAULT_METRIC,
    resolution: tuple[int, int] | str | None = None,
    preset: str | None = None,
    bit_depth: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | Executor = 1,
    seed: int = 0,
    cache: bool = True,
    timeout_s: float | str | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    prompt: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    pool: str = "mean",
    display: str = "monitor",
    cvvdp: str | os.PathLike[str] | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    tonemap: bool = False,
    dynamic_hdr: Literal["drop", "refuse"] = "drop",
    deinterlace: Literal["auto", "frames", "fields", "telecine"] = "auto",
    progress: Watcher = lambda event: None,
) -> Tuning:
    """Encoder parameters for a video that save bitrate at equal score, time and PSNR.

    With neither `target_score` nor `bitrate` the knob is searched too, and the answer holds the
    front of bitrate and score.

    Args:
        input: The video.
        codec: h264, hevc, vp9, av1 or avs2.
        encoder: By name; None: the codec's default one.
        target_score: Operating point, as a score of the metric.
        bitrate: Operating point, in kb/s.
        trials: Of the study, whoever made them.
        storage: An SQLAlchemy URL or journal:FILE; None: study.db in `out`, and without the cache
            none.
        sampler: gp, tpe, cmaes or nsga2.
        slowdown: Most CPU time of an encode, as a multiple of the defaults', 0.1 to 100.
        xpsnr_loss: Most percent of bitrate lost at equal XPSNR, 0 to 100.
        metric: By name, see `vqaloop.Scorer`.
        resolution: Width and height in pixels; None: the source's.
        preset: Of the encoder; None: its default one.
        bit_depth: 8 or 10; None: the source's.
        out: Folder; None: NAME.CODEC.tune here.
        device: Of the learned metric: auto, cpu or cuda.
        workers: How many encodes are made at once, or an Executor that makes them elsewhere.
        seed: Of the search and the metric.
        cache: Whether encodes and scores are kept for the next call.
        timeout_s: Seconds of one encode.
        ffmpeg: The program; None: the bundled one.
        weights: Of the learned metric; None: those that come with vqaloop.
        prompt: Of the learned metric: what adapts its scores; None: none.
        score_precision: Half-width of a score's interval at which scoring stops, in points.
        pool: How scores are pooled over time: mean, harmonic, p5, p1 or min-scene.
        display: Of cvvdp: monitor, phone, tablet, tv or hdr-tv.
        cvvdp: ColorVideoVDP's program; None: by $VQALOOP_CVVDP or the PATH.
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
        The parameters, what they save, and what to give ffmpeg.

    Raises:
        InputError: Something is refused before work starts.
        TargetUnreachable: The encoder does not reach the target. Interrupted, the same call goes
            on from there.
    """
    options = TuneOptions(**taken(TuneOptions, locals()))
    return _tune(input, options)


def _tune(input: str | os.PathLike[str], options: TuneOptions) -> Tuning:
    target = Target(options.target_score, options.bitrate)
    front = target == Target()
    check_sampler(options.sampler, 2 if front else 1)
    tools = chosen_tools(options)
    score, top = options.target_score, tools.metric.top
    if score is not None and not 0 < score < top:
        raise InputError(f"the target score must lie between 0 and {top:g}, not {score:g}")
    folder = Path(options.out or f"{Path(input).stem}.{options.codec}.tune")
    check_folder(folder, Path(input), "tuning")
    distributions(tools.spec)
    url = options.storage or (default_storage(folder) if options.cache else None)
    with (
        open_session(input, options, tools) as session,
        folder_undone(folder),
        kept_in(url),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(*session.sizes[0], session.preset, session.depth)
        limits = TuneLimits(options.slowdown, xpsnr_loss=options.xpsnr_loss)
        goal = TuneGoal(setting, options.trials, target, limits, options.sampler, front)
        windows = session.windows()
        parts = _parts(session, windows)
        found = tune_params(session, session.source, parts, goal, url, options.progress)
        answer = _answer(session, found, _verified(session, goal, found), target)
        about = {
            **_answer_json(session, goal, answer),
            "front": _front_json(found.search, found.trials) if front else [],
            "study": {
                "name": found.name,
                "storage": shown(url),
                "sampler": options.sampler,
                "seed": options.seed,
                "trials": len(found.trials),
            },
            "trials": _trials_json(found),
            "windows": [list(window) for window in windows],
            "cost": cost_json(session.shop.cost, time.monotonic() - session.started),
            "warnings": [*session.source.notes, *session.shop.remarks, *answer.warnings],
        }
        tuning = _tuning(folder, session, answer, about)
        options.progress(Event("write", f"writing {quoted(folder)}"))
        write_tuning(tuning)
        return tuning


def _parts(session: Session[TuneOptions], windows: Sequence[tuple[int, int]]) -> list[Source]:
    """The windows of the title as files, or the title itself where they are all of it."""
    source = session.source
    if windows == ((0, source.frames),):
        return [source]
    parts: list[Source] = []
    for i, window in enumerate(windows):
        message = f"{counted(len(windows), 'window')} stand for the title"
        session.options.progress(Event("excerpt", message, i, len(windows)))
        place = session.shop.scratch / f"window{i}.mkv"
        parts.append(excerpt(source, [window], place, ffmpeg=session.ffmpeg))
    return parts


Verified = tuple[Verification | None, list[CurvePoint], list[str]]
"""The first confirmed of the best trials, the curve of the defaults, and warnings."""


def _verified(session: Session[TuneOptions], goal: TuneGoal, found: ParamsFound) -> Verified:
    """The best trials over the whole title."""
    if goal.front and found.best:
        # verified where on the front it lies
        found.judge.knob = session.spec.knob.snap(found.best[0].params[KNOB])
    candidates = [found.params_of(trial) for trial in found.best[:CANDIDATES]]
    most, looked = len(candidates), 0

    def report(text: str) -> None:
        nonlocal looked
        looked += 1
        session.options.progress(Event("verify", text, looked, most, at_most=True))

    first = "the whole title with the defaults"
    session.options.progress(Event("verify", first, 0, most, at_most=True))
    return found.judge.confirm(session.source, candidates, goal.limits, report)


@dataclass(frozen=True)
class TunedParams:
    """The parameters that the whole title confirmed, or the defaults."""

    check: Verification | None
    params: Params
    predicted: float
    """Percent of bitrate that the search found they save."""
    default: Sequence[CurvePoint]
    """The curve of the default parameters."""
    curve: Sequence[CurvePoint]
    """The curve of these."""
    at: CurvePoint
    """At the target."""
    score: Score
    """There, of the whole title."""
    warnings: Sequence[str]
    trusted: bool


def _answer(
    session: Session[TuneOptions], found: ParamsFound, verified: Verified, target: Target
) -> TunedParams:
    check, default, warnings = verified
    params = check.params if check else ()
    chosen = [trial for trial in found.best if found.params_of(trial) == params]
    predicted = float(chosen[0].user_attrs["saving_percent"]) if chosen else 0.0
    saving = check.saving if check else 0.0
    missed = predicted - saving > MISS
    if missed:
        warnings.append(
            f"the search found {predicted:.1f} % near the target, and the whole title "
            f"confirms {saving:.1f} %"
        )
    if check and "xpsnr" not in check.guards:
        warnings.append(
            "XPSNR, which guards adaptive quantisation, was not measured: this ffmpeg lacks its "
            "filter; give one that has it with --ffmpeg"
        )
    if found.best and not check:
        warnings.append("nothing that the search found was confirmed: the defaults stand")
    if not found.best:
        why = refused(found.trials)
        warnings.append(f"nothing better than the defaults was found{why and '; '}{why}")
    curve = list(check.curve) if check else default
    at = _at_target(found.judge, session.source, params, curve, target)
    made = session.shop.encode(session.source, found.judge.rendition(params, at.knob))
    score = session.shop.score(session.source, made.path, found.judge.confirming)
    trusted = not missed and (check is not None or not found.best)
    return TunedParams(check, params, predicted, default, curve, at, score, warnings, trusted)


def _answer_json(
    session: Session[TuneOptions], goal: TuneGoal, answer: TunedParams
) -> dict[str, Any]:
    """The first part of tuning.json: what was asked, and what holds at the target."""
    return {
        **head_json(SCHEMA, session, answer.score),
        "target": {"score": goal.target.score, "bitrate_kbps": goal.target.kbps},
        "guard_savings": {
            name: rounded(answer.check.guards.get(name)) if answer.check else 0.0
            for name in GUARDS
        },
        "size": {"width": goal.setting.width, "height": goal.setting.height},
        "at_target": {
            **_point_json(answer.at),
            **({} if answer.score.mean is None else {"score_mean": rounded(answer.score.mean)}),
        },
        "limits": asdict(goal.limits),
        "curves": {
            "default": [_point_json(point) for point in answer.default],
            "tuned": [_point_json(point) for point in answer.curve],
        },
    }


def _tuning(
    folder: Path, session: Session[TuneOptions], answer: TunedParams, about: dict[str, Any]
) -> Tuning:
    check = answer.check
    return Tuning(
        folder,
        dict(answer.params),
        (session.spec.knob.name, answer.at.knob),
        answer.at.ffmpeg_args,
        answer.predicted,
        check.saving if check else 0.0,
        check.psnr_gain if check else 0.0,
        check.time_ratio if check else 1.0,
        about,
        trusted=answer.trusted,
    )


def _at_target(
    judge: ParamJudge, source: Source, params: Params, curve: Sequence[CurvePoint], target: Target
) -> CurvePoint:
    """The whole title encoded at the target, by the curve of these parameters."""
    knob = judge.shop.spec.knob
    points = [RDPoint(0, 0, p.knob, p.kbps, p.score) for p in curve]
    fitted = fit_curve(points, judge.shop.metric.top)
    reach = np.arange(knob.min, knob.max + knob.step / 2, knob.step).tolist()
    near = [fitted(k) for k in reach if abs(k - judge.knob) <= 4 * judge.step]
    at = judge.knob
    if target.score is not None:
        wanted = target.score
        at = min(near, key=lambda p: abs(p.score - wanted)).knob
    elif target.kbps is not None:
        log_kbps = math.log(target.kbps)
        at = min(near, key=lambda p: abs(math.log(p.bitrate_kbps) - log_kbps)).knob
    try:
        return judge.measure(source, params, knob.snap(at), confirm=True)
    except ParamsFailed:
        # one knob off the curve fails: the nearest that did not
        return min(curve, key=lambda p: abs(p.knob - at))


def _point_json(point: CurvePoint) -> dict[str, Any]:
    figures = asdict(point)
    del figures["ffmpeg_args"]
    return {name: rounded(value) for name, value in figures.items()}


def _trials_json(found: ParamsFound) -> list[dict[str, Any]]:
    """The trials with their parameters, and the knob where it was searched."""
    rows = []
    for trial in found.trials:
        params: dict[str, Any] = dict(found.params_of(trial))
        if KNOB in trial.params:
            params[KNOB] = trial.params[KNOB]
        rows.append(trial_json(trial, params))
    return rows


def _front_json(search: ParamSearch, trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Trials that no allowed one beats in bitrate and score, ascending."""
    front: list[dict[str, Any]] = []
    for trial in sorted(search.allowed(trials), key=lambda t: (t.values[0], -t.values[1])):
        kbps, score = trial.values
        if not front or score > front[-1]["score"]:
            params = dict(encoder_params(search.spec, trial.params))
            about = {"number": trial.number, "knob": trial.params[KNOB], "params": params}
            saving = rounded(trial.user_attrs["saving_percent"])
            front.append({"bitrate_kbps": kbps, "score": score, "saving_percent": saving, **about})
    return front
