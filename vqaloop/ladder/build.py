"""The loop: a title goes in, the best ladder for it comes out, every rung measured.

probe → excerpt of a long title → search (encode, score, fit, hull) → rungs → the whole title
encoded, scored and guarded for each → a folder with the files, ladder.json, ladder.csv, reports.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.folders import is_study_file
from vqaloop.core.text import quoted
from vqaloop.core.version import __version__
from vqaloop.encoding import checks
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError, TargetUnreachable
from vqaloop.execution.cache import Cache
from vqaloop.execution.checks import check_folder, check_metric, check_run
from vqaloop.execution.document_parts import cost_json, encoder_json, metric_json, source_json
from vqaloop.execution.executor import Executor
from vqaloop.execution.stage_progress import counted_cut, described, report_if_slow
from vqaloop.execution.workshop import Workshop
from vqaloop.ladder.document import doubts, hull_json, rules_json
from vqaloop.ladder.pictures import take_pictures, worst_json
from vqaloop.ladder.reproduce import asked_json
from vqaloop.ladder.rules import Budget, checked_budget, make_rules, required_sizes
from vqaloop.ladder.steps import Loop
from vqaloop.ladder.store import SCHEMA, write_reports
from vqaloop.media.excerpt import excerpt
from vqaloop.media.excerpt_windows import choose_windows
from vqaloop.media.probe import probe_source
from vqaloop.quality.metric import Metric
from vqaloop.quality.registry import DEFAULT_METRIC, kindred, open_metric
from vqaloop.records import Event, Ladder, Source, Watcher
from vqaloop.search.prior_store import (
    PriorUse,
    chosen_prior,
    prior_json,
    prior_of,
    prior_use,
    remember,
)
from vqaloop.search.shared_study import (
    DELIVERING,
    SharedStudy,
    default_storage,
    kept_in,
    open_storage,
)
from vqaloop.search.space import Space
from vqaloop.search.surrogates import CurveFits, Surrogate, TitlePrior
from vqaloop.tuning.tune import best_params, check_trials

DIRECTIONS: tuple[Literal["minimize", "maximize"], ...] = ("minimize", "maximize")
"""Of a study's values: bitrate and score."""
GUARD_GAP = 10.0
"""Points between a student's score and the VMAF of a delivered file beyond which the student is
not to be believed: more than two times its held-out error."""
TOLERANCE_STEPS = 1.5
"""Steps (of the metric's own) by which a rung may miss its prediction before the ladder is not to
be trusted; on VMAF's scale 6 points, about one just noticeable difference."""


def build_ladder(
    input: str | os.PathLike[str],
    *,
    codec: str,
    encoder: str | None = None,
    resolutions: Sequence[tuple[int, int]] | None = None,
    metric: str = DEFAULT_METRIC,
    rungs: int | None = None,
    min_step: float | None = None,
    min_ratio: float = 1.4,
    min_bitrate: float = 0.0,
    max_bitrate: float = float("inf"),
    min_score: float | None = None,
    max_score: float | None = None,
    require: Sequence[tuple[int, int]] = (),
    budget_s: float | None = None,
    preset: str | None = None,
    bit_depth: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | Executor = 1,
    seed: int = 0,
    cache: bool = True,
    storage: str | None = None,
    prior: PriorUse | bool = "shipped",
    tune_trials: int | None = None,
    timeout_s: float | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    progress: Watcher = lambda event: None,
) -> Ladder:
    """The per-title ladder of a video, its files and reports written to `out`.

    `min_step` is the least difference in score between neighbouring rungs (by default the metric's
    own), `min_ratio` the least ratio of their bitrates, bitrates are in kb/s, `min_score` and
    `max_score` the floor of the ladder and where its top rung may stop, `require` sizes that must
    have a rung, `rungs` a number or None for as many as pay. `budget_s` bounds the wall time of
    the search, `timeout_s` one encode. `out` is a folder (by default NAME.CODEC.ladder here).
    `workers` is how many encodes are made at once on this machine, or an Executor that makes them
    elsewhere. With `score_precision` a student looks at no more of an encode than tells its score
    to ± that. `storage` names an Optuna storage that several processes may share (by default a
    file in `out`; without the cache, none). `prior` is what the search begins with: "shipped" is
    what came with the package, so that the same call gives the same ladder later; "own" adds what
    this machine's other titles taught; "none" begins with nothing and keeps nothing. (True and
    False are taken for "own" and "none".) With `tune_trials` the encoder's own parameters are
    tuned on the title first, by as many trials (see `tune_encoder`). `video_size`, `pix_fmt` and
    `framerate` describe raw video.

    Raises InputError for anything refused before work starts, TargetUnreachable when too few rungs
    could be made. What was encoded until then, or until an interruption, stays in the cache, so
    the same call goes on from there.
    """
    given = dict(locals())
    started = time.monotonic()
    binary = ffmpeg_path(ffmpeg)
    check_run(workers, seed, device, timeout_s)
    use = prior_use(prior)
    spec = checks.choose_encoder(codec, encoder, binary)
    preset = checks.checked_preset(spec, preset)
    meter = open_metric(
        metric, ffmpeg=binary, device=device, seed=seed, weights=weights, precision=score_precision
    )
    rules = make_rules(
        meter, rungs, min_step, min_ratio, min_bitrate, max_bitrate, min_score, max_score
    )
    if tune_trials is not None:
        check_trials(tune_trials)
    if tune_trials is not None and budget_s is not None:
        raise InputError(
            "--budget bounds the search alone and does not go with --tune-params; tune first with "
            "`vqaloop tune`, or leave out one of the two"
        )
    budget = Budget(checked_budget(budget_s), started)
    folder = Path(out) if out is not None else Path(f"{Path(input).stem}.{codec}.ladder")
    check_folder(folder, Path(input))
    with report_if_slow(progress, Event("probe", f"looking at {quoted(input)}")):
        source = probe_source(
            Path(input),
            video_size=video_size,
            pix_fmt=pix_fmt,
            framerate=framerate,
            allow_hdr=allow_hdr,
            ffmpeg=binary,
        )
    sizes = checks.choose_sizes(source, spec, resolutions)
    space = Space(sizes, spec.knob, source.canvas, float(source.fps))
    rules = replace(rules, required=required_sizes(require, sizes))
    depth = checks.checked_depth(source, spec, bit_depth)
    check_metric(meter, weights)
    # a storage that was named is refused as all else is, before anything is said
    named = open_storage(storage) if storage is not None else None
    progress(Event("probe", described(source)))
    where = storage or (default_storage(folder) if cache else None)
    with (
        _undone_on_failure(folder) as placed,
        Cache(enabled=cache) as store,
        Workshop(spec, meter, store, ffmpeg=binary, workers=workers, timeout_s=timeout_s) as shop,
        kept_in(where),
    ):
        if where and not storage:
            folder.mkdir(parents=True, exist_ok=True)
        studies = named or open_storage(where)
        loop = Loop(shop, space, rules, preset, depth, progress, budget)
        with report_if_slow(progress, Event("excerpt", "looking for windows that stand for it")):
            windows = choose_windows(source, ffmpeg=binary, seed=seed)
        title, whole = source, windows == ((0, source.frames),)
        if not whole:
            with counted_cut(progress, windows):
                title = excerpt(source, windows, shop.scratch / "excerpt.mkv", ffmpeg=binary)

        tuning: dict[str, Any] = {}
        if tune_trials is not None:
            loop.params = best_params(
                shop,
                title,
                size=sizes[len(sizes) // 2],
                preset=preset,
                bit_depth=depth,
                trials=tune_trials,
                storage=where,
                seed=seed,
                progress=progress,
                learnt=tuning.update,
            )
            told = " ".join(f"{name}={value}" for name, value in loop.params)
            progress(Event("tune", f"encoder parameters: {told or 'the defaults'}"))

        def study_of(part: Source) -> SharedStudy:
            name = _study_name(source, part, loop, binary)
            return SharedStudy(studies, name, DIRECTIONS, space.distributions())

        with study_of(title) as study:
            belief = _belief(study, spec, preset, meter, space, source, use)
            found = loop.search(title, whole, study, belief)
        with study_of(source) as study:
            checked = loop.verify(source, found, whole, study, belief)
        # other weights and tuned parameters are not what the next title will be made with
        if use != "none" and cache and weights is None and not loop.params:
            kind = spec.name, preset, meter.name
            remember(*kind, source.sha256, space, found.points, meter.top)
        # the rung files come before ladder.json: who finds them alone shall know whose they are
        mark = folder / DELIVERING
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        placed.append(mark)
        rungs_made = loop.deliver(source, folder, checked, placed)
        tolerance = TOLERANCE_STEPS * meter.step
        # a search on the whole title has measured these very files and planned with the figures
        missed = [
            r for r in rungs_made if not whole and abs(r.score - r.score_predicted) > tolerance
        ]
        # only a score on VMAF's own scale can be held against VMAF
        on_scale = meter.mode == "anchored" and meter.top == 100
        astray = [r for r in rungs_made if on_scale and abs(r.score - r.guard["vmaf"]) > GUARD_GAP]
        document = {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "source": source_json(source),
            "codec": codec,
            "encoder": encoder_json(spec, encoder_version(spec, binary), binary, preset),
            "metric": metric_json(checked[0].score),
            "hull": hull_json(found.points, belief.dense(found.points)),
            "trials": [trial.to_json() for trial in loop.trials],
            "cost": cost_json(shop.cost, time.monotonic() - started),
            "rules": rules_json(rules),
            "windows": [list(window) for window in windows],
            "estimate": loop.estimate,
            "tuning": tuning or None,
            "worst": worst_json(source, [item.score for item in checked]),
            "asked": asked_json(build_ladder, given),
            "warnings": [
                *(*source.notes, *shop.remarks, *loop.warnings),
                *doubts(rungs_made, missed, astray),
            ],
        }
        ladder = Ladder(folder, tuple(rungs_made), document, trusted=not missed and not astray)
        progress(Event("write", f"pictures of {quoted(folder)}", 0, 2))
        pictures = take_pictures(ladder, source, ffmpeg=binary)
        progress(Event("write", f"reports of {quoted(folder)}", 1, 2))
        write_reports(ladder, pictures)
        mark.unlink(missing_ok=True)
        return ladder


def build_ladders(
    input: str | os.PathLike[str],
    *,
    codecs: Sequence[str],
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Ladder]:
    """A ladder for each codec, in folders CODEC of `out` (by default NAME.ladders here).

    `options` are those of `build_ladder`; `encoder` goes with one codec only. Raises as it does,
    and InputError before any work for a codec that is unknown or named twice.
    """
    if len(set(codecs)) < len(codecs):
        raise InputError(f"--codec {','.join(codecs)} names one twice")
    if options.get("encoder") and len(codecs) > 1:
        raise InputError("--encoder goes with one codec; leave it out, or name one codec")
    binary = ffmpeg_path(options.get("ffmpeg"))
    folder = Path(out) if out is not None else Path(f"{Path(input).stem}.ladders")
    for codec in codecs:
        spec = checks.choose_encoder(codec, options.get("encoder"), binary)
        checks.checked_preset(spec, options.get("preset"))
        if options.get("bit_depth") not in (None, *spec.bit_depths):
            raise InputError(f"{spec.name} has no {options['bit_depth']} bit")
        check_folder(folder / codec, Path(input))
    return {
        codec: build_ladder(input, codec=codec, out=folder / codec, **options) for codec in codecs
    }


def _study_name(source: Source, part: Source, loop: Loop, binary: str) -> str:
    """Readable, and the same only where the trials would be the same: everything that decides
    what an encode and its score are, and the sizes and knobs among which trials are."""
    spec, meter = loop.shop.spec, loop.shop.metric
    decided = [
        *(part.sha256, part.prep, part.input_options),
        *(spec.name, encoder_version(spec, binary), file_sha256(binary)),
        *(spec.options, loop.preset, loop.bit_depth, loop.params, loop.shop.timeout_s),
        *(loop.space.sizes, repr(loop.space.knob), meter.identity()),
    ]
    digest = hashlib.sha256(json.dumps(decided, default=str).encode()).hexdigest()[:12]
    stem = quoted(source.path.stem)[1:-1][:60]
    return f"{stem} {spec.name} {meter.name} {digest}"


def _belief(
    study: SharedStudy,
    spec: EncoderSpec,
    preset: str,
    meter: Metric,
    space: Space,
    source: Source,
    use: PriorUse,
) -> Surrogate:
    """What is known before the first encode; a study goes on with what it began with."""

    def known() -> dict[str, Any] | None:
        found = chosen_prior(use, spec.name, preset, kindred(meter), source.sha256)
        return prior_json(found) if found else None

    # each under its own name, so that one command does not go on with what another began with
    name = "prior" if use == "shipped" else f"prior {use}"
    begun = study.begun(name, known) if use != "none" else None
    if begun is None:
        return CurveFits(space, meter.top)
    return TitlePrior(space, prior_of(begun), meter.top)


@contextlib.contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """For the files that are put into `folder`; they, and folders made for it, go on a failure.

    The study stays after an interruption, so that the same command goes on from there.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    placed: list[Path] = []
    try:
        yield placed
    except BaseException as error:
        with contextlib.suppress(OSError):
            for path in placed:
                path.unlink(missing_ok=True)
            if folder in missing and isinstance(error, InputError | TargetUnreachable):
                for path in filter(is_study_file, folder.iterdir()):
                    path.unlink(missing_ok=True)
            for place in missing:
                place.rmdir()
        raise
