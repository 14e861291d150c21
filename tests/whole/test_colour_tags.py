"""Samples stay as they are stored, whatever a file says of their colours.

Inputs are FFV1, which holds colour tags in the container alone, and the streams of all codecs.
"""

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from tests.support.media import run_ffmpeg
from vqaloop.core import process
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import load_encoders
from vqaloop.encoding.spec import EncoderSpec
from vqaloop.errors import InputError
from vqaloop.media.excerpt import excerpt
from vqaloop.media.frames import read_encode, read_source
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import find_cuts
from vqaloop.quality import full_reference
from vqaloop.quality.scorer import Scorer
from vqaloop.records import Rendition, Source
from vqaloop.regress import builds
from vqaloop.regress.build_command import BuildRun, Point, file_suffix
from vqaloop.regress.compare import compare_builds
from vqaloop.regress.faults import decode_md5

FFMPEG = ffmpeg_path()
METRICS = ("vmaf", "psnr", "ssim", "xpsnr")
WIDTH, HEIGHT, FRAMES = 256, 144, 6
PICTURE = f"testsrc2=s={WIDTH}x{HEIGHT}:r=10,gblur=2"
BY_CODEC = {s.codec: s for s in load_encoders().values() if s.default and not s.hardware}
# without colours, known to the scaler, and refused by it
MATRICES = (
    "unknown", "bt709", "smpte170m", "bt470bg", "smpte240m", "fcc", "bt2020nc",
    "ycgco", "bt2020c", "smpte2085", "chroma-derived-nc", "chroma-derived-c", "ictcp",
)  # fmt: skip
REFUSED = MATRICES[7:]

every_codec = pytest.mark.parametrize("spec", BY_CODEC.values(), ids=BY_CODEC)


def make(
    path: Path, *output: str, video: str = PICTURE, frames: int = FRAMES, pix_fmt: str = "yuv420p"
) -> Path:
    """`video` in a format, untagged unless `output` says something else; FFV1 by default."""
    codec = [] if "-c:v" in output or path.suffix == ".y4m" else ["-c:v", "ffv1"]
    run_ffmpeg(
        *("-f", "lavfi", "-i", f"{video},format={pix_fmt}"),
        *("-frames:v", str(frames), *codec, *output, file_url(path)),
    )
    return path


def tagged(path: Path, matrix: str, *output: str, video: str = PICTURE, **more: str) -> Path:
    """The samples of `video` with a matrix and with primaries and a transfer that go with it."""
    primaries = {"unknown": "unknown", "smpte170m": "smpte170m"}.get(matrix, "bt709")
    tags = f"setparams=colorspace={matrix}:color_primaries={primaries}:color_trc={primaries}"
    return make(path, *output, video=video, pix_fmt=f"{more.get('pix_fmt', 'yuv420p')},{tags}")


def stored(path: Path, pix_fmt: str = "yuv420p") -> npt.NDArray[np.uint8]:
    """Samples of a file as its decoder gives them."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert {f.format.name for f in frames} == {pix_fmt}
    return np.stack([frame.to_ndarray() for frame in frames])


def matrix_of(path: Path) -> str:
    said = process.run([FFMPEG, "-hide_banner", "-i", file_url(path)], timeout_s=60).stderr
    found = re.search(r"Video: .*?yuv4\w+\(([^)]*)\)", said)
    assert found, said
    return found[1]


def rung(source: Source, spec: EncoderSpec, out: Path, divide: int = 1, knob: int = 0) -> Path:
    size = source.canvas[0] // divide, source.canvas[1] // divide
    at = spec.knob.snap(knob or spec.knob.search[0])
    return encode(
        source, Rendition(*size, spec.name, at, spec.presets[-1]), out, ffmpeg=FFMPEG
    ).path


# --- the metrics ---------------------------------------------------------------------------------


@pytest.mark.parametrize("divide", [1, 2])
def test_metrics_score_the_same_file_alike_under_each_pair_of_tags(
    tmp_path: Path, divide: int
) -> None:
    worse = PICTURE + f",noise=alls=20:all_seed=1,scale={WIDTH // divide}:{HEIGHT // divide}"
    sources = {m: probe_source(tagged(tmp_path / f"{m}.mkv", m)) for m in MATRICES}
    others = {m: tagged(tmp_path / f"{m}-worse.mkv", m, video=worse) for m in MATRICES[:9]}
    names = METRICS

    def scores(one: str, other: str) -> dict[str, tuple[float, ...]]:
        made = full_reference.measure(sources[one], others[other], names, ffmpeg=FFMPEG)
        return {name: score.clips for name, score in made.items()}

    expected = scores("unknown", "unknown")
    assert 20 < np.mean(expected["psnr"]) < 40
    pairs = [("unknown", m) for m in others] + [("bt709", m) for m in others]
    for pair in pairs + [(m, "bt709") for m in MATRICES]:
        assert scores(*pair) == expected, pair


@pytest.mark.parametrize("divide", [1, 2])
def test_students_score_the_same_file_alike_under_each_pair_of_tags(
    tmp_path: Path, divide: int
) -> None:
    scorer = Scorer("internvqa-tiny", device="cpu")
    worse = PICTURE + f",noise=alls=20:all_seed=1,scale={WIDTH // divide}:{HEIGHT // divide}"
    some = ("unknown", "bt709", "smpte170m", "ycgco")
    files = {m: tagged(tmp_path / f"{m}.mkv", m) for m in some}
    others = {m: tagged(tmp_path / f"{m}-worse.mkv", m, video=worse) for m in some}
    pairs = [*zip(some, some, strict=True), ("unknown", "bt709"), ("bt709", "unknown")]
    found = {scorer.score(others[b], files[a]).clips for a, b in [*pairs, ("bt709", "ycgco")]}
    assert len(found) == 1


@every_codec
def test_a_rung_of_a_tagged_source_scores_as_that_of_an_untagged_one(
    spec: EncoderSpec, tmp_path: Path
) -> None:
    """AVS2 cannot tag at all."""
    found = []
    for matrix in ("unknown", "bt709", "bt2020nc"):
        source = probe_source(tagged(tmp_path / f"{matrix}.mkv", matrix))
        path = rung(source, spec, tmp_path / f"{matrix}{spec.suffix}", divide=2)
        made = full_reference.measure(source, path, METRICS, ffmpeg=FFMPEG)
        size, fps = source.canvas, source.fps
        seen = read_encode(path, [0, 5], size, fps, decoder=spec.decoder, ffmpeg=FFMPEG)
        found.append(({name: score.clips for name, score in made.items()}, seen.tobytes()))
    assert found[0] == found[1] == found[2]


CONTAINERS = {
    "y4m": (".y4m", "yuv420p", ()),
    "FFV1": (".mkv", "yuv420p", ()),
    "ProRes": (".mkv", "yuv422p10le", ("-c:v", "prores_ks")),
    "raw": (".mkv", "uyvy422", ("-c:v", "rawvideo")),
    "x264": (".mp4", "yuv420p", ("-c:v", "libx264", "-qp", "1")),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_both_sides_are_compared_in_one_range(kind: str, tmp_path: Path) -> None:
    suffix, pix_fmt, options = CONTAINERS[kind]
    files = {}
    for own in ("tv", "pc"):
        convert = f"scale=in_range=tv:out_range={own}:flags=accurate_rnd+full_chroma_int"
        video = f"{PICTURE},format=yuv422p10le,setparams=range=tv,{convert}"
        output = ("-color_range", own)
        files[own, "reference"] = make(
            tmp_path / f"{own}-reference.mp4", *output, "-c:v", "libx264", "-qp", "1", video=video
        )
        files[own, "distorted"] = make(
            tmp_path / f"{own}{suffix}", *output, *options, "-strict", "-1",
            video=video, pix_fmt=pix_fmt,
        )  # fmt: skip
    for one, other in itertools.product(("tv", "pc"), repeat=2):
        if kind == "ProRes" and other == "pc":
            continue  # its decoder gives the limited range alone
        source = probe_source(files[one, "reference"])
        distorted = files[other, "distorted"]
        told = dict(probe_source(distorted).colour).get("color_range")
        assert told == other or (other == "tv" and not told)
        score = full_reference.measure(source, distorted, METRICS, ffmpeg=FFMPEG)
        assert score["psnr"].value > 48 and score["xpsnr"].value > 40, (one, other)
        assert score["ssim"].value > 99.5 and score["vmaf"].value > 90, (one, other)


def test_students_see_both_sides_in_one_range(tmp_path: Path) -> None:
    scorer = Scorer("internvqa-tiny", device="cpu")
    for own in ("tv", "pc"):
        video = (
            f"{PICTURE},format=yuv444p10le,setparams=range=tv,scale=in_range=tv:out_range={own}"
        )
        make(tmp_path / f"{own}.mkv", "-color_range", own, video=video)
        x264 = ("-c:v", "libx264", "-qp", "1")
        make(tmp_path / f"{own}.mp4", "-color_range", own, *x264, video=video)
        half = f"{video},scale=128:72"
        make(tmp_path / f"{own}-half.mkv", "-color_range", own, video=half)
    for suffix in (".mkv", ".mp4", "-half.mkv"):
        for one in ("tv", "pc"):
            alike, unlike = (
                scorer.score(tmp_path / f"{other}{suffix}", tmp_path / f"{one}.mkv").value
                for other in (one, "pc" if one == "tv" else "tv")
            )
            assert abs(alike - unlike) < 1, (suffix, one)


# --- what is made of a source --------------------------------------------------------------------


@pytest.mark.parametrize("matrix", REFUSED)
def test_matrices_that_the_scaler_refuses_go_all_the_way(matrix: str, tmp_path: Path) -> None:
    source = probe_source(tagged(tmp_path / "in.mkv", matrix))
    plain = probe_source(tagged(tmp_path / "plain.mkv", "unknown"))
    assert dict(source.colour)["colorspace"] == matrix
    assert find_cuts(source, ffmpeg=FFMPEG) == find_cuts(plain, ffmpeg=FFMPEG) == {}
    part = excerpt(source, [(1, 4)], tmp_path / "part.mkv", ffmpeg=FFMPEG)
    assert (stored(part.path) == stored(plain.path)[1:5]).all()
    spec = BY_CODEC["h264"]
    for title, other, divide in itertools.product((source, part), (plain,), (1, 2)):
        path = rung(title, spec, tmp_path / "a.mp4", divide)
        assert matrix in matrix_of(path)
        assert full_reference.measure(title, path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 30
        if title is source:
            bare = rung(other, spec, tmp_path / "b.mp4", divide)
            assert (stored(path) == stored(bare)).all()
    found = read_source(source, [0, 5], ffmpeg=FFMPEG, size=(128, 72))
    assert (found == read_source(plain, [0, 5], ffmpeg=FFMPEG, size=(128, 72))).all()


@every_codec
@pytest.mark.parametrize("matrix", ["ycgco", "ictcp", "bt2020c"])
def test_every_codec_takes_matrices_that_the_scaler_refuses(
    spec: EncoderSpec, matrix: str, tmp_path: Path
) -> None:
    source = probe_source(tagged(tmp_path / "in.mkv", matrix))
    path = rung(source, spec, tmp_path / f"a{spec.suffix}", divide=2)
    assert full_reference.measure(source, path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 30


RGB = {
    "ffv1": "gbrp",
    "ffv1 deep": "gbrp10le",
    "png": "rgb24",
    "qtrle": "rgb24",
    "libx264rgb": "bgr24",
}


@pytest.mark.parametrize(
    ("size", "matrix", "red"),
    [("1280x720", "bt709", (63, 102, 240)), ("160x96", "smpte170m", (81, 90, 240))],
)
@pytest.mark.parametrize("codec", RGB)
def test_rgb_is_tagged_as_it_is_converted(
    codec: str, size: str, matrix: str, red: tuple[int, int, int], tmp_path: Path
) -> None:
    name, pix_fmt = codec.split()[0], RGB[codec]
    source = probe_source(
        make(
            tmp_path / ("in.mkv" if name in ("ffv1", "libx264rgb") else "in.mov"),
            *("-c:v", name),
            video=f"color=red:s={size}:r=10",
            pix_fmt=pix_fmt,
            frames=2,
        )
    )
    tags = {"colorspace": matrix, "color_range": "tv"}
    assert {key: dict(source.colour)[key] for key in tags} == tags
    path = rung(source, BY_CODEC["h264"], tmp_path / "a.mp4", divide=2)
    assert matrix in matrix_of(path) or matrix_of(path) == "tv, bt470bg/unknown/unknown"
    part = excerpt(source, [(0, 2)], tmp_path / "part.mkv", ffmpeg=FFMPEG)
    read = read_source(source, [0], ffmpeg=FFMPEG)[0]
    for found in (stored(path)[0], read, read_source(part, [0], ffmpeg=FFMPEG)[0]):
        lines = found.shape[0] * 2 // 3
        planes = found[:lines], found[lines : lines * 5 // 4], found[lines * 5 // 4 :]
        for plane, want in zip(planes, red, strict=True):
            assert abs(plane.mean() - want) < 1.5
    assert full_reference.measure(source, path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 40
    assert full_reference.measure(source, source.path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 50


GREY = {
    "y4m": (".y4m", "gray", (), "tv"),
    "y4m of 10 bit": (".y4m", "gray10le", ("-strict", "-1"), "tv"),
    "FFV1": (".mkv", "gray", ("-c:v", "ffv1"), "tv"),
    "FFV1 of 10 bit": (".mkv", "gray10le", ("-c:v", "ffv1"), "tv"),
    "full FFV1": (".mkv", "gray", ("-c:v", "ffv1"), "pc"),
    "HEVC": (".mp4", "gray", ("-c:v", "libx265", "-x265-params", "lossless=1"), "tv"),
    "full HEVC": (".mp4", "gray", ("-c:v", "libx265", "-x265-params", "lossless=1"), "pc"),
    "AV1": (".mkv", "gray", ("-c:v", "libaom-av1", "-crf", "1", "-cpu-used", "8"), "tv"),
}


@pytest.mark.parametrize("matrix", ["unknown", "bt709"])
@pytest.mark.parametrize("kind", GREY)
def test_grey_keeps_its_range(kind: str, matrix: str, tmp_path: Path) -> None:
    suffix, pix_fmt, options, own = GREY[kind]
    deep = "10" in pix_fmt
    # the ends of the range as they lie in the file; nullsrc has none of its own
    ramp = f"nullsrc=s={WIDTH}x{HEIGHT}:r=10,format={pix_fmt},geq=lum='19+X*214/{WIDTH - 1}'"
    if deep:
        ramp = ramp.replace("19+X*214", "76+X*856")
    tags = f"setparams=range={own}:colorspace={matrix}"
    clip = make(
        tmp_path / f"in{suffix}", *options, "-color_range", own, video=ramp,
        pix_fmt=f"{pix_fmt},{tags}",
    )  # fmt: skip
    source = probe_source(clip)
    luma = stored(clip, pix_fmt).astype(int)
    assert (luma.min() >> 2 * deep, luma.max() >> 2 * deep) in ((19, 233), (19, 234), (18, 233))
    assert dict(source.colour)["color_range"] == own
    near = 1 if deep else 0
    eight = luma >> 2 * deep
    found = read_source(source, [0, 5], ffmpeg=FFMPEG).astype(int)
    assert abs(found[:, :HEIGHT] - eight[[0, 5]]).max() <= near
    part = excerpt(source, [(1, 4)], tmp_path / "part.mkv", ffmpeg=FFMPEG)
    found = read_source(part, [0, 3], ffmpeg=FFMPEG).astype(int)
    assert abs(found[:, :HEIGHT] - eight[[1, 4]]).max() <= near
    rendition = Rendition(WIDTH, HEIGHT, "libx264", 1, "veryfast")
    path = encode(source, rendition, tmp_path / "a.mp4", ffmpeg=FFMPEG).path
    assert (
        abs(stored(path, "yuvj420p" if own == "pc" else "yuv420p")[:, :HEIGHT] - eight).max() <= 2
    )
    assert full_reference.measure(source, path, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 48
    assert full_reference.measure(source, clip, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 58


def test_small_renditions_of_an_untagged_title_are_shown_as_it_is(tmp_path: Path) -> None:
    """Players take BT.709 for the title's size and BT.601 for the rendition's."""
    large = PICTURE.replace(f"{WIDTH}x{HEIGHT}", "1280x720")
    source = probe_source(make(tmp_path / "in.mkv", video=large, frames=2))
    plain = replace(source, colour=(), prep=())
    assert "BT.709" in " ".join(source.notes)
    part = excerpt(source, [(0, 2)], tmp_path / "part.mkv", ffmpeg=FFMPEG)
    assert (stored(part.path) == stored(source.path)).all()
    for title, divide in itertools.product((source, part), (1, 4)):
        paths = [
            rung(one, BY_CODEC["h264"], tmp_path / f"{at}.mp4", divide)
            for at, one in enumerate((title, plain))
        ]
        assert "bt709" in matrix_of(paths[0])
        assert (stored(paths[0]) == stored(paths[1])).all()
    tagged_601 = probe_source(tagged(tmp_path / "t.mkv", "smpte170m", video=large))
    assert dict(tagged_601.colour)["colorspace"] == "smpte170m" and not tagged_601.prep
    small = probe_source(make(tmp_path / "s.mkv"))
    assert (small.prep, small.notes) == ((), ()) and "colorspace" not in dict(small.colour)


# --- builds --------------------------------------------------------------------------------------


@every_codec
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("own", ["tv", "pc"])
def test_builds_encode_the_samples_of_the_source(
    spec: EncoderSpec, bits: int, own: str, tmp_path: Path
) -> None:
    encode_alike(FFMPEG, spec, bits, own, tmp_path)


@pytest.mark.programs
@pytest.mark.parametrize("name", [s.name for s in load_encoders().values() if s.standalone])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("own", ["tv", "pc"])
def test_own_programs_encode_the_samples_of_the_source(
    name: str, bits: int, own: str, tmp_path: Path
) -> None:
    spec = load_encoders()[name]
    program = spec.standalone and shutil.which(spec.standalone.program)
    if spec.standalone is None or not program:
        pytest.skip(f"the program of {name} is not installed")
    if own == "pc" and spec.standalone.full_range is None:
        video = f"{PICTURE},setparams=range=pc"
        clip = tagged(tmp_path / "full.mkv", "bt709", "-color_range", own, video=video)
        with pytest.raises(InputError, match="full range, which"):
            compare_builds(program, program, codec=spec.codec, encoder=name, clips=[clip])
        return
    encode_alike(program, spec, bits, own, tmp_path)


def encode_alike(program: str, spec: EncoderSpec, bits: int, own: str, folder: Path) -> None:
    """Whatever the tags, a build gets the same input and so makes the same pictures."""
    if bits not in spec.bit_depths:
        pytest.skip(f"{spec.name} has no {bits} bit")
    made = set()
    pix_fmt = "yuv420p" if bits == 8 else "yuv420p10le"
    build = builds.open_build(program, spec)
    for matrix in ("unknown", "bt709", "bt2020nc", "ycgco"):
        clip = tagged(
            folder / f"{matrix}.mkv", matrix, "-color_range", own,
            video=f"{PICTURE},format=yuv420p10le,setparams=range={own}", pix_fmt=pix_fmt,
        )  # fmt: skip
        source = probe_source(clip)
        view = builds.write_view(
            source, None, folder / "view.y4m", bit_depth=bits, frames=None, ffmpeg=FFMPEG
        )
        raw = ("-f", "rawvideo", "-")
        assert run_ffmpeg("-i", str(view.path), *raw) == run_ffmpeg("-i", str(clip), *raw)
        out = folder / f"a{file_suffix(build, spec)}"
        point = Point(spec.knob.name, spec.knob.snap(spec.knob.search[0]))
        run = BuildRun(view, point, spec.presets[-1], out, threads=1)
        builds.make(build, spec, run, timeout_s=60)
        made.add(decode_md5(out, spec, ffmpeg=FFMPEG, frames=FRAMES))
        assert full_reference.measure(source, out, ["psnr"], ffmpeg=FFMPEG)["psnr"].value > 38
    assert len(made) == 1
