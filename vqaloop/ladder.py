"""The loop: a title goes in, the best ladder for it comes out, every rung measured.

probe → excerpt of a long title → search (encode, score, fit, hull) → rungs → the whole title
encoded, scored and guarded for each → a folder with the files, ladder.json, ladder.csv, reports.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from vqaloop import __version__, process, request
from vqaloop.cache import Cache
from vqaloop.document import doubts, hull_json, metric_json, rules_json, source_json
from vqaloop.encoder import encoder_version
from vqaloop.excerpt import choose_windows, excerpt
from vqaloop.loop import Loop, Watcher
from vqaloop.records import Event, Ladder, Source
from vqaloop.report import SCHEMA, write_reports
from vqaloop.score import DEFAULT_METRIC, open_metric
from vqaloop.search import Space
from vqaloop.source import probe_source
from vqaloop.trials import Workshop

NOTICE_S = 1.0
"""Seconds of probing after which a watcher is told what takes so long."""
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
    preset: str | None = None,
    bit_depth: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int = 1,
    seed: int = 0,
    cache: bool = True,
    timeout_s: float | None = None,
    ffmpeg: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    video_size: str | None = None,
    pix_fmt: str | None = None,
    framerate: str | None = None,
    allow_hdr: bool = False,
    progress: Watcher = lambda event: None,
) -> Ladder:
    """The per-title ladder of a video, its files and reports written to `out`.

    `min_step` is the least difference in score between neighbouring rungs (by default the
    metric's own), `min_ratio` the least ratio of their bitrates, bitrates are in kb/s, `rungs` a
    number or None for as many as pay, `timeout_s` a limit for one encode, `out` a folder (by
    default NAME.CODEC.ladder here). `video_size`, `pix_fmt` and `framerate` describe raw video.

    Raises InputError for anything refused before work starts, TargetUnreachable when too few rungs
    could be made. What was encoded until then, or until an interruption, stays in the cache, so
    the same call goes on from there.
    """
    started = time.monotonic()
    binary = process.ffmpeg_path(ffmpeg)
    request.check_run(workers, seed, device, timeout_s)
    spec = request.choose_encoder(codec, encoder, binary)
    preset = request.checked_preset(spec, preset)
    meter = open_metric(metric, ffmpeg=binary, device=device, seed=seed, weights=weights)
    rules = request.make_rules(meter, rungs, min_step, min_ratio, min_bitrate, max_bitrate)
    folder = Path(out) if out is not None else Path(f"{Path(input).stem}.{codec}.ladder")
    request.check_folder(folder, Path(input))
    with _told_if_slow(progress, Event("probe", f"looking at {process.quoted(input)}")):
        source = probe_source(
            Path(input),
            video_size=video_size,
            pix_fmt=pix_fmt,
            framerate=framerate,
            allow_hdr=allow_hdr,
            ffmpeg=binary,
        )
    space = Space(request.choose_sizes(source, spec, resolutions), spec.knob)
    depth = request.checked_depth(source, spec, bit_depth)
    request.check_metric(meter, weights)
    progress(Event("probe", _described(source)))
    with (
        _undone_on_failure(folder) as placed,
        Cache(enabled=cache) as store,
        Workshop(spec, meter, store, ffmpeg=binary, workers=workers, timeout_s=timeout_s) as shop,
    ):
        loop = Loop(shop, space, rules, preset, depth, progress)
        windows = choose_windows(source, seed=seed)
        title, whole = source, windows == ((0, source.frames),)
        if not whole:
            progress(Event("excerpt", f"{len(windows)} windows stand for the title"))
            title = excerpt(source, windows, shop.scratch / "excerpt.mkv", ffmpeg=binary)
        found = loop.search(title, whole)
        checked = loop.verify(source, found, whole)
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
            "encoder": {
                "name": spec.name,
                "library_version": encoder_version(spec, binary),
                "ffmpeg": process.file_sha256(binary),
                "preset": preset,
            },
            "metric": metric_json(checked[0].score),
            "hull": hull_json(found.points, space, meter.top),
            "trials": [trial.to_json() for trial in loop.tried],
            "cost": {
                **{name: round(value, 3) for name, value in asdict(shop.cost).items()},
                "wall_s": round(time.monotonic() - started, 3),
            },
            "rules": rules_json(rules),
            "windows": [list(window) for window in windows],
            "warnings": [*source.notes, *loop.warnings, *doubts(rungs_made, missed, astray)],
        }
        ladder = Ladder(folder, tuple(rungs_made), document, trusted=not missed and not astray)
        progress(Event("write", f"writing {process.quoted(folder)}"))
        write_reports(ladder)
        return ladder


@contextlib.contextmanager
def _told_if_slow(progress: Watcher, event: Event) -> Iterator[None]:
    """An announcement of what takes long, so that a quick refusal comes alone."""
    timer = threading.Timer(NOTICE_S, progress, [event])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _undone_on_failure(folder: Path) -> Iterator[list[Path]]:
    """For the files that are put into `folder`; they, and folders made for it, go on a failure."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    placed: list[Path] = []
    try:
        yield placed
    except BaseException:
        with contextlib.suppress(OSError):
            for path in placed:
                path.unlink(missing_ok=True)
            for place in missing:
                place.rmdir()
        raise


def _described(source: Source) -> str:
    width, height = source.canvas
    rate = f"{float(source.fps):.6g} frames a second"
    return f"{process.quoted(source.path)}: {width}x{height}, {rate}, {source.frames} frames"
