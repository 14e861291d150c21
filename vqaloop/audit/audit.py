"""`vqaloop.audit_ladder`: somebody's finished ladder measured against its source."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqaloop.audit.dash import read_mpd
from vqaloop.audit.findings import Finding, Scored, find_all
from vqaloop.audit.hls import is_master, read_master
from vqaloop.audit.listing import Listed, Piece, read_text
from vqaloop.audit.measure import Measured, measure, whole_file
from vqaloop.core.text import quoted
from vqaloop.core.version import __version__
from vqaloop.errors import InputError
from vqaloop.ladder.against import Against, Offer, Offered
from vqaloop.ladder.build import build_ladder
from vqaloop.ladder.options import BANDWIDTH_SHARE
from vqaloop.ladder.store import read_ladder
from vqaloop.media.probe import probe_source
from vqaloop.quality.bdrate import NotComparable, bd_rate
from vqaloop.quality.cvvdp_metric import DEFAULT_DISPLAY
from vqaloop.quality.registry import DEFAULT_METRIC
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Event, Ladder, RDPoint, Source, Watcher, rounded
from vqaloop.search.audience import DEFAULT, delivered, read_audience
from vqaloop.search.hull import front

SCHEMA = "vqaloop.audit/1"
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".ts", ".avs2", ".ivf")
MOST_RUNGS = 100


@dataclass(frozen=True)
class Audit:
    """A ladder as measured, and what could be better about it."""

    target: Path
    source: Source
    metric: dict[str, Any]
    step: float
    ceiling: float
    rungs: tuple[Scored, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    against: Against | None = None
    """Our ladder (A) and the audited one (B) as an audience gets them."""
    bd_rate: float | None = None
    """Percent by which ours needs less (below 0) or more at the same score."""

    def to_json(self) -> dict[str, Any]:
        """The audit as a document.

        Returns:
            `vqaloop.audit/1`.
        """
        return {
            "schema": SCHEMA,
            "vqaloop": __version__,
            "target": os.fspath(self.target),
            "source": {
                "path": os.fspath(self.source.path),
                "sha256": self.source.sha256,
                "width": self.source.width,
                "height": self.source.height,
                "fps": float(self.source.fps),
                "frames": self.source.frames,
            },
            "metric": self.metric,
            "step": self.step,
            "ceiling": self.ceiling,
            "rungs": [_rung_json(rung) for rung in self.rungs],
            "findings": [
                {
                    "kind": finding.kind,
                    "rungs": list(finding.rungs),
                    "text": finding.text,
                    "kbps": rounded(finding.kbps),
                }
                for finding in self.findings
            ],
            "notes": list(self.notes),
            "bd_rate_percent": rounded(self.bd_rate),
            "against": self.against.to_json() if self.against else None,
        }


def audit_ladder(
    target: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    metric: str = DEFAULT_METRIC,
    pool: str = "mean",
    step: float | None = None,
    ceiling: float | None = None,
    against_ladder: str | os.PathLike[str] | None = None,
    build: str | None = None,
    weights: str | os.PathLike[str] | None = None,
    prompt: str | os.PathLike[str] | None = None,
    score_precision: float | None = None,
    display: str = DEFAULT_DISPLAY,
    cvvdp: str | os.PathLike[str] | None = None,
    allow_hdr: bool = False,
    device: str = "auto",
    seed: int = 0,
    ffmpeg: str | os.PathLike[str] | None = None,
    progress: Watcher = lambda event: None,
) -> Audit:
    """Measure a finished ladder against its source, and say what could be better about it.

    Args:
        target: A folder of video files, an HLS master playlist or a DASH manifest on disk, or a
            folder with one of them.
        source: What the rungs were made of; they have its frames.
        metric: What scores: see `Scorer`.
        pool: How scores are pooled over time: see `Scorer`.
        step: Points that a viewer could notice; None: the metric's own.
        ceiling: Score above which more bits are not seen; None: the metric's own.
        against_ladder: A ladder of the same source and metric; the audit says what it saves.
        build: A codec with which that ladder is built first, in the current folder.
        weights: Of a student: see `Scorer`.
        prompt: Of a student: see `Scorer`.
        score_precision: Of a student: see `Scorer`.
        display: Of cvvdp: see `Scorer`.
        cvvdp: Its program: see `Scorer`.
        allow_hdr: Take PQ and HLG with any metric, though those of SDR do not hold for them.
        device: auto, cpu or cuda; where a student's network runs.
        seed: Of the positions of a student's crops.
        ffmpeg: Path of the binary; None for the one that comes with vqaloop.
        progress: Called with each Event.

    Returns:
        The rungs as measured and the findings.

    Raises:
        InputError: There is no ladder in `target`, it is encrypted, or a rung has other frames
            than the source.
    """
    place, notes = Path(target), list[str]()
    listed = _without_source(find_rungs(place, notes), Path(source), notes)
    if build is not None and against_ladder is not None:
        raise InputError("--build makes the ladder that --against-ladder names; give one of them")
    scoring: dict[str, Any] = {
        **{"metric": metric, "pool": pool, "weights": weights, "prompt": prompt},
        **{"score_precision": score_precision, "device": device, "seed": seed},
        **{"ffmpeg": ffmpeg, "allow_hdr": allow_hdr, "display": display, "cvvdp": cvvdp},
    }
    scorer = Scorer(**scoring)
    use = replace(scorer.hdr, tonemaps=False)
    title = probe_source(Path(source), allow_hdr=allow_hdr, hdr=use, ffmpeg=scorer.ffmpeg)
    rungs, label = [], None
    for done, item in enumerate(listed):
        progress(Event("audit", f"measuring {item.name}", done, len(listed)))
        with (
            tempfile.TemporaryDirectory(prefix="vqaloop-audit-") as folder,
            whole_file(item, Path(folder), scorer.ffmpeg) as path,
        ):
            measured = measure(item, path)
            check_frames(measured, title)
            score = scorer.score(path, reference=title.path)
        label = score.label
        rungs.append(Scored(measured, score.value, score.interval))
    ours = None
    if build is not None:
        ours = build_ladder(source, codec=build, progress=progress, **scoring)
    elif against_ladder is not None:
        ours = _our_ladder(against_ladder, title, scorer)
    step = scorer.metric.step if step is None else step
    ceiling = scorer.metric.ceiling if ceiling is None else ceiling
    against, saved = None, None
    if ours is not None:
        against, saved = _against(ours, rungs, place, notes)
    return Audit(
        place,
        title,
        {"name": scorer.metric.name, "pool": pool, "label": label},
        step,
        ceiling,
        tuple(rungs),
        tuple(find_all(rungs, step, ceiling)),
        tuple(notes),
        against,
        saved,
    )


def find_rungs(target: Path, notes: list[str]) -> list[Listed]:
    """The rungs of a manifest, or in a folder; appends to `notes` what is left aside."""
    if target.is_file():
        listed = _of_manifest(target)
    elif target.is_dir():
        listed = _of_folder(target, notes)
    else:
        raise InputError(f"{quoted(target)} is not there; name a folder or a manifest")
    if len(listed) > MOST_RUNGS:
        raise InputError(f"{quoted(target)} has {len(listed)} rungs; {MOST_RUNGS} are taken")
    return listed


def _without_source(listed: list[Listed], source: Path, notes: list[str]) -> list[Listed]:
    """The rungs without the source itself, which may lie among them."""
    kept = []
    for item in listed:
        piece = item.pieces[0]
        if item.declared is None and source.exists() and piece.path.samefile(source):
            notes.append(f"{item.name} is the source, and no rung")
        else:
            kept.append(item)
    if not kept:
        raise InputError(f"the folder holds no video but the source {quoted(source)}")
    return kept


def _of_manifest(path: Path) -> list[Listed]:
    if path.suffix.lower() in (".m3u8", ".m3u"):
        return read_master(path)
    if path.suffix.lower() == ".mpd":
        return read_mpd(path)
    raise InputError(
        f"{quoted(path)} is neither a playlist (.m3u8) nor a DASH manifest (.mpd); of files name "
        "the folder"
    )


def _of_folder(folder: Path, notes: list[str]) -> list[Listed]:
    try:
        there = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise InputError(f"cannot read {quoted(folder)}: {error.strerror or error}") from error
    masters = [p for p in there if p.suffix.lower() == ".m3u8" and is_master(read_text(p))]
    manifests = [*masters, *(path for path in there if path.suffix.lower() == ".mpd")]
    if manifests:
        notes += [f"{path.name} is not audited; name it" for path in manifests[1:]]
        return _of_manifest(manifests[0])
    files = [path for path in there if path.suffix.lower() in VIDEO_SUFFIXES]
    if not files:
        raise InputError(
            f"{quoted(folder)} holds no master playlist, no DASH manifest and no video "
            f"({', '.join(VIDEO_SUFFIXES)})"
        )
    return [Listed(path.name, (Piece(path),)) for path in files]


def check_frames(rung: Measured, source: Source) -> None:
    """Raises InputError unless a rung has the source's frames: as many, at its rate."""
    name = quoted(rung.name)
    if rung.frames != source.frames:
        raise InputError(
            f"{name} has {rung.frames} frames and the source {source.frames}, so they are not the "
            "same ones; give the source that the ladder was made of, cut as it was"
        )
    if abs(rung.fps - source.fps) * 1000 > source.fps:
        raise InputError(
            f"{name} has {float(rung.fps):.3f} fps and the source {float(source.fps):.3f}; give "
            "the source that the ladder was made of"
        )


def _our_ladder(folder: str | os.PathLike[str], source: Source, scorer: Scorer) -> Ladder:
    """Our ladder; raises InputError unless it is of this source and metric."""
    ladder = read_ladder(folder)
    if ladder.about["source"].get("sha256") != source.sha256:
        raise InputError(
            f"{quoted(ladder.folder)} is of another source than {quoted(source.path)}; make one "
            "of this source with `vqaloop ladder`"
        )
    if ladder.about["metric"]["name"] != scorer.metric.name:
        raise InputError(
            f"{quoted(ladder.folder)} was measured by {ladder.about['metric']['name']} and the "
            f"audit is by {scorer.metric.name}; audit with --metric "
            f"{ladder.about['metric']['name']}"
        )
    return ladder


def _against(
    ours: Ladder, rungs: Sequence[Scored], place: Path, notes: list[str]
) -> tuple[Against, float | None]:
    """Ours and the audited ladder for the default audience, and the BD-rate between them."""
    codec = ours.about["codec"]
    same = [rung for rung in rungs if rung.measured.codec == codec]
    if not same:
        notes.append(f"our ladder is {codec}, and the audited one of others")
        same = list(rungs)
    crowd = read_audience(DEFAULT, BANDWIDTH_SHARE)
    a = [Offered(r.width, r.height, r.bitrate_kbps, r.score, "measured") for r in ours.rungs]
    b = [Offered(r.measured.width, r.measured.height, r.kbps, r.score, "measured") for r in same]
    found = Against(
        ours,
        crowd,
        Offer(os.fspath(ours.folder), tuple(a), delivered(crowd, a)),
        Offer(os.fspath(place), tuple(b), delivered(crowd, b)),
        (),
    )
    try:
        curves = [
            [
                (p.bitrate_kbps, p.score)
                for p in front(RDPoint(r.width, r.height, 0.0, r.bitrate_kbps, r.score) for r in o)
            ]
            for o in (b, a)
        ]
        return found, bd_rate(curves[0], curves[1])
    except NotComparable as error:
        notes.append(f"no BD-rate: {error}")
        return found, None


def _rung_json(rung: Scored) -> dict[str, Any]:
    measured, said = rung.measured, rung.measured.listed.declared
    return {
        "name": rung.name,
        "codec": measured.codec,
        "codecs": measured.codecs,
        "width": measured.width,
        "height": measured.height,
        "fps": float(measured.fps),
        "frames": measured.frames,
        "bitrate_kbps": rounded(rung.kbps),
        "peak_kbps": rounded(measured.peak_kbps),
        "bandwidth": measured.bandwidth,
        "average_bandwidth": measured.average_bandwidth,
        "score": rounded(rung.score),
        "interval": [rounded(v) for v in rung.interval] if rung.interval else None,
        "declared": said
        and {
            "bandwidth": said.bandwidth,
            "average_bandwidth": said.average_bandwidth,
            "codecs": said.codecs,
            "size": list(said.size) if said.size else None,
            "frame_rate": float(said.frame_rate) if said.frame_rate else None,
        },
    }
