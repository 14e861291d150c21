"""What the pages of the documentation speak of, under the names they use: tiny, and real."""

import os
import shutil
from pathlib import Path

from tests.support.media import REPOSITORY, make_clip, run_ffmpeg
from tests.support.waterloo import make_waterloo
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.media.sample import write_sample

BENCH_CLIPS = (
    *("slide_talk", "woman_park", "bedroom_kids", "two_men_office", "woman_dark"),
    *("cups", "surfer", "coffee", "climber"),
)


def furnish(folder: Path) -> Path:
    """Fill the folder, and give it back."""
    _title(folder)
    _material(folder)
    _builds(folder)
    _opinions(folder / "DATA", folder)
    # files of the repository that commands name, as copies that they may write over
    (folder / "bench").mkdir()
    for name in ("grid.csv", "grid-prior.csv", "grid-sampled.csv"):
        shutil.copy(REPOSITORY / "bench" / name, folder / "bench")
    (folder / "vqaloop").mkdir()
    (folder / "vqaloop" / "weights").symlink_to(REPOSITORY / "vqaloop" / "weights")
    return folder


def _ffmpeg(source: Path, path: Path, *options: str) -> Path:
    run_ffmpeg("-i", file_url(source), *options, file_url(path))
    return path


def _title(folder: Path) -> None:
    """A title in several containers, and a rung of it."""
    title = write_sample(folder / "input.y4m", seconds=1, size=(160, 90))
    for name in ("original.y4m", "title.y4m"):
        os.link(title, folder / name)
    for name in ("input.mp4", "input.mkv", "title.mp4"):
        _ffmpeg(title, folder / name, "-c:v", "libx264", "-qp", "0", "-preset", "ultrafast")
    for name in (
        "films/one.mp4",
        "films/two.mp4",
        "drama/e01.mp4",
        "sport/final.mp4",
        "a.mp4",
        "b.mp4",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        os.link(folder / "title.mp4", folder / name)
    rung = _ffmpeg(title, folder / "rung.mp4", "-vf", "scale=120:68,setsar=1", "-c:v", "libx264")
    for name in ("upload.mp4", "x.mp4"):
        os.link(rung, folder / name)


def _material(folder: Path) -> None:
    """Clips and pictures, alone and in folders."""
    for name in ("clips", "data", "CLIPS", "STILLS"):
        (folder / name).mkdir()
    for number, name in enumerate(("park", "crowd", "news")):
        noise = f"hue=h={90 * number},noise=alls={4 + 4 * number}:allf=t"
        make_clip(folder / "clips" / f"{name}.y4m", size="128x72", frames=10, vf=noise)
    (folder / "data" / "clips").symlink_to(folder / "clips")
    rows = ["file,group,fps,frames,width,height,licence,licence_basis"]
    for number in range(6):
        vf = f"hue=h={50 * number},noise=alls={2 + 3 * number}:allf=t"
        clip = make_clip(
            folder / "CLIPS" / f"film{number}.mp4",
            size="256x144",
            frames=40,
            vf=vf,
            crf=10,
        )
        rows.append(f"{clip.name},film{number},25,40,256,144,CC0-1.0,explicit")
    (folder / "CLIPS" / "MANIFEST.csv").write_text("\n".join(rows) + "\n")
    names = ("A", "B", "C", "D", *BENCH_CLIPS)
    for number, name in enumerate(names):
        os.link(folder / "CLIPS" / f"film{number % 6}.mp4", folder / f"{name}.mp4")
    for number, pattern in enumerate(("mandelbrot=s=480x270", "testsrc2=s=480x270")):
        picture = folder / "STILLS" / f"still{number}.png"
        run_ffmpeg("-f", "lavfi", "-i", pattern, "-frames:v", "1", file_url(picture))


def _builds(folder: Path) -> None:
    """Builds of x264; where there is none, an ffmpeg that holds it."""
    x264 = shutil.which("x264") or ffmpeg_path()
    for name in ("x264-main", "x264", "build/x264", "tmp/x264-good"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(x264)
    (folder / "shared").mkdir()


def _opinions(data: Path, folder: Path) -> None:
    """Sets of opinion scores, laid out as docs/datasets.md tells."""
    make_waterloo(data / "waterloo", contents=1, encoders=("h264",), frames=10)
    # the last are the largest
    files = sorted((data / "waterloo" / "H264" / "01").iterdir())[-4:]
    (data / "bvi-hd" / "HEVC").mkdir(parents=True)
    (data / "avt").mkdir()
    bvi, avt, mos, dmos = ["Name,dmos"], [], ["path,score,content"], ["path,score,content"]
    for number, file in enumerate(files):
        name = f"Bookcase_416x234_25fps_HEVC_QP{22 + number}.mp4"
        os.link(file, data / "bvi-hd" / "HEVC" / name)
        bvi.append(f"{name},{10 + 20 * number}")
        name = f"water_netflix_{200 * (number + 1)}kbps_360p_25fps_h264.mp4"
        os.link(file, data / "avt" / name)
        avt.append(f"{name},{1 + number}")
        path = file.relative_to(folder)
        mos.append(f"{path},{1 + number},one")
        dmos.append(f"{path},{90 - 20 * number},one")
    (data / "bvi-hd" / "BVIHD.txt").write_text("\n".join(bvi) + "\n")
    (data / "avt" / "AVT_clean.txt").write_text("\n".join(avt) + "\n")
    (folder / "scores.csv").write_text("\n".join(mos) + "\n")
    (folder / "dmos.csv").write_text("\n".join(dmos) + "\n")
