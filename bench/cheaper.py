"""Score error of cheaper inference: bf16, int8, fewer places in time.

    python -m bench.cheaper CLIP... [--csv FILE]

Four x264 encodes of each clip, scored by the default student on the CPU: in fp32, in bf16
(autocast), with int8 linear layers in the transformer (PyTorch's dynamic quantisation), and with
`--score-precision`. Differences are to the fp32 score; seconds are CPU seconds of the network
alone for the first two, of the whole score for the last.
"""

import argparse
import copy
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.media.activity import activity_of
from vqaloop.media.colour import to_clips
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.probe import probe_source
from vqaloop.models.student import Student
from vqaloop.models.weights import load_student
from vqaloop.quality.crop_sampling import CropSampling, read_crops
from vqaloop.quality.inference import joined
from vqaloop.quality.pooling import pool
from vqaloop.quality.registry import DEFAULT_STUDENT, open_metric, shipped_weights
from vqaloop.records import Rendition, Source

ENCODES = ((1.0, 24), (1.0, 34), (0.5, 24), (0.5, 34))
"""Part of the source's height, and x264's CRF."""
PRECISIONS = (0.5, 1.0, 2.0, 4.0)
BATCH = 32
HEIGHT = 540.0
"""Of the canvas, for heads that take it."""


def network(
    student: Student, one: Any, other: Any, counts: list[int], shares: list[float], half: bool
) -> Any:
    """Score of clips against the source's, and CPU seconds of the network for the encode's."""
    parts = [slice(i, i + BATCH) for i in range(0, len(one), BATCH)]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        anchors = [student.anchor(to_clips(torch.from_numpy(one[part])), HEIGHT) for part in parts]
        pixels = [to_clips(torch.from_numpy(other[part])) for part in parts]
        begun = time.process_time()
        seen = [student.compare(x, anchor) for x, anchor in zip(pixels, anchors, strict=True)]
        took = time.process_time() - begun
    assert len(joined(anchors).weights) == len(one)
    sums, weights = (torch.cat(x).float() for x in zip(*seen, strict=True))
    with torch.inference_mode():
        answers = partial(student.anchored_answers, canvas_height=HEIGHT)
        return pool(answers, (sums, weights), counts, 0, shares).value, took


def study(source: Source, rung: Path, students: dict[str, Student], ffmpeg: str) -> dict[str, Any]:
    """Scores and seconds of one encode, each way."""
    sampling, activity = CropSampling(), activity_of(source)
    where, shares = sampling.crops(activity, source.canvas), [*sampling.places(activity).values()]
    counts = [len(places) for places in where.values()]

    def read(indices: list[int]) -> Any:
        canvas, fps = source.canvas, source.fps
        return read_encode(rung, indices, canvas, fps, decoder="pyav", ffmpeg=ffmpeg)

    distances = sampling.distances_at(activity)
    one = read_crops(
        where, distances, source.frames, lambda i: read_source(source, i, ffmpeg=ffmpeg)
    )
    other = read_crops(where, distances, source.frames, read)
    row: dict[str, Any] = {"clip": source.path.stem, "encode": rung.stem}
    for name, student in students.items():
        row[name], row[f"{name}_s"] = network(student, one, other, counts, shares, name == "bf16")
    for precision in (None, *PRECISIONS):
        metric = open_metric("internvqa", ffmpeg=ffmpeg, device="cpu", precision=precision)
        metric.measure(source, rung, "pyav")
        found = metric.measure(source, rung, "pyav")
        row |= {f"±{precision}": found.value, f"±{precision}_s": found.cpu_s}
        row[f"±{precision}_places"] = len(found.moments)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ffmpeg = ffmpeg_path()
    plain, _ = load_student(next(p for p in shipped_weights() if p.stem == DEFAULT_STUDENT))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to move to another package
        whole = copy.deepcopy(plain)
        whole.backbone = torch.ao.quantization.quantize_dynamic(  # type: ignore[no-untyped-call]
            whole.backbone, {torch.nn.Linear}, dtype=torch.qint8
        )
    students = {"fp32": plain, "bf16": plain, "int8": whole}
    rows = []
    for clip in options.clips:
        source = probe_source(clip, allow_hdr=True, ffmpeg=ffmpeg)
        with tempfile.TemporaryDirectory() as folder:
            for scale, crf in ENCODES:
                width, height = (round(side * scale / 2) * 2 for side in source.canvas)
                rung = Path(folder) / f"{height}-crf{crf}.mp4"
                rendition = Rendition(width, height, "libx264", crf, "veryfast")
                encode(source, rendition, rung, ffmpeg=ffmpeg)
                rows.append(study(source, rung, students, ffmpeg))
    table = pd.DataFrame(rows)
    if options.csv:
        table.to_csv(options.csv, index=False, float_format="%.4f")
    ways = [("fp32", "bf16"), ("fp32", "int8"), *(("±None", f"±{p}") for p in PRECISIONS)]
    for base, way in ways:
        apart = np.abs(table[way] - table[base])
        part = table[f"{way}_s"].sum() / table[f"{base}_s"].sum()
        places = f", {table[f'{way}_places'].mean():.1f} places" if "±" in way else ""
        print(
            f"{way}: {len(table)} encodes, differs by {apart.mean():.3f} on average, "
            f"{apart.max():.3f} at most; {part:.2f} of the time{places}"
        )


if __name__ == "__main__":
    main()
