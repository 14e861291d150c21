"""`vqaloop.Scorer`: the score of one video, against its reference or alone."""

import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from msgspec import Struct

from vqaloop.bitstream.avs2 import (
    has_avs2_name,
    read_picture_size,
    read_pictures,
    starts_as_avs2,
)
from vqaloop.bitstream.colour_tags import bits_of, colour_range, video_range_of
from vqaloop.bitstream.film_grain import without_synthesis
from vqaloop.core.documents import Size, read_document
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.text import quoted
from vqaloop.errors import InputError, ToolError
from vqaloop.media.activity import activity_of
from vqaloop.media.frames import each_of_source, picks_from
from vqaloop.media.hdr import HdrUse
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source, read_head
from vqaloop.quality import full_reference
from vqaloop.quality.cvvdp_metric import DEFAULT_DISPLAY, Cvvdp, CvvdpUse
from vqaloop.quality.full_reference import CAMBI
from vqaloop.quality.metric import FOR_HDR
from vqaloop.quality.registry import DEFAULT_METRIC, open_metric
from vqaloop.quality.sampled_vmaf import SampledVmaf
from vqaloop.quality.ssimulacra2_metric import Ssimulacra2
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.quality.time_pooling import check_pool, pooled
from vqaloop.records import LADDER_SCHEMA, Score, Source


class _File(Struct):
    file: str


class _Rungs(Struct):
    """The part of a ladder.json that says whether a file is one of its rungs, and of what size."""

    source: Size
    rungs: list[_File]


class Scorer:
    """Scores finished videos with one metric: `Scorer().score(video, reference=...)`.

    Nothing heavy is loaded before the first score; a student's network then stays loaded.

    Args:
        metric: internvqa (the default student), internvqa-NAME, vmaf-sampled, vmaf-v1-sampled,
            vmaf, vmaf-v1, vmaf-v1-phone, vmaf-v1-hfr, vmaf-neg, xpsnr, psnr, ssim, cambi,
            ssimulacra2 or cvvdp.
        device: auto, cpu or cuda; where a student's network runs.
        seed: Of the positions of a student's crops; the same seed gives the same score.
        weights: A student's weights in the place of those that come with the package.
        prompt: A prompt of that student (docs/training.md): it scores as the prompt's label says.
        score_precision: Half-width of a score's 95 % interval in points: a student scores no
            further positions of a video once it is reached. None: all positions.
        ffmpeg: Path of the ffmpeg binary; None: $VQALOOP_FFMPEG, else the one that comes along.
        allow_hdr: Score PQ and HLG videos by any metric; otherwise by cvvdp alone.
        tonemap: Make PQ and HLG SDR (BT.709) as they are read, reference and video alike.
        deinterlace: What is made of interlaced video, reference and video alike: auto, frames,
            fields or telecine, as `build_ladder` has it.
        pool: How the score is pooled over time: mean (the metric's own value), harmonic, p5, p1
            (percentiles of seconds, or of sampled places) or min-scene.
        display: Of cvvdp: monitor, phone, tablet, tv or hdr-tv.
        cvvdp: ColorVideoVDP's program; None: by $VQALOOP_CVVDP or the PATH.

    Raises:
        InputError: The metric or pool is unknown, the metric takes no precision or no prompt, or
            there is no usable ffmpeg.
    """

    def __init__(
        self,
        metric: str = DEFAULT_METRIC,
        *,
        device: str = "auto",
        seed: int = 0,
        weights: str | os.PathLike[str] | None = None,
        prompt: str | os.PathLike[str] | None = None,
        score_precision: float | None = None,
        ffmpeg: str | os.PathLike[str] | None = None,
        allow_hdr: bool = False,
        tonemap: bool = False,
        deinterlace: str = "auto",
        pool: str = "mean",
        display: str = DEFAULT_DISPLAY,
        cvvdp: str | os.PathLike[str] | None = None,
    ) -> None:
        check_pool(pool)
        if metric == CAMBI and pool != "mean":
            # of banding the largest values are the worst, of all else the smallest
            raise InputError(f"--pool {pool} is for scores; of cambi, banding, there is the mean")
        self.ffmpeg = ffmpeg_path(ffmpeg)
        self.metric = open_metric(
            metric,
            ffmpeg=self.ffmpeg,
            device=device,
            seed=seed,
            weights=weights,
            prompt=prompt,
            precision=score_precision,
            cvvdp=CvvdpUse(display, cvvdp),
        )
        self.allow_hdr, self.pool, self.deinterlace = allow_hdr, pool, deinterlace
        self.hdr = HdrUse(judged=self.metric.name in FOR_HDR, tonemap=tonemap)

    def score(
        self,
        video: str | os.PathLike[str],
        reference: str | os.PathLike[str] | None = None,
        canvas: tuple[int, int] | None = None,
    ) -> Score:
        """The score of a video: 0..100, or dB for psnr and xpsnr; higher is better, but for cambi.

        Film grain that decoders of AV1 would add to it is left out, of a reference it is not.

        Args:
            video: The file. With a reference it is scaled to that one's size and matched with it
                by frame index.
            reference: The original; None: the video is judged alone, which only students do.
            canvas: Without a reference, (width, height) in pixels at which the video is judged:
                that of its original, by default as `canvas_of` finds it, else the video's own.

        Returns:
            The score with its interval, the values it is the mean of, and the time it took.

        Raises:
            InputError: A file is no video, the two differ in length, a classical metric has no
                reference, or a canvas is given beside a reference.
            DecodeFailed: A file does not decode to the frames it has.
        """
        path = Path(video)
        if reference is None:
            return self._alone(path, canvas)
        if canvas is not None:
            raise InputError("a video is judged at its reference's size; leave out --canvas")
        source = self._probe(Path(reference))
        return self._pooled(self._against(path, source), source)

    def _pooled(self, score: Score, source: Source) -> Score:
        starts = activity_of(source).starts if self.pool == "min-scene" else (0,)
        return pooled(score, self.pool, source.fps, starts)

    def _against(self, path: Path, source: Source) -> Score:
        if _is_avs2(path):
            _check_lengths(quoted(path), _avs2_pictures(path), source)
            return self.metric.measure(source, path, "ffmpeg")
        other = _without_grain(self._probe(path))
        _check_lengths(repr(path.name), other.frames, source)
        if isinstance(self.metric, (Cvvdp, StudentMetric)):
            _check_same_range(other, source)
        if isinstance(self.metric, (StudentMetric, SampledVmaf, Ssimulacra2, Cvvdp)):
            return self._compare(self.metric, source, other)
        name = self.metric.name
        return full_reference.measure(source, path, [name], ffmpeg=self.ffmpeg, probed=other)[name]

    def canvas_of(self, video: str | os.PathLike[str]) -> tuple[int, int] | None:
        """The size of a ladder rung's original, as the ladder.json beside the rung has it.

        Args:
            video: The file.

        Returns:
            (width, height) in pixels; None where the file is no rung, and for metrics that judge
            at no size of their own: classical ones, and weights that squeeze whole pictures.

        Raises:
            InputError: The ladder names a size at which no video can be judged.
        """
        path = Path(video)
        if not isinstance(self.metric, StudentMetric) or self.metric.squeezes:
            return None
        try:
            ladder = read_document(
                path.parent / "ladder.json", _Rungs, schema=LADDER_SCHEMA, give="", remedy=""
            )
        except InputError:
            return None
        if path.name not in [rung.file for rung in ladder.rungs]:
            return None
        size = ladder.source.width // 2 * 2, ladder.source.height // 2 * 2
        _check_canvas(size)
        return size

    def _alone(self, path: Path, canvas: tuple[int, int] | None) -> Score:
        if not isinstance(self.metric, StudentMetric):
            raise InputError(f"{self.metric.name} needs the original: give it with --reference")
        if canvas is not None:
            _check_canvas(canvas)
        source = _avs2_source(path) if _is_avs2(path) else _without_grain(self._probe(path))
        return self._pooled(self.metric.alone(source, canvas or self.canvas_of(path)), source)

    def _compare(
        self,
        metric: StudentMetric | SampledVmaf | Ssimulacra2 | Cvvdp,
        source: Source,
        other: Source,
    ) -> Score:
        """Score of a probed video, which may need filters of its own, against its source."""
        squeezes = isinstance(metric, StudentMetric) and metric.squeezes
        size = other.canvas if squeezes else source.canvas
        bits = bits_of(source) if isinstance(metric, (Cvvdp, StudentMetric)) else 8

        def read(indices: list[int]) -> Iterator[Frames]:
            return each_of_source(
                other,
                indices,
                ffmpeg=self.ffmpeg,
                size=size,
                wanted_range=colour_range(source),
                bits=bits,
            )

        if not isinstance(metric, StudentMetric):
            return metric.compare(source, read)
        # a video that is decoded from its first frame each time is read in one pass
        return metric.compare(
            source,
            read,
            None if other.is_raw else other.path,
            in_rounds=metric.precision is not None and picks_from(other, bits),
        )

    def _probe(self, path: Path) -> Source:
        return probe_source(
            path,
            allow_hdr=self.allow_hdr,
            hdr=self.hdr,
            deinterlace=self.deinterlace,
            ffmpeg=self.ffmpeg,
        )


def _without_grain(video: Source) -> Source:
    """A video that is scored, read without the film grain that decoders would add."""
    options = without_synthesis(video.path)
    return replace(video, input_options=(*options, *video.input_options)) if options else video


def _check_lengths(shown: str, frames: int, source: Source) -> None:
    """Raise InputError unless the video has as many frames as its reference."""
    if frames != source.frames:
        raise InputError(
            f"{shown} has {frames} frames and its reference {source.frames}; "
            "frames are matched one to one, so cut both to the same ones"
        )


def _check_same_range(video: Source, reference: Source) -> None:
    """Raise InputError unless a video and its reference have one dynamic range."""
    own, wanted = (video_range_of(each.colour) for each in (video, reference))
    if own != wanted:
        raise InputError(
            f"{quoted(video.path.name)} is {own} and its reference {wanted}: a display shows one "
            "of them; give --tonemap to make both SDR, or tag the video as what it is"
        )


def _check_canvas(size: tuple[int, int]) -> None:
    """Raise InputError for a size at which no video can be judged."""
    if any(side % 2 or not 16 <= side <= 16384 for side in size):
        raise InputError(
            f"the canvas {size[0]}x{size[1]} must have even sides of 16 to 16384 pixels; give the "
            "size of the original, such as --canvas 1920x1080"
        )


def _is_avs2(path: Path) -> bool:
    """Whether a file is a raw AVS2 stream, or has the name of one. Raises as `read_head`."""
    head = read_head(path)
    return has_avs2_name(path) or starts_as_avs2(head)


def _avs2_source(path: Path) -> Source:
    """A raw AVS2 stream as a title: it carries no frame rate, and a score needs none."""
    width, height = read_picture_size(path)
    if not (width and height):
        raise InputError(
            f"{quoted(path)} is no AVS2 stream: it begins with no sequence header; name "
            "another file"
        )
    return Source(
        path=path,
        sha256=file_sha256(path),
        width=width,
        height=height,
        fps=Fraction(25),
        frames=_avs2_pictures(path),
        pix_fmt="yuv420p",
        bit_depth=8,
        input_options=(("f", "avs2"),),
    )


def _avs2_pictures(path: Path) -> int:
    try:
        return len(read_pictures(path))
    except ToolError as error:
        raise InputError(str(error)) from error
