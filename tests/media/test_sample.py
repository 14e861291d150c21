"""write_sample: what it writes, that a seed fixes it, and what it refuses."""

from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.media import frame_hashes
from vqaloop.core.files import file_sha256
from vqaloop.errors import InputError
from vqaloop.media.probe import probe_source
from vqaloop.media.sample import write_sample


@pytest.mark.parametrize("suffix", [".y4m", ".mp4", ".mkv"])
def test_sample_has_the_size_rate_and_length_asked_for(tmp_path: Path, suffix: str) -> None:
    out = write_sample(tmp_path / f"a{suffix}", seconds=0.6, size=(192, 108), fps=30, seed=3)
    source = probe_source(out)
    assert (source.width, source.height, source.fps) == (192, 108, Fraction(30))
    assert (source.frames, source.pix_fmt, source.notes) == (18, "yuv420p", ())
    assert [entry.name for entry in tmp_path.iterdir()] == [out.name]


def test_every_frame_is_new_and_the_suffix_does_not_change_it(tmp_path: Path) -> None:
    hashes = [
        frame_hashes(probe_source(write_sample(tmp_path / name, seconds=1, size=(192, 108))))
        for name in ("a.y4m", "a.mkv")
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 25


def test_a_seed_fixes_the_sample(tmp_path: Path) -> None:
    first, again, other = (
        write_sample(tmp_path / f"{name}.y4m", seconds=0.8, size=(160, 90), seed=seed)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert file_sha256(first) == file_sha256(again) != file_sha256(other)


def test_an_existing_file_is_kept_unless_told(tmp_path: Path) -> None:
    out = tmp_path / "a.y4m"
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="already exists"):
        write_sample(out, seconds=0.4, size=(64, 64))
    assert out.read_bytes() == b"mine"
    write_sample(out, seconds=0.4, size=(64, 64), overwrite=True)
    assert probe_source(out).frames == 10


@pytest.mark.parametrize("name", ["-i.y4m", "a'b \n:%d.y4m", "é\udcff.y4m", "n" * 251 + ".y4m"])
def test_names_are_data(tmp_path: Path, name: str) -> None:
    out = write_sample(tmp_path / name, seconds=0.4, size=(64, 64))
    assert probe_source(out).frames == 10


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.avi", {}, "suffix must be one of .y4m, .mp4, .mkv"),
        ("a.y4m", {"size": (65, 64)}, "even"),
        ("a.y4m", {"size": (10**6, 10**6)}, "even numbers from 64 to 8192"),
        ("a.y4m", {"seconds": 0.0}, "0.4 to 600"),
        ("a.y4m", {"seconds": float("nan")}, "0.4 to 600"),
        ("a.y4m", {"fps": 0}, "fps = 0 must be 1 to 240"),
        ("none/a.y4m", {}, "no such folder"),
        ("folder.y4m", {}, "already exists and is a folder"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    (tmp_path / "folder.y4m").mkdir()
    with pytest.raises(InputError, match=message):
        write_sample(tmp_path / name, overwrite=True, **options)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder.y4m"]
