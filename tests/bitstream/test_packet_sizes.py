"""Sizes of a video's coded frames, whatever its codec and container."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.media import make_clip, remux
from vqaloop.bitstream.packets import packet_sizes


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {"bf": 2, "g": 5}),
        ("a.mkv", "libx265", {"preset": "ultrafast", "x265-params": "keyint=5:log-level=none"}),
        ("a.webm", "libvpx-vp9", {"cpu-used": 8, "deadline": "realtime", "g": 5}),
        ("a.mov", "prores_ks", {"pix_fmt": "yuv422p10le"}),
    ],
)
def test_frames_of_a_lossy_codec(
    tmp_path: Path, name: str, codec: str, options: dict[str, Any]
) -> None:
    path = make_clip(tmp_path / name, codec=codec, **{"pix_fmt": "yuv420p", **options})
    found = packet_sizes(path)
    assert len(found.sizes) == len(found.keys) == 12
    assert found.lossy and found.size == (160, 90)
    keys = range(12) if codec == "prores_ks" else (0, 5, 10)
    assert np.flatnonzero(found.keys).tolist() == list(keys)
    # what is not in frames is the container's
    assert 0 < path.stat().st_size - found.sizes.sum() < 4000


@pytest.mark.parametrize(("name", "codec"), [("a.y4m", None), ("a.mkv", "ffv1")])
def test_nothing_is_lost_by_some_codecs(tmp_path: Path, name: str, codec: str | None) -> None:
    found = packet_sizes(make_clip(tmp_path / name, codec=codec))
    assert not found.lossy and len(found.sizes) == 12


def test_a_bare_stream_has_the_sizes_of_the_same_in_a_container(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "a.mkv", bf=0)
    bare = packet_sizes(remux(whole, tmp_path / "a.h264"))
    assert len(bare.sizes) == 12 and bare.size == (160, 90)
    # start codes in place of lengths, and parameter sets before key frames
    assert abs(bare.sizes.sum() - packet_sizes(whole).sizes.sum()) < 200


def test_pictures_of_avs2(tmp_path: Path) -> None:
    path = tmp_path / "a.avs2"
    head = b"\0\0\1\xb0" + bytes([0x20, 0x42])
    sides = (0b11 << 30 | 64 << 16 | 48 << 2).to_bytes(4, "big")
    path.write_bytes(head + sides + b"\0\0\1\xb3" + b"i" * 90 + b"\0\0\1\xb6" + b"p" * 30)
    found = packet_sizes(path)
    assert found.sizes.tolist() == [104, 34] and found.keys.tolist() == [True, False]
    assert found.lossy and found.size == (64, 48)


def test_a_file_is_read_once_while_it_is_untouched(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    first = packet_sizes(path)
    assert packet_sizes(path) is first
    make_clip(path, frames=8)
    os.utime(path, ns=(1, 1))
    assert len(packet_sizes(path).sizes) == 8


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for content in (b"", b"no video " * 99):
        path.write_bytes(content)
        with pytest.raises((OSError, ValueError)):
            packet_sizes(path)
