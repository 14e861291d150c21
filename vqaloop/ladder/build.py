"""The loop: a title goes in, the best ladder for it comes out, every rung measured.

probe → excerpt of a long title → search (encode, score, fit, hull) → rungs → the whole title
encoded, scored and guarded for each → a folder with the files, ladder.json, ladder.csv, reports.
"""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from optuna.storages import BaseStorage

from vqaloop.core.files import file_sha256
from vqaloop.core.folders import is_study_file
from vqaloop.core.option_fields import fault_of, taken
from vqaloop.core.text import counted, quoted
from vqaloop.encoding.checks import check_film_grain, hdr_warnings
from vqaloop.encoding.registry import codec_names
from vqaloop.encoding.survey import encoder_version
from vqaloop.errors import InputError, TargetUnreachable
from vqaloop.execution.capping import (
    PEAK_RATIO,
    PeakLimit,
    bounded_gop_frames,
    peak_limit,
)
from vqaloop.execution.checks import check_folder, folder_undone
from vqaloop.execution.document_parts import overhead_json
from vqaloop.execution.executor import Executor
from vqaloop.execution.session import Session, open_session
from vqaloop.execution.stage_progress import (
    counted_cut,
    counted_in_message,
    described,
    report_if_slow,
)
from vqaloop.execution.tools import Tools, chosen_tools
from vqaloop.ladder.banding import find_banding
from vqaloop.ladder.document import LadderRun, ladder_json
from vqaloop.ladder.film_grain import use_film_grain
from vqaloop.ladder.options import BANDWIDTH_SHARE, LadderOptions
from vqaloop.ladder.per_shot import NO_CUTS, per_shot
from vqaloop.ladder.pictures import take_pictures
from vqaloop.ladder.request import (
    Budget,
    allowed_sizes,
    check_codecs,
    guard_asked,
    make_rules,
    required_sizes,
)
from vqaloop.ladder.run_costs import RunCosts, cost_of_folder
from vqaloop.ladder.steps import Loop
from vqaloop.ladder.store import write_document, write_reports
from vqaloop.ladder.warnings import banding_warnings, find_doubts, guard_warnings, peak_warnings
from vqaloop.media.content import Content, content_of
from vqaloop.media.excerpt import excerpt
from vqaloop.media.excerpt_rate import excerpt_rate
from vqaloop.media.scene_cuts import Scene, find_shots, split_shots
from vqaloop.quality.registry import DEFAULT_METRIC, kindred
from vqaloop.records import Event, Ladder, Source, Watcher
from vqaloop.search.prior_store import (
    PriorUse,
    chosen_prior,
    prior_json,
    prior_of,
    prior_use,
    remember,
)
from vqaloop.search.rungs import Rules
from vqaloop.search.shared_study import (
    DELIVERING,
    SharedStudy,
    default_storage,
    kept_in,
    open_storage,
)
from vqaloop.search.space import Space
from vqaloop.search.surrogates import CurveFits, Surrogate, TitlePrior, given_probes

DIRECTIONS: tuple[Literal["minimize", "maximize"], ...] = ("minimize", "maximize")
"""Of a study's values: bitrate and score."""


def build_ladder(
    input: str | os.PathLike[str],
    *,
    codec: str,
    encoder: str | None = None,
    resolutions: str | Sequence[tuple[int, int] | str] | None = None,
    metric: str = DEFAULT_METRIC,
    rungs: int | str | None = None,
    min_step: float | None = None,
    min_ratio: float = 1.4,
    min_bitrate: float | str = 0.0,
    max_bitrate: float | str = float("inf"),
    min_score: float | None = None,
    max_score: float | None = None,
    require: str | Sequence[tuple[int, int] | str] = (),
    min_top_size: tuple[int, int] | str | None = None,
    min_bottom_size: tuple[int, int] | str | None = None,
    audience: str | os.PathLike[str] | None = None,
    bandwidth_share: float = BANDWIDTH_SHARE,
    budget_s: float | str | None = None,
    peak_ratio: float | None = None,
    max_peak: float | str | None = None,
    buffer_s: float = 0.5,
    no_probe: bool = False,
    no_cap: bool = False,
    two_pass: bool = False,
    guard: Literal["full", "sampled", "off"] | None = None,
    max_banding: float | None = None,
    film_grain: int | str = "off",
    per_shot: bool = False,
    scene_floor: float | None = None,
    preset: str | None = None,
    bit_depth: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | Executor | None = None,
    seed: int = 0,
    cache: bool = True,
    storage: str | None = None,
    prior: PriorUse | bool = "shipped",
    tune_trials: int | None = None,
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
) -> Ladder:
    """The per-title ladder of a video, its files and reports written to `out`.

    The arguments that decide what the ladder is are recorded in ladder.json as `asked`. Rates,
    times and sizes may be text as on the command line: "5M", "10min", "720p,640x360".

    Args:
        input: The video.
        codec: h264, hevc, vp9, av1 or avs2.
        encoder: By name; None: the codec's default one.
        resolutions: Width and height in pixels to try; None: parts of the source's size.
        metric: By name, see `vqaloop.Scorer`.
        rungs: How many; None: as many as pay.
        min_step: Least difference in score between neighbouring rungs; None: the metric's own.
        min_ratio: Least ratio of their bitrates, above 1 and up to 8.
        min_bitrate: Of a rung, in kb/s.
        max_bitrate: Of a rung, in kb/s.
        min_score: Floor of the ladder; None: the metric's own.
        max_score: Score at which the top rung may stop; None: the metric's own.
        require: Sizes that must have a rung each.
        min_top_size: Width and height that the highest rung has at least, by its pixels.
        min_bottom_size: The same of all rungs.
        audience: Path of a table of sessions (bandwidth_kbps, share, height), or "default": rungs
            are placed where they raise its mean score most; None: by their spacing.
        bandwidth_share: Part of its bandwidth that a player spends on video, above 0, up to 1.
        budget_s: Wall seconds of the search; None: no limit.
        peak_ratio: Most that any second and any segment of a rung may take, times its average
            bitrate; None: 2, and with `max_peak` no such bound.
        max_peak: The same in kb/s; None: no such bound.
        buffer_s: Size of the encoder's buffer where a rung takes a cap, in seconds of the cap.
        no_probe: Make the trial encodes of an excerpt at the preset of the rungs, not faster.
        no_cap: Leave peaks as they are.
        two_pass: Make each rung in two passes at the average bitrate found for it, under its cap
            where it needs one.
        guard: "full" measures VMAF, VMAF v1, CAMBI, XPSNR and PSNR-Y of the rungs all over the
            title, "sampled" at places of it with 95 % intervals, "off" not at all; None: sampled
            above 240 frames.
        max_banding: Most visible banding of a rung, as CAMBI (0 to 17; it annoys from about 5 on).
            A ladder with more is not trusted. None: more than 5 is warned of.
        film_grain: Of AV1, a strength at which the picture is denoised and its grain left to
            decoders; "auto" does that where the source has grain and it scores better at equal
            rate; "off" never.
        per_shot: Every rung has a knob of its own for every scene, by equal slopes at its score,
            instead of one for the title.
        scene_floor: With `per_shot`, points below its rung's score at which a scene may lie at
            most; None: 3 of the metric's steps, 12 of VMAF, or as far as one knob for the whole
            title leaves it, where that is further.
        preset: Of the encoder; None: its default one.
        bit_depth: 8 or 10; None: the source's.
        out: Folder; None: NAME.CODEC.ladder here.
        device: Of the learned metric: auto, cpu or cuda.
        workers: How many encodes are made at once on this machine, or an Executor that makes them
            elsewhere; None: as many as keep its processors busy. The ladder is the same.
        seed: Of the search and the metric.
        cache: Whether encodes and scores are kept for the next call.
        storage: URL of an Optuna storage that several processes may share; None: a file in `out`,
            and without the cache none.
        prior: What the search begins with: "shipped" is what came with the package, so that the
            same call gives the same ladder later; "own" adds what this machine's other titles
            taught; "none" begins with nothing and keeps nothing. True and False stand for "own"
            and "none".
        tune_trials: Trials by which the encoder's own parameters are tuned on the title first
            (see `tune_encoder`); None: they are not.
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
        The ladder as it lies in `out`.

    Raises:
        InputError: Something is refused before work starts.
        TargetUnreachable: Fewer than two rungs could be made. What was encoded until then, or
            until an interruption, stays in the cache, and the same call goes on from there.
    """
    options = LadderOptions(**taken(LadderOptions, locals()))
    return _build(checked_request(input, options))


def build_ladders(
    input: str | os.PathLike[str],
    *,
    codecs: Sequence[str],
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> dict[str, Ladder]:
    """A ladder for each codec, in folders CODEC of `out`.

    Args:
        input: The video.
        codecs: One ladder each.
        out: Folder; None: NAME.ladders here.
        options: Those of `build_ladder`; `encoder` goes with one codec only.

    Returns:
        The ladders by codec.

    Raises:
        InputError: As of `build_ladder`, for any of the codecs before work on the first starts.
        TargetUnreachable: As of `build_ladder`.
    """
    codecs = [codec_names(codec) for codec in codecs]
    check_codecs(codecs, options.get("encoder"))
    folder = Path(out) if out is not None else Path(f"{Path(input).stem}.ladders")
    requests = [
        checked_request(input, LadderOptions(codec=codec, out=folder / codec, **options))
        for codec in codecs
    ]
    return {request.options.codec: _build(request) for request in requests}


@dataclass(frozen=True)
class LadderRequest:
    """A ladder that is asked for, checked as far as that goes without looking at its input."""

    input: Path
    options: LadderOptions
    tools: Tools
    rules: Rules
    limit: PeakLimit | None
    prior: PriorUse
    folder: Path


def checked_request(input: str | os.PathLike[str], options: LadderOptions) -> LadderRequest:
    """Raises InputError."""
    prior = prior_use(options.prior)
    tools = chosen_tools(options)
    rules = make_rules(tools.metric, options)
    if options.two_pass and not tools.spec.two_pass:
        with fault_of("codec", "encoder", "two_pass"):
            raise InputError(
                f"{tools.spec.name} makes no rung in two passes: {tools.spec.two_pass.cannot}; "
                "choose another encoder, or leave out --two-pass"
            )
    with fault_of("codec", "encoder", "film_grain"):
        check_film_grain(tools.spec, options.film_grain)
    limit = peak_limit(options, math.inf if options.no_cap else PEAK_RATIO)
    folder = Path(options.out or f"{Path(input).stem}.{options.codec}.ladder")
    check_folder(folder, Path(input))
    return LadderRequest(Path(input), options, tools, rules, limit, prior, folder)


def _build(request: LadderRequest) -> Ladder:
    options, folder = request.options, request.folder
    with (
        _undone_on_failure(folder) as placed,
        open_session(request.input, options, request.tools) as session,
    ):
        request, session = fitted(request, session)
        options = session.options
        where = options.storage or (default_storage(folder) if options.cache else None)
        with kept_in(where):
            if options.per_shot and (shots := _shots(session)):
                run = _per_shot(request, session, shots, where)
                return _delivered(run, folder, placed)
            # a storage that was named is refused as all else is, before anything is reported
            named = open_storage(where) if options.storage else None
            options.progress(Event("probe", described(session.source)))
            if where and not named:
                folder.mkdir(parents=True, exist_ok=True)
            studies = named or open_storage(where)
            run = _searched(request, session, studies, where)
            _remember(run, request.prior)
            return _delivered(run, folder, placed)


def fitted(
    request: LadderRequest, session: Session[LadderOptions]
) -> tuple[LadderRequest, Session[LadderOptions]]:
    """Both with the sizes that fit the source, and the rules that follow. Raises InputError."""
    options = session.options.within(session.source.canvas)
    sizes = allowed_sizes(options, session.sizes)
    rules = replace(
        request.rules,
        required=required_sizes(options.require, sizes),
        least_top=math.prod(options.min_top_size or (0,)),
    )
    session = replace(session, options=options, sizes=sizes)
    return replace(request, rules=rules), session


def space_of(session: Session[LadderOptions]) -> Space:
    """What is searched: sizes and knobs."""
    fps = float(session.source.fps)
    return Space(session.sizes, session.spec.knob, session.source.canvas, fps)


def content_of_title(session: Session[LadderOptions]) -> Content | None:
    """What the title's pictures hold."""
    with report_if_slow(session.options.progress, Event("prior", "looking at a few frames")):
        return content_of(session.source, ffmpeg=session.ffmpeg)


def _shots(session: Session[LadderOptions]) -> Sequence[Scene]:
    """The title's scenes as `encode` has them; none where it has no cuts."""
    source, progress = session.source, session.options.progress
    progress(Event("probe", described(source)))
    progress(Event("scenes", f"looking for the cuts of {quoted(source.path)}"))
    shots = find_shots(source, ffmpeg=session.ffmpeg)
    if len(shots) < 2:
        session.shop.remarks.append(NO_CUTS)
        return ()
    scenes = split_shots(shots, source.fps, gop_s=session.spec.gop_s)
    progress(Event("scenes", counted(len(scenes), "scene"), len(scenes), len(scenes)))
    return scenes


def _per_shot(
    request: LadderRequest,
    session: Session[LadderOptions],
    scenes: Sequence[Scene],
    where: str | None,
) -> LadderRun:
    """The rungs of the title's scenes."""
    source = session.source
    loop = _loop(request, session)
    tuning = _tune(session, loop, source, where)
    grain = use_film_grain(session, loop, source)
    made = per_shot(session, loop, scenes, request.prior)
    windows = ((0, source.frames),)
    about = made.about(len(made.checked))
    # a percentile of the whole need not be that of its worst scene
    exact = made.search.title.mean is None
    earlier = cost_of_folder(request.folder, session) if session.options.cache else {}
    return LadderRun(
        *(session, loop, windows, exact, tuning, made.found, made.search, made.checked),
        *(about, earlier, grain.to_json()),
    )


def _loop(request: LadderRequest, session: Session[LadderOptions]) -> Loop:
    options, source = session.options, session.source
    budget = Budget(math.inf if options.budget_s is None else options.budget_s, session.started)
    loop = Loop(
        *(session.shop, space_of(session), request.rules, session.preset, session.depth),
        options.progress,
        budget,
    )
    loop.limit, loop.two_pass = request.limit, options.two_pass
    loop.gop = bounded_gop_frames(request.limit, session.spec, source.fps)
    loop.guard = guard_asked(options, session.shop, source)
    return loop


def _searched(
    request: LadderRequest,
    session: Session[LadderOptions],
    studies: BaseStorage,
    where: str | None,
) -> LadderRun:
    """The rungs found on the title or its excerpt, and verified over the whole."""
    source, loop = session.source, _loop(request, session)
    space = loop.space
    title, windows = _excerpt(session)
    whole = title is source
    tuning = _tune(session, loop, title, where)
    grain = use_film_grain(session, loop, title).to_json()
    if not whole:
        # parameters that were chosen for one preset may not do for another
        loop.probe_preset = loop.preset if loop.params else probe_preset(session)

    def study_of(part: Source, preset: str) -> SharedStudy:
        name = _study_name(source, part, loop, session.ffmpeg, preset)
        return SharedStudy(studies, name, DIRECTIONS, space.distributions())

    with study_of(title, loop.probe_preset) as study:
        loop.costs = RunCosts(study, session)
        loop.report_kept(title, study, probing=not whole)
        surrogate = _surrogate(study, session, space, request.prior)
        if whole:
            found = loop.search(title, study, surrogate)
        else:
            probes = loop.search_by_probes(title, study, surrogate)
    informed: Surrogate = surrogate
    if not whole:
        presets, usual = session.spec.presets, session.spec.default_preset
        away = abs(presets.index(loop.preset) - presets.index(usual))
        slower = away if loop.probe_preset != loop.preset else None
        rates = excerpt_rate(source, windows)
        points = [replace(p, bitrate_kbps=rates.of_title(p.bitrate_kbps)) for p in probes.points]
        informed = given_probes(surrogate, points, slower)
        with study_of(source, loop.preset) as study:
            found = loop.search_given_probes(source, study, informed)
    checked = loop.verify(source, found, informed, probed=not whole)
    loop.costs.note()
    parts = loop, windows, whole, tuning, found, informed, checked
    return LadderRun(session, *parts, earlier=loop.costs.earlier, grain=grain)


def probe_preset(session: Session[LadderOptions]) -> str:
    """The preset of probes: that of the rungs itself where none is faster, or none is wanted.

    Of a whole title there are none: as many encodes more, at half the price, would save no more.
    """
    presets, probe = session.spec.presets, session.spec.probe_preset
    if session.options.no_probe or probe is None:
        return session.preset
    return probe if presets.index(probe) > presets.index(session.preset) else session.preset


def _excerpt(session: Session[LadderOptions]) -> tuple[Source, tuple[tuple[int, int], ...]]:
    """What is searched, the source itself where it is short, and its windows of the source."""
    source, windows = session.source, session.windows()
    if windows == ((0, source.frames),):
        return source, windows
    with counted_cut(session.options.progress, windows):
        place = session.shop.scratch / "excerpt.mkv"
        return excerpt(source, windows, place, ffmpeg=session.ffmpeg), windows


def _tune(
    session: Session[LadderOptions], loop: Loop, title: Source, where: str | None
) -> dict[str, Any]:
    """Tune the encoder's parameters if that was asked for, and have the loop use them."""
    options = session.options
    if options.tune_trials is None:
        return {}
    # most ladders are made without, and it is much to load
    from vqaloop.tuning.tune import best_params

    # suggestions depend on what has ended by then, and times on what else runs
    with session.shop.one_by_one():
        loop.params, tuning = best_params(session, title, options.tune_trials, where)
    chosen = " ".join(f"{name}={value}" for name, value in loop.params)
    options.progress(Event("tune", f"encoder parameters: {chosen or 'the defaults'}"))
    return tuning


def _remember(run: LadderRun, prior: PriorUse) -> None:
    """Have the next titles learn from this one."""
    session, loop, options = run.session, run.loop, run.session.options
    # other weights, pools and tuned parameters are not what the next title will be made with
    usual = options.weights is None and options.pool == "mean" and not loop.params
    if prior != "none" and options.cache and usual:
        metric = session.metric
        kind = session.spec.name, session.preset, metric.name
        # predictions alone learn by content, and only from titles made like this
        content = content_of_title(session) if prior == "own" else None
        sha256, points = session.source.sha256, run.found.points
        remember(*kind, sha256, loop.space, points, metric.top, content)


def _delivered(run: LadderRun, folder: Path, placed: list[Path]) -> Ladder:
    """The rung files, document and reports, put into the folder; all that is put there is added
    to `placed`."""
    session, progress = run.session, run.session.options.progress
    # the rung files come before ladder.json: who finds them alone shall know whose they are
    mark = folder / DELIVERING
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
    placed.append(mark)
    rungs = run.loop.deliver(session.source, folder, run.checked, placed)
    doubts = find_doubts(rungs, session.metric, run.whole, session.source.hdr)
    limit = run.loop.limit
    peaks = peak_warnings(rungs, [item.over for item in run.checked], limit) if limit else []
    shown = find_banding(session, run.loop, folder, rungs, run.checked)
    cure = (shown.file, shown.cure.words()) if shown and shown.cure else None
    banding = banding_warnings(rungs, session.options.max_banding, session.depth, cure)
    lost = hdr_warnings(session.source, session.spec, [folder / rung.file for rung in rungs])
    document = ladder_json(run, [*doubts.lines, *peaks, *banding, *guard_warnings(rungs), *lost])
    if shown:
        document["banding"] = shown.to_json()
    # a bound that nobody asked for is no promise
    trusted = doubts.trusted and not (peaks and limit and limit.asked)
    trusted = trusted and not (banding and session.options.max_banding is not None)
    ladder = Ladder(folder, tuple(rungs), document, trusted=trusted)
    taking = Event("write", f"pictures of {quoted(folder)}", 0, 2)
    with counted_in_message(progress, taking):
        pictures = take_pictures(ladder, session.source, ffmpeg=session.ffmpeg)
    progress(Event("write", f"reports of {quoted(folder)}", 1, 2))
    write_reports(ladder, pictures)
    # with the reports' own share: in ladder.json, which is as good without until then
    encodes = [trial.encode for trial in run.loop.trials if trial.encode]
    document["cost"] |= overhead_json(session, [item.encode for item in run.checked], encodes)
    write_document(ladder)
    if run.loop.costs:
        run.loop.costs.note()
    mark.unlink(missing_ok=True)
    return ladder


def _study_name(source: Source, part: Source, loop: Loop, binary: str, preset: str) -> str:
    """Readable, and the same only where the trials would be the same: everything that decides
    what an encode and its score are, and the sizes and knobs among which trials are."""
    spec, meter = loop.shop.spec, loop.shop.metric
    decided = [
        *(part.sha256, part.prep, part.input_options),
        *(spec.name, encoder_version(spec, binary), file_sha256(binary)),
        *(spec.options, preset, loop.bit_depth, loop.params, loop.shop.timeout_s),
        *(loop.space.sizes, repr(loop.space.knob), loop.shop.scoring(source)),
    ]
    # so that studies of the encoder's own GOP keep their names
    decided += [] if loop.gop is None else [f"gop {loop.gop}"]
    digest = hashlib.sha256(json.dumps(decided, default=str).encode()).hexdigest()[:12]
    stem = quoted(source.path.stem)[1:-1][:60]
    return f"{stem} {spec.name} {meter.name} {digest}"


def _surrogate(
    study: SharedStudy, session: Session[LadderOptions], space: Space, use: PriorUse
) -> CurveFits | TitlePrior:
    """What predicts the first encodes; a study goes on with what it began with."""
    metric = session.metric

    def known() -> dict[str, Any] | None:
        sha256 = session.source.sha256
        # not by the title's content, which saves no encode (docs/predict.md)
        found = chosen_prior(use, session.spec.name, session.preset, kindred(metric), sha256)
        return prior_json(found) if found else None

    # each under its own name, so that one command does not go on with what another began with
    name = "prior" if use == "shipped" else f"prior {use}"
    begun = study.begun(name, known) if use != "none" else None
    if begun is None:
        return CurveFits(space, metric.top)
    return TitlePrior(space, prior_of(begun), metric.top)


@contextlib.contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """For the files that are put into `folder`; they, and folders made for it, go on a failure.

    The study stays after an interruption, so that the same command goes on from there.
    """
    placed: list[Path] = []
    with folder_undone(folder) as new:
        try:
            yield placed
        except BaseException as error:
            with contextlib.suppress(OSError):
                for path in placed:
                    path.unlink(missing_ok=True)
                if new and isinstance(error, InputError | TargetUnreachable):
                    for path in filter(is_study_file, folder.iterdir()):
                        path.unlink(missing_ok=True)
            raise
