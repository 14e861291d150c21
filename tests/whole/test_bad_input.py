"""What users give and get wrong: each case with its exit status and the message they are shown.

The table of docs/input.md is made of these cases and of what was said: VQALOOP_WRITE_DOCS=1 writes
it, and without that each case checks its own line.
"""

import contextlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.media.test_probe import (
    HDR_TAGS,
    cut,
    fifo,
    huge_mkv,
    sound_only,
    with_bytes,
    with_cover,
)
from tests.media.test_probing_kinds import with_dolby_vision
from tests.support.commandline import SMALL, Room, fake_ffmpeg
from tests.support.media import (
    REPOSITORY,
    make_captioned,
    make_changing,
    make_clip,
    remux,
    write_y4m,
)
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.core.files import file_sha256
from vqaloop.core.resources import WEIGHTS

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


def clip(name: str, *options: str, vf: str | None = None, **more: Any) -> Make:
    """A clip of twelve frames, 160 x 96 before `vf`."""
    return given(name, lambda path: make_clip(path, size="160x96", vf=vf, **more), *options)


def remade(name: str, change: Callable[[Path, Path], object], *options: str) -> Make:
    """A file made from a sound mp4."""

    def make(room: Room) -> list[str]:
        change(make_clip(room.temp / "plain.mp4", size="160x96"), room.folder / name)
        (room.temp / "plain.mp4").unlink()
        return ladder(name, *options)

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
        return plain("--metric", "internvqa-mini", "--weights", "w.safetensors")(room)

    return make


def bad_prompt(of: str, data: bytes = b"", cut: int = 0) -> Make:
    """`of`: SHA-256 of a student's weights; `data`, or a prompt of one value cut short."""

    def make(room: Room) -> list[str]:
        about = {"prompt_of": of, "model": "internvqa-tiny"}
        whole = save({"answers": np.zeros((1, 1), np.float32)}, about)
        with_bytes(room.folder / "p.safetensors", data or whole[: len(whole) - cut])
        return plain("--metric", "internvqa-mini", "--prompt", "p.safetensors")(room)

    return make


SHIPPED_SHA256 = file_sha256(WEIGHTS / "internvqa-mini.safetensors")


def without_encoder(room: Room) -> list[str]:
    said = "echo \"Unknown encoder 'libx264'\" >&2; exit 8"
    fake_ffmpeg(room.folder / "ffmpeg", {"*libx264*": said})
    return plain("--ffmpeg", "./ffmpeg")(room)


def not_executable(room: Room) -> list[str]:
    (room.folder / "ffmpeg").write_text("#!/bin/sh\n")
    return plain("--ffmpeg", "ffmpeg")(room)


def variable(path: Path) -> None:
    make_clip(path, size="160x96", frames=45, vf="select='lt(n,15)+not(mod(n,2))'")


def captioned(path: Path) -> None:
    make_captioned(path, size="160x96", frames=45)


def interlaced(path: Path) -> None:
    options = {"rate": "50", "vf": "interlace", "flags": "+ildct+ilme"}
    make_clip(path, size="160x96", frames=20, **options)


def changing(change: str, name: str = "a.mkv") -> Make:
    """A clip in which that changes on the way; its parts are removed."""

    def make(room: Room) -> list[str]:
        made = make_changing(room.temp / "changing.mkv", change)
        made.rename(room.folder / "a.mkv")
        for part in room.temp.iterdir():
            part.unlink()
        if name != "a.mkv":
            remux(room.folder / "a.mkv", room.folder / name, "-display_rotation", "90")
            (room.folder / "a.mkv").unlink()
        return ladder(name)

    return make


def dolby_vision(path: Path) -> None:
    with_dolby_vision(path, 5, 0)


def mirrored(source: Path, path: Path) -> None:
    remux(source, path, "-display_hflip")


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
    Case("size changes, rotated", changing("size", "a.mp4"), "split it there"),
    Case("HDR (Dolby Vision)", given("a.mp4", dolby_vision), "--allow-hdr"),
    Case("raw video without its format", raw(), "give --video-size"),
    Case("raw video with half of its format", raw("--video-size", "160x96"), "needs all of"),
    Case(
        "raw video of another size",
        raw("--video-size", "162x96", *FORMAT[2:]),
        "not a whole number of 162x96",
    ),
    Case("raw video of no known format", raw(*FORMAT[:3], "x", *FORMAT[4:]), "--pix-fmt 'x'"),
    Case("a URL", lambda r: ["ladder", "https://a.b/c.mp4", "--codec", "h264"], "is a URL"),
    Case("standard input", lambda r: ["ladder", "-", "--codec", "h264"], "be standard input"),
    # the request
    Case(
        "no codec", lambda r: ["ladder", "a.y4m"], "the following arguments are required: --codec"
    ),
    Case("unknown codec", plain("--codec", "vc1"), "unknown codec 'vc1'; choose one of"),
    Case("unknown encoder", plain("--encoder", "x264"), "unknown encoder 'x264'; known are"),
    Case(
        "encoder of another codec", plain("--encoder", "libx265"), "libx265 makes hevc, not h264"
    ),
    Case("unknown preset", plain("--preset", "warp"), "no preset 'warp'"),
    Case("unknown metric", plain("--metric", "mos"), "unknown metric 'mos'"),
    Case("unknown device", plain("--device", "tpu"), "unknown device 'tpu'"),
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
    Case(
        "--min-score above --max-score",
        plain("--min-score", "50", "--max-score", "40"),
        "and below --max-score",
    ),
    Case("--max-score beyond the metric", plain("--max-score", "101"), "within 0 and 100"),
    Case("--require a size that is not tried", plain("--require", "144x88"), "none of the sizes"),
    Case("--min-top-size above all", plain("--min-top-size", "1920x1080"), "is larger than all"),
    Case("--min-bottom-size", plain("--min-bottom-size", "1920x1080"), "leaves none of the sizes"),
    Case("--audience nowhere", plain("--audience", "no.csv"), "'no.csv' cannot be read: No such"),
    Case("--bandwidth-share alone", plain("--bandwidth-share", "0.8"), "give --audience too"),
    Case("--pool unknown", plain("--pool", "p50"), "unknown pool 'p50'; choose one of mean, "),
    Case("--require no size", plain("--require", "small"), "'small' is not a resolution"),
    Case("--budget nonsense", plain("--budget", "soon"), "'soon' is no duration"),
    Case("--budget 0", plain("--budget", "0"), "must be a time above 0"),
    Case("two codecs of which one is unknown", plain("--codec", "h264,vc1"), "codec 'vc1'"),
    Case("a codec twice", plain("--codec", "h264,h264"), "names one twice"),
    Case(
        "an encoder for two codecs",
        plain("--codec", "h264,hevc", "--encoder", "libx264"),
        "--encoder goes with one codec",
    ),
    Case("--storage that is no URL", plain("--storage", "study.db"), "is no URL; give sqlite"),
    Case(
        "--storage in no folder",
        plain("--storage", "sqlite:///none/study.db"),
        "unable to open database file",
    ),
    Case("--storage that is no database", plain("--storage", "sqlite:///a.y4m"), "not a database"),
    Case(
        "--storage of no known kind",
        plain("--storage", "cloud://a/b"),
        "sqlalchemy.dialects:cloud",
    ),
    Case("--workers 0", plain("--workers", "0"), "at least one worker"),
    Case("--workers two", plain("--workers", "two"), "'two' is not a whole number"),
    Case("--max-bitrate 5MB/s", plain("--max-bitrate", "5MB/s"), "write 5 Mb/s as 5000 or 5M"),
    Case("--min-ratio x", plain("--min-ratio", "x"), "'x' is not a number"),
    Case("--seed -1", plain("--seed", "-1"), "must not be negative"),
    Case("--time-limit 0", plain("--time-limit", "0"), "time limit must lie above 0"),
    Case("--time-limit nan", plain("--time-limit", "nan"), "'nan' is no duration"),
    # the machine
    Case("an ffmpeg without the encoder", without_encoder, "was built without libx264"),
    Case("--ffmpeg that is no program", not_executable, "not an executable ffmpeg"),
    Case(
        "weights that are missing",
        plain("--metric", "internvqa-mini", "--weights", "none.safetensors"),
        "cannot be read",
    ),
    Case("weights that are damaged", bad_weights(b"\x10" + b"\0" * 99), "cannot be read"),
    Case("weights for a metric without", plain("--weights", "w"), "psnr takes no weights"),
    Case("a prompt of another student", bad_prompt("0" * 64), "was trained on other weights"),
    Case("a prompt of other shapes", bad_prompt(SHIPPED_SHA256), "does not fit internvqa-mini"),
    Case("a prompt cut short", bad_prompt("0" * 64, cut=2), "cannot be read"),
    Case("a prompt for a metric without", plain("--prompt", "p"), "psnr takes no prompt"),
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
        "loosen --min-step, --min-score, --min-bitrate or --max-bitrate",
        (1,),
    ),
)

ALPHA: dict[str, Any] = {"pix_fmt": "yuva420p", "auto-alt-ref": 0}

THROUGH = (
    Case(
        "odd width and height",
        clip("a.mkv", vf="scale=161:97,setsar=1", codec="ffv1"),
        "Cropped from 161x97 to 160x96",
    ),
    Case("variable frame rate", given("a.mp4", variable), "Variable frame rate"),
    Case("one frame missing", clip("a.mp4", vf="select='not(eq(n,6))'"), "1 frame repeated"),
    Case("--framerate 50", clip("a.mp4", "--framerate", "50"), "brought to 50 a second"),
    Case(
        "transparency of VP9",
        clip("a.webm", **ALPHA),
        "Transparency is dropped",
    ),
    Case("rotated", remade("a.mp4", rotated, *TALL), "Rotated by 90"),
    Case("interlaced", given("a.mp4", interlaced), "Interlaced; deinterlaced"),
    Case("mirrored", remade("a.mp4", mirrored), "Mirrored left to right"),
    Case("pixels that are not square", clip("a.mp4", vf="setsar=16/15"), "square ones"),
    Case("closed captions in the pictures", given("a.mp4", captioned), "Closed captions in"),
    Case(
        "stereo 3D",
        clip("a.mkv", **{"metadata:s:v": "stereo_mode=left_right"}),
        "pictures are stereo 3D",
    ),
    Case("size changes inside", changing("size"), "Size changes inside the file"),
    Case("shape changes inside", changing("shape"), "Size changes inside the file"),
    Case("colour tags change inside", changing("colour tags"), "Colour changes inside the file"),
    Case("range changes inside", changing("range"), "Range changes inside the file"),
    Case("pixel format changes inside", changing("pixel format"), "Pixel format changes inside"),
    Case("pixel shape changes inside", changing("pixel shape"), "holds for all"),
    Case("chroma of 4:4:4", clip("a.y4m", pix_fmt="yuv444p"), "delivered as 4:2:0"),
    Case("RGB", clip("a.mkv", codec="ffv1", pix_fmt="gbrp"), "RGB is delivered as YUV"),
    Case("grey", clip("a.mkv", codec="ffv1", pix_fmt="gray"), "Grey is delivered as YUV"),
    Case(
        "HD without colour tags", clip("a.y4m", vf="scale=1280:720", pix_fmt="yuv420p"), "BT.709"
    ),
    Case("10 bit with x264", clip("a.mkv", **DEEP), ""),
    Case("10 bit with x265", clip("a.mkv", "--codec", "hevc", **DEEP), ""),
    Case("10 bit with SVT-AV1", clip("a.mkv", "--codec", "av1", "--preset", "12", **DEEP), ""),
    Case(
        "10 bit with AVS2 and --bit-depth 8", clip("a.mkv", *AVS2, "--bit-depth", "8", **DEEP), ""
    ),
    Case("HDR (PQ) with --allow-hdr", clip("a.mp4", "--allow-hdr", vf=PQ), "HDR (PQ transfer)"),
    Case("HDR (HLG) with --allow-hdr", clip("a.mp4", "--allow-hdr", vf=HLG), "HDR (HLG transfer)"),
    Case("raw video with its format", raw(*FORMAT), ""),
)

FULL = "disk full"
DENIED = "output where one has no right to write"
NAMES = [*(case.name for case in CASES), DENIED, FULL, *(case.name for case in THROUGH)]


def record(room: Room, name: str, status: int, message: str) -> None:
    """Keep the line of the table, and check it against the document unless that is being made."""
    for place, instead in ((f"{room.folder}/", ""), (str(room.folder), "."), (str(room.temp), "")):
        message = message.replace(place, instead)
    # what an encoder makes depends a little on the machine
    varies = r"\d+x\d+_crf\d+(\.\d+)?" if status == 2 else r"\d+(\.\d+)?" if status == 1 else "$^"
    message = re.sub(varies, "N", message)
    shown = message.removeprefix("vqaloop: ").strip().replace("|", "\\|") or "(no remark)"
    written[name] = f"| {name} | {status} | {shown} |"
    if not os.environ.get("VQALOOP_WRITE_DOCS"):
        assert written[name] in DOCUMENT.read_text().splitlines(), "docs/input.md is out of date"


def check_refused(room: Room, words: list[str], says: str, status: int = 2) -> str:
    """Run a command that must end with this status and one message; the message."""
    said = room.run(*words)
    assert said.status == status, said.err
    assert said.out == ""
    assert said.err.startswith("vqaloop: ") and said.err.endswith("\n")
    assert said.err.count("\n") == 1 and said.err.isprintable() is False
    assert says in said.err
    assert "Traceback" not in said.err and len(said.err) < 1000
    return said.err


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_with_one_message_and_nothing_left(room: Room, case: Case) -> None:
    words = case.make(room)
    (status,) = case.statuses
    before = room.tree()
    # work that was done may be remembered, and spoken of while it was done
    refused = status == 2
    message = check_refused(room, words if refused else [*words, "--quiet"], case.says, status)
    after = room.tree()
    if not refused:
        after = {path: what for path, what in after.items() if str(room.cache) not in path}
    assert after == before
    record(room, case.name, status, message)


@pytest.mark.parametrize("case", THROUGH, ids=lambda case: case.name)
def test_taken_with_a_note(room: Room, case: Case, shared_cache: Path) -> None:
    words = case.make(room)
    # the guard reads sources by the same filters as the metric
    said = room.run(*words, "--guard", "off", "--quiet")
    assert said.status in (0, 3), said.err
    assert said.err == ""
    document = room.document()
    notes = [note for note in document["warnings"] if case.says and case.says in note]
    assert bool(notes) == bool(case.says), document["warnings"]
    deep = case.name.startswith(("10 bit", "HDR")) and "AVS2" not in case.name
    for rung in document["rungs"]:
        assert ("format=yuv420p10le" in " ".join(rung["ffmpeg_args"])) == deep
        assert (room.folder / "out" / rung["file"]).stat().st_size > 0
    record(room, case.name, 0, " ".join(notes))


@pytest.fixture(scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shared_cache(module_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VQALOOP_CACHE", str(module_cache))
    return module_cache


@contextlib.contextmanager
def without_rights(folder: Path) -> Iterator[None]:
    """Nothing can be written in `folder`; root gives up its rights for that time."""
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_no_right_to_write(room: Room) -> None:
    words = plain()(room)
    # what is tried once for each ffmpeg, and modules, must not be in need of the rights
    assert room.run(*words, "--rungs", "1").status == 2
    before = room.tree()
    with without_rights(room.folder):
        if not os.access(ffmpeg_path(), os.X_OK, effective_ids=True):
            pytest.skip("only root can reach the ffmpeg of this environment")
        message = check_refused(room, words, "Permission denied; choose another folder")
    assert room.tree().keys() == before.keys()
    record(room, DENIED, 2, message)


@pytest.fixture
def small_disk(room: Room) -> Iterator[Path]:
    """A file system of half a megabyte."""
    disk = room.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=755", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> None:
    with contextlib.suppress(OSError), open(disk / "filler", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


@pytest.mark.parametrize("temp_too", [False, True])
def test_disk_full(
    room: Room, small_disk: Path, temp_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*plain()(room)[:-1], str(small_disk / "out"), "--quiet"]
    (small_disk / "cache").mkdir()
    (small_disk / "temp").mkdir()
    monkeypatch.setenv("VQALOOP_CACHE", str(small_disk / "cache"))
    assert room.run(*words, "--rungs", "1").status == 2
    if temp_too:
        monkeypatch.setattr("tempfile.tempdir", str(small_disk / "temp"))
    fill(small_disk)
    before = {path for path in room.tree() if f"{small_disk}/cache/" not in path}
    message = check_refused(room, words, "is full")
    assert {path for path in room.tree() if f"{small_disk}/cache/" not in path} == before
    if not temp_too:
        record(room, FULL, 2, message)


def test_a_lying_header_allocates_nothing(tmp_path: Path) -> None:
    write_y4m(tmp_path / "a.y4m", header=Y4M % (10**6, 10**6))
    huge_mkv(tmp_path / "b.mkv")
    script = """
import resource, sys
from vqaloop.cli.main import main
argv = ["ladder", "NAME", "--codec", "h264", "--metric", "psnr", "-o", "out"]
assert main([argv[0], "none.mp4", *argv[2:]]) == 2
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in ("a.y4m", "b.mkv"):
    assert main([argv[0], name, *argv[2:]]) == 2
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
sys.exit(f"{grown} and {children} KiB" if grown > 30_000 or children > 400_000 else 0)
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    argv = [sys.executable, "-c", script]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_table_of_cases_is_the_documented_one() -> None:
    text = DOCUMENT.read_text()
    start, end = text.index(f"{HEAD}\n{ROW}\n"), text.index(END)
    if os.environ.get("VQALOOP_WRITE_DOCS"):
        assert set(written) == set(NAMES), "all cases must have run for the table to be written"
        table = "\n".join([HEAD, ROW, *(written[name] for name in NAMES), ""])
        DOCUMENT.write_text(text[:start] + table + text[end:])
        return
    rows = text[start:end].strip().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == NAMES
