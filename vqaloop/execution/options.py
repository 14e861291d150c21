"""Options that the long jobs share: frozen dataclasses, from which each job's options inherit.

A field holds the default of the Python argument and of the command's option alike.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vqaloop.core.option_fields import fault_of, kbps, number, option, read_texts, whole
from vqaloop.core.text import parse_duration
from vqaloop.encoding.registry import codec_names
from vqaloop.errors import InputError

if TYPE_CHECKING:
    from vqaloop.execution.executor import Executor
    from vqaloop.records import Source, Watcher

CODECS = "h264|hevc|vp9|av1|avs2"
"""As help texts list them."""

WAYS = ("auto", "frames", "fields", "telecine")
"""Of --deinterlace: as recognised; a frame of each pair of fields; a frame of each field; film
pictures, recognised or not."""

RAW = "frame rate, raw and HDR input"
"""Heading of options that describe the input."""

WORKERS_HELP = "trials at a time (default: of ladders as many as keep the processors busy, else 1)"

PathName = str | os.PathLike[str]


def parse_film_grain(text: str) -> str | int:
    """Reads --film-grain: auto, off, or a strength. Raises ArgumentTypeError."""
    word = text.strip().lower()
    if word in ("auto", "off"):
        return word
    if word.isascii() and word.isdigit() and len(word) < 9:
        return int(word)
    raise argparse.ArgumentTypeError(
        f"{text[:50]!r} is no use of film grain: give auto, off, or a strength such as 12"
    )


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What encodes, and how."""

    codec: str = option(metavar=CODECS, parse=codec_names, recorded=False)
    encoder: str | None = option(
        None,
        "another than the codec's default; see `vqaloop encoders`",
        metavar="NAME",
        column=True,
    )
    preset: str | None = option(None, "the encoder's preset", metavar="P", column=True)
    bit_depth: int | None = option(
        None, "bits a sample (default: the source's)", metavar="8|10", parse=whole, column=True
    )
    timeout_s: float | None = option(
        None,
        "stop an encode after S seconds and go on without it",
        metavar="S",
        flags=("--time-limit",),
        parse=parse_duration,
        column=True,
    )


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What scores."""

    metric: str = option(
        "internvqa",
        "internvqa (default), internvqa-NAME, vmaf-sampled, vmaf-v1-sampled, vmaf, vmaf-v1, "
        "vmaf-v1-phone, vmaf-v1-hfr, vmaf-neg, xpsnr, psnr, ssim, ssimulacra2 or cvvdp; of "
        "`score` also cambi",
        metavar="NAME",
        column=True,
    )
    weights: PathName | None = option(
        None, "other student weights", metavar="FILE", parse=Path, column=True
    )
    prompt: PathName | None = option(
        None,
        "adapt the student by a prompt that was trained on it",
        metavar="FILE",
        parse=Path,
        column=True,
    )
    score_precision: float | None = option(
        None,
        "stop looking at a video once a student's score is estimated to ±P, which is no "
        "guarantee; rungs are then not judged on the same crops",
        metavar="P",
        parse=number,
        column=True,
    )
    pool: str = option(
        "mean",
        "how scores are pooled over time where they are a target, a limit or a verdict: mean "
        "(default), harmonic, p5 or p1 (percentiles of seconds, or of sampled places), min-scene",
        metavar="mean|harmonic|p5|p1|min-scene",
        column=True,
    )
    display: str = option(
        "monitor",
        "of cvvdp, what scores are for: monitor (default), phone, tablet, tv or hdr-tv",
        metavar="NAME",
        column=True,
    )
    cvvdp: PathName | None = option(
        None,
        "ColorVideoVDP, the program cvvdp (or $VQALOOP_CVVDP, or on the PATH)",
        metavar="PROGRAM",
        parse=Path,
        recorded=False,
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How an input is read."""

    video_size: str | None = option(None, metavar="WxH", group=RAW, column=True)
    pix_fmt: str | None = option(None, "such as yuv420p", metavar="NAME", group=RAW, column=True)
    framerate: str | None = option(
        None,
        "of raw video; of any other input the constant rate it is brought to, in place of the one "
        "its time stamps suggest",
        metavar="N[/D]",
        group=RAW,
        column=True,
    )
    allow_hdr: bool = option(
        False,
        "take PQ, HLG and Dolby Vision with any metric, though those of SDR do not hold for them",
        group=RAW,
        column=True,
    )
    tonemap: bool = option(
        False,
        "make PQ and HLG SDR (BT.709) as they are read, and score against that",
        group=RAW,
        column=True,
    )
    dynamic_hdr: Literal["drop", "refuse"] = option(
        "drop",
        "drop Dolby Vision and HDR10+ metadata, which no encode keeps, with a warning (default), "
        "or refuse inputs that have them",
        metavar="drop|refuse",
        choices=("drop", "refuse"),
        group=RAW,
        column=True,
    )
    deinterlace: Literal["auto", "frames", "fields", "telecine"] = option(
        "auto",
        "auto: invert telecine where it is recognised, and make one frame of each pair of fields "
        "of other interlaced video (default); frames: always that; fields: one frame of each "
        "field; telecine: invert it, recognised or not",
        metavar="auto|frames|fields|telecine",
        choices=WAYS,
        group=RAW,
        column=True,
    )


@dataclass(frozen=True, kw_only=True)
class Running:
    """Where a command runs, and on what: options of all commands."""

    device: str = option("auto", "where the network runs", metavar="auto|cpu|cuda")
    workers: int | Executor | None = option(
        1, WORKERS_HELP, metavar="N", parse=whole, recorded=False
    )
    seed: int = option(
        0,
        "the same command, seed and program give the same answer, but for --prior own, --budget "
        "and time limits",
        metavar="N",
        parse=whole,
    )
    cache: bool = option(
        True, "neither read nor fill the cache", flags=("--no-cache",), recorded=False
    )
    ffmpeg: PathName | None = option(
        None, "another ffmpeg (or $VQALOOP_FFMPEG)", metavar="PATH", recorded=False
    )


@dataclass(frozen=True, kw_only=True)
class PriorOptions:
    """What a search begins with."""

    prior: Literal["shipped", "own", "none"] | bool = option(
        "shipped",
        "begin with what the package knows of other titles (default), add what this machine's own "
        "taught, or begin with nothing and keep nothing",
        metavar="shipped|own|none",
        choices=("shipped", "own", "none"),
        also={"--no-prior": "none"},
    )


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """Where trials are kept."""

    storage: str | None = option(
        None,
        "an Optuna storage that several processes share: sqlite:///FILE, another database, or "
        "journal:FILE (default: study.db in the output folder)",
        metavar="URL",
        recorded=False,
    )


@dataclass(frozen=True, kw_only=True)
class PeakOptions:
    """Bounds of the bitrate over a second or a segment."""

    peak_ratio: float | None = option(
        None,
        "no second and no segment of a file above R times its average bitrate",
        metavar="R",
        parse=number,
        column=True,
    )
    max_peak: float | None = option(
        None, "none above K kb/s", metavar="K", parse=kbps, column=True
    )
    buffer_s: float = option(
        0.5,
        "size of the encoder's buffer (VBV) where that takes a cap, in seconds of the cap",
        flags=("--buffer",),
        metavar="S",
        parse=number,
        column=True,
    )


@dataclass(frozen=True, kw_only=True)
class GuardOptions:
    """How delivered files are measured by metrics that had no part in choosing them."""

    guard: Literal["full", "sampled", "off"] | None = option(
        None,
        "measure delivered files all over, at sampled places with an interval, or not at all "
        "(default: sampled above 240 frames)",
        metavar="full|sampled|off",
        choices=("full", "sampled", "off"),
        column=True,
    )


@dataclass(frozen=True, kw_only=True)
class MetricOptions(Running, Scoring):
    """What decides a metric."""


@dataclass(frozen=True, kw_only=True)
class JobOptions(MetricOptions, Reading, Encoding):
    """Options of a job on one title."""

    progress: Watcher = lambda event: None

    def __post_init__(self) -> None:
        from vqaloop.execution.checks import check_run

        read_texts(self)
        if self.progress is None:
            object.__setattr__(self, "progress", lambda event: None)
        check_run(self.workers, self.seed, self.device, self.timeout_s)
        if self.dynamic_hdr not in ("drop", "refuse"):
            with fault_of("dynamic_hdr"):
                raise InputError(f"--dynamic-hdr {self.dynamic_hdr!r} is neither drop nor refuse")
        if self.deinterlace not in WAYS:
            with fault_of("deinterlace"):
                raise InputError(
                    f"--deinterlace {self.deinterlace!r} is none of {', '.join(WAYS)}"
                )

    def sizes(self, source: Source) -> Sequence[tuple[int, int]] | None:
        """Sizes to encode at; None for those chosen by the source's."""
        return [source.canvas]
