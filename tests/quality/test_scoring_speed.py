"""What makes scoring cheap must not change a score: no clock is read here."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.media import make_clip, remux
from tests.support.nets import random_student, student_metric
from vqaloop.bitstream.av1_nonreference import NonReferenceFilter
from vqaloop.core.cpu_time import Meter
from vqaloop.core.ffmpeg import ffmpeg_path
from vqaloop.encoding.encode import encode
from vqaloop.encoding.registry import get_encoder
from vqaloop.errors import DecodeFailed, ToolError
from vqaloop.media import frames, selective_decode
from vqaloop.media.frames import read_encode, read_source, read_with_ffmpeg
from vqaloop.media.planes import Frames
from vqaloop.media.probe import probe_source
from vqaloop.models.student import Anchor, Student
from vqaloop.quality.inference import Network, _cat, _Request, joined
from vqaloop.records import Rendition, Source

FFMPEG = ffmpeg_path()
FPS = Fraction(25)


@pytest.fixture(scope="module")
def title(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """6 s: three GOPs and a seek's worth."""
    path = tmp_path_factory.mktemp("title") / "title.mkv"
    clip = make_clip(path, size="160x96", frames=150, codec="ffv1")
    return probe_source(clip, ffmpeg=FFMPEG)


def coded(source: Source, name: str, out: Path, knob: float) -> Path:
    spec = get_encoder(name)
    rendition = Rendition(*source.canvas, name, knob, spec.presets[-3])
    return encode(source, rendition, out, ffmpeg=FFMPEG).path


@pytest.fixture(scope="module")
def rungs(title: Source) -> dict[str, Path]:
    """Encodes with pyramids, so that there are frames that no other refers to."""
    names = {"libx264": 30.0, "libx265": 30.0, "libsvtav1": 40.0, "libvpx-vp9": 40.0}
    folder = title.path.parent
    return {
        name: coded(title, name, folder / f"{name}{get_encoder(name).suffix}", knob)
        for name, knob in names.items()
    }


# --- decoding ------------------------------------------------------------------------------------


class Counted:
    """Packets that reach the decoders."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets = 0
        decode = selective_decode._Decoder.decode

        def counting(decoder: Any, packet: Any, wanted: bool) -> Any:
            self.packets += 1
            return decode(decoder, packet, wanted)

        monkeypatch.setattr(selective_decode._Decoder, "decode", counting)


@pytest.mark.parametrize("name", ["libx264", "libx265", "libsvtav1", "libvpx-vp9"])
@pytest.mark.parametrize("threads", [1, 3])
def test_frames_picked_are_those_of_a_full_decode(
    rungs: dict[str, Path], title: Source, name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_with_ffmpeg(rungs[name], range(150), title.canvas, ffmpeg=FFMPEG)
    monkeypatch.delattr(selective_decode, "_in_full")  # it must do without
    for indices in ([0], [7, 8], [49, 50], [3, 60, 61, 149], [148, 149], [51, 99, 100]):
        each = frames.each_of_encode(
            rungs[name], indices, title.canvas, FPS, decoder="pyav", ffmpeg=FFMPEG, threads=threads
        )
        assert (np.stack(list(each)) == whole[indices]).all()


def test_only_what_is_needed_is_decoded(
    rungs: dict[str, Path], title: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    read_encode(rungs["libx264"], [50, 51], title.canvas, FPS, decoder="pyav", ffmpeg=FFMPEG)
    assert 2 <= counted.packets < 10  # of the 50 before it, none


def test_frames_that_nobody_needs_are_left_out_of_av1(rungs: dict[str, Path]) -> None:
    filtering, sizes = NonReferenceFilter(), []
    with av.open(str(rungs["libsvtav1"])) as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                data = bytes(packet)
                slim = filtering.filtered(data, wanted=False)
                assert filtering.filtered(data, wanted=True) == data
                sizes.append(-1 if slim is None else len(data) - len(slim))
    assert sizes[0] == 0  # a key frame
    assert sizes.count(-1) > 10  # nothing was left of these
    assert sum(size > 0 for size in sizes) > 5  # of these what others need


@given(st.binary(max_size=80))
def test_bytes_of_any_kind_are_given_back(data: bytes) -> None:
    assert NonReferenceFilter().filtered(data, wanted=False) == data
    begun = NonReferenceFilter()
    begun.filtered(b"\x12\x00\x0a\x0b\x00\x00\x00\x42\xab\xbf\xc3\x70\x08\x40\x08", wanted=False)
    found = begun.filtered(data, wanted=False)
    assert found is None or len(found) <= len(data)


def test_gops_that_lean_on_each_other_are_decoded_in_full(title: Source, tmp_path: Path) -> None:
    options = {"x264-params": "open_gop=1:keyint=20:scenecut=0:bframes=3:b-adapt=0"}
    path = make_clip(tmp_path / "open.mkv", size="160x96", frames=100, **options)
    whole = read_with_ffmpeg(path, range(100), title.canvas, ffmpeg=FFMPEG)
    for indices in ([18, 19, 20], [38, 78], [99]):
        found = read_encode(path, indices, title.canvas, FPS, decoder="pyav", ffmpeg=FFMPEG)
        assert (found == whole[indices]).all()


def test_a_source_is_picked_from_only_where_its_times_tell_its_frames(
    title: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    through: list[str] = []
    slow = frames.read_with_ffmpeg

    def noted(*args: Any, **options: Any) -> Frames:
        through.append("ffmpeg")
        return slow(*args, **options)

    monkeypatch.setattr(frames, "read_with_ffmpeg", noted)
    indices = [0, 75, 149]
    plain = make_clip(tmp_path / "plain.mp4", size="160x96", frames=150)
    gap = make_clip(tmp_path / "gap.mkv", size="160x96", frames=150, vf="select='not(eq(n,9))'")
    turned = remux(plain, tmp_path / "turned.mp4", "-display_rotation:v:0", "180")
    flipped = remux(plain, tmp_path / "flipped.mp4", "-display_vflip:v:0")
    for path, slowly in ((plain, False), (gap, True), (turned, True), (flipped, True)):
        through.clear()
        source = probe_source(path, ffmpeg=FFMPEG)
        at = [i for i in indices if i < source.frames]
        found = read_source(source, at, ffmpeg=FFMPEG)
        expected = slow(path, at, source.canvas, ffmpeg=FFMPEG, prep=source.prep)
        assert not source.input_options and (found == expected).all()
        assert bool(through) == slowly, path.name
    half = tmp_path / "half.mp4"
    half.write_bytes(plain.read_bytes()[:-2000])
    cut = Source(half, "0", 160, 96, FPS, 150, "yuv420p")
    with pytest.raises(DecodeFailed, match="half"):
        read_source(cut, [149], ffmpeg=FFMPEG)


def test_a_rung_that_is_a_playlist_opens_no_other_file(
    title: Source, rungs: dict[str, Path], tmp_path: Path
) -> None:
    rung = rungs["libx264"].with_name("playlist.mp4")
    rung.write_text(f"ffconcat version 1.0\nfile {rungs['libx264'].name}\n")
    # ffmpeg alone would follow it
    assert len(read_with_ffmpeg(rung, [0], title.canvas, ffmpeg=FFMPEG)) == 1
    for decoder in ("pyav", "ffmpeg"):
        with pytest.raises(DecodeFailed, match="playlist"):
            read_encode(rung, [0], title.canvas, FPS, decoder=decoder, ffmpeg=FFMPEG)


# --- the network ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_student(tmp_path_factory.mktemp("weights"), "internvqa-mini")


def clips(count: int, seed: int) -> Frames:
    shape = (count, 2, 168, 112)
    return np.random.default_rng(seed).integers(16, 236, shape, np.uint8)


def test_comparing_is_looking_without_the_rest(weights: Path) -> None:
    network = Network(weights, torch.device("cpu"))
    with network.exclusive() as student:
        from vqaloop.media.colour import to_clips

        one, other = (to_clips(torch.from_numpy(clips(3, seed))) for seed in (0, 1))
        anchor = student.anchor(one)
        whole = student.look(other, anchor).anchored
        assert whole is not None
        for found, expected in zip(student.compare(other, anchor), whole, strict=True):
            assert torch.equal(found, expected)


def test_what_a_batch_holds_does_not_change_a_score(weights: Path) -> None:
    network = Network(weights, torch.device("cpu"))
    reference = network.anchor(clips(20, 0))
    scores = []
    for size in (20, 7, 1):
        network._batch_size = size
        sums, weighed = network.compare(clips(20, 1), reference)
        with network.exclusive() as student:
            scores.append(100 * student.anchored_answers(sums.sum(0), weighed.sum(0))[0].item())
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-3)


def test_threads_share_batches_and_get_their_own_answers(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(weights, torch.device("cpu"))
    wanted, alone = {}, {}
    for i in range(5):
        reference, other = network.anchor(clips(3 + i, i)), clips(3 + i, 50 + i)
        wanted[i] = other, reference
        alone[i] = network.compare(other, reference)
    batches: list[int] = []
    compare = Student.compare

    def noted(student: Student, pixels: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
        batches.append(len(pixels))
        return compare(student, pixels, anchor)

    monkeypatch.setattr(Student, "compare", noted)
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def work(i: int) -> None:
        found[i] = network.compare(*wanted[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    with network.exclusive():  # nobody runs before all wait
        for thread in threads:
            thread.start()
        while len(network._waiting) < 5:
            pass
    for thread in threads:
        thread.join(60)
    assert batches == [25]  # 3 + 4 + 5 + 6 + 7, in one batch of at most 32
    for i in range(5):
        for mine, expected in zip(found[i], alone[i], strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


def test_clips_are_put_side_by_side_only_once_they_have_uploaded(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU's stream waits for and remembers are the uploads, before anything reads them."""
    network = Network(weights, torch.device("cpu"))
    arrived: list[Tensor] = []
    joined: list[int] = []
    arrive, cat = Network._uploaded, _cat

    def noted(network: Network, pixels: Tensor) -> Tensor:
        arrived.append(arrive(network, pixels))
        return arrived[-1]

    def checked(parts: list[Tensor]) -> Tensor:
        assert [id(part) for part in parts] == [id(part) for part in arrived]
        joined.append(len(parts))
        return cat(parts)

    asked = [
        _Request(torch.from_numpy(clips(2, i)), network.anchor(clips(2, i))) for i in range(3)
    ]
    monkeypatch.setattr(Network, "_uploaded", noted)
    monkeypatch.setattr("vqaloop.quality.inference._cat", checked)
    network._waiting.extend(asked)
    with network.exclusive() as student:
        network._run_batch(student)
    assert joined == [3] and len(arrived) == 3
    assert all(one.done and one.error is None for one in asked)


def short_of_memory(limit: int) -> Callable[..., tuple[Tensor, Tensor]]:
    """`Student.compare` on a device that holds `limit` clips."""
    compare = Student.compare

    def forward(student: Student, pixels: Tensor, anchor: Anchor) -> tuple[Tensor, Tensor]:
        if len(pixels) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return compare(student, pixels, anchor)

    return forward


def test_a_batch_that_does_not_fit_is_halved(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(weights, torch.device("cpu"))
    reference, other = network.anchor(clips(20, 0)), clips(20, 1)
    expected = network.compare(other, reference)
    monkeypatch.setattr(Student, "compare", short_of_memory(3))
    found = network.compare(other, reference)
    for mine, whole in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)
    assert network.batch_size == 2  # of 20, 10, 5, 2
    monkeypatch.setattr(Student, "compare", short_of_memory(0))
    with pytest.raises(ToolError, match="too little free memory for one clip.*--device cpu"):
        network.compare(other, reference)
    assert not network._waiting


@pytest.mark.parametrize("limit", [8, 3])
def test_a_common_batch_that_does_not_fit_is_halved_before_it_is_put_together(
    weights: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Clips and anchors of many take as much memory as the network."""
    network = Network(weights, torch.device("cpu"))
    asked = [
        _Request(torch.from_numpy(clips(n, n)), network.anchor(clips(n, 9 * n))) for n in (3, 5, 7)
    ]
    alone = [network.compare(request.clips.numpy(), request.anchor) for request in asked]

    def short(anchors: list[Anchor]) -> Anchor:
        if sum(len(anchor.weights) for anchor in anchors) > limit:
            raise torch.OutOfMemoryError("out of memory")
        return joined(anchors)

    monkeypatch.setattr("vqaloop.quality.inference.joined", short)
    network._waiting.extend(asked)
    with network.exclusive() as student:
        network._run_batch(student)
    assert not network._waiting and network.batch_size <= limit
    for request, expected in zip(asked, alone, strict=True):
        assert request.error is None and request.done
        found = (torch.cat(x) for x in zip(*request.made, strict=True))
        for mine, whole in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)


class FakeStream:
    """Of a GPU that is not there; slow to make, as the first one is."""

    made: ClassVar[list["FakeStream"]] = []

    def __init__(self, device: torch.device) -> None:
        assert device.index == 1
        time.sleep(0.05)
        self.made.append(self)


def test_all_threads_upload_on_one_stream_of_one_gpu(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's cached_property takes no lock since 3.12, and `cuda` is another GPU by thread."""
    used: list[object] = []

    @contextlib.contextmanager
    def on(stream: object) -> Iterator[None]:
        used.append(stream)
        yield

    monkeypatch.setattr(FakeStream, "made", [])
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    for kind in (Tensor, Student):
        monkeypatch.setattr(kind, "to", lambda value, *args, **options: value)
    monkeypatch.setattr(Tensor, "pin_memory", lambda pixels: pixels)
    network = Network(weights, torch.device("cuda"))
    together = threading.Barrier(8)

    def work() -> None:
        together.wait()
        network._upload(clips(1, 0))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert used == FakeStream.made * 8 and len(FakeStream.made) == 1
    assert network.device == torch.device("cuda", 1)


def test_clips_without_room_on_the_gpu_wait_in_memory(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(Student, "to", lambda student, device: student)
    monkeypatch.setattr(Tensor, "pin_memory", lambda pixels: pixels)
    network = Network(weights, torch.device("cuda"))
    monkeypatch.setattr(Tensor, "to", full)
    assert (network._upload(clips(2, 0)).numpy() == clips(2, 0)).all()


def test_a_failure_reaches_all_who_wait(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(weights, torch.device("cpu"))
    reference = network.anchor(clips(2, 0))

    def fails(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Student, "compare", fails)
    said: list[str] = []

    def work() -> None:
        try:
            network.compare(clips(2, 1), reference)
        except RuntimeError as error:
            said.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert said == ["broken"] * 3 and not network._waiting


def test_a_title_is_looked_at_once_by_many_threads(
    weights: Path, title: Source, rungs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def noted(*args: Any, **options: Any) -> Any:
        reads.append(1)
        return frames.each_of_source(*args, **options)

    monkeypatch.setattr("vqaloop.quality.student_metric.each_of_source", noted)
    metric = student_metric(weights)
    found: dict[str, float] = {}

    def work(name: str) -> None:
        found[name] = metric.measure(title, rungs[name], "pyav").value

    threads = [threading.Thread(target=work, args=(name,)) for name in rungs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(reads) == 1
    alone = {
        name: student_metric(weights).measure(title, rungs[name], "pyav").value for name in rungs
    }
    assert found == pytest.approx(alone, abs=1e-3)


# --- what it took --------------------------------------------------------------------------------


def test_seconds_are_split_among_those_who_work() -> None:
    clock = iter([0.0, 10.0, 16.0, 20.0])
    meter = Meter(lambda: next(clock))
    with meter.measured() as one, meter.measured() as other:
        assert meter.active == 2
    found: Sequence[float] = (one.cpu_s, other.cpu_s)
    assert found == pytest.approx((10 + 3 + 4, 3))
    assert meter.active == 0
