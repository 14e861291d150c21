"""Opening files with PyAV: which formats are let in, by name or by their bytes alone."""

import os
from pathlib import Path

import av
import pytest

from tests.support.media import make_clip
from vqaloop.bitstream.demux import main_video, open_video
from vqaloop.bitstream.formats import ENCODES, SOURCES, SOURCES_AND_SOUND


def test_a_format_that_is_not_named_is_refused(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mkv", size="64x64", frames=2)
    with open_video(clip, SOURCES) as container:
        assert main_video(container).codec_context.width == 64
    with pytest.raises(av.FFmpegError), open_video(clip, "yuv4mpegpipe"):
        pass


def test_a_playlist_opens_nothing(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mkv", size="64x64", frames=2)
    playlist = tmp_path / "b.mkv"
    playlist.write_text("ffconcat version 1.0\nfile a.mkv\n")
    for formats in (SOURCES, SOURCES_AND_SOUND, ENCODES):
        with pytest.raises(av.FFmpegError), open_video(playlist, formats):
            pass


def test_a_name_that_is_not_utf8_needs_none(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mkv", size="64x64", frames=2)
    odd = clip.rename(tmp_path / os.fsdecode(b"\xff.mkv"))
    with open_video(odd, SOURCES, by_name=False) as container:
        assert len(container.streams.video) == 1
