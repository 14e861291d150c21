"""Peaks of real encodes under a cap, measured on their packets, with every buffer model."""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from tests.support.commandline import slow_but
from tests.support.media import make_bursty, run_ffmpeg
from vqaloop.bitstream.packets import Packet, peak_kbps, segment_peak_kbps, stream_packets
from vqaloop.core.ffmpeg import ffmpeg_path, file_url
from vqaloop.encoding.encode import encode
from vqaloop.encoding.options import cap_of, gop_frames, in_two_passes, output_options, with_cap
from vqaloop.encoding.registry import load_encoders
from vqaloop.errors import InputError
from vqaloop.execution import capping
from vqaloop.execution.cache import Cache
from vqaloop.execution.capping import (
    TOLERANCE,
    CappedEncode,
    PeakLimit,
    bounded_gop_frames,
    expected,
    keep_peak,
    measure_peaks,
    next_knob,
    peak_limit,
)
from vqaloop.execution.options import PeakOptions
from vqaloop.execution.workshop import Workshop
from vqaloop.media.probe import probe_source
from vqaloop.media.scene_cuts import SceneExcerpts
from vqaloop.quality.registry import open_metric
from vqaloop.ratecontrol.capped_parts import keep_title_peak
from vqaloop.ratecontrol.concat import join
from vqaloop.records import Cap, Encode, Rendition, Source

SPECS = load_encoders()
ENCODERS = [name for name, spec in SPECS.items() if not spec.hardware]
TWO_PASS = [name for name, spec in SPECS.items() if spec.two_pass]
FFMPEG = ffmpeg_path()


@pytest.fixture(scope="module")
def bursty(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two calm seconds, two of noise on a fractal, one calm: the peak is about twice the mean."""
    path = tmp_path_factory.mktemp("bursty") / "bursty.mkv"
    return probe_source(make_bursty(path, "192x108", 40, after_s=1), ffmpeg=FFMPEG)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("calm") / "calm.mkv"
    graph = "mandelbrot=s=192x108:r=25,trim=duration=3,format=yuv420p"
    run_ffmpeg("-filter_complex", graph, "-c:v", "ffv1", file_url(path))
    return probe_source(path, ffmpeg=FFMPEG)


def opened(name: str, folder: Path) -> Workshop:
    metric = open_metric("psnr", ffmpeg=FFMPEG)
    return Workshop(SPECS[name], metric, Cache(folder), ffmpeg=FFMPEG)


def rendition_of(name: str, source: Source) -> Rendition:
    spec = SPECS[name]
    # the least size of hardware encoders, of which only the options are looked at
    if spec.hardware:
        source = replace(source, width=320, height=180)
    knob = spec.knob.snap(sum(spec.knob.search) / 2)
    return Rendition(source.width, source.height, name, knob, spec.presets[-1])


def highest(path: Path, name: str, source: Source) -> float:
    """The peak over any window of a second and any pair of key frames, by brute force."""
    packets = stream_packets(path, SPECS[name].codec, source.fps)
    frames = round(float(source.fps))
    windows = [packets[at : at + frames] for at in range(len(packets) - frames + 1)]
    keys = [at for at, packet in enumerate(packets) if packet.keyframe] + [len(packets)]
    runs = [packets[a:b] for a in keys for b in keys if b - a >= frames]
    rates = [
        sum(packet.size_bytes for packet in part) * 8 / 1000 / (len(part) / float(source.fps))
        for part in (*windows, *runs)
    ]
    return max(rates)


def mean(path: Path, name: str, source: Source) -> float:
    packets = stream_packets(path, SPECS[name].codec, source.fps)
    return sum(packet.size_bytes for packet in packets) * 8 / 1000 / source.duration_s


def kept(shop: Workshop, source: Source, plain: Encode, limit: PeakLimit) -> CappedEncode:
    excerpts = SceneExcerpts(source, shop.scratch, FFMPEG)
    return keep_title_peak(shop, source, plain, limit, excerpts)


@pytest.mark.parametrize("name", slow_but(ENCODERS, "libx264", "libsvtav1", "libxavs2"))
def test_a_burst_keeps_the_bound_by_every_encoder(
    name: str, bursty: Source, tmp_path: Path
) -> None:
    limit = PeakLimit(ratio=1.4)
    with opened(name, tmp_path) as shop:
        gop = bounded_gop_frames(limit, shop.spec, bursty.fps)
        assert gop == (None if shop.spec.buffer_model else 25)
        plain = shop.encode(bursty, replace(rendition_of(name, bursty), gop=gop))
        assert highest(plain.path, name, bursty) > 1.8 * mean(plain.path, name, bursty)
        found = kept(shop, bursty, plain, limit)
        assert found.kept and 1 <= found.frames / bursty.frames <= capping.MOST_TRIES
        path = found.encode.path
        assert highest(path, name, bursty) <= (1 + TOLERANCE) * 1.4 * mean(path, name, bursty)
        # key frames are where they were: a player may switch there to any other rung
        keys = [
            [p.keyframe for p in stream_packets(each, SPECS[name].codec, bursty.fps)]
            for each in (plain.path, path)
        ]
        assert keys[0] == keys[1]
        # the bytes are those of the arguments, whichever thread of the encoder came first
        parts: list[tuple[str, ...]] = [part.ffmpeg_args for part in found.scenes] or [()]
        again = [tmp_path / f"again{at}{SPECS[name].suffix}" for at in range(len(parts))]
        for out, own in zip(again, parts, strict=True):
            words = (*found.encode.ffmpeg_args, *own)
            run_ffmpeg("-i", file_url(bursty.path), *words, file_url(out))
        if found.scenes:
            spec, joined = SPECS[name], tmp_path / f"joined{SPECS[name].suffix}"
            join(again, bursty, joined, spec=spec, ffmpeg=FFMPEG, others=False)
            again = [joined]
        assert again[0].read_bytes() == path.read_bytes()
        # what was calm stays as it was
        if found.scenes:
            assert found.scenes[0].knob == plain.rendition.knob


@pytest.mark.parametrize("name", slow_but(TWO_PASS, "libx264"))
def test_two_passes_meet_the_mean_and_their_cap(name: str, bursty: Source, tmp_path: Path) -> None:
    with opened(name, tmp_path / "cache") as shop:
        asked = rendition_of(name, bursty)
        if name == "libsvtav1":
            # its quicker presets crash in the first pass of so small a picture
            asked = replace(asked, preset="8")
        plain = shop.encode(bursty, asked)
        goal = round(mean(plain.path, name, bursty))
        made = shop.encode(bursty, in_two_passes(plain.rendition, goal))
        # the others' rate control takes longer than five seconds of it to find their mean
        if SPECS[name].two_pass.cap:
            assert mean(made.path, name, bursty) == pytest.approx(goal, rel=0.1)
        assert shop.cost.encodes == 3
        limit = PeakLimit(ratio=1.6)
        assert measure_peaks(made.path, SPECS[name], bursty).over(limit) > 1
        found = keep_peak(shop, bursty, made, limit)
        path = found.encode.path
        if SPECS[name].two_pass.cap:
            assert highest(path, name, bursty) <= (1 + TOLERANCE) * 1.6 * mean(path, name, bursty)
        else:
            assert found.tries == 0
        again = tmp_path / f"again{SPECS[name].suffix}"
        for output in ((*found.encode.first_pass_args, "-"), (*found.encode.ffmpeg_args, again)):
            words = [str(word) for word in output]
            run_ffmpeg("-i", file_url(bursty.path), *words, cwd=tmp_path)
        assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["libx264", "libsvtav1"])
def test_a_peak_in_kbps_is_kept_too(name: str, bursty: Source, tmp_path: Path) -> None:
    with opened(name, tmp_path) as shop:
        plain = shop.encode(bursty, rendition_of(name, bursty))
        most = highest(plain.path, name, bursty) / 2
        # of a scene; of a title SVT-AV1 keeps it in parts
        found = keep_peak(shop, bursty, plain, PeakLimit(kbps=most))
        assert highest(found.encode.path, name, bursty) <= (1 + TOLERANCE) * most
        # not far below either: bits that are allowed are spent
        assert highest(found.encode.path, name, bursty) >= 0.5 * most
        title = kept(shop, bursty, plain, PeakLimit(kbps=most))
        assert highest(title.encode.path, name, bursty) <= (1 + TOLERANCE) * most
        assert bool(title.scenes) == (name == "libsvtav1")


def test_a_calm_title_is_not_encoded_again(calm: Source, tmp_path: Path) -> None:
    with opened("libx264", tmp_path) as shop:
        plain = shop.encode(calm, rendition_of("libx264", calm))
        found = keep_peak(shop, calm, plain, PeakLimit(ratio=2.0))
        assert found.encode is plain and found.tries == 0 and found.over <= 1
        assert shop.cost.encodes == 1


def test_what_no_cap_reaches_is_said(
    bursty: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # an encoder that takes the cap and heeds it not
    model = replace(SPECS["libx264"].buffer_model, options=(("metadata", "cap={kbps}"),))
    deaf = replace(SPECS["libx264"], buffer_model=model)
    monkeypatch.setattr("vqaloop.encoding.encode.get_encoder", lambda name: deaf)
    with opened("libx264", tmp_path) as shop:
        shop.spec = deaf
        plain = shop.encode(bursty, rendition_of("libx264", bursty))
        found = keep_peak(shop, bursty, plain, PeakLimit(ratio=1.5))
        assert not found.kept and found.over > 1 + TOLERANCE


def test_keys_without_a_cap_are_those_of_before(calm: Source) -> None:
    for name, spec in SPECS.items():
        plain = output_options(spec, rendition_of(name, calm), calm)
        assert not {"maxrate", "minrate", "bufsize", "qmin"} & plain.keys()
        if spec.buffer_model:
            capped = with_cap(rendition_of(name, calm), Cap(300, 150))
            assert output_options(spec, capped, calm)["maxrate"] == "300k"
            assert cap_of(capped) == Cap(300, 150) and cap_of(rendition_of(name, calm)) is None
        else:
            assert spec.buffer_model.cannot
            with pytest.raises(InputError, match="unknown parameter 'buffer'"):
                output_options(spec, with_cap(rendition_of(name, calm), Cap(300, 150)), calm)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"peak_ratio": 1.0}, "--peak-ratio 1 is no bound"),
        ({"peak_ratio": math.nan}, "--peak-ratio nan is no bound"),
        ({"max_peak": 0.0}, "--max-peak 0 is no bound"),
        ({"peak_ratio": 2.0, "buffer_s": 0.0}, "--buffer 0 s: 0.1 to 10 s are taken"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(options: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        peak_limit(PeakOptions(**options))


def test_the_next_knob_follows_what_was_seen() -> None:
    knob = SPECS["libvpx-vp9"].knob
    # alone: less quality for less, by whole steps
    assert next_knob(knob, {30.0: 200.0}, 100.0) == 37
    # halfway on a logarithmic scale between two of them, and never one that was too much already
    seen = {30.0: 200.0, 40.0: 50.0}
    assert next_knob(knob, seen, 100.0) == 35 and expected(knob, seen, 35.0) == 100.0
    assert next_knob(knob, {30.0: 103.0, 31.0: 101.0}, 100.0) == 32
    assert expected(knob, seen, 40.0) == 50.0 > expected(knob, seen, 44.0) > 20.0
    # at the end of its range there is none left
    assert next_knob(knob, {63.0: 200.0}, 100.0) == 63
    # what grows with quality grows with a knob of the other direction
    assert next_knob(replace(knob, lower_is_better=False), {30.0: 200.0}, 100.0) == 23


@pytest.mark.parametrize(
    ("fps", "usual", "frames"),
    [
        (Fraction(25), 50, 25),
        (Fraction(30000, 1001), 60, 30),
        # no fraction of these is about a second
        (Fraction(25, 2), 25, None),
        (Fraction(59, 2), 59, None),
    ],
)
def test_short_gops_divide_the_usual_ones(fps: Fraction, usual: int, frames: int | None) -> None:
    spec = SPECS["libsvtav1"]
    assert gop_frames(spec, fps) == usual
    assert bounded_gop_frames(PeakLimit(1.5), spec, fps) == frames
    # 2 is the default, and calm titles keep it with the usual ones
    assert bounded_gop_frames(PeakLimit(2.0), spec, fps) is None
    assert bounded_gop_frames(PeakLimit(1.5), SPECS["libx264"], fps) is None


def test_a_calm_title_keeps_a_bound_by_more_key_frames(calm: Source, tmp_path: Path) -> None:
    # of a still picture nearly all bits are the key frames'
    with opened("libsvtav1", tmp_path) as shop:
        still = replace(calm, path=tmp_path / "still.mkv")
        graph = "mandelbrot=s=192x108:r=25,trim=end_frame=1,loop=149:1:0,format=yuv420p,fps=25"
        run_ffmpeg("-filter_complex", graph, "-c:v", "ffv1", file_url(still.path))
        still = probe_source(still.path, ffmpeg=FFMPEG)
        plain = shop.encode(still, rendition_of("libsvtav1", still))
        limit = PeakLimit(ratio=1.15)
        assert measure_peaks(plain.path, shop.spec, still).over(limit) > 1.1
        found = kept(shop, still, plain, limit)
        assert found.kept
        packets = stream_packets(found.encode.path, "av1", still.fps)
        assert [at for at, p in enumerate(packets) if p.keyframe] == list(
            range(0, still.frames, 25)
        )


def test_what_nothing_keeps_is_left_as_it_was(bursty: Source, tmp_path: Path) -> None:
    # at its worst quality there is nothing to take away, and caps leave bursts alone
    weaker = make_bursty(tmp_path / "weaker.mkv", "192x108", 20, after_s=2)
    for source in (bursty, probe_source(weaker, ffmpeg=FFMPEG)):
        with opened("libx264", tmp_path) as shop:
            plain = shop.encode(source, replace(rendition_of("libx264", source), knob=51.0))
            limit = PeakLimit(ratio=1.05)
            over = measure_peaks(plain.path, shop.spec, source).over(limit)
            found = keep_peak(shop, source, plain, limit)
            assert not found.kept and found.tries and found.over <= over
    with opened("libsvtav1", tmp_path) as shop:
        plain = shop.encode(bursty, replace(rendition_of("libsvtav1", bursty), knob=70.0))
        over = measure_peaks(plain.path, shop.spec, bursty).over(limit)
        assert kept(shop, bursty, plain, limit).over <= over


def test_a_short_last_gop_is_not_taken_for_a_burst(calm: Source, tmp_path: Path) -> None:
    with opened("libsvtav1", tmp_path) as shop:
        tail = tmp_path / "tail.mkv"
        run_ffmpeg("-i", file_url(calm.path), "-frames:v", "51", "-c:v", "ffv1", file_url(tail))
        source = probe_source(tail, ffmpeg=FFMPEG)
        plain = shop.encode(source, rendition_of("libsvtav1", source))
        most = 0.7 * measure_peaks(plain.path, shop.spec, source).highest_kbps
        found = kept(shop, source, plain, PeakLimit(kbps=most))
        assert found.kept and found.scenes
        knobs = {scene.start_frame: scene.knob for scene in found.scenes}
        # one frame after the first GOP has a fraction of its bits
        assert knobs.get(50, min(knobs.values())) <= knobs[0]


def test_a_default_bound_is_none_that_was_asked_for() -> None:
    assert peak_limit(PeakOptions()) is None
    assert peak_limit(PeakOptions(), default_ratio=2.0) == PeakLimit(2.0, asked=False)
    assert peak_limit(PeakOptions(peak_ratio=1.5), default_ratio=2.0) == PeakLimit(1.5)


def seconds(*rates: int, keys: tuple[int, ...] = (0,)) -> Iterator[Packet]:
    """A packet every tenth of a second; `rates` are its bytes, one a second."""
    for at in range(10 * len(rates)):
        yield Packet(at / 10, rates[at // 10], at in keys)


def test_segments_are_whole_gops_of_a_second_at_least() -> None:
    packets = list(seconds(100, 100, 300, 100, 900, keys=(0, 20, 40, 45)))
    # the GOP from 4.0 to 4.5 s alone is too short: with its neighbours it counts
    assert segment_peak_kbps(packets, 5.0) == pytest.approx(72.0)
    assert peak_kbps(packets, 5.0) == pytest.approx(72.0)
    low = list(seconds(100, 100, 300, 100, keys=(0, 20)))
    assert segment_peak_kbps(low, 4.0) == pytest.approx(16.0)
    short = list(seconds(100, 100, 100, keys=(0, 20, 25)))
    short[25:] = [packet._replace(size_bytes=900) for packet in short[25:]]
    assert segment_peak_kbps(short, 3.0) == pytest.approx((5 * 100 + 5 * 900) * 8 / 1000)
    assert segment_peak_kbps(short[:5], 0.5) == pytest.approx(8.0)


def test_measured_peaks_are_those_of_brute_force(bursty: Source, tmp_path: Path) -> None:
    out = tmp_path / "a.mp4"
    encode(bursty, rendition_of("libx264", bursty), out, ffmpeg=FFMPEG)
    found = measure_peaks(out, SPECS["libx264"], bursty)
    assert found.highest_kbps == pytest.approx(highest(out, "libx264", bursty))
    assert found.mean_kbps == pytest.approx(mean(out, "libx264", bursty))
    assert os.path.getsize(out) * 8 / 1000 / bursty.duration_s > found.mean_kbps
    assert Fraction(25) == bursty.fps
