"""Parts of a video: where they begin and end, and that nothing is coded again."""

from pathlib import Path

import pytest

from tests.support.commandline import SMALL, Room
from tests.support.media import frame_hashes, make_clip, run_ffmpeg
from vqaloop.core.ffmpeg import file_url
from vqaloop.errors import InputError
from vqaloop.media.part import cut_part
from vqaloop.media.probe import probe_source


def with_sound(path: Path, open_gop: int = 0) -> Path:
    """50 frames of 25 a second, a key frame every 10, B-frames between, and a tone."""
    video = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25", "-f", "lavfi", "-i", "sine")
    x264 = f"keyint=10:min-keyint=10:scenecut=0:open-gop={open_gop}:bframes=2"
    code = ("-c:v", "libx264", "-preset", "veryfast", "-x264-params", x264, "-pix_fmt", "yuv420p")
    run_ffmpeg(*video, *code, "-frames:v", "50", "-t", "2", "-c:a", "aac", file_url(path))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_part_has_the_frames_of_the_whole_from_the_nearest_key_frame(
    tmp_path: Path, suffix: str
) -> None:
    source = with_sound(tmp_path / f"a{suffix}")
    whole = frame_hashes(probe_source(source))
    # key frames are at 0, 0.4, 0.8 and so on
    out = cut_part(source, start_s=0.65, duration_s=0.56, folder=tmp_path)
    assert out.name == f"a.0.65s+0.56s{suffix}"
    part = probe_source(out)
    found = frame_hashes(part)
    assert found == whole[20 : 20 + len(found)] and 14 <= len(found) <= 17
    assert part.fps == 25 and not part.notes
    assert cut_part(source, start_s=1.3, folder=tmp_path).name == f"a.1.3s{suffix}"
    assert frame_hashes(probe_source(tmp_path / f"a.1.3s{suffix}")) == whole[30:]
    before = out.read_bytes()
    cut_part(source, start_s=0.65, duration_s=0.56, folder=tmp_path)
    assert out.read_bytes() == before
    sound = run_ffmpeg("-i", file_url(out), "-map", "0:a", "-f", "s16le", "-ac", "1", "pipe:1")
    assert 0.4 <= len(sound) / 2 / 44100 <= 0.8


def test_a_part_of_uncompressed_video_is_exact(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.y4m", size="64x64", frames=30)
    whole = frame_hashes(probe_source(source))
    out = cut_part(source, start_s=0.4, duration_s=0.4, folder=tmp_path)
    assert out.name == "a.0.4s+0.4s.y4m" and frame_hashes(probe_source(out)) == whole[10:20]


def test_what_is_no_part_is_refused(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", size="64x64", frames=30)
    with pytest.raises(InputError, match="lasts 1.2 s; begin before its end, not at 9 s"):
        cut_part(source, start_s=9, folder=tmp_path)
    with pytest.raises(InputError, match="lasts longer than 0 s, not 0 and 0 s"):
        cut_part(source, duration_s=0, folder=tmp_path)
    bound = with_sound(tmp_path / "b.mp4", open_gop=1)
    with pytest.raises(InputError, match="its pictures refer to earlier ones, past its key"):
        cut_part(bound, start_s=1, duration_s=0.5, folder=tmp_path)
    bound.unlink()
    with pytest.raises(InputError, match="cannot write"):
        cut_part(source, duration_s=1, folder=tmp_path / "none")
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_commands_take_a_part(room: Room) -> None:
    make_clip(room.folder / "a.mp4", size="160x96", frames=50)
    words = ("ladder", "a.mp4", *SMALL, "--resolutions", "160x96,112x64", "--duration", "0.48s")
    assert room.run(*words, "--dry-run").status == 0
    assert [path.name for path in room.folder.iterdir()] == ["a.mp4"]
    said = room.run(*words)
    assert said.status == 0, said.err
    assert room.document("a.0s+0.48s.h264.ladder")["source"]["frames"] in range(12, 17)
    said = room.run("ladder", "a.mp4", "b.mp4", *SMALL, "--start", "1")
    assert said.status == 2 and "--start and --duration are of one title" in said.err
