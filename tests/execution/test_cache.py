import dataclasses
import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.support.media import REPOSITORY
from vqaloop.core.files import place_file
from vqaloop.core.folders import cache_folder
from vqaloop.errors import InputError
from vqaloop.execution.cache import Cache
from vqaloop.execution.cache_keys import ScoreSettings, digest, encode_key, score_key
from vqaloop.records import Source

KEY = {"kind": "encode", "options": ["-c:v", "libx264"], "n": 1}
SOURCE = Source(
    Path("in.yuv"), "ab" * 32, 320, 180, Fraction(30), 10, "yuv420p",
    input_options=(("f", "rawvideo"),), prep=("fps=30",),
)  # fmt: skip


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def made(tmp_path: Path, content: bytes = b"bits", name: str = "a.mp4") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def stored(cache: Cache, suffix: str) -> Path:
    (path,) = cache.folder.rglob(f"*{suffix}")
    return path


def fill(cache: Cache, tmp_path: Path, count: int, size: int = 1000) -> list[dict[str, Any]]:
    keys = [{"entry": index} for index in range(count)]
    for index, key in enumerate(keys):
        path = cache.put_file(key, made(tmp_path, bytes([index]) * size), {})
        for file in path.parent.glob(f"{path.name[:64]}*"):
            os.utime(file, (index + 1, index + 1))
    return keys


def test_round_trip(cache: Cache, tmp_path: Path) -> None:
    assert cache.get_json(KEY) is None
    assert cache.get_file(KEY) is None
    cache.put_json({"score": 1}, {"value": 91.25, "clips": [90.1, 92.4], "label": "é"})
    path = cache.put_file(KEY, made(tmp_path), {"frames": 10})
    assert not (tmp_path / "a.mp4").exists()
    other = Cache(tmp_path / "cache")
    assert other.get_json({"score": 1}) == {"value": 91.25, "clips": [90.1, 92.4], "label": "é"}
    assert other.get_file(KEY) == (path, {"frames": 10})
    assert path.read_bytes() == b"bits" and path.suffix == ".mp4"


def test_key_order_and_tuples_do_not_matter(cache: Cache) -> None:
    cache.put_json({"a": 1, "b": ("x", "y")}, {"value": 1})
    assert cache.get_json({"b": ["x", "y"], "a": 1}) == {"value": 1}


def test_paths_and_nan_are_refused(cache: Cache) -> None:
    with pytest.raises(TypeError, match="JSON types only"):
        cache.get_json({"path": Path("x")})
    with pytest.raises(ValueError):
        cache.put_json(KEY, {"value": float("nan")})


def test_folder_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VQALOOP_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("VQALOOP_CACHE")
    assert cache_folder().name == "vqaloop"


def test_disabled_keeps_nothing(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", enabled=False)
    path = made(tmp_path)
    with cache.lock(KEY):
        assert cache.put_file(KEY, path, {}) == path
        cache.put_json(KEY, {"value": 1})
    assert cache.get_file(KEY) is None and cache.get_json(KEY) is None
    assert path.exists() and not (tmp_path / "cache").exists()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit flip": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "gone": lambda path: path.unlink(),
    "not JSON": lambda path: path.write_bytes(b"\xff{"),
    "other JSON": lambda path: path.write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("half", [".json", ".mp4"])
def test_damaged_file_entry_is_a_miss(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture, half: str, damage: str
) -> None:
    cache.put_file(KEY, made(tmp_path, bytes(range(200))), {"frames": 10})
    DAMAGE[damage](stored(cache, half))
    assert cache.get_file(KEY) is None
    # without its JSON there is no entry that could be damaged
    assert len(caplog.records) == (0 if (half, damage) == (".json", "gone") else 1)
    assert cache.get_file(KEY) is None and len(caplog.records) <= 1
    path = cache.put_file(KEY, made(tmp_path, b"again"), {})
    assert cache.get_file(KEY) == (path, {})


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "gone"])
def test_damaged_json_is_a_miss(
    cache: Cache, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    cache.put_json(KEY, {"value": 1})
    DAMAGE[damage](stored(cache, ".json"))
    assert cache.get_json(KEY) is None and cache.get_json(KEY) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "dropped" in record.message


def test_a_changed_score_is_noticed(cache: Cache) -> None:
    cache.put_json(KEY, {"value": 91})
    path = stored(cache, ".json")
    path.write_text(path.read_text().replace("91", "99"))
    assert cache.get_json(KEY) is None


def test_eviction_takes_the_least_recently_used(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=1 << 20)
    keys = fill(cache, tmp_path, 6)
    assert cache.get_file(keys[0]) is not None
    cache.release()
    cache.max_bytes = 4500
    cache.trim()
    left = [key["entry"] for key in keys if cache.get_file(key)]
    assert left == [0, 4, 5]
    assert sum(path.stat().st_size for path in cache.folder.rglob("*.*")) <= 4500


def test_putting_evicts_without_being_asked(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", max_bytes=8000)
    for index in range(30):
        cache.put_file({"entry": index}, made(tmp_path, bytes([index]) * 1000), {})
        cache.release()
        total = sum(path.stat().st_size for path in cache.folder.rglob("*.*"))
        assert total <= 8000 + 1300
    assert cache.get_file({"entry": 29}) is not None


def test_held_files_stay(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache", max_bytes=2500) as cache:
        keys = fill(cache, tmp_path, 5)
        cache.trim()
        assert all(cache.get_file(key) for key in keys)
        Cache(tmp_path / "cache", max_bytes=0).trim()
        assert all(cache.get_file(key) for key in keys)
        cache.release(keys[:1])
        cache.trim()
        assert [key["entry"] for key in keys if cache.get_file(key)] == [1, 2, 3, 4]
    assert sum(path.stat().st_size for path in cache.folder.rglob("*.*")) <= 2500


def test_locked_entries_are_not_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    (key,) = fill(cache, tmp_path, 1)
    cache.release()
    with cache.lock(key):
        Cache(tmp_path / "cache", max_bytes=0).trim()
        assert cache.get_file(key) is not None


def test_leftovers_of_a_crash_are_removed(cache: Cache, tmp_path: Path) -> None:
    cache.put_json(KEY, {"value": 1})
    old, new = (stored(cache, ".json").with_name(name) for name in (".a.part", ".b.part"))
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (1, 1))
    cache.trim()
    assert not old.exists() and new.exists()


RACER = """
import sys, time
from pathlib import Path
from vqaloop.execution.cache import Cache
cache, key, folder = Cache(Path(sys.argv[1])), {"race": 1}, Path(sys.argv[2])
print("ready", flush=True); sys.stdin.readline()
with cache.lock(key):
    hit = cache.get_file(key)
    if hit is None:
        time.sleep(0.3)
        work = folder / f"work{sys.argv[3]}"
        work.write_bytes(b"x" * 5000)
        hit = cache.put_file(key, work, {"by": sys.argv[3]})
        print("worked", flush=True)
        hit = cache.get_file(key)
    print(hit[0].stat().st_size, hit[1]["by"], flush=True)
"""


def racer(tmp_path: Path, number: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(tmp_path / "cache"), str(tmp_path), str(number)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def test_two_processes_work_once(tmp_path: Path) -> None:
    racers = [racer(tmp_path, number) for number in range(2)]
    for process in racers:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in racers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30)[0].split() for process in racers]
    assert all(process.returncode == 0 for process in racers)
    assert sum(words.count("worked") for words in said) == 1
    assert said[0][-2:] == said[1][-2:]


def test_lock_dies_with_its_holder(tmp_path: Path, cache: Cache) -> None:
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from pathlib import Path\n"
            "from vqaloop.execution.cache import Cache\n"
            "with Cache(Path(sys.argv[1])).lock({'race': 1}):\n"
            "    print('in', flush=True); time.sleep(60)",
            str(tmp_path / "cache"),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    entered = threading.Event()

    def enter() -> None:
        with cache.lock({"race": 1}):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.3)
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    thread.join(timeout=10)
    assert entered.is_set()


def test_threads_work_once(cache: Cache, tmp_path: Path) -> None:
    worked: list[int] = []

    def work(number: int) -> None:
        with cache.lock(KEY):
            if cache.get_json(KEY) is None:
                time.sleep(0.05)
                worked.append(number)
                cache.put_json(KEY, {"by": number})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(worked) == 1


def test_writers_without_a_lock_never_mix_halves(cache: Cache, tmp_path: Path) -> None:
    def write(number: int) -> None:
        for turn in range(20):
            path = made(tmp_path, f"{number} {turn}".encode(), f"{number}.mp4")
            cache.put_file(KEY, path, {"is": f"{number} {turn}"})
            hit = cache.get_file(KEY)
            assert hit is not None and hit[0].read_text() == hit[1]["is"]

    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            write(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not failed


def test_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, name="plain")
    with Cache(tmp_path / "plain" / "cache") as cache:
        path = made(tmp_path)
        with cache.lock(KEY):
            assert cache.get_file(KEY) is None
            assert cache.put_file(KEY, path, {}) == path
        cache.put_json(KEY, {"value": 1})
        assert cache.get_json(KEY) is None
    assert path.read_bytes() == b"bits"
    assert len(caplog.records) == 1 and "without the cache" in caplog.records[0].message


def test_read_only_folder_still_gives_hits(
    cache: Cache,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored_path = cache.put_file(KEY, made(tmp_path), {})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("replace", "utime", "mkdir"):
        monkeypatch.setattr(os, name, refuse)
    assert cache.get_file(KEY) == (stored_path, {})
    path = made(tmp_path, b"new")
    assert cache.put_file({"other": 1}, path, {}) == path and path.exists()
    cache.put_json({"other": 2}, {"value": 1})
    with cache.lock({"other": 3}):
        pass
    assert len(caplog.records) == 1


def test_full_disk_does_not_lose_the_encode(
    cache: Cache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = made(tmp_path, b"x" * 5000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        kept = cache.put_file(KEY, path, {})
        cache.put_json({"other": 1}, {"value": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert kept.read_bytes() == b"x" * 5000
    assert cache.get_json({"other": 1}) is None
    assert len(caplog.records) == 1
    assert not list(cache.folder.rglob("*.part"))


def test_another_file_system(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def across(source: Path, target: Path) -> None:
        if source.suffix == ".mp4":
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        replace(source, target)

    monkeypatch.setattr(os, "replace", across)
    path = cache.put_file(KEY, made(tmp_path), {})
    assert path.read_bytes() == b"bits" and not (tmp_path / "a.mp4").exists()
    assert cache.get_file(KEY) == (path, {})


@pytest.mark.parametrize("shared", [True, False])
def test_placed_file_is_a_copy(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    if not shared:
        monkeypatch.delattr(os, "copy_file_range")
    content = os.urandom(3_000_000)
    path = cache.put_file(KEY, made(tmp_path, content), {})
    target = made(tmp_path, b"older", "rung.mp4")
    assert place_file(path, target) == target
    assert target.read_bytes() == content
    target.write_bytes(b"edited")
    assert path.read_bytes() == content
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["rung.mp4"]


def test_place_file_says_why_not(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="could not write .*No such file"):
        place_file(made(tmp_path), tmp_path / "none" / "rung.mp4")


SOURCES = {
    "source": dataclasses.replace(SOURCE, sha256="cd" * 32),
    "input_options": dataclasses.replace(SOURCE, input_options=(("f", "h264"),)),
    "prep": dataclasses.replace(SOURCE, prep=()),
}


def test_every_field_of_an_encode_key_counts(cache: Cache) -> None:
    def key(source: Source = SOURCE, options: str = "23", ffmpeg: str = "f") -> dict[str, Any]:
        return encode_key(source, ["-c:v", "libx264", "-crf", options], ffmpeg)

    cache.put_json(key(), {"value": 1})
    moved = dataclasses.replace(SOURCE, path=Path("/elsewhere/other.yuv"), notes=("moved",))
    assert cache.get_json(key(moved)) == {"value": 1}
    others = [*map(key, SOURCES.values()), key(options="24"), key(ffmpeg="g")]
    assert all(cache.get_json(other) is None for other in others)


def test_every_field_of_a_score_key_counts(cache: Cache) -> None:
    def key(source: Source = SOURCE, encode: str = "e", **changed: Any) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "metric": "internvqa-mini",
            "decoder": "ffmpeg 9",
            "encode_options": (("f", "rawvideo"),),
            "weights_sha256": "w",
            "scaler": "bicubic",
            "preprocessing": "1",
            "device": "cpu",
            "sampling": {"seed": 0, "clips": 4},
        }
        return score_key(source, encode, ScoreSettings(**(fields | changed)))

    cache.put_json(key(), {"value": 1})
    changes: dict[str, Any] = {
        "encode": "x", "metric": "vmaf", "decoder": "ffmpeg 8", "encode_options": (),
        "weights_sha256": None, "scaler": "lanczos", "preprocessing": "2",
        "device": "cuda",
        "sampling": {"seed": 1, "clips": 4},
    }  # fmt: skip
    others = [key(**{name: value}) for name, value in changes.items()]
    others += [key(sampling={"seed": 0, "clips": 5}), *map(key, SOURCES.values())]
    # an excerpt of one window may be the same file as one of two, which is sampled otherwise
    others += [key(replace(SOURCE, windows=(0, 50))), key(replace(SOURCE, windows=(0,)))]
    assert all(cache.get_json(other) is None for other in others)
    assert set(key()) - {"kind"} == {
        "source", "input_options", "prep", "encode", "encode_options", "metric", "weights",
        "decoder", "scaler", "preprocessing", "device", "sampling",
    }  # fmt: skip
    assert cache.get_json(json.loads(json.dumps(key()))) == {"value": 1}


def test_names_of_entries_stay_the_same() -> None:
    """Else what was encoded and scored by earlier versions would be made again."""
    plain = ScoreSettings("vmaf", "d", preprocessing="classical 1")
    student = ScoreSettings(
        "internvqa-mini", "ffmpeg 9", (("f", "rawvideo"),), "w", "bicubic", "1", "cpu",
        {"seed": 0, "clips": 4},
    )  # fmt: skip
    keys = [
        encode_key(SOURCE, ["-c:v", "libx264", "-crf", "23"], "f"),
        *(score_key(SOURCE, "e", settings) for settings in (plain, student)),
    ]
    assert [digest(key)[:16] for key in keys] == [
        "d51676aaf1094ae6", "eaa5990197211a90", "f441a5ae57faef7f"
    ]  # fmt: skip
