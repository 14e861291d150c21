"""Readers of untrusted files, as functions of bytes, with seed inputs for fuzzing.

A reader returns a value or raises a VqaloopError, whatever the bytes. Used by `bench.fuzz` and by
the tests of hostile input.
"""

import json
import os
import sqlite3
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from bench import coded
from vqaloop import records
from vqaloop.core.resources import data_folder
from vqaloop.core.rounding import finite
from vqaloop.encoding.spec import read_spec
from vqaloop.ladder.store import SCHEMA, read_ladder
from vqaloop.media import rawvideo
from vqaloop.regress.saved_runs import Saved, read_saved, write_saved
from vqaloop.regress.statistics import ClipRuns, Failure, ScoredRun
from vqaloop.training.datasets import find, read_dataset
from vqaloop.training.recipe import bundled_recipes, read_recipe
from vqaloop.trend.store import append
from vqaloop.trend.trend import read_trend

Read = Callable[[bytes, Path], object]
"""Passes the bytes to a reader, as a file in a folder where it takes one; returns its value."""
Seeds = Callable[[Path], list[bytes]]
"""Small valid files, made in a folder."""


@dataclass(frozen=True)
class Target:
    """A reader under test."""

    read: Read
    seeds: Seeds
    form: str = ""
    """json, toml, csv, sqlite or safetensors: how it is changed besides byte by byte."""
    longest: int = 8192
    """Bytes of the longest input tried."""


def _written(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------ raw video


def _y4m(data: bytes, folder: Path) -> object:
    return rawvideo.count_y4m_frames(_written(data, folder, "a.y4m"))


def _y4m_seeds(folder: Path) -> list[bytes]:
    del folder
    return [
        b"YUV4MPEG2 W64 H64 F%s %s\n" % (rate, tags) + (b"FRAME\n" + bytes(size)) * 2
        for rate, tags, size in (
            (b"25:1", b"Ip A1:1 Cmono", 4096),
            (b"30000:1001", b"C420jpeg XYSCSS=420JPEG", 6144),
            (b"50:1", b"C411", 6144),
        )
    ]


def _yuv(data: bytes, folder: Path) -> object:
    """A first line of "pix_fmt width height", then the file."""
    head, _, body = data.partition(b"\n")
    words = head.decode("utf-8", "surrogateescape").split(" ")
    sides = [int(w) if w.isascii() and w.isdigit() and len(w) < 5 else 64 for w in words[1:3]]
    width, height = (min(max(side, 64), 8192) for side in [*sides, 64, 64][:2])
    path = _written(body, folder, "a.yuv")
    return rawvideo.count_raw_frames(path, words[0], width, height)


def _yuv_seeds(folder: Path) -> list[bytes]:
    del folder
    return [b"gray 64 64\n" + bytes(8192), b"yuv420p 64 66\n" + bytes(100), b"nv12 64 64\n"]


# ---------------------------------------------------------------------- JSON documents


def _ladder(data: bytes, folder: Path) -> object:
    _written(data, folder, "ladder.json")
    # what `vqaloop report` writes again
    return json.dumps(finite(read_ladder(folder).to_json()), allow_nan=False)


def _ladder_seeds(folder: Path) -> list[bytes]:
    size: dict[str, Any] = {"width": 64, "height": 64}
    rungs = [
        records.Rung(
            **size,
            bitrate_kbps=rate,
            peak_kbps=rate,
            score=score,
            score_predicted=score,
            guard={"vmaf": score},
            knob=("crf", 30.0),
            params={"aq-mode": "1"},
            ffmpeg_args=("-c:v", "libx264"),
            file=f"{rate:g}.mp4",
        )
        for rate, score in ((10.0, 40.0), (20.0, 60.0))
    ]
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "vqaloop": "0.1.0",
        "source": {"path": "a.y4m", **size, "fps": 25.0, "duration": 1.0},
        "codec": "h264",
        "encoder": {"name": "libx264", "library_version": "x264", "preset": "medium"},
        "metric": {"name": "vmaf", "mode": "full-reference", "label": None},
        "hull": [{"bitrate_kbps": 10.0, "score": 40.0}],
        "trials": [{**size, "knob": 30.0, "bitrate_kbps": 10.0, "score": 40.0, "error": None}],
        "cost": {
            **dict.fromkeys(("encodes", "encoded_frames", "encoded_pixels"), 1),
            **dict.fromkeys(("encode_cpu_s", "score_s", "wall_s"), 1.0),
        },
        "warnings": ["none"],
    }
    ladder = records.Ladder(folder, tuple(rungs), about)
    return [json.dumps(finite(ladder.to_json())).encode()]


def _saved(data: bytes, folder: Path) -> object:
    return read_saved(_written(data, folder, "saved.json"))


def _saved_seeds(folder: Path) -> list[bytes]:
    scores = {"vmaf": 50.0}
    run = ScoredRun(
        "baseline", 64, 64, "crf 30", 30.0, 10.0, scores, 1.0, 1.0, 1000, "0" * 8, "0" * 8
    )
    failure = Failure("baseline", 64, 64, "crf 50", "crash", "-")
    clip = ClipRuns("a.y4m", "0" * 8, 64, 64, 2, "25/1", (run,), (failure,))
    build = {"name": "a", "kind": "standalone", "version": "1", "sha256": "0", "args": ["-a"]}
    path = folder / "saved.json"
    write_saved(Saved(build, {"preset": "medium"}, "here", (clip,)), path)
    return [path.read_bytes()]


def _comparison(data: bytes, folder: Path) -> object:
    """A document of `vqaloop regress --json`, put into a new history and read from it."""
    path = folder / "comparison.sqlite"
    path.unlink(missing_ok=True)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    append(document, path)
    return [trend.to_json() for trend in read_trend(path)]


def _comparison_document(day: int = 0) -> dict[str, Any]:
    gap = {"pchip": 1.0, "akima": 1.1, "noise": 0.1, "refused": None}
    found = {
        "bd_rate_percent": 1.0,
        "akima_percent": 1.1,
        "interval_percent": [0.5, 1.5],
        "noise_floor_percent": 0.1,
        "clips": 1,
        "refused": 0,
        "verdict": "regression",
    }
    return {
        "schema": "vqaloop.regress/1",
        "when": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day)).isoformat(),
        **{"codec": "h264", "encoder": "libx264", "preset": "medium"},
        "points": ["crf 30"],
        "sizes": [[64, 64]],
        "clips": [{"clip": "a", "sha256": "0", "frames": 2, "bd_rate": {"vmaf": gap}}],
        "metric": {"name": "vmaf", "weights_sha256": None},
        "metrics": {"vmaf": found},
        "threshold_percent": 0.5,
        "baseline": {"version": "1", "sha256": "0", "args": []},
        "candidate": {"version": f"2.{day}", "sha256": str(day), "args": ["-a"]},
        "time": {"cpu_ratio": 1.0, "wall_ratio": 1.0},
        "memory": {"peak_ratio": 1.0},
        "rate": {"mean_percent": 1.0},
        **{"verdict": "regression", "summary": "worse"},
    }


def _comparison_seeds(folder: Path) -> list[bytes]:
    del folder
    return [json.dumps(_comparison_document()).encode()]


# --------------------------------------------------------------------- history of builds


def _history(data: bytes, folder: Path) -> object:
    for suffix in ("-wal", "-shm", "-journal"):
        (folder / f"history.sqlite{suffix}").unlink(missing_ok=True)
    path = _written(data, folder, "history.sqlite")
    found = [trend.to_json() for trend in read_trend(path)]
    append(_comparison_document(9), path)
    return found


def _history_seeds(folder: Path) -> list[bytes]:
    path = folder / "history-seed.sqlite"
    # small pages, so that there is more in a small file
    db = sqlite3.connect(path)
    db.execute("PRAGMA page_size = 512")
    db.execute("VACUUM")
    db.close()
    for day in range(2):
        append(_comparison_document(day), path)
    data = path.read_bytes()
    # journal_mode in the header: DELETE, so that a copy stands alone
    return [data[:18] + b"\x01\x01" + data[20:], b""]


# ----------------------------------------------------------------------- tables of scores

_TABLES = {
    "csv": "path,score,content,width,reference\na.mp4,50,one,64,one.y4m\nb.mp4,7.5,two,,\n",
    "waterloo": "HEVC,1,540p,1,50\nAVC 2 1080p 2 75\n",
    "bvi-hd": "Name,dmos,encoder\nBookcase_1920x1080_60fps_HEVC_QP22.yuv,12.5,HEVC\n",
    "avt-vqdb": "video;mos\nwater_netflix_200kbps_360p_60fps_h264.mp4;2.5\n",
}


def _table(data: bytes, folder: Path) -> object:
    """A first line that names the kind of data set, then its table."""
    head, _, body = data.partition(b"\n")
    kind = head.decode("ascii", "replace")
    if kind not in _TABLES:
        kind = "csv"
    root = folder / "table"
    root.mkdir(exist_ok=True)
    path = _written(body, root, "table.csv")
    if kind == "waterloo":
        os.replace(path, root / "scores.txt")
        return find(read_dataset(kind, root))
    (root / "scores.txt").unlink(missing_ok=True)
    return find(read_dataset(kind, path if kind == "csv" else root))


def _table_seeds(folder: Path) -> list[bytes]:
    del folder
    return [f"{kind}\n{text}".encode() for kind, text in _TABLES.items()] + [
        b"waterloo\nHEVC 1 540p 1 50\nAVC 2 1080p 2 75.0\n",
        b"avt-vqdb\nwater_400kbps_360p_60fps_vp9.mp4 2.5\n",
    ]


# ---------------------------------------------------------------------------------- TOML


def _recipe(data: bytes, folder: Path) -> object:
    return read_recipe(_written(data, folder, "recipe.toml"))


def _recipe_seeds(folder: Path) -> list[bytes]:
    del folder
    # alone in their folder they find those that they extend by their names
    names = {path.resolve(): name for name, path in bundled_recipes().items()}
    found = []
    for path in names:
        text = path.read_text("utf-8")
        for base, name in names.items():
            text = text.replace(
                f'extends = "{os.path.relpath(base, path.parent)}"', f'extends = "{name}"'
            )
        found.append(text.encode())
    return found


def _encoder(data: bytes, folder: Path) -> object:
    return read_spec(_written(data, folder, "own.toml"))


def _encoder_seeds(folder: Path) -> list[bytes]:
    del folder
    encoders = data_folder("encoders")
    return [(encoders / f"{name}.toml").read_bytes() for name in ("libx264", "libxavs2")]


# ------------------------------------------------------------------------------- weights


def with_zeros(data: bytes, most: int = 1 << 22) -> bytes:
    """A header that begins with a brace, as a whole safetensors file: its tensors are zeros."""
    if data[:1] != b"{":
        return data
    try:
        tensors = [about for name, about in json.loads(data).items() if name != "__metadata__"]
        ends = [about["data_offsets"][1] for about in tensors]
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return struct.pack("<Q", len(data)) + data
    ends = [end if type(end) is int and 0 <= end <= most else 0 for end in ends]
    return struct.pack("<Q", len(data)) + data + bytes(max(ends, default=0))


def header_of(data: bytes) -> bytes:
    """The JSON of a safetensors file."""
    return data[8 : 8 + int(struct.unpack_from("<Q", data)[0])].rstrip()


def _weights(data: bytes, folder: Path) -> object:
    from vqaloop.models.weights import load_student

    return load_student(_written(with_zeros(data), folder, "a.safetensors"))


def _weights_seeds(folder: Path) -> list[bytes]:
    from vqaloop.models import create_student
    from vqaloop.models.weights import CONTENT, save_student

    path = folder / "weights.safetensors"
    save_student(create_student("internvqa-mini"), path, "internvqa-mini", "VMAF", {"a": "b"})
    told = json.loads(header_of(path.read_bytes()))
    # or no change would get past it
    del told["__metadata__"][CONTENT]
    header = json.dumps(told).encode()
    few = b'{"__metadata__":{"model":"internvqa-mini"},"a":{"dtype":"F32","shape":[1],'
    return [header, few + b'"data_offsets":[0,4]}}', with_zeros(few + b'"data_offsets":[0,4]}}')]


def _shard(data: bytes, folder: Path) -> object:
    from vqaloop.training.shards import load_shard, title_of

    path = _written(with_zeros(data), folder, "a.safetensors")
    shard = load_shard(path)
    return title_of(path), shard.scores


def _shard_seeds(folder: Path) -> list[bytes]:
    import numpy as np

    from vqaloop.training.shards import write_shard

    path = folder / "shard.safetensors"
    arrays = {"distorted": np.zeros((1, 1, 1, 6, 4), np.uint8)}
    write_shard(path, arrays, {"content": "film"}, [{"score": 1.0}], "VMAF")
    whole = path.read_bytes()
    return [header_of(whole), whole]


TARGETS = {
    "y4m": Target(_y4m, _y4m_seeds, longest=16384),
    "yuv": Target(_yuv, _yuv_seeds, longest=16384),
    "ladder": Target(_ladder, _ladder_seeds, "json"),
    "saved": Target(_saved, _saved_seeds, "json"),
    "comparison": Target(_comparison, _comparison_seeds, "json"),
    "history": Target(_history, _history_seeds, "sqlite", 32768),
    "table": Target(_table, _table_seeds, "csv"),
    "recipe": Target(_recipe, _recipe_seeds, "toml"),
    "encoder": Target(_encoder, _encoder_seeds, "toml"),
    "weights": Target(_weights, _weights_seeds, "json", 32768),
    "shard": Target(_shard, _shard_seeds, "json"),
    "boxes": Target(coded.read_boxes, coded.boxes_seeds),
    "packets": Target(coded.read_packets, coded.packets_seeds),
    "bitstream": Target(coded.read_bitstream, coded.bitstream_seeds),
}
"""By name."""
