"""Hostile input: whatever the bytes, a reader gives a value or says in words what is wrong.

The files in tests/whole/hostile are inputs that `bench.fuzz` found; shorter ones stand here.
"""

import contextlib
import functools
import json
import os
import resource
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.mutate import change
from bench.readers import TARGETS, with_zeros
from tests.support.media import REPOSITORY
from vqaloop.bitstream import mp4_boxes
from vqaloop.bitstream.coded_frames import coded_parts
from vqaloop.bitstream.nal import without_sei
from vqaloop.bitstream.random_access import is_random_access
from vqaloop.core.documents import DEEPEST
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import InputError, ToolError, VqaloopError
from vqaloop.ladder.pictures import find_pictures
from vqaloop.ladder.store import read_ladder
from vqaloop.models.weights import load_student

HOSTILE = REPOSITORY / "tests" / "whole" / "hostile"
LIMIT_S = 1.0
"""CPU seconds that a reader may take of a small file."""
MEMORY_BYTES = 512 << 20
"""What a reader may take of any file."""


@functools.cache
def seeds(name: str) -> tuple[bytes, ...]:
    """Small valid files; made once, and read once, since some readers import late."""
    with tempfile.TemporaryDirectory() as folder:
        made = tuple(TARGETS[name].seeds(Path(folder)))
        outcome(name, made[0])
    return made


def outcome(name: str, data: bytes) -> object:
    """What the reader makes of it: a value, or the error in words."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return TARGETS[name].read(data, Path(folder))
        except VqaloopError as error:
            return error


def quick_outcome(name: str, data: bytes) -> object:
    seeds(name)
    started = time.process_time()
    found = outcome(name, data)
    assert time.process_time() - started < LIMIT_S
    return found


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_files_that_can_be_read(name: str) -> None:
    found = [outcome(name, data) for data in seeds(name)]
    assert not isinstance(found[0], VqaloopError), found[0]


@st.composite
def hostile(draw: st.DrawFn, name: str) -> bytes:
    """Any bytes, or a valid file with a few changes."""
    if draw(st.integers(0, 7)) == 0:
        return draw(st.binary(max_size=200))
    target = TARGETS[name]
    data = draw(st.sampled_from(seeds(name)))
    if target.form and draw(st.booleans()):
        number = draw(st.integers(0, 2**32 - 1))
        return change(data, target.form, target.longest, number) or data
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(max_size=12)) + data[at + draw(st.integers(0, 12)) :]


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_give_a_value_or_a_refusal(name: str) -> None:
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(hostile(name))
    @example(b"")
    def check(data: bytes) -> None:
        quick_outcome(name, data)

    check()


@pytest.mark.parametrize("path", sorted(HOSTILE.glob("*.bin")), ids=lambda path: path.stem)
def test_what_the_fuzzer_found_is_taken_or_refused(path: Path) -> None:
    quick_outcome(path.stem.split("-")[0], path.read_bytes())


def test_there_are_found_inputs() -> None:
    assert len(list(HOSTILE.glob("*.bin"))) >= 8


def recipe(line: str) -> bytes:
    text = next(
        seed.decode() for seed in seeds("recipe") if b"\nsteps = " in seed and b"start" not in seed
    )
    return text.replace("\nsteps", f"\n{line}\nsteps", 1).encode()


def encoder(old: str, new: str) -> bytes:
    text = seeds("encoder")[0].decode()
    assert old in text
    return text.replace(old, new, 1).encode()


def ladder(**more: object) -> bytes:
    return json.dumps({**json.loads(seeds("ladder")[0]), **more}).encode()


def shard(**more: str) -> bytes:
    header = json.loads(seeds("shard")[0])
    header["__metadata__"] |= more
    return json.dumps(header).encode()


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


REFUSED: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "recipe of many brackets": ("recipe", lambda: b"a = " + b"[" * 5000, "cannot be read"),
    "recipe with a decimal of 5000 digits": (
        "recipe", lambda: recipe("seed = " + "9" * 5000), "cannot be read"
    ),
    "recipe with a hexadecimal of 5000 digits": (
        "recipe", lambda: recipe("warm = 0x" + "f" * 5000), "64 bits"
    ),
    "recipe with keys within keys": (
        "recipe", lambda: ".".join("a" * 2000).encode() + b" = 1", "nested deeper"
    ),
    "recipe with a zero byte": ("recipe", lambda: recipe('start = "a\\u0000b"'), "zero byte"),
    "recipe too large": ("recipe", lambda: b"#" * ((1 << 18) + 1), "larger than"),
    "encoder with sizes that are no numbers": (
        "encoder", lambda: encoder("min_size = [", "min_size = [nan, inf]\n#"), "a whole number"
    ),
    "encoder with a default of 400 digits": (
        "encoder",
        lambda: seeds("encoder")[0] + b'\n[[tunable]]\nname = "a"\noption = "a"\ntype = "int"\n'
        b'range = [0, 1]\ndefault = "' + b"9" * 400 + b'"\n',
        "must be an integer",
    ),
    "encoder with a repetition beyond all bounds": (
        "encoder", lambda: encoder("pattern = '", "pattern = '(a{99999999999})'\n#"), "expression"
    ),
    "encoder with a version that is no expression": (
        "encoder", lambda: encoder("pattern = '", "pattern = '(a'\n#"), "expression"
    ),
    "encoder with tunables that are no tables": (
        "encoder", lambda: b"tunable = [1]\n" + seeds("encoder")[0].split(b"[[tunable]]")[0],
        "tunable[0] should be an object",
    ),
    "encoder with a step of nothing": (
        "encoder", lambda: encoder("step = ", "step = 5e-324\n#"), "millionth"
    ),
    "ladder that nests as deep as JSON goes": (
        "ladder", lambda: ladder(vqaloop=json.loads(nested(900))), "nested deeper"
    ),
    "shard that nests": ("shard", lambda: shard(label=nested(100_000)), "not a shard"),
    "shard with a score of 400 digits": (
        "shard", lambda: shard(encodes='[{"score": 1' + "0" * 400 + "}]"), "do not fit"
    ),
    "table with one name of many letters": (
        "table", lambda: b"csv\npath,score,content,reference\na,1,b,"
        + ("\U0001f600" * 150).encode(), "0 of 1 videos found",
    ),
}  # fmt: skip
"""Reader, file, and what is said."""


@pytest.mark.parametrize("case", REFUSED)
def test_each_known_trick_is_answered_in_words(case: str) -> None:
    name, make, words = REFUSED[case]
    assert words in str(quick_outcome(name, make()))


def test_a_document_may_nest_as_deep_as_is_told() -> None:
    # the document itself is one level
    deep = json.loads(nested(DEEPEST - 1))
    assert not isinstance(outcome("ladder", ladder(more=deep)), VqaloopError)
    assert isinstance(outcome("ladder", ladder(more=[[deep]])), InputError)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE comparison SET baseline_args = '{'", "damaged"),
        ("UPDATE comparison SET candidate_args = '{}'", "damaged"),
        ("CREATE TRIGGER a AFTER INSERT ON clip BEGIN DELETE FROM clip; END", "altered"),
        ("ALTER TABLE clip RENAME TO a; CREATE VIEW clip AS SELECT * FROM a", "altered"),
        ("ALTER TABLE measurement ADD COLUMN a AS (hex(zeroblob(100)))", "altered"),
    ],
)
def test_an_altered_history_is_refused(statement: str, words: str) -> None:
    assert words in str(quick_outcome("history", altered(statement)))


def test_times_without_a_zone_are_utc() -> None:
    statement = "UPDATE comparison SET made = substr(made, 1, 19) WHERE id = 1"
    assert not isinstance(quick_outcome("history", altered(statement)), VqaloopError)


def altered(statement: str) -> bytes:
    """A history after that SQL."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(seeds("history")[0])
        db.executescript(statement)
        db.commit()
        return db.serialize()


def test_a_unit_of_av1_with_an_endless_length_is_read_quickly() -> None:
    started = time.process_time()
    list(coded_parts("av1", b"", b"\x32" + b"\xff" * 300_000))
    assert not is_random_access("av1", b"", b"\x0a" + b"\xff" * 300_000)
    assert time.process_time() - started < LIMIT_S


def test_a_configuration_that_claims_more_than_it_holds_is_refused() -> None:
    head = bytes(22) + b"\xff"
    for record in (head, head + b"\x20\xff\xff", head + b"\x20\x00\x01\xff\xff"):
        with pytest.raises(ToolError, match="cut short"):
            without_sei(record)


def test_a_packet_without_a_start_code_holds_no_unit() -> None:
    assert list(coded_parts("h264", b"", b"abc")) == []


def test_boxes_of_impossible_sizes_are_refused() -> None:
    for size in (2, 7, 9, 2**32 - 1):
        with pytest.raises(ToolError, match="impossible size"):
            mp4_boxes.fragment_starts(struct.pack(">I4s", size, b"moof"))


def weights_file(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> Path:
    header = json.loads(seeds("weights")[0])
    change(header)
    path = folder / "a.safetensors"
    path.write_bytes(with_zeros(json.dumps(header).encode()))
    return path


def test_a_small_file_that_claims_a_large_model_takes_no_memory(tmp_path: Path) -> None:
    def claim(header: dict[str, dict[str, object]]) -> None:
        header["__metadata__"]["model"] = "internvqa-1b"

    path = weights_file(tmp_path, claim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="do not fit"):
        load_student(path)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MEMORY_BYTES


def test_weights_that_are_no_numbers_of_their_kind_are_refused(tmp_path: Path) -> None:
    def whole(header: dict[str, dict[str, object]]) -> None:
        about = next(about for about in header.values() if about.get("dtype") == "F16")
        about["dtype"] = "I16"

    with pytest.raises(InputError, match="right kind"):
        load_student(weights_file(tmp_path, whole))
    path = weights_file(tmp_path, lambda header: None)
    data = bytearray(path.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    with pytest.raises(InputError, match="finite"):
        load_student(path)


def large_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The largest files of their kind that are looked into, each made to take much memory."""
    wide = "\U0001f600"
    for kind, name, data in (
        ("json", "lists", b'{"a":[' + b"[]," * 2_790_000 + b"[]]}"),
        ("json", "objects", b'{"a":[' + b'{"":0},' * 1_190_000 + b"[]]}"),
        ("json", "larger", b"[" * ((1 << 23) + 1)),
        ("csv", "rows", b"path,score,content\n" + b"1,1,b\n" * 2_700_000),
        ("csv", "fields", f"path,score,content\n{wide},1,1\n".encode() + b"," * 16_700_000),
        (
            "csv",
            "many",
            b"path,score,content\n" + b"".join(b"%d,1,b\n" % i for i in range(99_999)),
        ),
        ("toml", "lists", b"a = [" + b"[]," * 87_000 + b"]"),
    ):
        path = folder / f"{name}.{kind}"
        path.write_bytes(data)
        yield kind, path


BOUNDED = """
import resource, sys
from msgspec import Struct
from pathlib import Path
from vqaloop.training.datasets import read_dataset
from vqaloop.errors import VqaloopError
from vqaloop.training.recipe import read_recipe
from vqaloop.core.documents import read_document

kind, path, most = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + most, now + most))
try:
    if kind == "json":
        read_document(path, Struct, schema="a", give="", remedy="")
    elif kind == "toml":
        read_recipe(path)
    else:
        read_dataset("csv", path)
except VqaloopError:
    pass
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_no_file_however_large_takes_more_memory_than_stated(tmp_path: Path) -> None:
    for kind, path in large_files(tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", BOUNDED, kind, str(path), str(MEMORY_BYTES)],
            capture_output=True,
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, (path.name, done.stderr[-500:])


def test_a_ladder_cannot_send_the_reader_out_of_its_folder(tmp_path: Path) -> None:
    document = json.loads(seeds("ladder")[0])
    for name in ("../a", "/a", "a/b", "a\\b", "a\0b", "..", ".", ""):
        document["rungs"][0]["file"] = name
        (tmp_path / "ladder.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match="no plain file name"):
            read_ladder(tmp_path)


@pytest.mark.parametrize("kind", ["device", "link to a device", "pipe", "made up", "folder"])
def test_a_ladder_cannot_keep_the_report_waiting(tmp_path: Path, kind: str) -> None:
    """With what it calls its source, or with the pictures that lie beside it."""
    document = json.loads(seeds("ladder")[0])
    place = tmp_path / "x"
    if kind == "link to a device":
        place.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(place)
        os.mkfifo(tmp_path / "pictures.json")
    elif kind == "folder":
        place.mkdir()
    path = {"device": "/dev/zero", "made up": "/proc/self/status"}.get(kind, str(place))
    document["source"] |= {"path": path, "size_bytes": None}
    scores = [50.0] * len(document["rungs"])
    document["worst"] = [{"frame": 0, "left": 0, "top": 0, "size": 112, "scores": scores}]
    (tmp_path / "ladder.json").write_text(json.dumps(document))
    found = find_pictures(read_ladder(tmp_path))
    assert not found.places and "is not the file it was" in found.trouble


def test_the_encoders_that_come_with_the_package_are_read() -> None:
    assert get_encoder("libx264").version_pattern
