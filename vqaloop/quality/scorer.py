"""`vqaloop.Scorer`: the score of one video, against its reference or alone."""

import os
from pathlib import Path

from msgspec import Struct

from vqaloop.bitstream.avs2 import has_avs2_name, starts_as_avs2
from vqaloop.bitstream.colour_tags import colour_range
from vqaloop.core.documents import Size, read_document
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.text import quoted
from vqaloop.errors import InputError
from vqaloop.media.frames import each_of_source, picks_from
from vqaloop.media.probe import probe_source, read_head
from vqaloop.quality import full_reference
from vqaloop.quality.metric import (
    DEFAULT_METRIC,
    _avs2_alone,
    _avs2_pictures,
    check_canvas,
    open_metric,
)
from vqaloop.quality.student_metric import StudentMetric
from vqaloop.records import LADDER_SCHEMA, Score, Source


class _File(Struct):
    file: str


class _Rungs(Struct):
    """What of a ladder.json tells whose rungs lie beside it."""

    source: Size
    rungs: list[_File]


class Scorer:
    """Scores of finished videos: `Scorer().score(video, reference=...)`.

    `metric` is internvqa (the default student), internvqa-NAME, vmaf, xpsnr, psnr or ssim;
    `score_precision` is the `precision` of `open_metric`.
    """

    def __init__(
        self,
        metric: str = DEFAULT_METRIC,
        *,
        device: str = "auto",
        seed: int = 0,
        weights: str | os.PathLike[str] | None = None,
        score_precision: float | None = None,
        ffmpeg: str | os.PathLike[str] | None = None,
        allow_hdr: bool = False,
    ) -> None:
        self.ffmpeg = ffmpeg_path(ffmpeg)
        self.metric = open_metric(
            metric,
            ffmpeg=self.ffmpeg,
            device=device,
            seed=seed,
            weights=weights,
            precision=score_precision,
        )
        self.allow_hdr = allow_hdr

    def score(
        self,
        video: str | os.PathLike[str],
        reference: str | os.PathLike[str] | None = None,
        canvas: tuple[int, int] | None = None,
    ) -> Score:
        """0..100, or dB for psnr and xpsnr; anchored to `reference` where there is one.

        Args:
            video: The file. With a reference it is scaled to that one's size and matched with it
                by frame index.
            reference: The original.
            canvas: Without one, the width and height at which the video is judged: that of its
                original, by default as `canvas_of` finds it, else the video's own.

        Raises:
            InputError: for a file that is no video, two of different length, a classical metric
                without a reference, and a canvas beside a reference.
        """
        path = Path(video)
        if reference is not None and canvas is not None:
            raise InputError("a video is judged at its reference's size; leave out --canvas")
        if reference is None:
            if not isinstance(self.metric, StudentMetric):
                raise InputError(
                    f"{self.metric.name} needs the original: give it with --reference"
                )
            if canvas is not None:
                check_canvas(canvas)
            return self.metric.alone(self._probe_alone(path), canvas or self.canvas_of(path))
        source = self._probe(Path(reference))
        if has_avs2_name(path):
            _check_avs2(path, source)
            return self.metric.measure(source, path, "ffmpeg")
        other = self._probe(path)
        if other.frames != source.frames:
            raise InputError(
                f"{path.name!r} has {other.frames} frames and its reference {source.frames}; "
                "frames are matched one to one, so cut both to the same ones"
            )
        if isinstance(self.metric, StudentMetric):
            return self.metric.compare(
                source,
                lambda indices: each_of_source(
                    other,
                    indices,
                    ffmpeg=self.ffmpeg,
                    size=source.canvas,
                    wanted_range=colour_range(source),
                ),
                # what is decoded from its beginning each time had better be read once
                in_rounds=self.metric.precision is not None and picks_from(other),
            )
        name = self.metric.name
        return full_reference.measure(
            source,
            path,
            [name],
            ffmpeg=self.ffmpeg,
            distorted_prep=other.prep,
            # of a file in which it changes, its first frames alone would tell another
            distorted_range=colour_range(other) if other.changes else None,
        )[name]

    def canvas_of(self, video: str | os.PathLike[str]) -> tuple[int, int] | None:
        """The size of the original of a ladder's rung, as the ladder.json beside it has it.

        None for what is no rung, and for metrics that do not look at crops.
        """
        path = Path(video)
        if not isinstance(self.metric, StudentMetric) or not self.metric.sees_crops:
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
        check_canvas(size)
        return size

    def _probe_alone(self, path: Path) -> Source:
        head = read_head(path)
        is_avs2 = has_avs2_name(path) or starts_as_avs2(head)
        return _avs2_alone(path) if is_avs2 else self._probe(path)

    def _probe(self, path: Path) -> Source:
        return probe_source(path, allow_hdr=self.allow_hdr, ffmpeg=self.ffmpeg)


def _check_avs2(path: Path, source: Source) -> None:
    """Raise InputError unless it is a raw AVS2 stream of as many pictures as the source."""
    if not path.is_file():
        raise InputError(f"{quoted(path)} does not exist")
    pictures = _avs2_pictures(path)
    if pictures != source.frames:
        raise InputError(
            f"{quoted(path)} has {pictures} frames and its reference {source.frames}; "
            "frames are matched one to one, so cut both to the same ones"
        )
