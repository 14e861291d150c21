"""Reading weights: files that hold code, are damaged, or hold something else."""

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vqaloop.errors import InputError
from vqaloop.models.checkpoints import read_tensors

STATE = {f"blocks.{i}.weight": torch.arange(100.0) + i for i in range(9)}


def written(path: Path, data: Any) -> Path:
    torch.save(data, path)
    return path


class Attack:
    """Unpickled without care, this would make a directory."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("new", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path: Path, new: bool) -> None:
    target = tmp_path / "made"
    path = tmp_path / "m.pth"
    data = {"model": STATE, "extra": Attack(target)}
    torch.save(data, path, _use_new_zipfile_serialization=new)
    with pytest.raises(InputError, match=r"calls code \(\w*\.?mkdir"):
        read_tensors(path)
    bare = tmp_path / "bare.bin"
    bare.write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(InputError, match="calls code|damaged"):
        read_tensors(bare)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".bin", ".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("data", [b"", b"\0" * 100, b"PK\3\4 no", b"{}" * 50, b"\x80\x02}q\0."])
def test_other_files_are_no_checkpoints(tmp_path: Path, suffix: str, data: bytes) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged|cannot be read|holds no weights"):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_cut_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    save_file(STATE, path) if suffix == ".safetensors" else torch.save(STATE, path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.99):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(InputError, match="damaged|cannot be read"):
            read_tensors(path)


def test_flipped_bytes_are_refused_or_read_but_never_crash(tmp_path: Path) -> None:
    path = written(tmp_path / "m.bin", {"cls_token": torch.zeros(4)})
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            read_tensors(path)
        except InputError as error:
            assert "m.bin" in str(error)


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """A few kB could otherwise grow to many GB."""
    path = written(tmp_path / "m.pth", {"cls_token": torch.zeros(1 << 16)})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    with pytest.raises(InputError, match="compressed"):
        read_tensors(path)


@pytest.mark.parametrize("data", [torch.zeros(3), [torch.zeros(3)], {}, {"model": {}}, {"a": 1}])
def test_files_without_named_weights_are_refused(tmp_path: Path, data: Any) -> None:
    with pytest.raises(InputError, match="not named weights|holds no weights"):
        read_tensors(written(tmp_path / "m.pt", data))


def test_missing_files_directories_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not there"):
        read_tensors(tmp_path / "none.pth")
    with pytest.raises(InputError, match="not there or not a file"):
        read_tensors(tmp_path)
    other = tmp_path / "m.onnx"
    other.write_bytes(b"x")
    with pytest.raises(InputError, match="only .safetensors, .bin"):
        read_tensors(other)
