"""CPU seconds of a ColorVideoVDP score by the height of the picture.

`python -m bench.cvvdp [--heights 540,1080] [--seconds 2] [--cvvdp PROGRAM]`
"""

import argparse
import tempfile
from pathlib import Path

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.media.probe import probe_source
from vqaloop.media.sample import write_sample
from vqaloop.quality.cvvdp_metric import CvvdpUse
from vqaloop.quality.registry import open_metric
from vqaloop.records import Rendition


def main(arguments: list[str] | None = None) -> None:
    """Print a table: height, score, megapixels that were looked at, CPU seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heights", default="540,1080")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cvvdp")
    options = parser.parse_args(arguments)
    ffmpeg, spec = ffmpeg_path(), get_encoder("libx264")
    metric = open_metric("cvvdp", ffmpeg=ffmpeg, cvvdp=CvvdpUse(program=options.cvvdp))
    print("height  JOD    Mpixel  CPU s")
    for height in map(int, options.heights.split(",")):
        with tempfile.TemporaryDirectory() as name:
            size = height * 16 // 9 // 2 * 2, height
            path = write_sample(Path(name) / "a.y4m", seconds=options.seconds, size=size)
            source, out = probe_source(path), Path(name) / "a.mp4"
            encode(source, Rendition(*size, spec.name, 34, "ultrafast"), out, ffmpeg=ffmpeg)
            score = metric.measure(source, out, spec.decoder)
        pixels = 3 * len(score.moments) * size[0] * height / 1e6
        print(f"{height:6d}  {score.value:5.2f}  {pixels:6.1f}  {score.cpu_s:5.1f}")


if __name__ == "__main__":
    main()
