"""Tuning: the encoder parameters that save most bits of a title at an equal speed class.

defaults measured → operating point → Optuna study over the encoder's own parameters (trials judged
encode by encode, the bad ones given up early) → the best verified on the whole title, at knobs
that the search has not seen → what to give ffmpeg, or the defaults where nothing was confirmed.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.text import counted, quoted
from vqaloop.core.version import __version__
from vqaloop.encoding import checks
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError
from vqaloop.execution.cache import Cache
from vqaloop.execution.checks import check_folder, check_metric, check_run
from vqaloop.execution.document_parts import cost_json, encoder_json, metric_json, source_json
from vqaloop.execution.executor import Executor
from vqaloop.execution.stage_progress import report_if_slow
from vqaloop.execution.workshop import Workshop
from vqaloop.media.excerpt import excerpt
from vqaloop.media.excerpt_windows import choose_windows
from vqaloop.media.probe import probe_source
from vqaloop.quality.registry import DEFAULT_METRIC, open_metric
from vqaloop.records import Event, RDPoint, Source, Watcher, rounded
from vqaloop.search.curve_fit import fit_curve
from vqaloop.search.shared_study import default_storage, kept_in, open_storage, shown
from vqaloop.tuning.default_curves import CurvePoint
from vqaloop.tuning.param_study import ParamSearch, trial_json, tuning_json
from vqaloop.tuning.param_trials import ParamJudge, ParamsFailed, Setting, Target, TuneLimits
from vqaloop.tuning.result import SCHEMA, Tuning, study_name, write_tuning
from vqaloop.tuning.samplers import KNOB, Params, check_sampler, distributions, encoder_params

CANDIDATES = 3
"""Of the best trials, so many are verified until one is confirmed."""
MISS = 5.0
"""Percent of bitrate by which a verified saving may fall short of what the search found."""
LONGEST = 10_000
"""Most trials of a study."""


def best_params(
    shop: Workshop,
    title: Source,
    *,
    size: tuple[int, int],
    preset: str,
    bit_depth: int = 8,
    trials: int = 20,
    storage: str | None = None,
    sampler: str = "gp",
    slowdown: float = 1.1,
    seed: int = 0,
    progress: Watcher = lambda event: None,
    learnt: Callable[[dict[str, Any]], object] = lambda about: None,
) -> Params:
    """Parameters for all rungs of a ladder: tuned on `title` at the middle of the knob's range.

    `title` is the whole or its excerpt; `learnt` is told of the study (see param_study.py). Empty
    where nothing better than the defaults was confirmed. Raises InputError, and TargetUnreachable
    when the defaults cannot be encoded.
    """
    rules = _checked_rules(trials, slowdown)
    check_sampler(sampler)
    judge = ParamJudge(shop, [title], Setting(*size, preset, bit_depth))
    judge.prepare(Target(), lambda text, done, n: progress(Event("tune", text, done, n)))
    search = ParamSearch(judge, rules, sampler, seed)
    name = study_name(judge, title, Target(), sampler, seed, rules)
    kept = open_storage(storage)
    found = search.run(
        kept,
        name,
        trials,
        lambda e: progress(Event("tune", e.message, e.done, e.total)),
    )
    learnt(tuning_json([trial_json(t, _told_params(search, t)) for t in found], found))
    candidates = [encoder_params(shop.spec, t.params) for t in search.candidates(found)]

    def confirmed() -> list[list[str]]:
        if not candidates:
            return []
        check, _, _ = judge.confirm(
            title, candidates[:CANDIDATES], rules, lambda text: progress(Event("tune", text))
        )
        return [list(pair) for pair in check.params] if check else []

    # once for all who share the study: times vary, and ladders of other parameters are others
    answer = f"confirmed of {trials}"
    with search.seat(kept, name) as study:
        return tuple((str(key), str(value)) for key, value in study.begun(answer, confirmed))


def tune_encoder(
    input: str | os.PathLike[str],
    *,
    codec: str,
    encoder: str | None = None,
    target_score: float | None = None,
    bitrate: float | None = None,
    trials: int = 30,
    storage: str | None = None,
    sampler: str = "gp",
    slowdown: float = 1.1,
    metric: str = DEFAULT_METRIC,
    resolution: tuple[int, int] | None = None,
    preset: str | None = None,
    bit_depth: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | Executor = 1,
    seed: int = 0,
    cache: bool = True,
    timeout_s: float | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    progress: Watcher = lambda event: None,
) -> Tuning:
    """Encoder parameters for a video that save bitrate at equal score, time and PSNR.

    The operating point is a score of the metric (`target_score`) or kb/s (`bitrate`); with neither
    the knob is searched too, and the answer holds the front of bitrate and score. `trials` counts
    those of the study, whoever made them; `storage` is an SQLAlchemy URL or journal:FILE (by
    default study.db in `out`), `slowdown` the most CPU time an encode may take as a multiple of
    the defaults', `out` a folder (by default NAME.CODEC.tune here). The rest is as in
    `build_ladder`.

    Raises InputError for anything refused before work starts, TargetUnreachable for a target that
    the encoder does not reach. Interrupted, the same call goes on from there.
    """
    started = time.monotonic()
    binary = ffmpeg_path(ffmpeg)
    check_run(workers, seed, device, timeout_s)
    target = _checked_target(target_score, bitrate)
    front = target == Target()
    rules = _checked_rules(trials, slowdown)
    check_sampler(sampler, 2 if front else 1)
    spec = checks.choose_encoder(codec, encoder, binary)
    preset = checks.checked_preset(spec, preset)
    meter = open_metric(
        metric, ffmpeg=binary, device=device, seed=seed, weights=weights, precision=score_precision
    )
    if target_score is not None and not 0 < target_score < meter.top:
        raise InputError(
            f"the target score must lie between 0 and {meter.top:g}, not {target_score:g}"
        )
    folder = Path(out) if out is not None else Path(f"{Path(input).stem}.{codec}.tune")
    check_folder(folder, Path(input), "tuning")
    with report_if_slow(progress, Event("probe", f"looking at {quoted(input)}")):
        source = probe_source(
            Path(input),
            video_size=video_size,
            pix_fmt=pix_fmt,
            framerate=framerate,
            allow_hdr=allow_hdr,
            ffmpeg=binary,
        )
    size = checks.choose_sizes(source, spec, [resolution or source.canvas])[0]
    setting = Setting(*size, preset, checks.checked_depth(source, spec, bit_depth))
    check_metric(meter, weights)
    distributions(spec)
    url = storage or (default_storage(folder) if cache else None)
    with (
        _folder_made(folder),
        kept_in(url),
        Cache(enabled=cache) as store,
        Workshop(spec, meter, store, ffmpeg=binary, workers=workers, timeout_s=timeout_s) as shop,
    ):
        kept = open_storage(url)
        with report_if_slow(progress, Event("excerpt", "looking for windows that stand for it")):
            windows = choose_windows(source, ffmpeg=binary, seed=seed)
        parts = [source]
        if windows != ((0, source.frames),):
            parts = []
            for i, window in enumerate(windows):
                said = f"{counted(len(windows), 'window')} stand for the title"
                progress(Event("excerpt", said, i, len(windows)))
                place = shop.scratch / f"window{i}.mkv"
                parts.append(excerpt(source, [window], place, ffmpeg=binary))
        judge = ParamJudge(shop, parts, setting)
        judge.prepare(target, lambda text, done, n: progress(Event("probe", text, done, n)))
        search = ParamSearch(judge, rules, sampler, seed, front=front)
        name = study_name(judge, source, target, sampler, seed, rules)
        found = search.run(kept, name, trials, progress)
        best = search.candidates(found)
        if front and best:
            # verified where on the front it lies
            judge.knob = spec.knob.snap(best[0].params[KNOB])
        most, looked = len(best[:CANDIDATES]), 0

        def tell(text: str) -> None:
            nonlocal looked
            looked += 1
            progress(Event("verify", text, looked, most, at_most=True))

        progress(Event("verify", "the whole title with the defaults", 0, most, at_most=True))
        check, default, warnings = judge.confirm(
            source,
            [encoder_params(spec, trial.params) for trial in best[:CANDIDATES]],
            rules,
            tell,
        )
        params = check.params if check else ()
        chosen = [t for t in best if encoder_params(spec, t.params) == params]
        predicted = float(chosen[0].user_attrs["saving_percent"]) if chosen else 0.0
        saving = check.saving if check else 0.0
        missed = predicted - saving > MISS
        if missed:
            warnings.append(
                f"the search found {predicted:.1f} % near the target, and the whole title "
                f"confirms {saving:.1f} %"
            )
        if best and not check:
            warnings.append("nothing that the search found was confirmed: the defaults stand")
        if not best:
            warnings.append("nothing better than the defaults was found")
        curve = list(check.curve) if check else default
        at = _at_target(judge, source, params, curve, target)
        made = shop.encode(source, judge.rendition(params, at.knob))
        about = {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "source": source_json(source),
            "codec": codec,
            "encoder": encoder_json(spec, encoder_version(spec, binary), binary, preset),
            "metric": metric_json(shop.score(source, made.path)),
            "target": {"score": target_score, "bitrate_kbps": bitrate},
            "vmaf_saving": rounded(check.vmaf_saving) if check else 0.0,
            "size": {"width": size[0], "height": size[1]},
            "at_target": _point_json(at),
            "limits": asdict(rules),
            "curves": {
                "default": [_point_json(p) for p in default],
                "tuned": [_point_json(p) for p in curve],
            },
            "front": _front_json(search, found) if front else [],
            "study": {
                "name": name,
                "storage": shown(url),
                "sampler": sampler,
                "seed": seed,
                "trials": len(found),
            },
            "trials": [trial_json(t, _told_params(search, t)) for t in found],
            "windows": [list(window) for window in windows],
            "cost": cost_json(shop.cost, time.monotonic() - started),
            "warnings": [*source.notes, *shop.remarks, *warnings],
        }
        tuning = Tuning(
            folder,
            dict(params),
            (spec.knob.name, at.knob),
            at.ffmpeg_args,
            predicted,
            saving,
            check.psnr_gain if check else 0.0,
            check.time_ratio if check else 1.0,
            about,
            trusted=not missed and (check is not None or not best),
        )
        progress(Event("write", f"writing {quoted(folder)}"))
        write_tuning(tuning)
        return tuning


def _checked_target(score: float | None, bitrate: float | None) -> Target:
    if score is not None and bitrate is not None:
        raise InputError("give a target score or a bitrate, not both")
    if bitrate is not None and not 0 < bitrate < math.inf:
        raise InputError(f"the bitrate must lie above 0 kb/s, not {bitrate:g}")
    return Target(score, bitrate)


def check_trials(trials: int) -> None:
    """Raises InputError for a number of trials that no study should have."""
    if not 1 <= trials <= LONGEST:
        raise InputError(f"there must be 1 to {LONGEST} trials, not {trials}")


def _checked_rules(trials: int, slowdown: float) -> TuneLimits:
    check_trials(trials)
    if not 0.1 <= slowdown <= 100:
        raise InputError(f"the slowdown must lie between 0.1 and 100, not {slowdown:g}")
    return TuneLimits(slowdown)


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
        return judge.measure(source, params, knob.snap(at))
    except ParamsFailed:
        # one knob off the curve fails: the nearest that did not
        return min(curve, key=lambda p: abs(p.knob - at))


def _point_json(point: CurvePoint) -> dict[str, Any]:
    figures = asdict(point)
    del figures["ffmpeg_args"]
    return {name: rounded(value) for name, value in figures.items()}


def _told_params(search: ParamSearch, trial: FrozenTrial) -> dict[str, Any]:
    params: dict[str, Any] = dict(encoder_params(search.spec, trial.params))
    return {**params, KNOB: trial.params[KNOB]} if KNOB in trial.params else params


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


@contextlib.contextmanager
def _folder_made(folder: Path) -> Iterator[None]:
    """The folder is made; it goes again when what follows fails and leaves nothing in it."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for place in missing:
                place.rmdir()
        raise
