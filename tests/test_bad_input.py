"""What users give and get wrong: each case with its exit status and the message they are shown.

The table of docs/input.md is made of these cases and of what was said: VQALOOP_WRITE_DOCS=1 writes
it, and without that each case checks its own line.
"""

import contextlib
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commandline import SMALL, Room, fake_ffmpeg
from tests.media import REPOSITORY, make_clip, remux, write_y4m
from tests.test_source import HDR_TAGS, cut, fifo, huge_mkv, sound_only, with_bytes, with_cover

DOCUMENT = REPOSITORY / "docs" / "input.md"
HEAD, ROW, END = "| case | exit | message |", "| --- | --- | --- |", "<!-- end of table -->"
SIZES = ("--resolutions", "160x96,112x64")
Y4M = b"YUV4MPEG2 W%d H%d F25:1"

written: dict[str, str] = {}
"""Lines of the table, by case, as far as cases have run."""

Make = Callable[[Room], list[str]]
"""Prepares the room and gives the words after `vqaloop`."""


@dataclass(frozen=True)
class Case:
    """One way to use it wrong, or strangely."""

    name: str
    make: Make
    says: str
    """Part of the one message, or of a warning in ladder.json."""
    statuses: tuple[int, ...] = (2,)


def ladder(name: str, *options: str) -> list[str]:
    return ["ladder", name, *SMALL, *SIZES, *options, "-o", "out"]


def plain(*options: str) -> Make:
    """A sound clip and these options."""

    def make(room: Room) -> list[str]:
        make_clip(room.folder / "a.y4m", size="160x96")
        return ladder("a.y4m", *options)

    return make


def given(name: str, write: Callable[[Path], object], *options: str) -> Make:
    """A file of that name, written by `write`."""

    def make(room: Room) -> list[str]:
        write(room.folder / name)
        return ladder(name, *options)

    return make


def clip(name: str, *options: str, vf: str | None = None, **more: str) -> Make:
    """A clip of twelve frames, 160 x 96 before `vf`."""
    return given(name, lambda path: make_clip(path, size="160x96", vf=vf, **more), *options)


def remade(name: str, change: Callable[[Path, Path], object]) -> Make:
    """A file made from a sound mp4."""

    def make(room: Room) -> list[str]:
        change(make_clip(room.temp / "plain.mp4", size="160x96"), room.folder / name)
        (room.temp / "plain.mp4").unlink()
        return ladder(name)

    return make


def raw(*options: str) -> Make:
    return given("a.yuv", lambda path: make_clip(path, size="160x96"), *options)


def output(name: str) -> Make:
    def make(room: Room) -> list[str]:
        return [*plain()(room)[:-1], name]

    return make


def inside_output(room: Room) -> list[str]:
    words = plain()(room)
    (room.folder / "out").mkdir()
    (room.folder / "out" / "ladder.json").write_text("{}")
    (room.folder / "a.y4m").rename(room.folder / "out" / "a.y4m")
    return ["ladder", "out/a.y4m", *words[2:]]


def other_files(room: Room) -> list[str]:
    (room.folder / "out").mkdir()
    (room.folder / "out" / "letters.txt").write_text("dear")
    return plain()(room)


def bad_weights(data: bytes) -> Make:
    def make(room: Room) -> list[str]:
        with_bytes(room.folder / "w.safetensors", data)
        return plain("--metric", "internvqa-tiny", "--weights", "w.safetensors")(room)

    return make


def without_encoder(room: Room) -> list[str]:
    said = "echo \"Unknown encoder 'libx264'\" >&2; exit 8"
    fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*": said})
    return plain("--ffmpeg", "./ffmpeg")(room)


def not_executable(room: Room) -> list[str]:
    (room.folder / "ffmpeg").write_text("#!/bin/sh\n")
    return plain("--ffmpeg", "ffmpeg")(room)


def variable(path: Path) -> None:
    make_clip(path, size="160x96", frames=45, vf="select='lt(n,15)+not(mod(n,2))'")


def interlaced(path: Path) -> None:
    options = {"rate": "50", "vf": "interlace", "flags": "+ildct+ilme"}
    make_clip(path, size="160x96", frames=20, **options)


def rotated(source: Path, path: Path) -> None:
    remux(source, path, "-display_rotation", "90")


PQ, HLG = HDR_TAGS.format("smpte2084"), HDR_TAGS.format("arib-std-b67")
DEEP = {"pix_fmt": "yuv420p10le", "codec": "ffv1"}
TALL = ("--resolutions", "96x160,64x112")
AVS2 = ("--codec", "avs2", "--preset", "0", "--resolutions", "160x96,120x72")
FORMAT = ("--video-size", "160x96", "--pix-fmt", "yuv420p", "--framerate", "25")

CASES = (
    # the file
    Case("no such file", lambda r: ladder("none.mp4"), "does not exist"),
    Case("a folder", lambda r: ladder("."), "is a folder"),
    Case("an empty file", given("a.mp4", lambda p: with_bytes(p, b"")), "is empty"),
    Case("a named pipe", given("pipe.y4m", lambda p: fifo(p.parent)), "pipe or device"),
    Case(
        "not a video (text)",
        given("a.mp4", lambda p: with_bytes(p, b"hello\n" * 50)),
        "not a video",
    ),
    Case(
        "not a video (noise)",
        given("a.mkv", lambda p: with_bytes(p, random.Random(1).randbytes(9999))),
        "not a video",
    ),
    Case("mp4 cut short", remade("a.mp4", cut), "cut short"),
    Case(
        "y4m cut short",
        given("a.y4m", lambda p: write_y4m(p, tail=b"FRAME\n" + b"0" * 999)),
        "cut short inside frame 3",
    ),
    Case(
        "no width and height",
        given("a.y4m", lambda p: write_y4m(p, header=Y4M % (0, 64))),
        "width is 0",
    ),
    Case(
        "y4m that asks for 1 TB a frame",
        given("a.y4m", lambda p: write_y4m(p, header=Y4M % (10**6, 10**6))),
        "width is 1000000",
    ),
    Case("mkv that asks for 1 TB a frame", given("a.mkv", huge_mkv), "no usable picture size"),
    Case("one frame", given("a.y4m", lambda p: write_y4m(p, frames=1)), "at least 2 frames"),
    Case("sound only", given("a.mp4", sound_only), "no video stream"),
    Case(
        "sound with a cover picture",
        given("a.m4a", lambda p: with_cover(p, "-c:a", "aac")),
        "cover picture",
    ),
    Case("HDR (PQ)", clip("a.mp4", vf=PQ), "--allow-hdr"),
    Case("HDR (HLG)", clip("a.mp4", vf=HLG), "--allow-hdr"),
    Case("raw video without its format", raw(), "give --video-size"),
    Case("raw video with half of its format", raw("--video-size", "160x96"), "needs all of"),
    Case(
        "raw video of another size",
        raw("--video-size", "162x96", *FORMAT[2:]),
        "not a whole number of 162x96",
    ),
    Case("raw video of no known format", raw(*FORMAT[:3], "x", *FORMAT[4:]), "--pix-fmt 'x'"),
    # the request
    Case(
        "no codec", lambda r: ["ladder", "a.y4m"], "the following arguments are required: --codec"
    ),
    Case("unknown codec", plain("--codec", "vc1"), "unknown codec 'vc1'; choose one of"),
    Case("unknown encoder", plain("--encoder", "x264"), "unknown encoder 'x264'; known are"),
    Case("encoder of another codec", plain("--encoder", "libx265"), "libx265 makes hevc, not h264"),
    Case("unknown preset", plain("--preset", "warp"), "no preset 'warp'"),
    Case("unknown metric", plain("--metric", "mos"), "unknown metric 'mos'"),
    Case("unknown device", plain("--device", "tpu"), "invalid choice: 'tpu'"),
    Case("unknown option", plain("--fast"), "unrecognized arguments: --fast"),
    Case("10 bit with AVS2", clip("a.mkv", *AVS2, **DEEP), "--bit-depth 8"),
    Case("bit depth of no encoder", plain("--bit-depth", "0"), "this would be 0 bit"),
    Case(
        "resolution larger than the source",
        plain("--resolutions", "320x180,160x96"),
        "larger than the source (160x96)",
    ),
    Case("odd resolution", plain("--resolutions", "160x96,81x47"), "sizes are even"),
    Case("malformed resolution", plain("--resolutions", "160*96"), "'160*96' is not a resolution"),
    Case("no resolution", plain("--resolutions", ""), "'' is not a resolution"),
    Case("--rungs many", plain("--rungs", "many"), "neither a number nor auto"),
    Case("--rungs 1", plain("--rungs", "1"), "at least 2 rungs"),
    Case("--min-step 0", plain("--min-step", "0"), "least step"),
    Case("--min-step nan", plain("--min-step", "nan"), "least step"),
    Case("--min-ratio 1", plain("--min-ratio", "1"), "least ratio"),
    Case(
        "--min-bitrate above --max-bitrate",
        plain("--min-bitrate", "900", "--max-bitrate", "300"),
        "must be less than --max-bitrate",
    ),
    Case("--workers 0", plain("--workers", "0"), "at least one worker"),
    Case("--workers two", plain("--workers", "two"), "invalid int value: 'two'"),
    Case("--seed -1", plain("--seed", "-1"), "must not be negative"),
    Case("--time-limit 0", plain("--time-limit", "0"), "time limit must lie above 0"),
    Case("--time-limit nan", plain("--time-limit", "nan"), "time limit must lie above 0"),
    # the machine
    Case("an ffmpeg without the encoder", without_encoder, "was built without libx264"),
    Case("--ffmpeg that is no program", not_executable, "not an executable ffmpeg"),
    Case("weights that are missing", plain(
        "--metric", "internvqa-tiny", "--weights", "none.safetensors"), "cannot be read"),
    Case("weights that are damaged", bad_weights(b"\x10" + b"\0" * 99), "cannot be read"),
    Case("weights for a metric without", plain("--weights", "w"), "psnr takes no weights"),
    Case("output below a file", output("a.y4m/out"), "is a file, not a folder"),
    Case("output is a file", output("a.y4m"), "is a file; give the output another name"),
    Case("output where nothing can be written", output("/proc/out"), "cannot write in '/proc'"),
    Case("output folder with other files", other_files, "holds other files and no ladder"),
    Case("input inside the output folder", inside_output, "lies in the output folder"),
    Case("--json below a file", plain("--json", "a.y4m/x.json"), "cannot write in 'a.y4m'"),
    Case("--json in no folder", plain("--json", "none/x.json"), "cannot write in 'none'"),
    Case("--json is a folder", plain("--json", "."), "is a folder; name a file"),
    # the answer is no
    Case(
        "bitrates no rung can have",
        plain("--max-bitrate", "1"),
        "loosen --min-step, --min-bitrate or --max-bitrate",
        (1,),
    ),
)

THROUGH = (
    Case("odd width and height", clip("a.mkv", vf="scale=161:97,setsar=1", codec="ffv1"), "Cropped from 161x97 to 160x96"),
    Case("variable frame rate", given("a.mp4", variable), "Variable frame rate"),
    Case("rotated", remade("a.mp4", rotated), "Rotated by 90"),
    Case("interlaced", given("a.mp4", interlaced), "Interlaced; deinterlaced"),
    Case("pixels that are not square", clip("a.mp4", vf="setsar=16/15"), "square ones"),
    Case("chroma of 4:4:4", clip("a.y4m", pix_fmt="yuv444p"), "delivered as 4:2:0"),
    Case("10 bit with x264", clip("a.mkv", **DEEP), ""),
    Case("10 bit with x265", clip("a.mkv", "--codec", "hevc", **DEEP), ""),
    Case("10 bit with SVT-AV1", clip("a.mkv", "--codec", "av1", "--preset", "12", **DEEP), ""),
    Case("10 bit with AVS2 and --bit-depth 8", clip("a.mkv", *AVS2, "--bit-depth", "8", **DEEP), ""),
    Case("HDR (PQ) with --allow-hdr", clip("a.mp4", "--allow-hdr", vf=PQ), "HDR (PQ transfer)"),
    Case("HDR (HLG) with --allow-hdr", clip("a.mp4", "--allow-hdr", vf=HLG), "HDR (HLG transfer)"),
    Case("raw video with its format", raw(*FORMAT), ""),
)
