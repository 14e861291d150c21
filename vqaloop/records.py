"""Types of the data flow: Source → Rendition → Encode → Score → RDPoint → Ladder.

All are frozen. Rates are in kb/s (1 kb = 1000 bits), times in seconds, sizes in pixels, scores
0..100 (dB for PSNR and XPSNR) with higher better, frame rates exact fractions.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqaloop.core.rounding import finite
from vqaloop.errors import InputError

if TYPE_CHECKING:
    import pandas


REUSE = ("reinit_filter", "0")
"""The ffmpeg option before -i with which one filter graph takes all frames, whatever changes."""

LADDER_SCHEMA = "vqaloop.ladder/1"
"""Of ladder.json."""


@dataclass(frozen=True)
class StaticHdr:
    """Static metadata of HDR10, which hold for a whole title; unset is what is unknown."""

    primaries: tuple[tuple[float, float], ...] = ()
    """CIE 1931 x and y of the mastering display's red, green, blue and white (SMPTE ST 2086)."""
    luminance: tuple[float, float] | None = None
    """Its least and largest luminance in cd/m²."""
    light: tuple[int, int] | None = None
    """MaxCLL and MaxFALL in cd/m²: of the brightest pixel, and of the brightest frame's mean."""


@dataclass(frozen=True)
class Source:
    """A probed input; `prep` makes its frames progressive, upright and of constant rate."""

    path: Path
    """The file that was probed."""
    sha256: str
    """SHA-256 of its content, in hex."""
    width: int
    """Width as displayed, in pixels (after rotation)."""
    height: int
    """Height as displayed, in pixels."""
    fps: Fraction
    """Frame rate after `prep`, in fps."""
    frames: int
    """Number of frames after `prep`."""
    pix_fmt: str
    """ffmpeg's name of the stored pixel format."""
    bit_depth: int = 8
    """Bits per sample."""
    input_options: tuple[tuple[str, str], ...] = ()
    """ffmpeg options before -i (raw video: format, size, rate; else how prep takes frames)."""
    prep: tuple[str, ...] = ()
    """ffmpeg filters: fps for variable rate, bwdif for interlace, fieldmatch and decimate for
    telecine, crop to even sizes."""
    colour: tuple[tuple[str, str], ...] = ()
    """ffmpeg options that tag the output: color_primaries, color_trc, colorspace, color_range."""
    hdr: bool = False
    """True for PQ and HLG transfer."""
    static_hdr: StaticHdr | None = None
    """Mastering display and light levels of an HDR source; None where it has none."""
    dynamic_hdr: tuple[str, ...] = ()
    """Metadata that change from scene to scene, which no encode keeps: "HDR10+" ..."""
    windows: tuple[int, ...] = ()
    """First frame of each window of an excerpt, which is taken for a scene; the first is 0."""
    notes: tuple[str, ...] = ()
    """Changes that `prep` makes, one sentence each, for the user."""

    @property
    def canvas(self) -> tuple[int, int]:
        """Width and height at which rungs are scored: the source's, cropped to even ones."""
        return self.width // 2 * 2, self.height // 2 * 2

    @property
    def duration_s(self) -> float:
        """Duration in seconds."""
        return float(self.frames / self.fps)

    @property
    def changes(self) -> bool:
        """Whether properties of its frames change inside the file, so that prep evens them out."""
        return REUSE in self.input_options

    @property
    def is_raw(self) -> bool:
        """Whether it is raw video, whose format is in `input_options` alone."""
        return ("f", "rawvideo") in self.input_options


@dataclass(frozen=True)
class Cap:
    """Bound of an encode's bitrate: a buffer that is emptied by its frames, and refilled."""

    maxrate_kbps: int
    """Rate in kb/s at which the buffer is refilled."""
    buffer_kbit: int
    """Size of the buffer in kbit."""


@dataclass(frozen=True)
class Rendition:
    """One way to encode a title: size, encoder, knob, preset, parameters. Hashable."""

    width: int
    """Coded width in pixels, even."""
    height: int
    """Coded height in pixels, even."""
    encoder: str
    """Name of the file in encoders/, without suffix."""
    knob: float
    """Value of the encoder's quality knob (CRF, QP ...)."""
    preset: str
    """One of the encoder's presets."""
    bit_depth: int = 8
    """Bits per sample of the encode."""
    params: tuple[tuple[str, str], ...] = ()
    """Further encoder parameters, sorted by name."""
    gop: int | None = None
    """Frames between IDR frames; None: the encoder file's seconds."""

    def __str__(self) -> str:
        return f"{self.width}x{self.height} {self.encoder} {self.knob:g}"


@dataclass(frozen=True)
class Encode:
    """The bitstream of one rendition, on disk, with what it cost."""

    rendition: Rendition
    path: Path
    """The file."""
    size_bytes: int
    """Size of the file, container included."""
    frames: int
    """Frames in it."""
    duration_s: float
    """Their duration in seconds."""
    peak_kbps: float
    """Highest rate over any one second, in kb/s."""
    cpu_s: float
    """CPU seconds the encoder run took (scaling and source decoding included)."""
    wall_s: float
    """Wall seconds of the same."""
    ffmpeg_args: tuple[str, ...]
    """Complete output options: `ffmpeg -i INPUT *ffmpeg_args OUT` gives the file again."""
    encoder_version: str
    """Name and version of the encoder library, as far as it reports them."""
    cached: bool = False
    """True when it came from the cache and nothing was run."""
    first_pass_args: tuple[str, ...] = ()
    """Of an encode in two passes the same of the first, which is run before in the same folder,
    with any OUT; empty where one pass made the file."""

    @property
    def bitrate_kbps(self) -> float:
        """Mean rate of the file in kb/s, container included."""
        return self.size_bytes * 8 / 1000 / self.duration_s


@dataclass(frozen=True)
class Score:
    """Score of one encode by one metric."""

    value: float
    """0..100 (dB for psnr and xpsnr), higher is better; pooled over time by `pool`."""
    metric: str
    """internvqa-tiny, vmaf, vmaf-v1, vmaf-v1-phone, vmaf-neg, xpsnr, psnr, ssim ..."""
    mode: str
    """anchored: crops compared with the source's. difference: the no-reference answer, subtracted
    from that on the source. no-reference or full-reference."""
    clips: tuple[float, ...] = ()
    """Value of each scored clip (learned) or frame (classical)."""
    interval: tuple[float, float] | None = None
    """95 % interval of the value over the choice of clips; None where all frames were used."""
    places: tuple[tuple[int, int, int], ...] = ()
    """First frame, top and left of each clip, where clips are crops."""
    moments: tuple[tuple[int, float], ...] = ()
    """Frame and score of each time that was looked at, the first of the frames in its middle; the
    value is their mean (of some students a power mean of what they lack to 100), weighted by the
    part of the title each stands for, then mapped from the scale of `label` if another."""
    shares: tuple[float, ...] = ()
    """The part of the title that each moment stands for."""
    weights_sha256: str | None = None
    """SHA-256 of the weights file, for learned metrics."""
    label: str | None = None
    """What the weights were fitted to."""
    opinion: float | None = None
    """The score of the video on the scale of `label`, 0..100, where `value` is mapped from it."""
    cpu_s: float = 0.0
    """CPU seconds spent, decoding included."""
    wall_s: float = 0.0
    """Wall seconds spent."""
    pool: str = "mean"
    """How it is pooled over time: a name of `quality.time_pooling.POOLS`."""
    mean: float | None = None
    """The metric's own value where `pool` is another."""


@dataclass(frozen=True)
class RDPoint:
    """A point of the rate-quality curve: measured on an encode, or interpolated."""

    width: int
    height: int
    knob: float
    """Value of the encoder's quality knob."""
    bitrate_kbps: float
    score: float
    measured: bool = True
    """False where it is interpolated between encodes."""

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def key(self) -> tuple[int, int, float]:
        """Size and knob: unique among the encodes of a title."""
        return self.width, self.height, self.knob


@dataclass(frozen=True)
class Trial:
    """One trial of the search: an encode with its rate and score, or why it failed."""

    rendition: Rendition
    bitrate_kbps: float | None = None
    score: float | None = None
    error: str | None = None
    whole_title: bool = True
    """False when it is a probe: made on an excerpt, perhaps at a faster preset."""
    encode: Encode | None = field(default=None, compare=False)
    mean: float | None = None
    """The mean score, where `score` is pooled otherwise."""
    parts: int = 0
    """How many encodes with knobs of their own the file is joined of; 0 where it is one encode."""

    def to_json(self) -> dict[str, Any]:
        r = self.rendition
        return {
            "width": r.width,
            "height": r.height,
            "knob": r.knob,
            "preset": r.preset,
            "params": dict(r.params),
            **({} if r.gop is None else {"gop": r.gop}),
            **({"parts": self.parts} if self.parts else {}),
            "bitrate_kbps": rounded(self.bitrate_kbps),
            "score": rounded(self.score),
            **({} if self.mean is None else {"score_mean": rounded(self.mean)}),
            "whole_title": self.whole_title,
            "state": "failed" if self.error else "complete",
            "error": self.error,
            "cached": bool(self.encode and self.encode.cached),
        }


def rounded(value: float | None, digits: int = 4) -> float | None:
    """`value` for JSON: rounded, and None where it is not a finite number."""
    number: float | None = finite(value, digits)
    return number


@dataclass(frozen=True)
class Event:
    """Progress of a long job."""

    stage: str
    """Name of the stage: see the table in docs/pipeline.md."""
    message: str
    """One line for people."""
    done: int = 0
    """Finished items of this stage: trials, rungs, frames, files."""
    total: int = 0
    """Number of items of this stage."""
    trial: Trial | None = None
    at_most: bool = False
    """True where the stage may end before `total`: a search ends when it has converged."""
    left_s: float | None = None
    """Seconds that the stage will take from here at its pace so far, `at_most` if it may end
    before; None where that is not known yet."""


@dataclass(frozen=True)
class TwoPasses:
    """How a rung was made in two passes over the title."""

    goal_kbps: int
    """Mean rate in kb/s that the encoder was to reach, its container not counted."""
    mean_kbps: float
    """The mean rate measured, its container not counted."""
    first_pass_args: tuple[str, ...]
    """Output options of the first pass: `ffmpeg -i INPUT *first_pass_args -` writes the log that
    `ffmpeg_args`, in the same folder, reads."""

    @property
    def missed(self) -> float:
        """By what part of the goal the measured rate is off it, signed."""
        return self.mean_kbps / self.goal_kbps - 1

    def to_json(self) -> dict[str, Any]:
        return {
            "goal_kbps": self.goal_kbps,
            "mean_kbps": rounded(self.mean_kbps),
            "first_pass_args": list(self.first_pass_args),
        }


_NOT_THE_ENCODER_S = frozenset(
    ("c:v", "f", "map", "map_metadata", "map_chapters", "vf", "fps_mode", "r")
    + ("fflags", "movflags", "tag:v", "pass", "passlogfile")
)
"""Options of a rung that ffmpeg itself, its filters or its muxers take."""


@dataclass(frozen=True)
class RungScene:
    """A scene of a rung that has a knob of its own for each."""

    start_frame: int
    end_frame: int
    """The first frame that is not in it."""
    knob: float
    """Value of the encoder's quality knob."""
    score: float | None
    """Of the scene's own encode; None where it was scored as a part of the whole alone."""
    bitrate_kbps: float
    """Mean rate of its frames, container not counted."""
    ffmpeg_args: tuple[str, ...]
    """The output options in which it differs from the rung's other scenes."""
    cap: Cap | None = None
    """What its encoder's buffer model kept to."""

    def to_json(self) -> dict[str, Any]:
        return {
            "start_frame": self.start_frame,
            "end_frame": self.end_frame,
            "knob": self.knob,
            "score": rounded(self.score),
            "bitrate_kbps": rounded(self.bitrate_kbps),
            **({"cap": asdict(self.cap)} if self.cap else {}),
            "ffmpeg_args": list(self.ffmpeg_args),
        }


@dataclass(frozen=True)
class Rung:
    """One rung of a ladder: a delivered file, with its measured rate and scores."""

    width: int
    height: int
    bitrate_kbps: float
    """Mean rate of the file in kb/s."""
    peak_kbps: float
    """Highest rate over any one second of it, in kb/s."""
    score: float
    """Measured on the file, over the whole title."""
    score_predicted: float
    """Score that the search predicted before the file was encoded."""
    guard: dict[str, float]
    """Independent figures of the file by name, as docs/scoring.md has them: vmaf (0..100) and
    psnr_y (dB), the others where they can be measured; empty with `--guard off`."""
    knob: tuple[str, float]
    """Name and value; with `scenes` the mean of theirs."""
    params: dict[str, str]
    """Further encoder parameters."""
    ffmpeg_args: tuple[str, ...]
    """Complete output options; `to_ffmpeg` and a command line take them alike. They are made for
    the program that `about["encoder"]` of the ladder names (`ffmpeg_path`, `ffmpeg_version`, and
    `ffmpeg`, its SHA-256); others may not know an option, or take a value for another."""
    file: str
    """Relative to the ladder's folder."""
    over_time: dict[str, Any] = field(default_factory=dict)
    """Bitrate and score over the time of the file; see ladder/timeline.py. Empty if unknown."""
    opinion: float | None = None
    """The score on the scale of the weights' label, where that is mapped to VMAF points."""
    score_mean: float | None = None
    """The mean score, where `score` is pooled otherwise; `about["metric"]["pool"]` says how."""
    guard_interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % intervals of the figures of `guard` that are sampled; empty where all are of the whole
    title."""
    banding_at_s: float | None = None
    """Seconds at which the figure `cambi` of `guard` is highest; None: it was not measured."""
    cap: Cap | None = None
    """What its encoder's buffer model kept to; None where the file was made without."""
    two_pass: TwoPasses | None = None
    """Its passes; None where one made it."""

    scenes: tuple[RungScene, ...] = ()
    """Of a rung made of scenes, in order: of a per-shot ladder, or one whose parts keep its peak
    by knobs of their own. Its file is their encodes, joined."""

    def scene_args(self, scene: RungScene) -> tuple[str, ...]:
        """Complete output options of a scene of a rung made of scenes.

        Args:
            scene: One of `scenes`.

        Returns:
            `ffmpeg -i INPUT *args OUT` gives the scene's part of the file again.
        """
        return (*self.ffmpeg_args, *scene.ffmpeg_args)

    @property
    def _options(self) -> dict[str, str]:
        if self.scenes:
            raise InputError(
                f"{self.file} is made of {len(self.scenes)} scenes, each encoded with options of "
                "its own: take those of `scene_args`, or make the ladder again"
            )
        return _options_of(self.ffmpeg_args)

    def to_ffmpeg(self, input: Any, output: Any = None, **input_options: Any) -> Any:
        """An ffmpeg-python graph that encodes the rung again; `.run()` it, or extend it.

        Of a rung in two passes it is the second: `first_pass` runs before it in the same folder.

        Args:
            input: Path of the source, or an ffmpeg-python input.
            output: Path of the encode; by default `file` in the current folder.
            input_options: ffmpeg options before the path `input`, which raw video needs.

        Returns:
            ffmpeg-python's output stream.
        """
        from vqaloop.core import ffmpeg

        node = _as_node(input, input_options)
        return node.output(ffmpeg.file_url(output or self.file), **self._options)

    def first_pass(self, input: Any, **input_options: Any) -> Any:
        """An ffmpeg-python graph of the first of two passes, which writes their log to the folder
        in which it runs.

        Args:
            input: As of `to_ffmpeg`.
            input_options: As of `to_ffmpeg`.

        Returns:
            ffmpeg-python's output stream; None where one pass makes the rung.
        """
        if self.two_pass is None:
            return None
        options = _options_of(self.two_pass.first_pass_args)
        return _as_node(input, input_options).output("-", **options)

    def to_pyav(self) -> dict[str, Any]:
        """The rung's settings for PyAV's `add_stream(codec, rate=rate, options=options)`.

        Options of filters and muxer are not in it: scale the frames to width and height, and set
        their pict_type to NONE. PyAV's own libraries encode, so the bytes may differ; it has no
        AVS2 encoder. A rung in two passes becomes one pass at the same mean rate.

        Returns:
            codec, rate (a Fraction, in fps), width, height, pix_fmt, and the encoder's options.
        """
        options = self._options
        filters = options["vf"].split(",")
        formats = [f.removeprefix("format=") for f in filters if f.startswith("format=")]
        own = {k.removesuffix(":v"): v for k, v in options.items() if k not in _NOT_THE_ENCODER_S}
        return {
            "codec": options["c:v"],
            "rate": Fraction(options["r"]),
            "width": self.width,
            "height": self.height,
            "pix_fmt": formats[-1],
            "options": own,
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "height": self.height,
            "bitrate_kbps": rounded(self.bitrate_kbps),
            "peak_kbps": rounded(self.peak_kbps),
            "score": rounded(self.score),
            "score_predicted": rounded(self.score_predicted),
            **({} if self.score_mean is None else {"score_mean": rounded(self.score_mean)}),
            **({} if self.opinion is None else {"opinion": rounded(self.opinion)}),
            "guard": {name: rounded(value) for name, value in self.guard.items()},
            **(
                {"guard_interval": {k: list(map(rounded, v)) for k, v in spread.items()}}
                if (spread := self.guard_interval)
                else {}
            ),
            **({} if self.banding_at_s is None else {"banding_at_s": rounded(self.banding_at_s)}),
            "knob": {"name": self.knob[0], "value": self.knob[1]},
            "params": self.params,
            "cap": asdict(self.cap) if self.cap else None,
            **({"two_pass": self.two_pass.to_json()} if self.two_pass else {}),
            "ffmpeg_args": list(self.ffmpeg_args),
            "file": self.file,
            **({"over_time": self.over_time} if self.over_time else {}),
            **({"scenes": [scene.to_json() for scene in self.scenes]} if self.scenes else {}),
        }


def _options_of(args: Sequence[str]) -> dict[str, str]:
    """Options of a command line by their names."""
    pairs = zip(args[::2], args[1::2], strict=True)
    return {name.removeprefix("-"): value for name, value in pairs}


def _as_node(input: Any, options: Mapping[str, Any]) -> Any:
    """An ffmpeg-python input of a path; what is one already as it is."""
    from vqaloop.core import ffmpeg

    if isinstance(input, str | os.PathLike):
        return ffmpeg.input(ffmpeg.file_url(input), **options)
    return input


@dataclass(frozen=True)
class Ladder:
    """A bitrate ladder: rungs in ascending order, strictly increasing in bitrate and score."""

    folder: Path
    """The folder of its files."""
    rungs: tuple[Rung, ...]
    about: dict[str, Any]
    """The rest of ladder.json: source, codec, encoder, metric, hull, trials, cost, warnings."""
    trusted: bool = True
    """False when the score of a delivered file is too far from its prediction, or from VMAF."""

    def to_json(self) -> dict[str, Any]:
        """The document `vqaloop.ladder/1`."""
        document = dict(self.about)
        return {
            **{key: document.pop(key) for key in ("schema", "vqaloop", "source", "codec")},
            **{key: document.pop(key) for key in ("encoder", "metric")},
            "rungs": [rung.to_json() for rung in self.rungs],
            **document,
            "trusted": self.trusted,
        }

    def to_frame(self) -> pandas.DataFrame:
        """The rungs as a table of pandas, one row each: that of ladder.csv."""
        import pandas

        rows, encoder = [], self.about.get("encoder") or {}
        for rung in self.rungs:
            row = rung.to_json()
            guard, knob = row.pop("guard"), row.pop("knob")
            row.pop("over_time", None)
            for name, (low, high) in row.pop("guard_interval", {}).items():
                guard |= {f"{name}_low": low, f"{name}_high": high}
            row.pop("scenes", None)
            cap = row.pop("cap") or {}
            row["ffmpeg_args"] = shlex.join(row["ffmpeg_args"])
            row["params"] = ",".join(f"{k}={v}" for k, v in rung.params.items())
            # the arguments are those of this very program: others may not know or keep them
            made_by = {
                "ffmpeg": encoder.get("ffmpeg_path"),
                "ffmpeg_version": encoder.get("ffmpeg_version"),
            }
            limits = {name: cap.get(name) for name in ("maxrate_kbps", "buffer_kbit")}
            if passes := row.pop("two_pass", None):
                limits |= {name: passes[name] for name in ("goal_kbps", "mean_kbps")}
                limits["first_pass_args"] = shlex.join(passes["first_pass_args"])
            rows.append({**row, **guard, knob["name"]: knob["value"], **made_by, **limits})
        return pandas.DataFrame(rows)


Watcher = Callable[[Event], None]
"""Called with each event of a long job, from any thread."""
