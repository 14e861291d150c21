"""A rung made again by others: through ffmpeg-python and through PyAV."""

from pathlib import Path

import av
import ffmpeg
import pytest

from tests.support.media import make_clip
from vqaloop import Ladder, build_ladder
from vqaloop.core.ffmpeg import ffmpeg_path, file_url


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.y4m", size="192x108", frames=24)


@pytest.fixture(scope="module")
def ladder(clip: Path) -> Ladder:
    return build_ladder(
        clip,
        codec="h264",
        metric="psnr",
        rungs=2,
        min_step=0.2,
        min_ratio=1.2,
        preset="veryfast",
        out=clip.parent / "ladder",
    )


def test_ffmpeg_python_makes_the_same_bytes(ladder: Ladder, clip: Path, tmp_path: Path) -> None:
    rung = ladder.rungs[0]
    for number, given in enumerate((clip, ffmpeg.input(file_url(clip)))):
        again = tmp_path / f"{number}.mp4"
        rung.to_ffmpeg(given, again).run(cmd=ffmpeg_path(), quiet=True)
        assert again.read_bytes() == (ladder.folder / rung.file).read_bytes()


def test_pyav_encodes_what_the_rung_says(ladder: Ladder, clip: Path, tmp_path: Path) -> None:
    rung = ladder.rungs[-1]
    made = rung.to_pyav()
    out = tmp_path / "out.mp4"
    with av.open(str(clip)) as source, av.open(str(out), "w") as container:
        stream = container.add_stream(made["codec"], rate=made["rate"], options=made["options"])
        stream.width, stream.height = made["width"], made["height"]
        stream.pix_fmt = made["pix_fmt"]
        for index, frame in enumerate(source.decode(video=0)):
            scaled = frame.reformat(made["width"], made["height"], made["pix_fmt"])
            # else the decoder's picture types (of raw video: all intra) are taken for orders
            scaled.pict_type = av.video.frame.PictureType.NONE
            scaled.pts, scaled.time_base = index, 1 / made["rate"]
            container.mux(stream.encode(scaled))
        container.mux(stream.encode(None))
    size = (ladder.folder / rung.file).stat().st_size
    assert out.stat().st_size == pytest.approx(size, rel=0.1)
    with av.open(str(out)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].frames == 24
