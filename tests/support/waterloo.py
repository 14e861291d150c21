"""A small data set laid out like Waterloo IVC 4K, made by real encoders."""

from collections.abc import Sequence
from pathlib import Path

from tests.support.media import run_ffmpeg
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import codecs, default_encoder
from vqaloop.media.probe import probe_source
from vqaloop.records import Rendition

SIZES = ((128, 72), (256, 144), (416, 234))
PATTERNS = (
    "testsrc2=s=416x234:r=25",
    "mandelbrot=s=416x234:r=25:start_scale=0.6:end_scale=0.3",
    "gradients=s=416x234:r=25:speed=0.02:seed=4,noise=alls=12:all_seed=1",
    "life=s=416x234:r=25:mold=10:ratio=0.1:death_color=#C83232:life_color=#00ff00:seed=3",
    "cellauto=s=416x234:r=25:rule=30:random_seed=2",
)
"""Moving pictures, of which the contents are made in turn."""


def mos(size: tuple[int, int], level: int, levels: int, content: int) -> float:
    """The score of the set: it rises with level and size, and contents differ a little."""
    part = (level - 0.5) / levels
    largest = max(width for width, _ in SIZES)
    return float(round(100 * part**0.7 * (size[0] / largest) ** 0.35 - content % 4, 2))


def make_waterloo(
    root: Path,
    *,
    contents: int = 3,
    levels: int = 2,
    encoders: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = SIZES,
    frames: int = 12,
    sources: bool = True,
    header: str = "",
) -> Path:
    """Write `<ENC>/<NN>/<W>x<H>_<level>.<suffix>` and scores.txt below `root`; returns `root`.

    Unlike in the real set, the sizes in names and table are small (those of the files), encodes
    have the suffix of their encoder (AVS2 is a raw stream), and scores are those of `mos`. About
    0.1 CPU seconds a file: the default 90 take less than 15 s on one core.
    """
    ffmpeg = ffmpeg_path()
    rows = [header] if header else []
    folder = root / "Sources"
    folder.mkdir(parents=True)
    for content in range(1, contents + 1):
        pristine = folder / f"{content:02}.y4m"
        pattern = PATTERNS[(content - 1) % len(PATTERNS)]
        run_ffmpeg(
            "-f", "lavfi", "-i", pattern, "-ss", f"{content // len(PATTERNS)}",
            "-frames:v", str(frames), "-pix_fmt", "yuv420p", file_url(pristine),
        )  # fmt: skip
        source = probe_source(pristine, ffmpeg=ffmpeg)
        for codec in encoders or codecs():
            spec = default_encoder(codec)
            place = root / codec.upper() / f"{content:02}"
            place.mkdir(parents=True)
            worst, best = spec.knob.search
            if spec.knob.lower_is_better:
                worst, best = best, worst
            for width, height in sizes:
                for level in range(1, levels + 1):
                    knob = worst + (best - worst) * (level - 0.5) / levels
                    rendition = Rendition(
                        width, height, spec.name, spec.knob.snap(knob), spec.presets[-1]
                    )
                    path = place / f"{width}x{height}_{level}{spec.suffix}"
                    encode(source, rendition, path, ffmpeg=ffmpeg)
                    score = mos((width, height), level, levels, content)
                    name = f"{codec.upper()}, {content}, {width}x{height}, {level}"
                    rows.append(f"{name}, {score}")
        if not sources:
            pristine.unlink()
    (root / "scores.txt").write_text("\n".join(rows) + "\n", encoding="ascii")
    return root
