"""Files on their way to other machines: fetched once, whole or not at all, in a bounded folder."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from vqaloop.cluster import file_transfer
from vqaloop.cluster.file_transfer import LOCK, Missing, Parcel, Sender, received
from vqaloop.errors import InputError, ToolError


class Store:
    """An object store: what was put, by number."""

    def __init__(self) -> None:
        self.objects: list[bytes] = []
        self.gets = 0

    def put(self, data: bytes) -> int:
        self.objects.append(data)
        return len(self.objects) - 1

    def get(self, number: int) -> bytes:
        self.gets += 1
        return self.objects[number]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(file_transfer, "CHUNK_BYTES", 10)
    return Store()


def parcel_of(path: Path, store: Store) -> Parcel:
    sender = Sender(store.put)
    return sender.sent(sender.parcel(path))


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(LOCK))


def test_a_file_at_the_same_path_is_taken_from_there(tmp_path: Path, store: Store) -> None:
    path = written(tmp_path / "a.mp4", b"12345")
    with received(Sender(store.put).parcel(path), store.get, tmp_path / "node") as found:
        assert found == path
    assert not (tmp_path / "node").exists() and not store.objects


@pytest.mark.parametrize("there", [b"123456789012345678901234x", b"shorter", None])
def test_another_file_at_that_path_is_not(
    tmp_path: Path, store: Store, there: bytes | None
) -> None:
    path = written(tmp_path / "a.mp4", b"1234567890123456789012345")
    parcel = parcel_of(path, store)
    assert [len(data) for data in store.objects] == [10, 10, 5]
    path.unlink() if there is None else path.write_bytes(there)
    with received(parcel, store.get, tmp_path / "node") as found:
        assert found.read_bytes() == b"1234567890123456789012345"
        assert found.name == f"{parcel.sha256}.mp4"


def test_a_file_is_put_once_and_fetched_once(tmp_path: Path, store: Store) -> None:
    sender, path = Sender(store.put), written(tmp_path / "a.y4m", bytes(35))
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda _: sender.sent(sender.parcel(path)), range(8)))
    assert len(store.objects) == 4 and len(set(sent)) == 1
    # later ones carry their chunks at once
    assert sender.parcel(path) == sent[0]
    inside = threading.Barrier(8)

    def take(parcel: Parcel) -> bytes:
        with received(parcel, store.get, tmp_path / "node", look=False) as found:
            inside.wait(30)
            return found.read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(take, sent)) == {bytes(35)}
    assert store.gets == 4


def test_what_was_not_sent_is_asked_for(tmp_path: Path, store: Store) -> None:
    parcel = Sender(store.put).parcel(written(tmp_path / "a.y4m", b"data"))
    with (
        pytest.raises(Missing) as missing,
        received(parcel, store.get, tmp_path / "node", look=False),
    ):
        pytest.fail("it is not there")
    assert missing.value.sha256 == hashlib.sha256(b"data").hexdigest()
    assert files(tmp_path / "node") == []


def test_what_came_otherwise_than_it_was_is_refused(tmp_path: Path, store: Store) -> None:
    parcel = parcel_of(written(tmp_path / "a.y4m", bytes(30)), store)
    store.objects[1] = b"0123456789"
    with (
        pytest.raises(ToolError, match="changed while it was sent"),
        received(parcel, store.get, tmp_path / "node", look=False),
    ):
        pytest.fail("it is damaged")
    assert files(tmp_path / "node") == []


def test_a_copy_that_went_bad_is_fetched_again(tmp_path: Path, store: Store) -> None:
    parcel = parcel_of(written(tmp_path / "a.y4m", bytes(30)), store)
    for _ in range(2):
        with received(parcel, store.get, tmp_path / "node", look=False) as found:
            assert found.read_bytes() == bytes(30)
        found.write_bytes(b"x" * 30)
    assert store.gets == 6


def test_an_interruption_leaves_no_part(tmp_path: Path, store: Store) -> None:
    parcel = parcel_of(written(tmp_path / "a.y4m", bytes(30)), store)

    def get(number: int) -> bytes:
        if number == 2:
            raise KeyboardInterrupt
        return store.get(number)

    with (
        pytest.raises(KeyboardInterrupt),
        received(parcel, get, tmp_path / "node", look=False),
    ):
        pytest.fail("it is not whole")
    assert files(tmp_path / "node") == []


def test_the_folder_is_bounded_and_what_is_in_use_stays(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_transfer, "FOLDER_BYTES", 70)
    node = tmp_path / "node"
    made = [parcel_of(written(tmp_path / f"{n}.y4m", bytes([n]) * 30), store) for n in range(4)]

    def take(parcel: Parcel) -> None:
        with received(parcel, store.get, node, look=False):
            pass

    with received(made[0], store.get, node, look=False) as held:
        take(made[1])
        take(made[2])
        # the first was used longest ago, and is in use
        assert files(node) == sorted([made[0].name, made[2].name])
        assert held.read_bytes() == bytes(30)
    take(made[3])
    assert files(node) == sorted([made[2].name, made[3].name])


def test_what_a_crash_left_long_ago_goes(tmp_path: Path, store: Store) -> None:
    node = tmp_path / "node"
    node.mkdir()
    for name, age_s in (("old.part", 2 * 86_400), ("new.part", 0)):
        left = written(node / name, b"")
        os.utime(left, (left.stat().st_mtime - age_s,) * 2)
    parcel = parcel_of(written(tmp_path / "a.y4m", b"data"), store)
    with received(parcel, store.get, node, look=False):
        assert files(node) == sorted([parcel.name, "new.part"])


def test_only_so_much_stays_in_the_store(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_transfer, "KEPT_BYTES", 70)
    sender = Sender(store.put)
    paths = [written(tmp_path / f"{n}", bytes([n]) * 30) for n in range(3)]
    for path in paths:
        sender.sent(sender.parcel(path))
    assert [sender.parcel(path).chunks is None for path in paths] == [True, False, False]


def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    parcel = Parcel("/x/..%2f..", 1, "ab" * 32)
    for path in ("/x/a.../../y", "/x/a.b/c", "/x/a.b c", "/x/a.\n", "/x/.."):
        assert replace(parcel, path=path).name.removeprefix("ab" * 32) == ""
    assert replace(parcel, path="/x/a.mp4").name == "ab" * 32 + ".mp4"


def gone(folder: Path) -> Path:
    return folder / "gone"


def a_folder(folder: Path) -> Path:
    return folder


@pytest.mark.parametrize("which", [gone, a_folder])
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, store: Store, which: Callable[[Path], Path]
) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Sender(store.put).parcel(which(tmp_path))


def test_a_machine_without_a_place_for_it_says_so(tmp_path: Path, store: Store) -> None:
    parcel = parcel_of(written(tmp_path / "a.y4m", b"data"), store)
    place = written(tmp_path / "file", b"")
    with (
        pytest.raises(ToolError, match="VQALOOP_CACHE"),
        received(parcel, store.get, place / "node", look=False),
    ):
        pytest.fail("there is no place")


def test_what_changes_while_it_is_put_is_not_kept(tmp_path: Path, store: Store) -> None:
    path = written(tmp_path / "a.y4m", bytes(35))

    def put(data: bytes) -> int:
        if not store.objects:
            path.write_bytes(b"x" * 36)
        return store.put(data)

    sender = Sender(put)
    with pytest.raises(ToolError, match="changed while it was sent"):
        sender.sent(sender.parcel(path))
    # it is as it was when it was looked at anew
    again = sender.sent(sender.parcel(path))
    with received(again, store.get, tmp_path / "node", look=False) as found:
        assert found.read_bytes() == b"x" * 36
